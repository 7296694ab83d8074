"""Question answering: head and loss compared with transformers, scores that do not depend on ranks."""

import os

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.testing import assert_close

from framework.batch import IGNORE_INDEX
from framework.data.planning.collate import FixedShape
from framework.data.planning.plan import StepPlan, StepSequences
from framework.data.reading.rows import Row
from framework.data.tokenization.tokenizer import Tokenizer
from framework.distributed.mesh import build_mesh, mesh_shape
from framework.errors import ConfigError, DataError
from framework.models.config import EncoderConfig
from framework.models.encoder import TransformerEncoder
from framework.modules.evaluation import SplitEvaluation
from framework.nn.initialization import initial_values
from framework.published.pretrained import load_pretrained
from framework.tasks.examination import ItemResults
from framework.tasks.question_answering.data import Answer, Question, QuestionData
from framework.tasks.question_answering.features import window_source
from framework.tasks.question_answering.head import build_question_answering_head
from framework.tasks.question_answering.task import QuestionAnsweringTask
from framework.tasks.task import TaskModel
from tests.support.models import peers
from tests.support.real_data import needs_real_data, real_data

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnop"]
TASK = {"max_length": 14, "stride": 4, "max_question_length": 3, "max_answer_length": 3, "n_best": 4}
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return Tokenizer.from_folder(folder)


def questions(number: int) -> list[Question]:
    """Returns contexts of one window and of several; one question of five has no answer."""
    random = np.random.default_rng(7)
    made = []
    for row in range(number):
        letters = random.choice(list("abcdefgh"), size=random.integers(1, 30))
        start = int(random.integers(len(letters)))
        text = " ".join(letters[start : start + 1 + row % 3])
        answers = () if row % 5 == 0 else (Answer(text, 2 * start),)
        made.append(Question("p", "o p", " ".join(letters), answers))
    return made


@pytest.mark.parametrize(
    ("class_name", "family"), [("BertForQuestionAnswering", "bert"), ("ModernBertForQuestionAnswering", "modernbert")]
)
def test_logits_and_loss_equal_those_of_transformers(tmp_path, class_name, family):
    peer = peers.peer(class_name, family)
    peer.save_pretrained(tmp_path)
    weights = load_pretrained(str(tmp_path))
    encoder, head = peers.encoder_of(weights), build_question_answering_head(weights.config)
    names = {"dense.weight": "transform.dense.weight", "norm.weight": "transform.norm.weight"}
    state = {names[name]: value for name, value in peer.head.state_dict().items()} if family == "modernbert" else {}
    last = peer.classifier if family == "modernbert" else peer.qa_outputs
    head.load_state_dict(state | {f"qa_outputs.{name}": value for name, value in last.state_dict().items()})

    ids = peers.sequences()
    batch = peers.pack(ids)
    outputs = TaskModel(encoder, head)(batch)
    starts, ends = torch.tensor([0, 7, 0, 22]), torch.tensor([3, 40, 0, 22])
    first = batch.cu_seqlens[:-1].long()
    batch.targets.update({"start_positions": first + starts, "end_positions": first + ends})
    losses = QuestionAnsweringTask().sequence_losses(outputs, batch)
    # One at a time: transformers computes its softmax over padding too.
    for index, one in enumerate(ids):
        expected = peer(input_ids=one[None], start_positions=starts[index, None], end_positions=ends[index, None])
        begin, end = batch.cu_seqlens[index], batch.cu_seqlens[index + 1]
        assert_close(outputs["start_logits"][begin:end], expected.start_logits[0], **TOLERANCE)
        assert_close(outputs["end_logits"][begin:end], expected.end_logits[0], **TOLERANCE)
        assert_close(losses[index], expected.loss, **TOLERANCE)


def test_the_loss_excludes_fillers_and_other_sequences(tokenizer):
    task = QuestionAnsweringTask(**TASK)
    source = window_source(questions(4), tokenizer, task.sizes)
    indices = np.arange(3)
    batch = source.build(StepSequences(indices * 0, indices, indices), 0, FixedShape(70, 8, None, 14))
    logits = torch.randn(2, 70, dtype=torch.bfloat16, requires_grad=True)
    outputs = {"start_logits": logits[0], "end_logits": logits[1]}
    losses = task.sequence_losses(outputs, batch)
    expected = torch.zeros(8)
    for edge, scores in zip(("start", "end"), logits.detach().float(), strict=True):
        for index, part in enumerate(scores.split(batch.lengths)[:3]):
            label = batch.targets[f"{edge}_positions"][index] - batch.cu_seqlens[index]
            expected[index] += functional.cross_entropy(part, label) / 2
    assert losses.dtype == torch.float32
    assert_close(losses.detach(), expected)
    (gradient,) = torch.autograd.grad(task.loss_sums(outputs, batch)["answer"], logits)
    assert gradient[:, batch.num_tokens :].abs().max() == 0
    assert gradient[:, : batch.num_tokens].isfinite().all() and gradient.abs().sum() > 0


def share_of_rank(world_size: int, folder: str) -> dict[str, float]:
    """Runs on each rank: its part of a split through a model with random weights."""
    tokenizer = Tokenizer.from_folder(folder)
    task = QuestionAnsweringTask(**TASK, no_answer_threshold=-0.02)
    config = EncoderConfig(
        family="bert",
        vocab_size=len(WORDS),
        hidden_size=16,
        num_layers=1,
        num_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
        initializer_range=0.5,
    )
    encoder = TransformerEncoder(config)
    model = TaskModel(encoder, task.build_head(encoder, config))
    with torch.no_grad():
        parameters = dict(model.named_parameters())
        for name, value in initial_values(model, config, seed=1):
            parameters[name].copy_(value())
    source = window_source(questions(30), tokenizer, task.sizes)
    plan = StepPlan(source, 0, 16, 64, num_ranks=world_size, shuffle=False)
    evaluation = SplitEvaluation(
        task, source, torch.device("cpu"), build_mesh("ddp", mesh_shape("ddp", world_size), "cpu")
    )
    with torch.inference_mode():
        for step in range(len(plan)):
            for share in plan.micro_batches(step, torch.distributed.get_rank()):
                batch = source.build(share, step)
                outputs = model(batch)
                evaluation.update(outputs, task.loss_sums(outputs, batch), batch)
    return evaluation.compute()


def test_scores_do_not_depend_on_ranks(workers, tokenizer):
    (alone,) = workers.run(share_of_rank, 1, 1, str(tokenizer.folder))
    assert alone.keys() == {"loss", "exact_match", "f1"} | {
        f"{kind}_answer_{name}" for kind in ("has", "no") for name in ("exact_match", "f1")
    }
    # Some of the answers are right and some are wrong, of both kinds.
    assert all(0 < value < 1 for name, value in alone.items() if name != "loss")
    for together in workers.run(share_of_rank, 2, 2, str(tokenizer.folder)):
        assert together == pytest.approx(alone, rel=1e-5)


def decode_spans(task: QuestionAnsweringTask, source, best: dict[int, tuple[int, int]]):
    """Decodes logits of some items that are highest at one span, given in tokens of the passage."""
    order = np.arange(len(source))[::-1].copy()
    batch = source.build(StepSequences(order * 0, order, order), 0)
    logits = torch.zeros(2, batch.num_tokens)
    for index, item in enumerate(order.tolist()):
        if item in best:
            begin = int(batch.targets["window_starts"][index]) - source.records[item].first
            logits[0, begin + best[item][0]] = logits[1, begin + best[item][1]] = 9.0
    decoded = task.decode({"start_logits": logits[0].bfloat16(), "end_logits": logits[1].bfloat16()}, batch)
    by_item = dict(zip(batch.item_indices(), decoded, strict=True))
    return [by_item[item] for item in range(len(source))]


def test_answers_are_taken_from_the_original_texts(tokenizer):
    task = QuestionAnsweringTask(**TASK)
    rows = [
        Row(1, 2, {"question": "o p", "context": "A  b\nc d É f g h i j k l"}),
        Row(2, 3, {"question": "o", "context": "a b"}),
    ]
    source = task.build_source(rows, tokenizer)
    assert [(window.row, window.first) for window in source.records] == [(0, 0), (0, 4), (1, 0)]
    decoded = decode_spans(task, source, {1: (4, 6), 2: (0, 1)})
    first, second = task.assemble(source, decoded)
    assert (first["answer"], first["start"], first["end"]) == ("É f g", 9, 14)
    assert (second["answer"], second["start"], second["end"]) == ("a b", 0, 3)
    assert len(first["n_best"]) == 4


def test_scores_of_a_split_by_hand(tokenizer):
    task = QuestionAnsweringTask(**TASK)
    questions = [
        Question("p", "o", "b c d", (Answer("b c", 0), Answer("c", 2))),
        Question("p", "o", "e f g", (Answer("g", 4),)),
    ]
    source = window_source(questions, tokenizer, task.sizes)
    # "c" is a true answer; "f g" has one word too many: F1 2 * 1 / 3.
    assert task.score(source, decode_spans(task, source, {0: (1, 1), 1: (1, 2)})) == pytest.approx(
        {"exact_match": 0.5, "f1": (1 + 2 / 3) / 2}
    )


def test_answers_without_an_offset_are_scored(tokenizer):
    task = QuestionAnsweringTask(**TASK)
    source = window_source([Question("p", "o", "b c d", (Answer("c", None, "a fault"),))], tokenizer, task.sizes)
    decoded = decode_spans(task, source, {0: (1, 1)})
    assert task.score(source, decoded)["exact_match"] == 1.0
    (row,) = task.examine(source, ItemResults(decoded, None, np.array([6]))).rows
    assert (row.expected, row.predicted) == ("c", "c")


def test_chinese_answers_that_are_counted_by_words_are_reported(tokenizer, tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text('{"question": "a", "context": "b 北京 c", "answers": [{"text": "北京", "answer_start": 2}]}\n')
    for unit, num_warnings in (("words", 1), ("characters", 0)):
        data = QuestionData(str(path), validation=str(path), answer_unit=unit)
        sources = QuestionAnsweringTask(**TASK).build_sources(data, tokenizer, seed=0)
        warnings = sources["validation"].facts.warnings
        assert len(warnings) == num_warnings
        assert all("Set data.answer_unit=characters" in warning for warning in warnings)


def test_the_data_report_counts_and_questions_without_answer(tokenizer, tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text('{"question": "a", "context": "b", "answers": []}\n')
    task = QuestionAnsweringTask(**TASK)
    sources = task.build_sources(QuestionData(str(path), answer_unit="characters"), tokenizer, seed=0)
    (warning,) = sources["train"].facts.warnings
    assert "1 questions of train have no answer, but no_answer_threshold is null" in warning
    assert (list(sources), task.answer_unit) == (["train"], "characters")
    assert task.to_record()["stride"] == 4 and task.fields == ("question", "context")


@pytest.mark.parametrize("name", ["question", "context"])
def test_an_empty_text_cannot_be_predicted(tokenizer, name):
    row = Row(3, 4, {"question": "a", "context": "b"} | {name: " \n"})
    with pytest.raises(DataError, match=rf"row 3 \(line 4\): '{name}' is empty"):
        QuestionAnsweringTask(**TASK).check_row(row, tokenizer)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stride": 0}, "stride is 0"),
        ({"max_question_length": 0}, "max_question_length is 0"),
        ({"max_answer_length": 0}, "max_answer_length is 0"),
        ({"n_best": 0}, "n_best is 0"),
        ({"max_length": 194}, "max_length=194 has room for 127 tokens of the context .* stride=128 would skip tokens"),
    ],
)
def test_impossible_settings_are_rejected(arguments, message):
    with pytest.raises(ConfigError, match=message):
        QuestionAnsweringTask(**arguments)
    assert QuestionAnsweringTask(max_length=195).sizes.stride == 128


def test_unlabelled_windows_add_no_loss(tokenizer):
    task = QuestionAnsweringTask(**TASK)
    source = task.build_source([Row(1, None, {"question": "a", "context": "b c"})], tokenizer)
    batch = source.build(StepSequences(*(np.zeros(1, dtype=np.int64),) * 3), 0)
    assert batch.targets["start_positions"].tolist() == [IGNORE_INDEX]
    logits = torch.randn(batch.num_tokens)
    assert task.loss_sums({"start_logits": logits, "end_logits": logits}, batch)["answer"].item() == 0.0


@needs_real_data
@pytest.mark.parametrize(("language", "unit", "wrong"), [("en", "words", 1), ("zh", "characters", 0)])
def test_true_positions_give_the_true_answers_of_real_questions(language, unit, wrong):
    """The positions pass through windows, offsets and scores; one English answer ends within a token."""
    task = QuestionAnsweringTask(max_answer_length=100)
    data = QuestionData(os.fspath(real_data(f"qa/xquad.{language}.json")), answer_unit=unit)
    source = task.build_sources(data, Tokenizer.from_folder(peers.minilm_folder()), seed=0)["train"]
    decoded = []
    for first in range(0, len(source), 64):
        items = np.arange(first, min(first + 64, len(source)))
        batch = source.build(StepSequences(items * 0, items, items), 0)
        logits = torch.zeros(2, batch.num_tokens)
        for row, edge in zip(logits, ("start", "end"), strict=True):
            row[batch.targets[f"{edge}_positions"]] = 9.0
        decoded += task.decode({"start_logits": logits[0], "end_logits": logits[1]}, batch)
    assert task.score(source, decoded)["exact_match"] == pytest.approx(1 - wrong / 1190)
