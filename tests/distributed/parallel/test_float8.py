"""float8: where it is rejected, which linear layers it converts, and, with torchao, its emulated results."""

import functools
import importlib.util
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import nn

from framework.checkpoint.load import load_checkpoint
from framework.config.command import resolve_config
from framework.config.command_schema import PredictConfig
from framework.config.resolvers import conf_folder, register_resolvers
from framework.config.schema import TrainConfig
from framework.config.shared_schema import PrecisionConfig
from framework.distributed.parallel import parallelize as parallelize_module
from framework.distributed.parallel.float8 import apply_float8, check_float8, fits_float8
from framework.distributed.parallel.parallelize import weight_policy
from framework.distributed.parallel.precision import Precision, resolve_precision
from framework.errors import ConfigError
from framework.runs.build import build_settings
from tests.support.models.loading import save_checkpoint
from tests.support.models.tiny import Tiny, TinyModel, build, tiny_config

needs_torchao = pytest.mark.skipif(
    importlib.util.find_spec("torchao") is None, reason="torchao, an optional extra, is not installed"
)


def test_it_is_rejected_before_the_run_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[object] = [None]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found[0] if name == "torchao" else object())
    with pytest.raises(ConfigError, match=r"on the device type cpu\. It needs CUDA\. Use precision=bf16"):
        check_float8("cpu")
    for capability in ((8, 6), (8, 0), (7, 5)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda capability=capability: capability)
        with pytest.raises(ConfigError, match=rf"capability {capability[0]}\.{capability[1]}\. .* needs 8\.9 or newer"):
            check_float8("cuda")
    for capability in ((8, 9), (9, 0), (10, 0)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda capability=capability: capability)
        with pytest.raises(ConfigError, match=r"needs torchao.*pip install -e '\.\[float8\]'"):
            check_float8("cuda")
    found[0] = object()
    check_float8("cuda")
    assert resolve_precision("float8", "cuda").compute_dtype == torch.bfloat16


def settings(*overrides: str) -> TrainConfig:
    register_resolvers()
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        config = resolve_config(compose("train", ["experiment=pretrain_demo", *overrides]))
    return build_settings(config, world_size=1)


def test_the_config_knows_which_strategies_and_commands_have_which_precision() -> None:
    assert settings("precision=float8", "strategy=fsdp2").precision.name == "float8"
    config = settings("precision=fp16", "strategy=ddp", "precision.init_scale=1024", "precision.growth_interval=7")
    assert config.precision == PrecisionConfig("fp16", 1024.0, 7)
    with pytest.raises(
        ConfigError, match=r"strategy is fsdp2, but precision=fp16 supports only strategy=single or strategy=ddp.*bf16"
    ):
        settings("precision=fp16", "strategy=fsdp2")
    with pytest.raises(ConfigError, match=r"precision\.growth_interval` is 0"):
        settings("precision=fp16", "precision.growth_interval=0")
    for scale in (0.5, 1e39):
        with pytest.raises(ConfigError, match=r"precision\.init_scale` is .* between 1 and 2\^127"):
            settings("precision=fp16", f"precision.init_scale={scale}")
    with pytest.raises(ConfigError, match="float8, which is only for training"):
        PredictConfig(run="x", precision=PrecisionConfig("float8"), text="y")


@pytest.mark.parametrize(
    ("module", "fits"),
    [
        (nn.Linear(32, 96), True),
        (nn.Linear(32, 72), False),
        (nn.Linear(40, 32), False),
        (nn.Embedding(32, 32), False),
        (nn.LayerNorm(32), False),
    ],
)
def test_only_linear_layers_with_dimensions_of_16_are_converted(module: nn.Module, fits: bool) -> None:
    assert fits_float8(module) == fits


@needs_torchao
def test_layers_are_converted_and_nothing_else_under_the_same_names() -> None:
    with torch.device("meta"):
        model = TinyModel(tiny_config(False))
    before = dict(model.named_parameters())
    apply_float8(model.encoder.layers)
    after = dict(model.named_parameters())
    assert list(after) == list(before) and all(after[name] is before[name] for name in before)
    converted = [name for name, module in model.named_modules() if type(module).__name__ == "Float8Linear"]
    # 32 to 96 and 32 to 32; the feed-forward layers have 72.
    assert converted == [f"encoder.layers.{i}.attention.{part}" for i in range(2) for part in ("qkv", "output")]


def build_emulated(monkeypatch: pytest.MonkeyPatch) -> Tiny:
    monkeypatch.setattr(parallelize_module, "apply_float8", functools.partial(apply_float8, emulate=True))
    return build("single", precision="float8")


@needs_torchao
def test_emulated_steps_are_near_bf16_and_keep_fp32_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    emulated, plain_tiny = build_emulated(monkeypatch), build("single", precision="bf16")
    curves = [torch.tensor([tiny.step(step) for step in range(4)])[:, 0] for tiny in (emulated, plain_tiny)]
    torch.testing.assert_close(*curves, rtol=0, atol=2e-2)
    assert not torch.equal(*curves)
    assert {parameter.dtype for parameter in emulated.model.parameters()} == {torch.float32}


@needs_torchao
def test_a_float8_checkpoint_resumes_in_fp32(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    emulated, other = build_emulated(monkeypatch), build("single", seed=9)
    emulated.step(0)
    load_checkpoint(save_checkpoint(tmp_path, 1, emulated.model, emulated.optimizer, {}), other.model, other.optimizer)
    pairs = zip(emulated.model.parameters(), other.model.parameters(), strict=True)
    assert all(torch.equal(first, second) for first, second in pairs)
    assert weight_policy(Precision("float8")) == weight_policy(Precision("bf16"))
