"""Assembled runs on CUDA: captured steps have their recorder and fixed shapes, and others have a reason."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from framework.config.command import resolve_config
from framework.config.resolvers import conf_folder, register_resolvers
from framework.distributed.processes.environment import ProcessInfo
from framework.modules.passes.captured import CudaGraphs
from framework.runs.assembled_run import AssembledPhase
from framework.runs.assembly import assemble_run
from tests.support.training.tiny_run import arguments, make_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("data") / "store")


@pytest.fixture
def assemble(store, tmp_path, monkeypatch):
    monkeypatch.setattr("framework.runs.build.multiplies_bf16", lambda _: True)

    def run(*overrides: str, device: str = "cuda") -> AssembledPhase:
        register_resolvers()
        with initialize_config_dir(str(conf_folder()), version_base="1.3"):
            composed = compose("train", arguments(store, tmp_path, "one", "single", *overrides))
        return assemble_run(resolve_config(composed), ProcessInfo(), device).phases[0]

    return run


def test_a_run_on_cuda_is_captured_in_few_shapes(assemble):
    run = assemble("precision.name=bf16")
    assert run.module.build_graphs is CudaGraphs and run.graph_obstacle is None
    shapes = set()
    for step in run.data.train_dataloader():
        for batch in step.micro_batches:
            shapes.add((len(batch.input_ids), len(batch.sequence_ids), len(batch.targets["mlm_labels"])))
    assert 1 <= len(shapes) <= 3


def test_a_run_that_cannot_be_captured_has_a_reason(assemble):
    run = assemble()
    assert run.module.build_graphs is None
    assert run.graph_obstacle == "the precision is fp32 and not bf16"


@pytest.mark.parametrize(
    ("device", "overrides"), [("cuda", ["precision.name=bf16", "strategy.graph=false"]), ("cpu", [])]
)
def test_a_run_without_graphs_needs_no_reason(assemble, device, overrides):
    run = assemble(*overrides, device=device)
    assert run.module.build_graphs is None and run.graph_obstacle is None
