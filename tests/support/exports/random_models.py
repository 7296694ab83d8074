"""Models in which every value is random, and the same sequences packed and padded, to compare exports with."""

import torch

from framework.models.encoder import TransformerEncoder
from framework.tasks.pretraining.head import build_pretraining_head
from framework.tasks.sequence_classification.head import build_sequence_classification_head
from framework.tasks.task import TaskModel
from tests.support.exports.small_exports import CONFIGS
from tests.support.models import peers

TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}


def _randomize(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = 0.2 * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + noise if "norm.weight" in name else noise)
    return model


def random_model(config, head, seed=0):
    """Builds a TaskModel in which every value is random."""
    return _randomize(TaskModel(TransformerEncoder(config), head), seed)


def both_forms(family, lengths=peers.LENGTHS):
    ids = peers.sequences(lengths)
    token_types = peers.segments(ids) if family == "bert" else None
    return peers.pack(ids, token_types), peers.pad(ids, CONFIGS[family].pad_token_id, token_types)


def random_model_of_kind(config, kind, seed=0):
    """Builds a TaskModel of random values. `kind` is mlm, mlm+nsp, cls, mean, or cls+none (no projection)."""
    encoder = TransformerEncoder(config)
    if kind.startswith("mlm"):
        head = build_pretraining_head(encoder, config, nsp=kind.endswith("nsp"))
    else:
        pooling, _, projection = kind.partition("+")
        options = {"projection": projection} if projection else {}
        head = build_sequence_classification_head(config, len(peers.LABELS), pooling, **options)
    return _randomize(TaskModel(encoder, head), seed)
