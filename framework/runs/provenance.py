"""Provenance of the results of a run: code, library versions, command, hardware and data."""

import hashlib
import importlib.metadata
import json
import os
import platform
import shlex
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import framework
from framework.data.planning.plan import SequenceSource
from framework.data.reading.credentials import safe_argument
from framework.machine import usable_cores

LIBRARIES = (
    "torch",
    "lightning",
    "hydra-core",
    "omegaconf",
    "datasets",
    "tokenizers",
    "safetensors",
    "torchmetrics",
    "numpy",
)


def library_versions() -> dict[str, str]:
    """Returns the installed versions of Python and of the libraries that influence results."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in LIBRARIES}}


def code_commit() -> str:
    """Returns the commit of a checkout, with "+changes" if files differ from it; for an installed package its version.

    Images set the environment variable CLOZE_COMMIT to the commit from which their package was built.
    """
    root = Path(framework.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        commit = os.environ.get("CLOZE_COMMIT")
        return f"cloze {_package_version()}" + (f", commit {commit}" if commit else "")
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return commit + ("+changes" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return f"cloze {_package_version()}, commit unknown"


def code_fingerprint(package: Path) -> str:
    """Returns a hash of the Python files of a package, which identifies the code also on hosts without git."""
    digest = hashlib.blake2b(digest_size=6)
    for file in sorted(package.rglob("*.py")):
        digest.update(f"{file.relative_to(package)}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()


def _package_version() -> str:
    try:
        return importlib.metadata.version("cloze")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _git(root: Path, *arguments: str) -> str:
    result = subprocess.run(
        ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=10
    )
    return result.stdout.strip()


def provenance(fingerprints: Mapping[str, str], world_size: int) -> dict[str, Any]:
    """Returns the entry of one start of a run in provenance.json.

    Args:
        fingerprints: Fingerprints of the tokenizer and of the data.
        world_size: Number of processes.
    """
    return {
        "commit": code_commit(),
        "versions": library_versions(),
        "command": shlex.join([Path(sys.executable).name, *map(safe_argument, sys.orig_argv[1:])]),
        "working_folder": os.getcwd(),
        "host": socket.gethostname(),
        "hardware": hardware(),
        "world_size": world_size,
        "fingerprints": dict(fingerprints),
    }


def hardware() -> dict[str, Any]:
    """Returns the processor, the number of cores that this process may use, its torch threads, and the GPUs."""
    cores = usable_cores()
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {"processor": _processor(), "cores": cores, "torch_threads": torch.get_num_threads(), "gpus": gpus}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def data_fingerprint(sources: Mapping[str, SequenceSource]) -> str:
    """Returns a hash of the fingerprints of all splits."""
    digest = hashlib.blake2b(digest_size=16)
    for split, source in sorted(sources.items()):
        digest.update(f"{split} {source.fingerprint}\n".encode())
    return digest.hexdigest()


def facts_to_agree_on(config: Mapping[str, Any], fingerprints: Mapping[str, str]) -> dict[str, str]:
    """Returns short hashes that must agree on all ranks: of config, code, data and library versions."""
    facts = {"config": config, "data": dict(fingerprints), "library versions": library_versions()}
    hashed = {
        name: hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:12]
        for name, value in facts.items()
    }
    return {**hashed, "code": code_fingerprint(Path(framework.__file__).resolve().parent)}
