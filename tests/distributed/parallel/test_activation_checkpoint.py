"""Activation checkpointing: the same numbers and names in less memory, and the operations that are recomputed."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from framework.callbacks.cadence import Cadence
from framework.checkpoint.layout import newest_complete
from framework.checkpoint.load import load_checkpoint
from framework.config.identity import check_same_run
from framework.distributed.parallel.activation_checkpoint import ActivationCheckpointing, apply_activation_checkpointing
from framework.distributed.parallel.precision import Precision
from framework.errors import ConfigError
from framework.models.encoder import TransformerEncoder
from framework.nn import attention_backend
from framework.nn.dropout import dropout_base, token_keys
from framework.runs.build import Parts, build_module
from framework.runs.task_parts import build_model
from tests.support.models.fixed_shape import PACKS, fixed_shape_batch
from tests.support.models.loading import save_checkpoint
from tests.support.models.shapes import BERT
from tests.support.models.tiny import NUM_SEQUENCES, Tiny, TinyModel, build, full, make_batch, tiny_config
from tests.support.processes.collective_trace import CollectiveTrace
from tests.support.processes.workers import WorkerPool
from tests.support.training import toy_run
from tests.support.training.checkpointed_activations import EVERY_SECOND, FULL, NONE, SELECTIVE, composed

ALL = (NONE, FULL, SELECTIVE, EVERY_SECOND)

Results = list[Tensor]


def numbers(tiny: Tiny) -> Results:
    """Returns loss and norm of a complete step, then of a validation, then loss and all gradients of another step."""
    first = torch.tensor(tiny.step(0))
    tiny.evaluate(1)
    return [first, tiny.gradients(1), *(full(parameter.grad) for parameter in tiny.model.parameters())]


def run_numbers(strategy: str, modern: bool, precision: str) -> list[Results]:
    return [numbers(build(strategy, modern, precision=precision, checkpointing=settings)) for settings in ALL]


@pytest.mark.parametrize(
    ("strategy", "modern", "precision"),
    [
        *(("single", modern, precision) for modern in (False, True) for precision in ("fp32", "bf16")),
        ("ddp", True, "fp32"),
        ("ddp", False, "bf16"),
        ("fsdp2", False, "fp32"),
        ("fsdp2", False, "bf16"),
        ("fsdp2", True, "bf16"),
        ("tp", False, "fp32"),
        ("tp", True, "bf16"),
    ],
)
def test_no_number_changes_in_any_bit(workers: WorkerPool, strategy: str, modern: bool, precision: str) -> None:
    single = strategy == "single"
    ranks = (
        [run_numbers(strategy, modern, precision)]
        if single
        else workers.run(run_numbers, 2, strategy, modern, precision)
    )
    for expected, *others in ranks:
        assert sum(bool(value.any()) for value in expected) > 20, "gradients that are all zero prove nothing"
        for settings, found in zip(ALL[1:], others, strict=True):
            differing = [i for i, (a, b) in enumerate(zip(found, expected, strict=True)) if not torch.equal(a, b)]
            assert not differing, settings


def test_different_dropout_in_the_second_pass_would_be_detected() -> None:
    """The comparison of gradients is useful only if a wrong recomputation changes them."""
    gradients = []
    for wrong in (False, True):
        tiny = build("single", checkpointing=FULL)
        tiny.num_micro_batches = 1
        calls: Counter[str] = Counter()

        def turn_keys(module: Any, args: Any, kwargs: Any, wrong: bool = wrong, calls: Counter[str] = calls) -> Any:
            calls["all"] += 1
            hidden_states, keys = args
            return (hidden_states, keys + 1 if wrong and calls["all"] == 2 else keys), kwargs

        tiny.model.encoder.layers[0].attention_output_dropout.register_forward_pre_hook(turn_keys, with_kwargs=True)
        tiny.gradients(0)
        assert calls["all"] == 2
        gradients.append(tiny.model.get_parameter("encoder.layers.0.attention.output.weight").grad)
    assert not torch.equal(*gradients)


def run_collectives(strategy: str, precision: str) -> list[Counter[str]]:
    found = []
    for settings in (NONE, FULL, SELECTIVE):
        tiny = build(strategy, precision=precision, checkpointing=settings)
        with CollectiveTrace() as trace:
            tiny.gradients(0)
        found.append(trace.counts)
    return found


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_recomputation_does_not_gather_weights_again(workers: WorkerPool, strategy: str, precision: str) -> None:
    none, *others = workers.run(run_collectives, 2, strategy, precision)[0]
    assert none["allreduce"] >= 2
    assert others == [none, none]


def test_sums_over_ranks_are_kept_if_products_are(workers: WorkerPool) -> None:
    none, full_mode, selective = (calls["all_reduce"] for calls in workers.run(run_collectives, 2, "tp", "fp32")[0])
    # Three micro-batches, two layers, two sums.
    assert (full_mode - none, selective - none) == (3 * 2 * 2, 0)


class Storages(TorchDispatchMode):
    """Records the memory that operators allocate (weights and inputs come from outside), without keeping it alive."""

    def __init__(self) -> None:
        super().__init__()
        self._outside: set[int] = set()
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._outside |= {storage._cdata for storage in self._storages((args, kwargs))} - self._made.keys()
        out = func(*args, **(kwargs or {}))
        for storage in self._storages(out):
            if storage._cdata not in self._outside:
                self._made[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        return out

    def _storages(self, tree: Any) -> list[torch.UntypedStorage]:
        return [value.untyped_storage() for value in tree_leaves(tree) if isinstance(value, Tensor)]

    def alive_bytes(self) -> int:
        return sum(num_bytes for reference, num_bytes in self._made.values() if not reference.expired())


def kept_bytes_per_token(settings: ActivationCheckpointing, modern: bool, precision: str) -> float:
    """Returns the memory that the layers' forward pass keeps for the backward pass.

    Hooks on saved tensors would not see it: inside a checkpointed layer its own hooks come first, and the tensors that
    `selective` keeps are not saved tensors.
    """
    tiny = build("single", modern, precision=precision, checkpointing=settings)
    batch = make_batch(0, list(range(12)))
    keys = token_keys(dropout_base(7, 0, 0), batch)
    rotary = tiny.model.encoder._rotary(batch).get("global")
    hidden_states = tiny.model.encoder.embed(batch, keys)
    with torch.no_grad():  # attention caches its values for these lengths
        tiny.model.encoder.layers[0](hidden_states, batch, rotary, keys)
        with tiny.precision.autocast("cpu"):
            tiny.model.encoder.layers[0](hidden_states, batch, rotary, keys)
    with Storages() as storages, tiny.precision.autocast("cpu"):
        for layer in tiny.model.encoder.layers:
            hidden_states = layer(hidden_states, batch, rotary, keys)
    return storages.alive_bytes() / batch.num_tokens


@pytest.mark.parametrize(("precision", "item_bytes"), [("fp32", 4), ("bf16", 2)])
@pytest.mark.parametrize("modern", [False, True], ids=["bert", "modern"])
def test_the_kept_memory_is_as_documented(modern: bool, precision: str, item_bytes: int) -> None:
    config = tiny_config(modern)
    hidden, intermediate, layers = config.hidden_size, config.intermediate_size, config.num_layers
    none, selective, full_, second = (
        kept_bytes_per_token(settings, modern, precision) for settings in (NONE, SELECTIVE, FULL, EVERY_SECOND)
    )
    assert none > selective > full_
    assert full_ == layers * 4 * hidden, "each layer keeps its output in fp32, the input of the next one"
    # Queries, keys and values; the output projection; up (and gate); down.
    products = (3 + 1 + 1) * hidden + (2 if modern else 1) * intermediate
    # Mixed values, which short sequences have in fp32 and padded to a multiple of 8.
    batch = make_batch(0, list(range(12)))
    mixed = 4 * hidden * sum(-(-length // 8) * 8 for length in batch.lengths) / batch.num_tokens
    assert selective == pytest.approx(full_ + layers * (item_bytes * products + mixed), abs=0.001)
    assert selective < 0.6 * none
    # With the first of two layers checkpointed, half of the savings of full; layers are not quite equal.
    assert none - second == pytest.approx((none - full_) / 2, rel=0.1)


class Calls(TorchDispatchMode):
    """Counts operators by name."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names[str(func)] += 1
        return func(*args, **(kwargs or {}))


def test_a_layer_is_recomputed_only_if_configured_and_only_for_a_gradient() -> None:
    for settings, times in ((NONE, [1, 1]), (FULL, [2, 2]), (SELECTIVE, [2, 2]), (EVERY_SECOND, [2, 1])):
        tiny = build("single", checkpointing=settings)
        tiny.num_micro_batches = 1
        calls: Counter[int] = Counter()
        for index, layer in enumerate(tiny.model.encoder.layers):

            def count(module: Any, args: Any, index: int = index, calls: Counter[int] = calls) -> None:
                calls[index] += 1

            layer.attention.register_forward_pre_hook(count)
        tiny.evaluate(0)
        assert calls == {0: 1, 1: 1}, settings
        tiny.gradients(0)
        assert calls == {0: 1 + times[0], 1: 1 + times[1]}, settings


def calls_by_mode(operator: str) -> dict[str, int]:
    """Returns how often a forward and a backward pass call an operator."""
    found = {}
    for settings in (NONE, FULL, SELECTIVE):
        tiny = build("single", checkpointing=settings)
        tiny.num_micro_batches = 1
        with Calls() as calls:
            tiny.gradients(0)
        found[settings.mode] = calls.names[operator]
    return found


def test_selective_recomputes_no_matrix_product() -> None:
    found = calls_by_mode("aten.addmm.default")
    # Two layers of four linear layers with a bias, and two in the head; the backward pass itself uses mm.
    assert found == {"none": 2 * 4 + 2, "full": 2 * 2 * 4 + 2, "selective": 2 * 4 + 2}


def test_selective_attends_once_in_the_loop_over_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_backend, "_is_short", lambda x, lengths: False)
    found = calls_by_mode("aten._scaled_dot_product_flash_attention_for_cpu.default")
    assert found == {"none": 2 * NUM_SEQUENCES, "full": 2 * 2 * NUM_SEQUENCES, "selective": 2 * NUM_SEQUENCES}


def test_selective_attends_once_with_the_kernel_of_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_backend, "_has_varlen_kernel", lambda x: x.dtype == torch.bfloat16)
    found = {}
    for settings in (NONE, FULL, SELECTIVE):
        with FakeTensorMode():
            model = TransformerEncoder(BERT)
            apply_activation_checkpointing(model.layers, settings)
            batch = fixed_shape_batch(*PACKS[0], "cpu")
            with Calls() as calls, torch.autocast("cpu", torch.bfloat16):
                model(batch, token_keys(dropout_base(1, 2, 0), batch)).sum().backward()
        found[settings.mode] = calls.names["torch_attn._varlen_attn.default"]
    assert found == {"none": BERT.num_layers, "full": 2 * BERT.num_layers, "selective": BERT.num_layers}


def save_and_go_on(strategy: str, settings: ActivationCheckpointing, folder: str) -> list[tuple[float, float]]:
    tiny = build(strategy, checkpointing=settings)
    tiny.step(0)
    save_checkpoint(Path(folder), 1, tiny.model, tiny.optimizer, {})
    return [tiny.step(1)]


def load_and_go_on(strategy: str, settings: ActivationCheckpointing, folder: str) -> list[tuple[float, float]]:
    tiny = build(strategy, seed=99, checkpointing=settings)
    newest = newest_complete(Path(folder))
    assert newest is not None
    load_checkpoint(newest, tiny.model, tiny.optimizer)
    return [tiny.step(1)]


def test_a_checkpoint_does_not_depend_on_activation_checkpointing(workers: WorkerPool, tmp_path: Path) -> None:
    for number, (saver, loader) in enumerate(((FULL, NONE), (SELECTIVE, NONE), (NONE, FULL))):
        folder = str(tmp_path / str(number))
        expected = workers.run(save_and_go_on, 2, "fsdp2", saver, folder)
        assert workers.run(load_and_go_on, 2, "fsdp2", loader, folder) == expected
        alone = torch.tensor(load_and_go_on("single", loader, folder))
        torch.testing.assert_close(alone, torch.tensor(expected[0]), rtol=1e-5, atol=0)


def test_parameter_names_do_not_change() -> None:
    plain_model, model = TinyModel(tiny_config(False)), TinyModel(tiny_config(False))
    apply_activation_checkpointing(model.encoder.layers, FULL)
    assert [name for name, _ in model.named_modules()] == [name for name, _ in plain_model.named_modules()]
    assert list(model.state_dict()) == list(plain_model.state_dict())


def test_the_config_reaches_the_module_and_is_free_to_change() -> None:
    before, _ = composed()
    overrides = ("strategy.activation_checkpointing.mode=full", "strategy.activation_checkpointing.every_nth_layer=2")
    after, settings = composed(*overrides)
    check_same_run("runs/x", before, after)
    config, task = settings.model.build(vocab_size=100), settings.task.build()
    nothing: Any = None
    parts = Parts(nothing, config, task, {}, None, build_model(task, config), 8, 100, None, {})
    assert build_module(settings, parts, Precision("fp32"), "cpu").activation_checkpointing == EVERY_SECOND


def test_metrics_files_do_not_depend_on_it(tmp_path: Path) -> None:
    logs = []
    for settings in (NONE, FULL):
        module = toy_run.build_module()
        module.activation_checkpointing = settings
        folder = tmp_path / settings.mode
        toy_run.train(folder, cadence=Cadence(max_steps=3, log_every_n_steps=1), module=module)
        logs.append((folder / "metrics.jsonl").read_bytes())
        named_so = [type(layer).__name__ for layer in module.model.encoder.layers]
        assert named_so == [("Checkpointed" if settings is FULL else "") + "EncoderLayer"] * 2
    assert logs[0] == logs[1] and logs[0].count(b"\n") == 3


def test_wrong_settings_are_config_errors() -> None:
    with pytest.raises(ConfigError, match=r"every_nth_layer` is 0.*at least 1"):
        composed("strategy.activation_checkpointing.every_nth_layer=0")
    with pytest.raises(ConfigError, match=r"strategy\.activation_checkpointing\.mode.*none, full, selective"):
        composed("strategy.activation_checkpointing.mode=op")
