"""Relation extraction: marks and windows by hand and compared with a slow reference; head, loss, predictions."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from framework.batch import IGNORE_INDEX, PackedBatch
from framework.data.flat_source import FlatSource
from framework.data.planning.collate import FixedShape
from framework.data.planning.plan import StepSequences
from framework.data.reading.files import Reading
from framework.data.reading.rows import Row
from framework.data.tokenization.byte_level_training import ByteLevelBpeTraining
from framework.data.tokenization.tokenizer import Tokenizer
from framework.data.tokenization.word_counts import WordCounts
from framework.errors import ConfigError, DataError
from framework.nn.dropout import HashedDropout
from framework.tasks.relation_extraction.data import RelationData, RelationExample
from framework.tasks.relation_extraction.features import mark_entities, mark_ids, relation_source
from framework.tasks.relation_extraction.head import pool_entities
from framework.tasks.relation_extraction.marked_text import read_marked_text
from framework.tasks.relation_extraction.task import RelationExtractionTask
from framework.tasks.sequence_classification.head import SequenceClassificationHead

SPECIAL, LETTERS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], [*"abcdefghij", "##b", "##c"]
UNUSED = [f"[unused{number}]" for number in range(4)]
LABELS = ("In(e1,e2)", "In(e2,e1)", "Other")


def tokenizer_of(folder, *words: str) -> Tokenizer:
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join([*SPECIAL, *words]) + "\n")
    return Tokenizer.from_folder(folder)


@pytest.fixture
def tokenizer(tmp_path) -> Tokenizer:
    return tokenizer_of(tmp_path / "tokenizer", *UNUSED, *LETTERS)


@pytest.fixture
def task() -> RelationExtractionTask:
    task = RelationExtractionTask(max_length=10)
    task.restore({"labels": list(LABELS)})
    return task


def example(marked: str, label: str | None = "Other") -> RelationExample:
    return RelationExample("a place", read_marked_text("a place", marked), label)


def whole(source: FlatSource, shape: FixedShape | None = None) -> PackedBatch:
    items = np.arange(len(source))
    return source.build(StepSequences(np.zeros_like(items), items, items), 0, shape)


def words(tokenizer: Tokenizer, ids: torch.Tensor) -> str:
    names = {token_id: word for word, token_id in tokenizer.backend.get_vocab().items()}
    return " ".join(names[int(token_id)].replace("unused", "") for token_id in ids)


def test_a_micro_batch_by_hand(tokenizer):
    examples = [
        example("A <e1>bc</e1><e2>!</e2>", "In(e2,e1)"),
        example("a b <e2>c</e2> d e <e1>f g</e1> h i j", "In(e1,e2)"),
        example("a<e1>b</e1> <e2>j</e2>", None),
    ]
    source = relation_source(examples, LABELS, tokenizer, 12, Reading())
    batch = whole(source, FixedShape(40, 4, None, 12))
    assert [words(tokenizer, ids) for ids in batch.input_ids.split(batch.lengths)][:3] == [
        "[CLS] a [0] b ##c [1] [2] [UNK] [3] [SEP]",
        "[CLS] [2] c [3] d e [0] f g [1] h [SEP]",
        # A word is encoded as a unit; an entity within it begins with the piece that contains its first character.
        "[CLS] a [0] ##b [1] [2] j [3] [SEP]",
    ]
    # The sequences begin at 0, 10 and 22.
    assert batch.targets["entity_starts"].tolist()[:3] == [[2, 6], [16, 11], [24, 27]]
    assert batch.targets["entity_starts"].tolist()[3] == [IGNORE_INDEX] * 2
    assert batch.targets["labels"].tolist() == [1, 0, IGNORE_INDEX, IGNORE_INDEX]
    assert batch.counts == {"relation": 2.0}


def test_a_window_keeps_both_entities_and_as_much_context_as_fits():
    random = np.random.default_rng(0)
    ids, marks = np.arange(30, dtype=np.int32), (101, 102, 103, 104)
    for _ in range(500):
        edges = np.sort(random.choice(25, 4, replace=False) + random.integers(0, 6))
        first, second = (int(edges[0]), int(edges[1])), (int(edges[2] - random.integers(0, 2)), int(edges[3]))
        second = (max(second[0], first[1]), second[1])
        spans = (first, second) if random.integers(2) else (second, first)
        room = int(random.integers(1, 40))
        if second[1] - first[0] > room:
            with pytest.raises(DataError, match="from one entity to the end of the other"):
                mark_entities("a place", ids, spans, marks, room)
            continue
        marked, starts = mark_entities("a place", ids, spans, marks, room)
        actual = marked.tolist()
        assert [actual[start] for start in starts] == [101, 103]
        for (start, stop), opening, closing in zip(spans, (101, 103), (102, 104), strict=True):
            inside = actual[actual.index(opening) + 1 : actual.index(closing)]
            assert [each for each in inside if each < 100] == inside == list(range(start, stop))
        text = [each for each in actual if each < 100]
        assert text == list(range(text[0], text[-1] + 1)) and len(text) == min(room, 30)
        before, behind = first[0] - text[0], text[-1] + 1 - second[1]
        # Both sides have equal widths, unless the text ends there.
        assert abs(before - behind) <= 1 or (before < behind and text[0] == 0) or text[-1] == 29


def test_entities_that_do_not_fit_are_named_or_counted(task, tokenizer, tmp_path):
    far, near = "<e1>a</e1> b c d <e2>e</e2>", "j <e1>a</e1> b c <e2>e</e2> j"
    rows = [Row(4, 9, {"text": near})]
    assert len(task.build_source(rows, tokenizer)) == 1
    message = r"row 4 \(line 9\): from one entity to the end of the other there are 5 tokens, .* has room for 4"
    with pytest.raises(DataError, match=message):
        task.check_row(Row(4, 9, {"text": far}), tokenizer)
    with pytest.raises(DataError, match=r"row 1: </e2> occurs 0 times"):
        task.check_row(Row(1, None, {"text": "<e1>a</e1> <e2>b"}), tokenizer)
    path = tmp_path / "r.csv"
    path.write_text(f"text,label\n{near},Other\n{near},In\n{far},In\na<e1>\u0007</e1> <e2>b</e2>,In\n")
    with pytest.raises(DataError, match=r"r.csv, row 3 \(line 4\): from one entity"):
        RelationExtractionTask(max_length=10).build_sources(RelationData(str(path)), tokenizer, 0)
    sources = RelationExtractionTask(max_length=10).build_sources(
        RelationData(str(path), on_bad_row="skip"), tokenizer, 0
    )
    assert len(sources["train"]) == 2
    for text, fault in (
        ("<e1>\u0007</e1> <e2>b</e2>", "e1 has no token"),
        ("<e1>x</e1><e2>y</e2>", "'x' and 'y' share"),
    ):
        with pytest.raises(DataError, match=fault):
            relation_source([example(text)], LABELS, tokenizer, 10, Reading())


def test_marks_are_placeholders_or_else_punctuation(tokenizer, tmp_path):
    assert mark_ids(tokenizer) == (5, 6, 7, 8)
    signs = tokenizer_of(tmp_path / "signs", *UNUSED[:3], "#", "@", *LETTERS)
    assert mark_ids(signs) == (9, 9, 8, 8)
    with pytest.raises(ConfigError, match="no token '@'"):
        mark_ids(tokenizer_of(tmp_path / "none", *UNUSED[:3], "#", *LETTERS))
    training = ByteLevelBpeTraining(vocab_size=320)
    texts = ["the cat @ the dog # cat @ dog #"] * 9
    byte_level = training.train(WordCounts(training.count(texts)), tmp_path / "byte_level")
    source = relation_source([example("the <e1>dog</e1> the <e2>cat</e2>")], LABELS, byte_level, 32, Reading())
    batch = whole(source)
    assert byte_level.decode_batch([batch.input_ids.tolist()]) == ["the @ dog @ the # cat #"]
    assert byte_level.decode_batch([[int(each)] for each in batch.input_ids[batch.targets["entity_starts"][0]]]) == [
        " @",
        " #",
    ]


def test_head_loss_and_predictions(task, tokenizer):
    examples = [example("a <e1>b</e1> <e2>c</e2>", "In(e2,e1)"), example("<e2>b c</e2> d <e1>e</e1>", "Other")]
    source = relation_source(examples, LABELS, tokenizer, 12, Reading())
    batch = whole(source, FixedShape(24, 4, None, 12))
    torch.manual_seed(0)
    hidden_states = torch.randn(24, 6)
    head = SequenceClassificationHead(pool_entities, HashedDropout(0.5, "classifier"), torch.nn.Linear(12, 3))
    logits = head(hidden_states, batch)["logits"]
    # Sequence 0 is [CLS] a [E1] b [/E1] [E2] c [/E2] [SEP], and from 9 on [CLS] [E2] b c [/E2] d [E1] e [/E1] [SEP].
    expected = [head.classifier(torch.cat([hidden_states[i], hidden_states[j]])) for i, j in ((2, 5), (15, 10))]
    torch.testing.assert_close(logits[:2], torch.stack(expected))
    keys = torch.arange(24)
    assert not torch.equal(head(hidden_states, batch, keys)["logits"][:2], logits[:2])
    losses = task.sequence_losses({"logits": logits}, batch)
    by_hand = [-functional.log_softmax(logits[row], 0)[label] for row, label in ((0, 1), (1, 2))]
    torch.testing.assert_close(losses, torch.stack([*by_hand, torch.tensor(0.0), torch.tensor(0.0)]))
    torch.testing.assert_close(task.loss_sums({"logits": logits}, batch)["relation"], sum(by_hand))
    scores = torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 0.0], [9.0, 0.0, 0.0], [9.0, 0.0, 0.0]])
    predictions = task.assemble(source, task.decode({"logits": scores}, batch))
    assert [(row["label"], row["e1"], row["e2"]) for row in predictions] == [
        ("In(e2,e1)", "b", "c"),
        ("In(e1,e2)", "e", "b c"),
    ]
    assert predictions[0]["probabilities"] == pytest.approx(
        dict(zip(LABELS, scores[0].softmax(0).tolist(), strict=True))
    )
    metrics = task.build_metrics()
    task.update_metrics(metrics, {"logits": scores}, batch)
    assert metrics["accuracy"].compute().item() == 0.5
    # In: one of two predictions is right; one of one in the data.
    assert metrics["relation_f1"].compute().item() == pytest.approx(2 / 3)
    assert [row["label"] for row in task.class_table(metrics, source, [])] == ["In", "Other"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"max_length": 7}, "max_length is 7. It must be at least 8"), ({"classifier_dropout": 1.0}, "is 1.0. It must")],
)
def test_impossible_settings_are_rejected(arguments, message):
    with pytest.raises(ConfigError, match=message):
        RelationExtractionTask(**arguments)


def test_an_excluded_label_that_is_missing_is_reported(tokenizer, tmp_path):
    path = tmp_path / "r.csv"
    path.write_text("text,label\n<e1>a</e1> <e2>b</e2>,x\n<e1>c</e1> <e2>b</e2>,y\n")
    sources = RelationExtractionTask().build_sources(RelationData(str(path)), tokenizer, 0)
    assert "excluded_label is 'Other', which is not a label" in sources["train"].facts.warnings[0]
