"""Token classification: windows and alignment against slow references and transformers, from rows to entities."""

import numpy as np
import pytest
import torch
import transformers
from torch.nn import functional

from framework.batch import IGNORE_INDEX
from framework.data.flat_source import FlatSource
from framework.data.planning.collate import FixedShape
from framework.data.planning.plan import StepSequences
from framework.data.reading.rows import Row
from framework.data.tokenization.byte_level_training import ByteLevelBpeTraining
from framework.data.tokenization.tokenizer import Tokenizer
from framework.data.tokenization.word_counts import WordCounts
from framework.errors import ConfigError, DataError
from framework.modules.evaluation import SplitEvaluation
from framework.tasks.token_classification.data import TaggedData
from framework.tasks.token_classification.features import Example, encode_words, tagging_source
from framework.tasks.token_classification.task import TokenClassificationTask
from framework.tasks.token_classification.windows import split_windows
from tests.support.models import peers

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh", "##b", "##c", "中", "国"]
TAGS = ("O", "B-x", "I-x", "B-y", "I-y")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    return Tokenizer.from_folder(folder)


@pytest.fixture
def task() -> TokenClassificationTask:
    task = TokenClassificationTask(max_length=8, stride=3)
    task.restore({"labels": list(TAGS)})
    return task


def whole(source: FlatSource, shape: FixedShape | None = None):
    items = np.arange(len(source))
    return source.build(StepSequences(np.zeros_like(items), items, items), 0, shape)


def rows(*texts: str) -> list[Row]:
    return [Row(number, None, {"text": text}) for number, text in enumerate(texts, start=1)]


@pytest.mark.parametrize(("room", "stride"), [(6, 1), (6, 4), (9, 9), (40, 17)])
def test_each_word_is_predicted_in_the_window_with_most_context(room, stride):
    random = np.random.default_rng(room)
    for num_words in (0, 1, 5, 60):
        sizes = random.integers(1, 5, size=num_words)
        windows = split_windows(sizes, room, stride)
        ends = np.cumsum(sizes)
        spans = [(window.words.start, window.words.stop) for window in windows]
        assert all(sizes[start:stop].sum() <= room for start, stop in spans)
        predicted = [word for window in windows for word in range(num_words)[window.predicted]]
        assert predicted == list(range(num_words))
        for window in windows:
            for word in range(num_words)[window.predicted]:
                contexts = {
                    span: min(
                        ends[word] - sizes[word] - (ends[span[0]] - sizes[span[0]]), ends[span[1] - 1] - ends[word]
                    )
                    for span in spans
                    if span[0] <= word < span[1]
                }
                assert contexts[window.words.start, window.words.stop] == max(contexts.values())
        if num_words == 60:
            assert len(windows) > 1


def test_windows_by_hand():
    # Ten words of a token each in windows of 4 with a stride of 2: 0-3, 2-5, 4-7, 6-9.
    windows = split_windows(np.ones(10, dtype=np.int64), 4, 2)
    assert [(each.words.start, each.words.stop) for each in windows] == [(0, 4), (2, 6), (4, 8), (6, 10)]
    assert [(each.predicted.start, each.predicted.stop) for each in windows] == [(0, 3), (3, 5), (5, 7), (7, 10)]
    # Windows 0-3 and 1-4: the middle word has one token on its shorter side in both, so that the first window wins.
    windows = split_windows(np.ones(5, dtype=np.int64), 4, 1)
    assert [(each.predicted.start, each.predicted.stop) for each in windows] == [(0, 3), (3, 5)]


def test_a_micro_batch_by_hand(tokenizer):
    examples = [Example(["a", "bc", "\u0007", "e"], ["B-x", "I-x", "O", "B-y"]), Example(["中"], ["O"])]
    source = tagging_source(examples, TAGS, tokenizer, 9, 3)
    batch = whole(source, FixedShape(12, 3, None, 9))
    a, b, e, c, china = (VOCABULARY.index(piece) for piece in ("a", "b", "e", "##c", "中"))
    # The word of a control character has no pieces and becomes [UNK].
    assert batch.input_ids[:10].tolist() == [2, a, b, c, 1, e, 3, 2, china, 3]
    no = IGNORE_INDEX
    assert batch.targets["labels"].tolist() == [no, 1, 2, no, 0, 3, no, no, 0, no, no, no]
    assert batch.targets["is_word"].tolist() == [0, 1, 1, 0, 1, 1, 0, 0, 1, 0, 0, 0]
    assert batch.counts == {"tags": 5.0}


def test_a_long_sentence_is_predicted_once_over_its_windows(tokenizer):
    words = list("abcdefghab")
    tags = ["O", "B-x", "I-x", "B-y", "I-y", "O", "O", "B-x", "B-x", "B-y"]
    source = tagging_source([Example(words, tags)], TAGS, tokenizer, 6, 2)
    batch = whole(source)
    assert batch.lengths == (6, 6, 6, 6)
    labels = batch.targets["labels"]
    assert [TAGS[index] for index in labels[labels != IGNORE_INDEX]] == tags
    assert [VOCABULARY[index] for index in batch.input_ids[labels != IGNORE_INDEX]] == words
    assert batch.counts == {"tags": 10.0}


def test_a_word_longer_than_a_sequence_keeps_its_beginning(tokenizer):
    batch = whole(tagging_source([Example(["e", "a" + "b" * 40, "d"], ["O"] * 3)], TAGS, tokenizer, 7, 3))
    assert max(batch.lengths) == 7 and batch.counts == {"tags": 3.0}
    long = [ids.tolist() for ids in batch.input_ids.split(batch.lengths) if VOCABULARY.index("a") in ids]
    assert long == [[2, 5, *[VOCABULARY.index("##b")] * 4, 3]]


def test_words_are_encoded_as_transformers_encodes_lists_of_words(tmp_path):
    texts = ["The small cats sat, playing; naïve cafés!", "\ufe0f 东京 Ünder-achiever 3.14 @x_y"] * 3
    published = transformers.AutoTokenizer.from_pretrained(peers.minilm_folder())
    training = ByteLevelBpeTraining(vocab_size=300)
    byte_level = training.train(WordCounts(training.count(texts)), tmp_path)
    spaced = transformers.RobertaTokenizerFast.from_pretrained(tmp_path, add_prefix_space=True)
    for ours, theirs in ((Tokenizer.from_folder(peers.minilm_folder()), published), (byte_level, spaced)):
        for text in texts[:2]:
            words = text.split()
            expected = theirs(words, is_split_into_words=True, add_special_tokens=False)
            ids, actual = expected["input_ids"], expected.word_ids()
            for index, word in enumerate(words):
                pieces = [piece for piece, number in zip(ids, actual, strict=True) if number == index]
                assert encode_words([word], ours)[word].tolist() == (pieces or [ours.unk_id])


def test_loss_and_losses_of_sequences(task, tokenizer):
    examples = [Example(["a", "bc"], ["B-x", "I-x"]), Example(["e"], ["O"]), Example([], [])]
    batch = whole(tagging_source(examples, TAGS, tokenizer, 8, 3), FixedShape(20, 6, None, 8))
    logits = torch.randn(20, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    # [CLS] a b ##c [SEP] [CLS] e [SEP] [CLS] [SEP]
    losses = [-functional.log_softmax(logits[at], 0)[tag] for at, tag in ((1, 1), (2, 2), (6, 0))]
    loss = task.loss_sums({"logits": logits}, batch)["tags"]
    torch.testing.assert_close(loss, sum(losses))
    loss.backward()
    assert (logits.grad.abs().sum(1) > 0).nonzero()[:, 0].tolist() == [1, 2, 6]
    by_sequence = task.sequence_losses({"logits": logits}, batch)
    expected = torch.stack([(losses[0] + losses[1]) / 2, losses[2], *[torch.zeros(())] * (len(by_sequence) - 2)])
    torch.testing.assert_close(by_sequence, expected)
    assert len(by_sequence) == 6


def logits_for(tags: list[str], batch, sharpness: float = 9.0) -> torch.Tensor:
    """Returns scores for these tags, one for each word in the order of the batch."""
    logits = torch.zeros(len(batch.input_ids), len(TAGS))
    indices = (batch.targets["is_word"] > 0).nonzero()[:, 0]
    for number, tag in zip(indices.tolist(), tags, strict=True):
        logits[number, TAGS.index(tag)] = sharpness
    return logits


def test_rows_become_entities_with_their_offsets(task, tokenizer):
    # The first text has more words than a sequence; its entity crosses windows. Empty texts keep their row.
    source = task.build_source(rows("a b  c, (d) e f.", "", " \n", "中国 a"), tokenizer)
    batch = whole(source)
    assert len(source) > 4
    tags = ["O", "O", "B-x", "I-x", "I-x", "I-x", "O", "O", "B-y", "O", *["B-y", "I-y", "O"]]
    decoded = task.decode({"logits": logits_for(tags, batch)}, batch)
    assert len(decoded) == len(source)
    first, second, third, last = task.assemble(source, decoded)
    sure = pytest.approx(1 / (1 + 4 * np.exp(-9.0)), abs=1e-6)
    assert first["entities"] == [
        {"start": 5, "end": 10, "label": "x", "probability": sure, "text": "c, (d"},
        {"start": 14, "end": 15, "label": "y", "probability": sure, "text": "f"},
    ]
    assert second == third == {"entities": [], "tokens": [], "tags": []}
    assert first["tokens"] == ["a", "b", "c", ",", "(", "d", ")", "e", "f", "."] and first["tags"] == tags[:10]
    assert last["entities"] == [{"start": 0, "end": 2, "label": "y", "probability": sure, "text": "中国"}]


def test_words_keep_their_offsets(task, tokenizer):
    source = task.build_source([Row(1, None, {"tokens": '["a", "b c", "d"]'})], tokenizer)
    batch = whole(source)
    (row,) = task.assemble(source, task.decode({"logits": logits_for(["O", "B-x", "I-x"], batch)}, batch))
    (entity,) = row["entities"]
    assert (entity["start"], entity["end"], entity["text"]) == (1, 3, "b c d")
    assert (row["tokens"], row["tags"]) == (["a", "b c", "d"], ["O", "B-x", "I-x"])


@pytest.mark.parametrize("cell", ["[]", "a b", '["a", ""]', '["a", [1]]', '{"a": 1}', "["])
def test_invalid_words_are_named(task, tokenizer, cell):
    with pytest.raises(DataError, match=r"row 3 \(line 4\): 'tokens' is .* It must be a list of words"):
        task.check_row(Row(3, 4, {"tokens": cell}), tokenizer)


def test_predictions_never_violate_bio(task, tokenizer):
    source = task.build_source(rows("a b c d"), tokenizer)
    batch = whole(source)
    (row,) = task.assemble(source, task.decode({"logits": logits_for(["I-x", "I-x", "O", "I-y"], batch)}, batch))
    assert [(entity["start"], entity["end"], entity["label"]) for entity in row["entities"]] == [(0, 3, "x")]


def test_each_character_of_a_very_long_text_is_predicted_once(tokenizer):
    task = TokenClassificationTask(max_length=128, stride=64, units="characters")
    task.restore({"labels": list(TAGS)})
    text = "中国ab " * 20_000
    source = task.build_source(rows("a", text), tokenizer)
    tags = ["O", *["B-x", "I-x", "O", "O"] * 20_000]
    batch = whole(source)
    assert max(batch.lengths) <= 128
    _, row = task.assemble(source, task.decode({"logits": logits_for(tags, batch)}, batch))
    assert [entity["start"] for entity in row["entities"]] == list(range(0, 100_000, 5))
    assert {entity["text"] for entity in row["entities"]} == {"中国"}


def labelled(folder, task: TokenClassificationTask, tokenizer: Tokenizer):
    path = folder / "train.conll"
    path.write_text("a B-x\nb I-x\n\n" + "c O\nd B-y\ne O\nf B-x\ng I-x\nh I-x\na O\nb O\n\n" + "c B-y\nd O\n")
    return task.build_sources(TaggedData(str(path)), tokenizer, seed=0)["train"]


def test_scores_by_hand(tmp_path, tokenizer):
    task = TokenClassificationTask(max_length=8, stride=3)
    source = labelled(tmp_path, task, tokenizer)
    assert task.tags == TAGS and task.types == ("x", "y")
    batch = whole(source)
    # x right; y predicted as x, an x truncated; y right and one too many.
    tags = ["B-x", "I-x", *["O", "B-x", "O", "B-x", "I-x", "O", "O", "O"], "B-y", "B-y"]
    evaluation = SplitEvaluation(task, source, torch.device("cpu"))
    outputs = {"logits": logits_for(tags, batch)}
    evaluation.update(outputs, task.loss_sums(outputs, batch), batch)
    values = evaluation.compute()
    assert values["entity_precision"] == pytest.approx(2 / 5)
    assert values["entity_recall"] == pytest.approx(2 / 4)
    assert values["entity_f1"] == pytest.approx(4 / 9)
    # These tags satisfy BIO, so that the largest scores give them too.
    assert values["argmax_entity_f1"] == values["entity_f1"]
    assert values["token_accuracy"] == pytest.approx(9 / 12)
    assert evaluation.class_table() == [
        {"label": "x", "precision": 1 / 3, "recall": 1 / 2, "f1": 2 / 5, "predicted": 3, "entities": 2},
        {"label": "y", "precision": 1 / 2, "recall": 1 / 2, "f1": 1 / 2, "predicted": 2, "entities": 2},
    ]


def test_the_largest_scores_are_measured_without_the_rules_of_bio(tmp_path, tokenizer):
    task = TokenClassificationTask(max_length=8, stride=3)
    source = labelled(tmp_path, task, tokenizer)
    batch = whole(source)
    # The I-y in the first sentence follows an x: a further entity if the largest scores are used.
    tags = ["B-x", "I-y", *["O", "B-y", "O", "B-x", "I-x", "I-x", "O", "O"], "B-y", "O"]
    evaluation = SplitEvaluation(task, source, torch.device("cpu"))
    outputs = {"logits": logits_for(tags, batch)}
    evaluation.update(outputs, task.loss_sums(outputs, batch), batch)
    values = evaluation.compute()
    # 3 of 4 are right in any case; 5 are predicted without the rules.
    assert values["argmax_entity_f1"] == pytest.approx(2 * 3 / (4 + 5))
    assert values["entity_f1"] > values["argmax_entity_f1"]


def test_a_batch_without_sequences_decodes_to_nothing(task, tokenizer):
    none = np.zeros(0, dtype=np.int64)
    source = tagging_source([Example(["a"], ["O"])], TAGS, tokenizer, 8, 3)
    batch = source.build(StepSequences(none, none, none), 0)
    assert task.decode({"logits": torch.zeros(len(batch.input_ids), 5)}, batch) == []
    assert task.loss_sums({"logits": torch.zeros(len(batch.input_ids), 5)}, batch)["tags"].item() == 0.0


def test_the_record_keeps_the_values_for_prediction(task):
    assert task.to_record() == {"labels": list(TAGS), "max_length": 8, "stride": 3, "units": "words"}
    assert task.fields == ("text",)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_length": 2}, "max_length is 2"),
        ({"stride": 0}, "stride is 0"),
        ({"max_length": 10, "stride": 9}, "at most task.max_length - 2, here 8"),
        ({"classifier_dropout": 1.0}, "classifier_dropout is 1.0"),
    ],
)
def test_impossible_settings_are_rejected(arguments, message):
    with pytest.raises(ConfigError, match=message):
        TokenClassificationTask(**arguments)
