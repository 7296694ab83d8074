"""Tests of the files for Docker, Kubernetes and SkyPilot: valid by their schemas, with the same image and command."""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
KUBERNETES_VERSIONS = ("1.31", "1.33")
VERSION = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M).group(1)  # type: ignore[union-attr]


def program(name: str) -> str:
    found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def kubernetes() -> dict[str, Any]:
    text = (ROOT / "launch" / "cloud" / "kubernetes.yaml").read_text(encoding="utf-8")
    return {document["kind"]: document for document in yaml.safe_load_all(text)}


def test_dockerfile_is_clean_by_hadolint() -> None:
    done = subprocess.run(
        [program("hadolint"), str(ROOT / "docker" / "Dockerfile")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and done.stdout == "", done.stdout


def test_the_image_takes_what_the_build_context_lets_in() -> None:
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
    let_in = re.findall(r"^!(.*)$", (ROOT / ".dockerignore").read_text(encoding="utf-8"), re.M)
    copied = {word for line in re.findall(r"^COPY ((?!--from).*) \S+$", dockerfile, re.M) for word in line.split()}
    assert copied == set(let_in)
    assert all((ROOT / path).exists() for path in copied)


def test_compose_file() -> None:
    composed = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text(encoding="utf-8"))
    assert set(composed["services"]) == {"head", "guest"}
    assert composed["services"]["head"] == composed["services"]["guest"]
    assert composed["services"]["head"]["image"] == f"${{CLOZE_IMAGE:-cloze:{VERSION}}}"
    check_command(shlex.split(re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", composed["services"]["head"]["command"])))
    if shutil.which("docker-compose"):
        command = ["docker-compose", "--file", str(ROOT / "docker" / "compose.yaml"), "config", "--quiet"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def check_command(arguments: list[str]) -> None:
    """Checks that multi_node.sh accepts the arguments of the entry point."""
    assert arguments[0] == "multi_node"
    head = arguments.index("--head") + 1
    arguments = [*arguments[1:head], "127.0.0.1", *arguments[head + 1 :]]
    command = [str(ROOT / "launch" / "multi_node.sh"), "--dry-run", *arguments]
    done = subprocess.run(
        command, env=os.environ | {"PYTHON": sys.executable}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "--nnodes 2" in done.stdout and "-m framework.train experiment=pretrain_demo" in done.stdout


def test_kubernetes_manifest_is_valid() -> None:
    validate = pytest.importorskip("kubernetes_validate").validate
    for document in kubernetes().values():
        for version in KUBERNETES_VERSIONS:
            validate(document, version, strict=True)
    wrong = kubernetes()["Job"]
    wrong["spec"]["completionsMode"] = "Indexed"
    with pytest.raises(Exception, match="completionsMode"):
        validate(wrong, "1.33", strict=True)


def test_kubernetes_pods_find_each_other() -> None:
    service, job = kubernetes()["Service"], kubernetes()["Job"]
    pod, name = job["spec"]["template"]["spec"], job["metadata"]["name"]
    (container,) = pod["containers"]
    assert container["image"] == f"cloze:{VERSION}"
    check_command(container["args"])
    options = dict(zip(container["args"][1:-1:2], container["args"][2:-1:2], strict=True))
    assert int(options["--nodes"]) == job["spec"]["completions"] == job["spec"]["parallelism"]
    # Host names of an Indexed Job's pods in the headless service.
    assert pod["subdomain"] == service["metadata"]["name"] and service["spec"]["clusterIP"] == "None"
    assert options["--head"] == f"{name}-0.{pod['subdomain']}"
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": name}
    ignored = job["spec"]["podFailurePolicy"]["rules"][0]
    assert ignored["action"] == "Ignore" and ignored["onExitCodes"]["values"] == [int(options["--left-code"])]
    assert ignored["onExitCodes"]["containerName"] == container["name"]
    user = re.search(r"^USER (\d+):(\d+)$", (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8"), re.M)
    assert user is not None and pod["securityContext"]["runAsUser"] == int(user[1])
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


def test_skypilot_task() -> None:
    """Checks the used keys by hand, and by SkyPilot's own schema if it is installed."""
    task = yaml.safe_load((ROOT / "launch" / "cloud" / "skypilot.yaml").read_text(encoding="utf-8"))
    assert set(task) <= {"name", "num_nodes", "resources", "envs", "file_mounts", "setup", "run"}
    assert isinstance(task["num_nodes"], int) and task["num_nodes"] == 2
    assert set(task["resources"]) <= {"image_id", "accelerators", "use_spot", "job_recovery", "cpus", "memory", "infra"}
    assert task["resources"]["image_id"] == f"docker:cloze:{VERSION}"
    assert all(isinstance(value, str) for value in task["envs"].values())
    for path, mount in task["file_mounts"].items():
        assert (
            path.startswith("/cloze/")
            and set(mount) <= {"name", "source", "store", "mode"}
            and mount["mode"] == "MOUNT"
        )
    variables = {**task["envs"], "SKYPILOT_NODE_IPS": "10.0.0.5\n10.0.0.6", "SKYPILOT_NUM_NODES": "2"}
    script = task["run"].replace("exec env --chdir=/cloze /cloze/docker/entrypoint.sh", "printf '%s\\n'")
    done = subprocess.run(
        ["bash", "-euc", script], env=os.environ | variables, capture_output=True, text=True, check=True
    )
    arguments = done.stdout.splitlines()
    assert arguments[arguments.index("--head") + 1] == "10.0.0.5"
    check_command(arguments)
    if importlib.util.find_spec("sky") is not None:
        import jsonschema
        from sky.utils import schemas

        jsonschema.validate(task, schemas.get_task_schema())
        jsonschema.validate(task["resources"], schemas.get_resources_schema())


def test_the_entry_point_knows_every_command() -> None:
    entrypoint = (ROOT / "docker" / "entrypoint.sh").read_text(encoding="utf-8")
    known = set(re.findall(r"[a-z_]+", re.search(r"^    (prepare .*)\) set --", entrypoint, re.M).group(1)))  # type: ignore[union-attr]
    modules = {
        file.stem
        for file in (ROOT / "framework").glob("*.py")
        if 'if __name__ == "__main__"' in file.read_text(encoding="utf-8")
    }
    # torchrun.sh runs train. The launchers use machine.py and launch.py; __main__.py is the command `cloze`.
    assert known - {"report"} == modules - {"__main__", "train", "machine", "launch", "report"}
    assert "report" in known


def test_the_image_has_what_the_experiments_start_from() -> None:
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
    (weights,) = re.findall(r"^ARG WEIGHTS=(\S+)==(\S+)$", dockerfile, re.M)
    extras = re.search(r'^ARG EXTRAS="(.*)"$', dockerfile, re.M).group(1).split()  # type: ignore[union-attr]
    referenced = set()
    for file in (ROOT / "conf").rglob("*.yaml"):
        referenced |= set(
            re.findall(r"^[^#]*distribution_file:([^,}]+),[^,}]+,([^,}]+)", file.read_text(encoding="utf-8"), re.M)
        )
    packages = {
        tuple(re.split("==|>=", line))
        for extra in extras
        for line in tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
            "optional-dependencies"
        ][extra]
    }
    assert weights in referenced and referenced <= {weights, *packages}
