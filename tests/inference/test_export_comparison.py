"""The export of every kind of head is compared with the outputs of transformers."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from framework.data.tokenization.tokenizer import Tokenizer
from framework.errors import CheckpointError
from framework.exports.huggingface import export_huggingface
from framework.inference import export_comparison
from framework.inference.export_comparison import compare_with_transformers
from framework.tasks.pretraining.head import build_pretraining_head
from framework.tasks.question_answering.head import build_question_answering_head
from framework.tasks.sequence_classification.head import build_sequence_classification_head
from framework.tasks.token_classification.head import build_token_classification_head
from tests.support.exports.random_models import random_model
from tests.support.exports.small_exports import CONFIGS, make_tokenizer

HEADS = {
    "pretraining": lambda encoder, config: build_pretraining_head(encoder, config, nsp=True),
    "sequence_classification": lambda _, config: build_sequence_classification_head(config, 3, "mean"),
    "token_classification": lambda _, config: build_token_classification_head(config, 3, 0.1),
    "question_answering": lambda _, config: build_question_answering_head(config),
    "multiple_choice": lambda _, config: build_sequence_classification_head(config, 1, "mean"),
    "embedding": lambda *_: nn.Identity(),
}


@dataclass
class FakeTrained:
    """Attributes of a trained model that the comparison reads."""

    tokenizer: Tokenizer
    task: Any
    weights: Any


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("head_kind", HEADS)
def test_ids_and_outputs_equal_those_of_transformers(head_kind, family, tmp_path, monkeypatch):
    config = CONFIGS[family]
    torch.manual_seed(0)
    tokenizer = Tokenizer.from_folder(make_tokenizer(tmp_path, config.pad_token_id))
    model = random_model(config, nn.Identity())
    model.head = HEADS[head_kind](model.encoder, config)
    folder = tmp_path / "export"
    export_huggingface(folder, config, model.state_dict(), head_kind, tmp_path, {"pooling": "mean"})
    monkeypatch.setattr(export_comparison, "build_trained_model", lambda *_: model)
    trained = FakeTrained(tokenizer, SimpleNamespace(head_kind=head_kind), SimpleNamespace(config=config))
    assert compare_with_transformers(folder, trained).startswith("ids and outputs agree with transformers")


@pytest.mark.parametrize(("score", "other", "accepted"), [(2e-4, 1e-7, True), (2e-4, 2e-4, False), (30.0, 4e-3, False)])
def test_a_score_close_to_zero_may_differ_by_rounding(score, other, accepted, tmp_path):
    """fp32 rounds a sum of products of about 1 by 6e-8 each, however small the sum is."""
    theirs = torch.tensor([[score]])
    if accepted:
        export_comparison._check_same(tmp_path, nn.Identity(), theirs + other, theirs)
        return
    with pytest.raises(CheckpointError, match="outputs of Identity and Cloze differ by"):
        export_comparison._check_same(tmp_path, nn.Identity(), theirs + other, theirs)
