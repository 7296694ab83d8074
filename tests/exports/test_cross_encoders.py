"""Exports and published cross-encoders: other libraries and Cloze give a query and a document the same score."""

import json

import pytest
import torch
import transformers
from torch.testing import assert_close

from framework.data.reading.rows import Row
from framework.data.tokenization.tokenizer import Tokenizer
from framework.exports.huggingface import export_huggingface
from framework.exports.model_card import RunFacts
from framework.published.pretrained import load_pretrained
from framework.published.starting_head import describe_start, fit_head
from framework.tasks.explanation import one_item
from framework.tasks.reranking.task import RerankingTask
from framework.tasks.task import TaskModel
from tests.support.exports.random_models import TOLERANCE, both_forms, random_model
from tests.support.exports.small_exports import CONFIGS, load_peer
from tests.support.models import peers
from tests.support.models.loading import load_into

FACTS = RunFacts("one", {}, {}, {}, {}, predicts=True)
PREFIXES = {"bert": "Bert", "roberta": "Roberta", "modernbert": "ModernBert"}
QUERY, DOCUMENTS = "a b c", ["d e", "f g h a b c d e f g h a b c", "c"]


def scores_of(task: RerankingTask, model: TaskModel, tokenizer: Tokenizer) -> list[float]:
    row = Row(1, None, {"query": QUERY, "documents": json.dumps(DOCUMENTS)})
    source = task.build_source([row], tokenizer)
    batches = [one_item(source, item) for item in range(len(source))]
    return task.assemble(source, [task.decode(model(batch), batch)[0] for batch in batches])[0]["scores"]


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("family", PREFIXES)
@torch.no_grad()
def test_an_export_has_the_scores_of_the_run(family, pooling, tmp_path, tokenizer_dirs):
    config, task = CONFIGS[family], RerankingTask(max_length=16, pooling=pooling)
    model = random_model(config, torch.nn.Identity())
    model.head = task.build_head(model.encoder, config)
    folder = tmp_path / "export"
    record = task.to_record()
    export_huggingface(folder, config, model.state_dict(), task.head_kind, tokenizer_dirs[family], record, FACTS)
    peer, report = load_peer(transformers.AutoModelForSequenceClassification, folder)
    assert report == {} and peer.config.num_labels == 1
    batch, inputs = both_forms(family)
    assert_close(model.eval()(batch)["logits"], peer(**inputs).logits, **TOLERANCE)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "pipeline_tag: text-ranking" in card and "library_name: sentence-transformers" in card
    assert "input=queries.jsonl" in card and "import pipeline" not in card
    library = pytest.importorskip("sentence_transformers")
    encoder = library.CrossEncoder(str(folder), trust_remote_code=pooling == "mean", device="cpu")
    theirs = encoder.predict([(QUERY, document) for document in DOCUMENTS])
    ours = scores_of(task, model, Tokenizer.from_folder(folder))
    assert theirs.tolist() == pytest.approx(ours, abs=1e-5)


@pytest.mark.parametrize("family", PREFIXES)
@torch.no_grad()
def test_a_published_cross_encoder_starts_a_run(family, tmp_path, tokenizer_dirs):
    """Its config names no problem, and its only label has the default name."""
    peer = peers.peer(f"{PREFIXES[family]}ForSequenceClassification", family, num_labels=1).eval()
    peer.save_pretrained(tmp_path / "published")
    task = RerankingTask(max_length=16)
    weights = fit_head(load_pretrained(str(tmp_path / "published")), task.head_kind, task.to_record())
    model = random_model(weights.config, torch.nn.Identity(), seed=3)
    model.head = task.build_head(model.encoder, weights.config)
    assert load_into(model, weights) == []
    assert "head new" not in describe_start(model, weights)
    batch, inputs = both_forms(family)
    assert_close(model.eval()(batch)["logits"], peer(**inputs).logits, **TOLERANCE)
