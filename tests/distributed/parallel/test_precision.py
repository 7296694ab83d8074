"""The rule of precision."""

from collections import defaultdict
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from framework.distributed.parallel.activation_checkpoint import ActivationCheckpointing
from framework.distributed.parallel.parallelize import norm_policy, weight_policy
from framework.distributed.parallel.precision import Precision, multiplies_bf16, resolve_precision
from framework.errors import ConfigError
from framework.nn.dropout import dropout_base, token_keys
from tests.support.models.tiny import build, make_batch
from tests.support.processes.workers import WorkerPool


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
    assert resolve_precision("fp16", "cpu", 8.0, 5) == Precision("fp16", 8.0, 5)
    assert resolve_precision("fp16", "cpu").compute_dtype == torch.float16
    with pytest.raises(ConfigError, match=r"precision=fp8 is unknown\. Use one of fp32, bf16, fp16, float8, auto"):
        resolve_precision("fp8", "cpu")


def test_policies() -> None:
    bf16 = Precision("bf16")
    assert weight_policy(bf16).param_dtype == torch.bfloat16
    assert weight_policy(bf16).reduce_dtype == torch.float32
    assert norm_policy().param_dtype is None
    assert not weight_policy(bf16).cast_forward_inputs
    assert weight_policy(Precision("fp32")) == norm_policy()


def test_autocast_multiplies_in_bf16() -> None:
    a = torch.randn(4, 4)
    with Precision("bf16").autocast("cpu"):
        assert (a @ a).dtype == torch.bfloat16
    with Precision("fp32").autocast("cpu"):
        assert (a @ a).dtype == torch.float32


class CollectiveDtypes(TorchDispatchMode):
    """Records the dtypes that the operations of the process group move, by name; scalars are omitted."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: defaultdict[str, set[str]] = defaultdict(set)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor) and value.dim()]
            self.seen[func._schema.name.removeprefix("c10d::").strip("_")] |= {str(value.dtype) for value in tensors}
        return func(*args, **(kwargs or {}))


def run_collective_dtypes(strategy: str, precision: str) -> dict[str, set[str]]:
    tiny = build(strategy, precision=precision)
    with CollectiveDtypes() as dtypes:
        tiny.gradients(0)
    return dict(dtypes.seen)


def test_gradients_are_reduced_in_fp32_for_any_precision(workers: WorkerPool) -> None:
    for precision in ("bf16", "fp16"):
        assert workers.run(run_collective_dtypes, 2, "ddp", precision)[0] == {"allreduce": {"torch.float32"}}
    fsdp2 = workers.run(run_collective_dtypes, 2, "fsdp2", "bf16")[0]
    assert fsdp2["reduce_scatter_base"] == {"torch.float32"}
    # Weights travel in bf16, gathered into bytes; the norms' in fp32.
    assert fsdp2["allgather_base"] >= {"torch.bfloat16", "torch.float32"}


@pytest.mark.parametrize("mode", ["none", "full", "selective"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_two_passes_in_one_context_give_the_gradients_of_two_contexts(precision: str, mode: Any) -> None:
    """Losses that compare two passes over the same sequences need this."""
    gradients = []
    for together in (True, False):
        tiny = build("single", precision=precision, checkpointing=ActivationCheckpointing(mode))
        batch = make_batch(0, list(range(12)))
        keys = [token_keys(dropout_base(7, 0, number), batch) for number in range(2)]
        if together:
            with tiny.precision.autocast("cpu"):
                passes = [tiny.model(batch, key) for key in keys]
            sum(logits.float().square().mean() for logits in passes).backward()
        else:
            for key in keys:
                with tiny.precision.autocast("cpu"):
                    logits = tiny.model(batch, key)
                logits.float().square().mean().backward()
        # Sums of two terms, so that their order does not matter; the tied embedding's gradient is a sum of four.
        gradients.append({name: p.grad for name, p in tiny.model.encoder.layers.named_parameters()})
    first, second = gradients
    assert all(first[name].any() for name in first)
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
