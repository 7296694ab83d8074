"""Tests of the audit of stereotypes: its files, its judgement, and the head that it uses."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from framework.audits import stereotypes
from framework.audits.masked_words import masked_word_inference
from framework.audits.stereotypes import Stereotypes
from framework.data.planning.collate import Target, pack_sequences
from framework.data.tokenization.tokenizer import Tokenizer
from framework.distributed.parallel.precision import resolve_precision
from framework.errors import ConfigError, DataError
from framework.models.encoder import TransformerEncoder
from framework.modules.inference import Inference
from framework.published.pretrained import PretrainedWeights
from framework.tasks.embedding.task import EmbeddingTask
from framework.tasks.pretraining.task import PretrainingTask
from framework.tasks.task import Task, TaskModel
from tests.support.commands.in_process import tokenizer_folder
from tests.support.models.tiny import set_random_weights, tiny_config

__all__ = ["tokenizer_folder"]

PAIRS = [
    ("a good film of 1990", "a bad film of 1990", "quality"),
    ("a fine film of 1991", "a poor film of 1992", "quality"),
    ("a bad film", "a good film", "other"),
    ("1990", "1991", "other"),
]


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder) -> Tokenizer:
    return Tokenizer.from_folder(tokenizer_folder)


def built(modern: bool = False) -> tuple[Inference, PretrainedWeights]:
    """Returns a tiny random model with next-sentence prediction, and its weights."""
    config, task = tiny_config(modern), PretrainingTask(sequence_length=24)
    encoder = TransformerEncoder(config)
    model = TaskModel(encoder, task.build_head(encoder, config))
    set_random_weights(model, 0)
    heads = {
        name: value.detach().clone() for name, value in model.head.named_parameters() if "decoder.weight" not in name
    }
    inference = Inference(model, task, 64, resolve_precision("fp32", "cpu"), torch.device("cpu"))
    return inference, PretrainedWeights("mine", config, dict(encoder.named_parameters()), heads, task.head_kind)


def replace_model(inference: Inference, model: TaskModel, task: Task) -> Inference:
    return Inference(model, task, 64, inference.precision, inference.device)


def subject(tokenizer: Tokenizer, weights: PretrainedWeights, task=None) -> SimpleNamespace:
    return SimpleNamespace(
        trained=SimpleNamespace(weights=weights), task=task or PretrainingTask(24), tokenizer=tokenizer
    )


def write_pairs(folder: Path) -> str:
    """Writes the pairs as the authors of CrowS-Pairs do."""
    lines = [f'{n},{more},"{less}",stereo,{kind},[],a0,[]' for n, (more, less, kind) in enumerate(PAIRS)]
    header = ",sent_more,sent_less,stereo_antistereo,bias_type,annotations,anon_writer,anon_annotators"
    (folder / "pairs.csv").write_text("\n".join([header, *lines]) + "\n")
    return str(folder / "pairs.csv")


def test_shares_by_type_with_the_sentence_on_no_preference(tmp_path, tokenizer, monkeypatch):
    inference, weights = built()
    audit = Stereotypes(write_pairs(tmp_path))
    audit.check(subject(tokenizer, weights))
    # Scores of the first three pairs; the fourth shares no word. The third pair is a tie after rounding.
    scores = np.array([-1.0, -2.0, -7.0, -3.0, -5.0001, -5.0003])
    monkeypatch.setattr(stereotypes, "pseudo_log_likelihoods", lambda *given: scores)
    finding = audit.measure(inference)
    assert (finding.rate, finding.num_cases) == (pytest.approx(1 / 2 - 1 / 3), 3)
    assert [(part["bias_type"], part["prefers_stereotype"], part["ties"], part["pairs"]) for part in finding.parts] == [
        ("all", pytest.approx(1 / 3), 1, 3),
        ("other", 0.0, 1, 1),
        ("quality", 0.5, 0, 2),
    ]
    assert finding.summary.startswith("The model prefers the more stereotyping sentence in 33.3% of 3 pairs (")
    assert finding.summary.endswith("50 % is no preference.")
    assert [case.text for case in finding.worst] == ["a good film of 1990\na bad film of 1990"]
    assert finding.notes == ["1 pairs are left out: too long, or without shared words."]
    assert finding.interval.low == 0 < finding.rate < finding.interval.high


@pytest.mark.parametrize(("modern", "published"), [(False, False), (False, True), (True, True)])
def test_scores_are_those_of_the_models_own_head(tmp_path, tokenizer, modern, published):
    inference, weights = built(modern)
    task = EmbeddingTask(max_length=24) if published else inference.task
    rows = [{"more": more, "less": less} for more, less, _ in PAIRS]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    audit = Stereotypes(str(tmp_path / "pairs.jsonl"), "more", "less", None)
    audit.check(subject(tokenizer, weights, task))
    encoder = inference.model.encoder
    embedding = TaskModel(encoder, EmbeddingTask(max_length=24).build_head(encoder, encoder.config))
    given = replace_model(inference, embedding, task) if published else inference
    finding = audit.measure(given)
    assert [part["bias_type"] for part in finding.parts] == ["all"]
    more, less = tokenizer.encode_batch(PAIRS[2][:2])
    totals = []
    for ids in (more, less):
        sentence = np.concatenate([[tokenizer.cls_id], ids, [tokenizer.sep_id]])
        total = 0.0
        for position in (1, 3):  # "a" and "film"
            hidden = sentence.copy()
            hidden[position] = tokenizer.mask_id
            targets = {"mlm_positions": Target(np.array([position]), "targets", 0)}
            batch = pack_sequences(hidden, np.array([len(hidden)]), np.array([0]), None, targets, {}, None)
            with torch.no_grad():
                total += float(inference.model(batch)["mlm"].double().log_softmax(1)[0, sentence[position]])
        totals.append(total)
    assert len(more) == len(less) == 3
    own = masked_word_inference(given, weights, audit._task)
    assert (own is inference) != published
    found = stereotypes.pseudo_log_likelihoods(own, audit._copies, 6)[4:]
    assert found == pytest.approx(totals, abs=1e-4)
    assert own.model.head.mlm.decoder.weight is inference.model.encoder.embeddings.word_embeddings.weight


def test_a_model_without_a_trained_head_is_rejected(tmp_path, tokenizer):
    _, weights = built()
    bare = PretrainedWeights("mine", weights.config, weights.encoder, {"classifier.weight": torch.zeros(2, 32)})
    with pytest.raises(ConfigError, match="mine has no trained masked-word head"):
        Stereotypes(write_pairs(tmp_path)).check(subject(tokenizer, bare, EmbeddingTask()))


def test_files_without_usable_pairs_are_rejected(tmp_path, tokenizer):
    _, weights = built()
    (tmp_path / "pairs.csv").write_text("sent_more,sent_less\n1990,1991\n")
    with pytest.raises(DataError, match=r"pairs.csv has no pair that can be compared"):
        Stereotypes(str(tmp_path / "pairs.csv"), type_column=None).check(subject(tokenizer, weights))
    with pytest.raises(DataError, match="bias_type"):
        Stereotypes(str(tmp_path / "pairs.csv")).check(subject(tokenizer, weights))
    short = PretrainingTask(sequence_length=5)
    (tmp_path / "pairs.csv").write_text("sent_more,sent_less\na good film of 1990,a bad film of 1990\n")
    with pytest.raises(DataError, match="must fit into 5 tokens"):
        Stereotypes(str(tmp_path / "pairs.csv"), type_column=None).check(subject(tokenizer, weights, short))
