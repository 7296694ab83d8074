"""Layers with low-rank updates, or with only frozen layers below, are checkpointed and compiled like others."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from framework.distributed.parallel.activation_checkpoint import ActivationCheckpointing
from framework.distributed.parallel.materialization import materialize
from framework.distributed.parallel.parallelize import parallelize
from framework.distributed.parallel.precision import Precision
from framework.models.freezing import freeze, freeze_others
from framework.nn.cross_entropy import cross_entropy_sum
from framework.nn.dropout import dropout_base, token_keys
from framework.nn.initialization import initial_values
from framework.nn.lora import LORA_PARAMETERS, LoraSettings, apply_lora
from tests.support.models.tiny import TinyModel, make_batch, tiny_config

LORA = LoraSettings(rank=2, alpha=4.0, targets=("query", "value", "output", "up", "down"))


def gradients(kind: str, mode: Any = "none", backend: Any = "none") -> dict[str, Tensor]:
    """Returns the gradients of all trained parameters, from one batch in bf16."""
    torch._dynamo.reset()
    counters.clear()
    config = replace(tiny_config(modern=False), num_layers=4)
    with torch.device("meta"):
        model = TinyModel(config)
        if kind == "lora":
            apply_lora(model.encoder.layers, config.num_heads, LORA)
            freeze_others(model, (*LORA_PARAMETERS, "head.*"), "adapter.train_also")
        else:
            freeze(model, ("encoder.embeddings.*", "encoder.layers.[01].*"), "trainer.freeze")
    precision = Precision("bf16")
    parallelize(model, None, "single", precision, ActivationCheckpointing(mode), compile_backend=backend)  # type: ignore[arg-type]
    materialize(model, initial_values(model, config, 1), "cpu")
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("lora_b"):
                parameter.normal_(generator=generator)
    batch = make_batch(0, [0, 1, 2])
    with precision.autocast("cpu"):
        logits = model(batch, token_keys(dropout_base(7, 0, 0), batch))
    cross_entropy_sum(logits, batch.targets["labels"]).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize(
    ("kind", "mode", "backend"),
    [
        ("lora", "full", "none"),
        ("lora", "selective", "none"),
        ("lora", "selective", "aot_eager"),
        ("bottom", "full", "none"),
        ("bottom", "selective", "aot_eager"),
    ],
)
def test_gradients_are_those_of_plain_layers(kind: str, mode: str, backend: str):
    expected, found = gradients(kind), gradients(kind, mode, backend)
    assert found.keys() == expected.keys()
    assert all(value.any() for value in expected.values() if value.ndim == 2)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    # Equal layers share code. With updates the first layer has its own, as its input needs no gradient; of the others
    # those that are frozen, the first trained one and the rest have their own.
    assert counters["stats"]["unique_graphs"] == (0 if backend == "none" else {"lora": 2, "bottom": 3}[kind])
