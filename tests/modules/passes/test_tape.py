"""Gradient norms of the tape equal those of a loop of backward passes over single items."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from framework.batch import IGNORE_INDEX, PackedBatch
from framework.data.planning.collate import RoundedShape, Target, pack_sequences
from framework.errors import ConfigError
from framework.models.config import EncoderConfig
from framework.models.encoder import TransformerEncoder
from framework.models.freezing import freeze_others
from framework.modules.passes.gradient_squares import linear_squares
from framework.modules.passes.row_units import BatchUnits, RowUnits
from framework.modules.passes.tape import Tape
from framework.nn.dropout import dropout_base, token_keys
from framework.nn.lora import LORA_PARAMETERS, LoraSettings, apply_lora
from framework.tasks.pretraining.head import build_pretraining_head
from framework.tasks.sequence_classification.head import build_sequence_classification_head
from framework.tasks.task import TaskModel

VOCAB, LENGTHS = 61, (5, 1, 19, 3, 12, 2)
CLASSIFIER_ROWS = {"": "sequences"}
PRETRAINING_ROWS = {"mlm": "mlm_positions", "": "sequences"}
RMS = {
    "family": "neobert",
    "position_encoding": "rotary",
    "norm_placement": "pre",
    "norm": "rms",
    "gated": True,
    "type_vocab_size": 0,
    "bias": False,
    "norm_bias": False,
}
FAMILIES = {
    "rms": RMS,
    "bert": {"family": "bert"},
    "roberta": {"family": "roberta", "type_vocab_size": 1, "position_offset": 2, "pad_token_id": 1},
    "modernbert": {
        "family": "modernbert",
        "position_encoding": "rotary",
        "norm_placement": "pre",
        "gated": True,
        "type_vocab_size": 0,
        "bias": False,
        "norm_bias": False,
        "local_attention_window": 8,
        "global_attention_every": 2,
    },
}


RMS = {"family": "eurobert", "position_encoding": "rotary", "norm_placement": "pre", "input_norm": "first_layer"}
RMS |= {"norm": "rms", "norm_bias": False, "bias": False, "gated": True, "type_vocab_size": 0}
OTHERS = {
    "eurobert": RMS,
    "electra": {"family": "electra", "embedding_size": 16},
    "mpnet": {"family": "mpnet", "relative_bias": "bucketed"},
    "deberta-v2": {"family": "deberta-v2", "relative_bias": "disentangled"},
}


def build_model(family: str, head: str) -> TaskModel:
    config = EncoderConfig(
        vocab_size=VOCAB,
        hidden_size=24,
        num_layers=2,
        num_heads=4,
        intermediate_size=40,
        max_position_embeddings=32,
        **(FAMILIES | OTHERS)[family],
    )
    encoder = TransformerEncoder(config)
    built = (
        build_sequence_classification_head(config, 3, "mean")
        if head == "classifier"
        else build_pretraining_head(encoder, config, nsp=True)
    )
    model = TaskModel(encoder, built)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    return model


def pack(numbers: list[int], is_padded: bool) -> PackedBatch:
    """Packs sequences that are functions of their number; some words repeat within a sequence."""
    rngs = [np.random.default_rng(number) for number in numbers]
    lengths = np.array([LENGTHS[number % len(LENGTHS)] for number in numbers])
    ids = [rng.integers(0, VOCAB if length < 10 else 7, length) for rng, length in zip(rngs, lengths, strict=True)]
    picked = [
        np.sort(rng.choice(length, 1 + length // 3, replace=False)) for rng, length in zip(rngs, lengths, strict=True)
    ]
    starts = np.cumsum(lengths) - lengths
    targets = {
        "labels": Target(np.array([number % 3 for number in numbers]), "sequences"),
        "nsp_labels": Target(np.array([number % 2 for number in numbers]), "sequences"),
        "mlm_positions": Target(
            np.concatenate([p + start for p, start in zip(picked, starts, strict=True)]), "targets", 0
        ),
        "mlm_labels": Target(np.concatenate([i[p] for i, p in zip(ids, picked, strict=True)]), "targets"),
    }
    segments = [(np.arange(length) > length // 2).astype(np.int64) for length in lengths]
    return pack_sequences(
        np.concatenate(ids), lengths, np.array(numbers), np.concatenate(segments), targets, {},
        RoundedShape() if is_padded else None,
    )  # fmt: skip


def losses_of(model: TaskModel, batch: PackedBatch, head: str) -> torch.Tensor:
    outputs = model(batch, token_keys(dropout_base(3, 5, 0), batch))
    targets = batch.targets
    if head == "classifier":
        return cross_entropy(outputs["logits"], targets["labels"], ignore_index=IGNORE_INDEX, reduction="none")
    words = cross_entropy(outputs["mlm"], targets["mlm_labels"], ignore_index=IGNORE_INDEX, reduction="none")
    nsp = cross_entropy(outputs["nsp"], targets["nsp_labels"], ignore_index=IGNORE_INDEX, reduction="none")
    return nsp + BatchUnits(batch).of("mlm_positions").sums(words)


def norms_by_loop(model: TaskModel, numbers: list[int], head: str) -> torch.Tensor:
    norms = []
    for number in numbers:
        model.zero_grad()
        losses_of(model, pack([number], is_padded=False), head).sum().backward()
        grads = [each.grad for each in model.parameters() if each.grad is not None]
        norms.append(sum(grad.double().square().sum() for grad in grads) ** 0.5)
    model.zero_grad()
    return torch.stack(norms)


def norms_by_tape(model: TaskModel, batch: PackedBatch, head: str) -> torch.Tensor:
    tape = Tape(model, CLASSIFIER_ROWS if head == "classifier" else PRETRAINING_ROWS)
    with tape.recording() as recording:
        losses = losses_of(model, batch, head)
    units = BatchUnits(batch)
    norms = tape.differentiate(recording, losses, units, retain_graph=False).squares().sqrt()
    assert all(each.grad is None for each in model.parameters())
    assert units.num_real == batch.num_sequences
    return norms[: units.num_real]


@pytest.mark.parametrize("trained", ["all", "lora", "lora and embeddings", "head", "norms"])
@pytest.mark.parametrize("head", ["classifier", "words"])
@pytest.mark.parametrize("family", FAMILIES)
def test_norms_equal_a_loop_over_single_sequences(family, head, trained):
    model = build_model(family, head)
    if trained.startswith("lora"):
        apply_lora(model.encoder.layers, 4, LoraSettings(3, 6.0, ("query", "value", "output", "up")))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora" in name:
                    parameter.normal_(0, 0.3)
    patterns = {
        "all": ["*"],
        "lora": [*LORA_PARAMETERS, "head.*"],
        "lora and embeddings": [*LORA_PARAMETERS, "encoder.embeddings.*"],
        "head": ["head.*"],
        "norms": ["*norm*"],
    }
    freeze_others(model, patterns[trained], "test")
    numbers = [2, 0, 4, 1, 8, 5, 3]
    expected = norms_by_loop(model, numbers, head)
    for is_padded in (False, True):
        torch.testing.assert_close(norms_by_tape(model, pack(numbers, is_padded), head), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("family", "head"), [("eurobert", "classifier"), ("eurobert", "words"), ("electra", "classifier")]
)
def test_norms_with_rms_norms_an_own_decoder_or_projected_embeddings(family, head):
    model, numbers = build_model(family, head), [2, 0, 4]
    expected = norms_by_loop(model, numbers, head)
    ours = norms_by_tape(model, pack(numbers, is_padded=False), head)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("family", ["mpnet", "deberta-v2"])
def test_a_relative_bias_is_refused(family):
    with pytest.raises(ConfigError, match=r"`encoder\.relative_bias\.table` is trained, but \w+Bias has no rule"):
        Tape(build_model(family, "classifier"), CLASSIFIER_ROWS)


def test_both_ways_of_a_linear_layer_equal_the_gradient_itself():
    generator = torch.Generator().manual_seed(0)
    for num_in, num_out in ((4, 300), (64, 64), (2, 2)):
        index = torch.tensor([0] * 40 + [1] * 3 + [3] + [2] * 9)
        x, gradient = (torch.randn(len(index), width, generator=generator) for width in (num_in, num_out))
        expected = [(gradient[index == unit].T @ x[index == unit]).double().square().sum() for unit in range(5)]
        torch.testing.assert_close(
            linear_squares(x, gradient, RowUnits(index, 5)), torch.stack(expected), rtol=1e-5, atol=0
        )


def test_items_of_several_sequences_are_one_unit():
    model, sizes = build_model("bert", "classifier"), 2
    numbers = [2, 0, 4, 1]
    batch = pack(numbers, is_padded=True)
    grouped = PackedBatch(**{**{name: getattr(batch, name) for name in batch.__dataclass_fields__}, "group_size": sizes,
                             "sequence_ids": torch.tensor([6, 7, 2, 3] + [-1] * (len(batch.lengths) - 4))})  # fmt: skip
    tape = Tape(model, CLASSIFIER_ROWS)
    with tape.recording() as recording:
        outputs = model(grouped)["logits"]
    losses = cross_entropy(outputs, batch.targets["labels"], ignore_index=IGNORE_INDEX, reduction="none")
    units = BatchUnits(grouped)
    assert units.num_real == 2
    norms = tape.differentiate(recording, units.losses(losses), units, retain_graph=False).squares().sqrt()
    for item in range(2):
        model.zero_grad()
        one = pack(numbers[2 * item : 2 * item + 2], is_padded=False)
        cross_entropy(model(one)["logits"], one.targets["labels"], reduction="sum").backward()
        expected = sum(each.grad.double().square().sum() for each in model.parameters()) ** 0.5
        torch.testing.assert_close(norms[item], expected, rtol=1e-5, atol=0)


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(1))


class OtherLinear(nn.Linear):
    """Linear layer with another forward pass, which the rule of linear layers must not be used for."""


@pytest.mark.parametrize("module", [Scale(), OtherLinear(2, 2)])
def test_a_trained_module_without_a_rule_is_named(module):
    model = build_model("bert", "classifier")
    model.head.extra = module
    with pytest.raises(ConfigError, match=rf"`head\.extra\.\w+` is trained, but {type(module).__name__} has no rule"):
        Tape(model, CLASSIFIER_ROWS)
    module.requires_grad_(False)
    Tape(model, CLASSIFIER_ROWS)


def test_a_head_without_stated_rows_is_named():
    with pytest.raises(ConfigError, match=r"which rows of `head\.pooler\.dense` belong"):
        Tape(build_model("bert", "words"), {"mlm": "mlm_positions"})


def test_parameters_shared_without_a_rule_are_named():
    model = build_model("bert", "classifier")
    model.head.classifier.weight = model.head.pooler.dense.weight
    with pytest.raises(ConfigError, match="share a parameter"):
        Tape(model, CLASSIFIER_ROWS)


def test_trained_embeddings_of_pictures_are_refused():
    config = EncoderConfig(
        family="bert", vocab_size=VOCAB, hidden_size=24, num_layers=1, num_heads=4, intermediate_size=40,
        max_position_embeddings=32, patch_size=4,
    )  # fmt: skip
    model = TaskModel(TransformerEncoder(config), build_sequence_classification_head(config, 3, "mean"))
    with pytest.raises(ConfigError, match=r"`encoder\.embeddings` is trained, but it embeds pictures"):
        Tape(model, CLASSIFIER_ROWS)
    freeze_others(model, ["head.*"], "test")
    Tape(model, CLASSIFIER_ROWS)
