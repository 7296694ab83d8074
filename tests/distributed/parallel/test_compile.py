"""Compiled layers: the numbers, names and checkpoints of plain ones, and no compilation after the first step.

On the CPU real attention depends on the lengths on the host. Here layers compile with a slow attention that reads
`cu_seqlens` only, like the CUDA kernel. Plain runs use the real one.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor
from torch._dynamo.utils import counters
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import scaled_dot_product_attention

from framework.callbacks.cadence import Cadence
from framework.config.checks import check_device
from framework.config.identity import check_same_run
from framework.distributed.parallel.activation_checkpoint import ActivationCheckpointing, apply_activation_checkpointing
from framework.distributed.parallel.compile import apply_compile, resolve_compile
from framework.distributed.parallel.precision import Precision
from framework.errors import ConfigError
from framework.models.config import EncoderConfig
from framework.models.encoder import TransformerEncoder
from framework.nn import attention as attention_module
from framework.nn import attention_backend, dropout
from framework.nn.dropout import dropout_base, dropout_mask, token_keys
from framework.nn.rotary import apply_rotary
from framework.runs.build import Parts, build_module
from framework.runs.session import as_run
from framework.runs.task_parts import build_model
from tests.support.models.fixed_shape import PACKS, fixed_shape_batch
from tests.support.models.shapes import BERT, MODERN
from tests.support.processes.workers import WorkerPool
from tests.support.training import toy_run
from tests.support.training.checkpointed_activations import EVERY_SECOND, FULL, NONE, SELECTIVE, composed

Rows = list[dict[str, float]]
NUM_STEPS = 20
CADENCE = Cadence(max_steps=NUM_STEPS, log_every_n_steps=1, validate_every_n_steps=6)


def attention_by_offsets(
    qkv: Tensor, rotary: Any, cu_seqlens: Tensor, lengths: Any, max_seqlen: int, *, window: int | None = None
) -> Tensor:
    """Computes attention of all tokens to all; tokens of other sequences and outside the window are masked."""
    query, key, value = qkv.unbind(dim=2)
    if rotary is not None:
        query, key = apply_rotary(query, *rotary), apply_rotary(key, *rotary)
    indices = torch.arange(len(qkv), device=qkv.device)
    owners = torch.bucketize(indices, cu_seqlens[1:].long(), right=True)
    seen = owners[:, None] == owners[None, :]
    if window is not None:
        seen = seen & ((indices[:, None] - indices[None, :]).abs() <= window // 2)
    query, key, value = (part.transpose(0, 1)[None] for part in (query, key, value))
    return scaled_dot_product_attention(query, key, value, attn_mask=seen)[0].transpose(0, 1)


def run(
    folder: str,
    strategy: str,
    backend: str,
    checkpointing: ActivationCheckpointing,
    precision: str,
    cadence: Cadence = CADENCE,
) -> tuple[Rows, list[int], int]:
    """Makes a toy run; returns its rows, the number of graphs after each step, and graph breaks."""
    torch._dynamo.reset()
    counters.clear()
    made = []

    class Count(toy_run.pl.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            made.append(counters["stats"]["unique_graphs"])

    module = toy_run.build_module()
    module.compile_backend = backend  # type: ignore[assignment]
    module.activation_checkpointing = checkpointing
    module.runner.precision = Precision(precision)
    real = attention_module.self_attention
    if backend != "none":
        attention_module.self_attention = attention_by_offsets  # type: ignore[assignment]
    try:
        toy_run.train(Path(folder), strategy, cadence, 48, 9, module=module, extra_callbacks=(Count(),))
    finally:
        attention_module.self_attention = real
    rows = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return rows, made, sum(counters["graph_break"].values())


def assert_same_rows(found: Rows, expected: Rows, tolerance: float) -> None:
    assert len(found) == len(expected) > 0
    for row, other in zip(found, expected, strict=True):
        assert row.keys() == other.keys()
        assert row.get("train/tokens") == other.get("train/tokens"), "fillers are no tokens"
        torch.testing.assert_close(
            torch.tensor(list(row.values())), torch.tensor(list(other.values())), rtol=tolerance, atol=tolerance
        )


@pytest.mark.parametrize(
    ("checkpointing", "precision"),
    [(NONE, "fp32"), (FULL, "fp32"), (SELECTIVE, "fp32"), (EVERY_SECOND, "fp32"), (SELECTIVE, "bf16")],
)
def test_a_run_gives_the_same_numbers_and_compiles_only_in_its_first_steps(
    tmp_path: Path, checkpointing: ActivationCheckpointing, precision: str
) -> None:
    expected, none_made, _ = run(str(tmp_path / "plain"), "single", "none", checkpointing, precision)
    found, made, breaks = run(str(tmp_path / "compiled"), "single", "aot_eager", checkpointing, precision)
    assert_same_rows(found, expected, 1e-5 if precision == "fp32" else 2e-2)
    kinds = 2 if checkpointing == EVERY_SECOND else 1
    # Three budgets; the validation between them compiles nothing.
    assert len(made) == NUM_STEPS and none_made[-1] == 0 and made[-1] == 3 * kinds and breaks == 0
    assert len(set(made)) <= 3, "each of the shapes is compiled on its first use"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("strategy", "all_checkpointing"), [("ddp", [NONE]), ("fsdp2", [NONE, SELECTIVE, FULL]), ("tp", [NONE])]
)
def test_ranks_give_the_same_numbers(
    workers: WorkerPool,
    tmp_path: Path,
    strategy: str,
    all_checkpointing: list[ActivationCheckpointing],
    precision: str,
) -> None:
    """Compares with a plain run that keeps its activations: recomputing them changes no number."""
    cadence = Cadence(max_steps=8, log_every_n_steps=1, validate_every_n_steps=6)
    ((expected, _, _), _) = workers.run(run, 2, str(tmp_path / "plain"), strategy, "none", NONE, precision, cadence)
    assert len(expected) >= 8
    for number, checkpointing in enumerate(all_checkpointing):
        folder = str(tmp_path / str(number))
        compiled = workers.run(run, 2, folder, strategy, "aot_eager", checkpointing, precision, cadence)
        assert_same_rows(compiled[0][0], expected, 1e-5 if precision == "fp32" else 2e-2)
        for _, made, breaks in compiled:
            assert 1 <= made[-1] <= 3 and breaks == 0


def test_a_checkpoint_does_not_depend_on_compilation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cadence = Cadence(max_steps=6, log_every_n_steps=1, checkpoint_every_n_steps=3)
    monkeypatch.setattr(attention_module, "self_attention", attention_by_offsets)
    for name, first, second in (("plain", "none", "none"), ("off", "aot_eager", "none"), ("on", "none", "aot_eager")):
        folder = tmp_path / name
        for max_steps, backend in ((3, first), (6, second)):
            torch._dynamo.reset()
            module = toy_run.build_module()
            names = [name for name, _ in module.model.named_parameters()]
            module.compile_backend = backend  # type: ignore[assignment]
            checkpoint = folder / "checkpoints" / "step_00000003" if max_steps == 6 else None
            part = Cadence(max_steps=max_steps, log_every_n_steps=1, checkpoint_every_n_steps=3)
            toy_run.train(folder, cadence=part if max_steps == 3 else cadence, checkpoint=checkpoint, module=module)
            assert [name for name, _ in module.model.named_parameters()] == names
            assert list(module.model.state_dict()) == names
    rows = {
        name: [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("plain", "off", "on")
    }
    for name in ("off", "on"):
        for row, other in zip(rows[name], rows["plain"], strict=True):
            torch.testing.assert_close(torch.tensor(list(row.values())), torch.tensor(list(other.values())))


@pytest.mark.parametrize("checkpointing", [NONE, FULL, SELECTIVE], ids=["none", "full", "selective"])
@pytest.mark.parametrize(("config", "num_graphs"), [(BERT, 1), (MODERN, 3)], ids=["bert", "modernbert"])
def test_equal_layers_share_code_with_the_kernel_of_cuda(
    config: EncoderConfig, num_graphs: int, checkpointing: ActivationCheckpointing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MODERN has three kinds of layer: the first (without a norm of attention), local ones and global ones."""
    monkeypatch.setattr(attention_backend, "_has_varlen_kernel", lambda x: x.dtype == torch.bfloat16)
    torch._dynamo.reset()
    counters.clear()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    config = EncoderConfig(**{**vars(config), "num_layers": 10})
    with FakeTensorMode():
        model = TransformerEncoder(config)
        apply_activation_checkpointing(model.layers, checkpointing)
        apply_compile(model.layers, counter)
        for step, (lengths, num_sequences) in enumerate(PACKS):
            batch = fixed_shape_batch(lengths, num_sequences, "cpu")
            keys = token_keys(dropout_base(1, step, 0), batch)
            with torch.autocast("cpu", torch.bfloat16):
                out = model(batch, keys)
            out.sum().backward()
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                model(batch, None)
            assert out.shape == (128, config.hidden_size)
        assert all(parameter.grad is not None for parameter in model.layers.parameters())
    torch._dynamo.reset()
    assert counter.frame_count == num_graphs and not counters["graph_break"]


def test_one_shape_too_many_is_an_error_instead_of_slow_code() -> None:
    torch._dynamo.reset()
    layer = torch.nn.Linear(2, 2)
    apply_compile([layer], "aot_eager")
    sizes = range(1, 1 + torch._dynamo.config.recompile_limit)
    for size in sizes:
        layer(torch.ones(size, 2))
    with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
        layer(torch.ones(len(sizes) + 1, 2))
    torch._dynamo.reset()


def test_the_config_reaches_the_module_and_is_free_to_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("framework.runs.build.multiplies_bf16", lambda _: True)
    before, _ = composed()
    after, settings = composed("strategy.compile=inductor")
    check_same_run(str(tmp_path), before, after)
    config, task = settings.model.build(vocab_size=100), settings.task.build()
    nothing: Any = None
    parts = Parts(nothing, config, task, {}, None, build_model(task, config), 8, 100, None, {})
    assert build_module(settings, parts, Precision("bf16"), "cuda").compile_backend == "inductor"
    assert before["strategy"]["compile"] == "auto"
    assert as_run(before, parts, Precision("bf16"), "none")["strategy"] == before["strategy"] | {"compile": "none"}
    with pytest.raises(ConfigError, match=r"compile` is inductor, but the device is cpu and the precision is bf16"):
        check_device(settings, Precision("bf16"), "cpu")
    with pytest.raises(
        ConfigError, match=r"the device is cuda and the precision is fp32.*Set `strategy.compile` to none"
    ):
        check_device(settings, Precision("fp32"), "cuda")
    with pytest.raises(ConfigError, match=r"strategy\.compile.*none, inductor, aot_eager"):
        composed("strategy.compile=yes")


def resolved(**changes: Any) -> str:
    """Returns the backend of a run of pre-training on CUDA in bf16, with changes."""
    run_of = {"backend": "auto", "device_type": "cuda", "precision": Precision("bf16"), "strategy": "single"}
    return resolve_compile(**{**run_of, "saves_memory": False, "pretrains": True, **changes})


def test_pretraining_on_cuda_in_bf16_is_compiled_by_default() -> None:
    assert resolved() == resolved(strategy="fsdp2") == resolved(precision=Precision("float8")) == "inductor"
    for change in (
        {"device_type": "cpu"},
        {"precision": Precision("fp32")},
        {"precision": Precision("fp16")},
        {"strategy": "tp"},
        {"saves_memory": True},
        {"pretrains": False},
    ):
        assert resolved(**change) == "none", change
    assert resolved(backend="none") == "none" and resolved(backend="aot_eager", device_type="cpu") == "aot_eager"


@pytest.mark.skipif("CLOZE_INDUCTOR" not in os.environ, reason="set CLOZE_INDUCTOR=1: runs a C++ compiler, minutes")
def test_generated_code_draws_the_masks_of_eager_code(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = torch.arange(50) * 7919
    expected = dropout_mask(keys, 32, 3277, 11)
    for is_cpu in (True, False):
        torch._dynamo.reset()
        monkeypatch.setattr(dropout, "_is_little_endian_cpu", lambda x, is_cpu=is_cpu: is_cpu)
        compiled = torch.compile(dropout_mask, backend="inductor", fullgraph=True, dynamic=False)
        assert torch.equal(compiled(keys, 32, 3277, 11), expected)
