"""One rule of precision."""

import pytest
import torch

from framework.distributed.precision import Precision, multiplies_bf16, resolve_precision
from framework.errors import ConfigError


def test_auto_follows_the_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    for amx, avx, expected in ((False, False, "fp32"), (True, False, "bf16"), (False, True, "bf16")):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda avx=avx: avx)
        assert multiplies_bf16("cpu") == (expected == "bf16")
        assert resolve_precision("auto", "cpu") == Precision(expected)
    for capability, expected in (((7, 5), "fp32"), ((8, 0), "bf16"), ((9, 0), "bf16")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda capability=capability: capability)
        assert resolve_precision("auto", "cuda") == Precision(expected)


def test_named_precisions() -> None:
    assert resolve_precision("bf16", "cpu").compute_dtype == torch.bfloat16
    assert resolve_precision("fp32", "cpu").compute_dtype == torch.float32
    with pytest.raises(ConfigError, match="precision=fp8 is unknown; use one of fp32, bf16, auto"):
        resolve_precision("fp8", "cpu")


def test_policies() -> None:
    bf16 = Precision("bf16")
    assert bf16.weight_policy.param_dtype == torch.bfloat16
    assert bf16.weight_policy.reduce_dtype == torch.float32
    assert bf16.norm_policy.param_dtype is None
    assert not bf16.weight_policy.cast_forward_inputs
    assert Precision("fp32").weight_policy == Precision("fp32").norm_policy


def test_autocast_multiplies_in_bf16() -> None:
    a = torch.randn(4, 4)
    with Precision("bf16").autocast("cpu"):
        assert (a @ a).dtype == torch.bfloat16
    with Precision("fp32").autocast("cpu"):
        assert (a @ a).dtype == torch.float32
