"""The model card renders with any names in it, and its examples run for every kind of head."""

import re
from dataclasses import replace

import pytest
import torch
import yaml
from markdown_it import MarkdownIt
from torch import nn

from framework.exports.huggingface import export_huggingface
from framework.exports.model_card import ExportedModel, RunFacts, model_card
from framework.published.kinds import SEQUENCE_CLASSIFICATION, TOKEN_CLASSIFICATION
from framework.tasks.pretraining.head import build_pretraining_head
from framework.tasks.sequence_classification.head import build_sequence_classification_head
from framework.tracking.metric_names import describe
from tests.support.exports.random_models import random_model
from tests.support.exports.small_exports import CONFIGS
from tests.support.models.heads import ChoiceHead, SpanHead, TokenHead

FACTS = RunFacts(
    name="run_*1* <b>|",
    about={"data": "a|b_c_d", "weights": "step 3 `of` \\ [x](y)\n4"},
    training={"seed": "0"},
    metrics={},
    versions={"torch": "2.13.0"},
    base_model="some/body: #1",
)


def rendered(text: str) -> str:
    """Returns the HTML below the front matter."""
    return MarkdownIt("commonmark").enable("table").render(text.split("---\n", 2)[2])


def test_names_are_not_interpreted_as_markdown():
    labels = ["B-LOC", "a`b", "x|y", " ", "<i>"]
    model = ExportedModel(
        CONFIGS["bert"], "BertForTokenClassification", "token_classification", TOKEN_CLASSIFICATION, [], labels
    )
    text = model_card(model, FACTS)
    front = yaml.safe_load(text.split("---\n", 2)[1])
    assert front["base_model"] == "some/body: #1"
    html = rendered(text)
    assert "<h1>run_*1* &lt;b&gt;|</h1>" in html
    assert re.findall(r"<tr>\n<td>(.*)</td>\n<td>(.*)</td>\n</tr>", html) == [
        ("data", "a|b_c_d"),
        ("weights", "step 3 `of` \\ [x](y) 4"),
        ("seed", "0"),
        ("torch", "2.13.0"),
    ]
    assert re.findall("<code>(.*?)</code>", html.split("<h2>Labels</h2>")[1].split("</p>")[0]) == [
        "B-LOC", "a`b", "x|y", " ", "&lt;i&gt;",
    ]  # fmt: skip
    assert "no validation metrics of these weights" in html


def test_many_labels_are_counted():
    labels = [f"label {index}" for index in range(130)]
    model = ExportedModel(CONFIGS["bert"], "BertModel", "relation", None, ["classifier.weight"], labels)
    text = model_card(model, FACTS)
    assert "`label 99` and 30 more." in text and "`label 100`" not in text
    assert "pipeline_tag" not in yaml.safe_load(text.split("---\n", 2)[1])


def test_the_card_says_that_entities_of_other_libraries_differ():
    model = ExportedModel(CONFIGS["bert"], "BertForTokenClassification", "token_classification", TOKEN_CLASSIFICATION)
    label = describe("argmax_entity_f1").label
    text = model_card(model, replace(FACTS, metrics={label: "0.7895", describe("entity_f1").label: "0.8089"}))
    assert f"finds entities less accurately (above: {label})" in text
    assert f"| {label} | 0.7895 |" in text
    assert "finds entities less accurately. Use" in model_card(model, FACTS)


def test_our_own_class_is_loaded_with_its_code():
    name = "ClozeForSequenceClassification"
    text = model_card(ExportedModel(CONFIGS["bert"], name, "sequence_classification", SEQUENCE_CLASSIFICATION), FACTS)
    assert 'AutoModelForSequenceClassification.from_pretrained("path/to/this/folder", trust_remote_code=True)' in text
    assert 'AutoTokenizer.from_pretrained("path/to/this/folder", trust_remote_code=True)' in text


def make_head(head_kind, encoder, config):
    return {
        "pretraining": lambda: build_pretraining_head(encoder, config, nsp=False),
        "sequence_classification": lambda: build_sequence_classification_head(config, 3),
        "token_classification": lambda: TokenHead(config, 3),
        "question_answering": lambda: SpanHead(config),
        "multiple_choice": lambda: ChoiceHead(config),
        "embedding": nn.Identity,
        "relation": lambda: nn.ParameterDict({"classifier": torch.zeros(3, 64)}),
    }[head_kind]()


OUTPUTS = {
    "pretraining": ("logits", 3),
    "sequence_classification": ("logits", 2),
    "token_classification": ("logits", 3),
    "question_answering": ("start_logits", 2),
    "multiple_choice": ("logits", 2),
    "embedding": ("last_hidden_state", 3),
    "relation": ("last_hidden_state", 3),
}


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("head_kind", OUTPUTS)
def test_its_example_for_transformers_runs(head_kind, family, tmp_path, tokenizer_dirs):
    model = random_model(CONFIGS[family], nn.Identity())
    model.head = make_head(head_kind, model.encoder, CONFIGS[family])
    folder = tmp_path / "export"
    record = {"pooling": "cls"}
    export_huggingface(folder, CONFIGS[family], model.state_dict(), head_kind, tokenizer_dirs[family], record, FACTS)
    text = (folder / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text.replace("path/to/this/folder", str(folder)), re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(blocks[0], "card", "exec"), names)
    has_pipeline = head_kind in ("pretraining", "sequence_classification")
    assert ("import pipeline" in text) == has_pipeline
    if has_pipeline:
        # Longer than the model, which fails without truncation.
        exec(compile(blocks[1].replace("A ", "a " * 3 + "A ").replace('."', ' a" + " a" * 99'), "card", "exec"), names)
        assert len(names["predictions"]) >= 1
    output, dims = OUTPUTS[head_kind]
    assert getattr(names["outputs"], output).dim() == dims
    assert ("sentence_transformers import" in text) == (head_kind == "embedding")
