"""The callback that chooses the attention kernel; times are made up."""

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console

from framework.callbacks import attention_choice
from framework.callbacks.attention_choice import AttentionChoice
from framework.callbacks.cadence import Cadence
from framework.distributed.parallel.precision import Precision
from framework.errors import ConfigError
from framework.nn.attention_kernel import UnusableKernelError
from tests.support.training import toy_run

INFINITY = float("inf")


@pytest.mark.parametrize(
    ("seconds", "kernel"),
    [((0.004, 0.002, INFINITY), "flash3"), ((0.001, 0.002, INFINITY), "flash2"), ((INFINITY,) * 3, "flash2")],
)
def test_the_fastest_kernel_is_used_and_shown(seconds, kernel, tmp_path: Path, monkeypatch):
    used, output = [], io.StringIO()
    monkeypatch.setattr(attention_choice, "use_kernel", used.append)
    monkeypatch.setattr(AttentionChoice, "_time", lambda *_: list(seconds))
    choice = AttentionChoice("auto", Console(file=output))
    module = toy_run.build_module()
    module.runner.precision = Precision("bf16")
    toy_run.train(tmp_path, "single", Cadence(max_steps=1), 48, 9, module=module, extra_callbacks=(choice,))
    assert used == [kernel]
    assert output.getvalue().startswith(f"attention: {kernel} of ")
    assert ("flash3 2.00 ms" in output.getvalue()) == (seconds[1] == 0.002)


def test_a_kernel_of_the_config_must_be_usable(monkeypatch):
    def fail(name: str) -> None:
        raise UnusableKernelError(f"No module named {name}")

    monkeypatch.setattr(attention_choice, "use_kernel", fail)
    module = toy_run.build_module()
    module.runner.precision = Precision("bf16")
    with pytest.raises(ConfigError, match=r"`strategy\.attention` is flash3, which this machine cannot use: No module"):
        AttentionChoice("flash3").on_fit_start(None, module)


def test_the_pass_is_timed_in_the_largest_micro_batch(tmp_path: Path, monkeypatch):
    tokens = []

    def time_kernels(names, run, clock):
        tokens.append([len(tensor) for tensor in run()])
        return dict.fromkeys(names, INFINITY)

    monkeypatch.setattr(attention_choice, "time_kernels", time_kernels)
    monkeypatch.setattr(attention_choice, "use_kernel", lambda name: None)
    module = toy_run.build_module()
    module.runner.precision = Precision("bf16")
    choice = AttentionChoice("auto", Console(file=io.StringIO()))
    toy_run.train(tmp_path, "single", Cadence(max_steps=1), 48, 9, module=module, extra_callbacks=(choice,))
    layers = module.model.encoder.config.num_layers
    assert len(tokens[0]) == 2 * layers and 24 < tokens[0][0] <= 64
    assert module.precision.compute_dtype == torch.bfloat16
