"""Explanations in an analysis and on the page: words by hand, places in texts, escaping, pictures, missing values."""

import re
import warnings
from pathlib import Path

import numpy as np
import pytest

from framework.data.tokenization.tokenizer import Tokenizer
from framework.tasks.explained_split import AttentionHeads, Faithfulness, RowExplanation, SplitExplanations
from framework.tracking.analysis.content import write_analysis
from framework.tracking.analysis.explanation_section import explanation_section, pieces_of
from framework.tracking.analysis.explanations import (
    EXPLANATIONS,
    decode_attention,
    explanation_values,
    located_words,
    words_that_decide,
)
from framework.tracking.analysis.report import draw_pictures, write_report
from tests.support.commands.in_process import tokenizer_folder, train_vocabulary
from tests.support.tracking.analyses import HOSTILE, analysis_of, labelled

__all__ = ["tokenizer_folder"]


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder) -> Tokenizer:
    return Tokenizer.from_folder(tokenizer_folder)


def explanation(tokenizer: Tokenizer, name: str, scores: list[float], *texts: str, row: int = 0) -> RowExplanation:
    """Returns an explanation of texts between special tokens, with one score for each token of theirs."""
    ids, words, token_scores = [tokenizer.cls_id], [-1], [0.0]
    given, word = iter(scores), -1
    for part in tokenizer.encode_batch(list(texts)):
        for number, token in enumerate(part.tolist()):
            word += bool(tokenizer.starts_word[token]) or number == 0
            ids.append(token)
            words.append(word)
            token_scores.append(next(given))
        ids.append(tokenizer.sep_id)
        words.append(-1)
        token_scores.append(0.0)
    return RowExplanation(row, name, 1.0, 0.0, np.array(ids), np.array(token_scores), np.array(words))


def test_words_have_the_mean_of_their_rows(tokenizer):
    rows = [
        explanation(tokenizer, "yes", [1.0, 0.5, 0.25], "good film good"),
        explanation(tokenizer, "yes", [0.25, 0.75], "good film"),
        explanation(tokenizer, "yes", [9.0, -0.5], "poor film"),
        explanation(tokenizer, "no", [2.0, -1.0], "bad film"),
    ]
    tables = words_that_decide(rows, tokenizer)
    # good: (1.0 + 0.25 and 0.25) / 2; film: (0.5 + 0.75 - 0.5) / 3. A word of a single row is no pattern.
    assert tables["yes"] == {"rows": 3, "raise": [["good", 0.75, 2], ["film", 0.25, 3]], "lower": []}
    # Unless there is no other word.
    assert tables["no"] == {"rows": 1, "raise": [["bad", 2.0, 1]], "lower": [["film", -1.0, 1]]}


def test_at_most_20_words_are_kept(tmp_path):
    words = [f"{first}{second}" for first in "abcde" for second in "vwxyz"]
    train_vocabulary([" ".join(words)] * 9, 99, tmp_path)
    tokenizer = Tokenizer.from_folder(tmp_path)
    rows = [explanation(tokenizer, "x", [1.0 + number for number in range(99)], " ".join(words))] * 2
    kept = words_that_decide(rows, tokenizer)["x"]["raise"]
    assert [word for word, _, _ in kept] == words[:4:-1]


def test_words_are_found_in_a_pair_and_in_a_truncated_text(tokenizer):
    pair = explanation(tokenizer, "yes", [0.1, 0.2, 0.3, 0.4], "A  good", "film, bad"[:4] + " bad")
    text = "A  good\nfilm bad"
    assert [(text[start:end], score) for start, end, score in located_words(pair, text, tokenizer)] == [
        *[("A", 0.1), ("good", 0.2), ("film", 0.3), ("bad", 0.4)]
    ]
    shown = text[:8] + " …"
    assert [shown[start:end] for start, end, _ in located_words(pair, shown, tokenizer)] == ["A", "good"]


def test_marks_in_the_text_are_no_words(tokenizer):
    marked = "a <e1>good</e1> film"
    row = explanation(tokenizer, "yes", [0.1, 0.2, 0.3], "a good film")
    assert [marked[start:end] for start, end, _ in located_words(row, marked, tokenizer)] == ["a", "good", "film"]


def test_pieces_join_to_the_text_and_end_at_its_cut():
    words = [(0, 1, 0.5), (3, 7, -1.0), (8, 12, 0.01)]
    pieces, is_longer = pieces_of("A  good film", words, 99)
    assert "".join(piece.text for piece in pieces) == "A  good film" and not is_longer
    assert [(piece.text, piece.share) for piece in pieces if piece.score] == [("A", 0.5), ("good", -1.0)]
    pieces, is_longer = pieces_of("A  good film", words, 9)
    assert "".join(piece.text for piece in pieces) == "A  good f" and is_longer


def explanations(tokenizer: Tokenizer, gain: float = 0.5, labels: tuple[str, ...] = ("a", "b")) -> SplitExplanations:
    row = explanation(tokenizer, labels[0], [0.5, -0.25], "good film")
    ones = np.ones((5, 3)) + np.arange(5)[:, None] / 10
    drops = Faithfulness("probability", (0.1, 0.2, 0.5), gain * ones, 0.1 * ones, 0 * ones, 0.2 * ones)
    probabilities = np.full((3, 4, 4), 0.25)
    heads = AttentionHeads(0, row.input_ids, [probabilities, probabilities])
    return SplitExplanations(labels, 12, 0.03, 5, [row] * 2, [row], drops, heads)


def written(folder: Path, tokenizer: Tokenizer, found: SplitExplanations | str, shows_texts: bool = True) -> str:
    """Writes an analysis with one example and explanations, and returns the page."""
    analysis = analysis_of(labelled(["a", "b"]), num_examples=int(shows_texts))
    for example in analysis["examples"]:
        example["text"] = f"good {HOSTILE} film"
    values = explanation_values(found, analysis["examples"], tokenizer, shows_texts)
    write_analysis(folder, "test", analysis | {EXPLANATIONS: values})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_pictures(folder)
        return write_report(folder).read_text(encoding="utf-8")


def test_the_page_shows_words_pictures_and_a_verdict(tmp_path, tokenizer):
    page = written(tmp_path, tokenizer, explanations(tokenizer))
    assert '<span class="raises" style="--share: 1.000" title="+0.500">good</span>' in page
    assert '<span class="lowers" style="--share: 0.500" title="-0.250">film</span>' in page
    assert "&lt;script&gt;" in page and "script" not in re.findall(r"<(\w+)", page)
    names = {path.stem for path in (tmp_path / "plots").glob("test_*.png")}
    assert {"test_comprehensiveness", "test_sufficiency", "test_attention", "test_attention_heads"} <= names
    assert "so the explanations name words that the model uses" in page
    assert "It is no reason for a prediction" in page


def test_tokens_that_no_font_has_are_numbered(tmp_path, tokenizer):
    found = explanations(tokenizer)
    assert "Tokens: 1" not in written(tmp_path, tokenizer, found)
    values = explanation_values(found, [{"text": "good film"}], tokenizer, True)
    values["attention"]["tokens"][1] = "\U0003fffd"  # no font has it
    write_analysis(tmp_path, "test", analysis_of(labelled(["a", "b"])) | {EXPLANATIONS: values | {"examples": []}})
    draw_pictures(tmp_path)
    assert "Tokens: 1 [CLS], 2 \U0003fffd, 3 film" in write_report(tmp_path).read_text(encoding="utf-8")


def test_explanations_that_are_no_better_than_random_are_reported(tmp_path, tokenizer):
    found = explanations(tokenizer, gain=0.0)
    assert "do not trust these explanations" in written(tmp_path, tokenizer, found)


def test_a_single_score_has_words_that_raise_and_words_that_lower_it(tokenizer):
    values = explanation_values(explanations(tokenizer, labels=("score",)), [{"text": "good film"}], tokenizer, True)
    words = explanation_section(Path("nowhere"), "test", "Test", values).parts[0]
    assert [(each.title, each.rows[0].word) for each in words.word_lists] == [
        *[("raise the score", "good"), ("lower the score", "film")]
    ]


def test_scores_without_common_names_have_no_lists(tokenizer):
    found = explanations(tokenizer, labels=("an answer",))
    found = SplitExplanations((), *[getattr(found, name) for name in list(found.__slots__)[1:]])
    values = explanation_values(found, [{"text": "good film"}], tokenizer, True)
    assert values["words"] == {} and values["examples"][0]["explained"] == "an answer"


def test_a_report_without_texts_shows_only_numbers(tmp_path, tokenizer):
    found = explanations(tokenizer)
    silent = SplitExplanations(*[getattr(found, name) for name in found.__slots__[:5]], [], found.faithfulness, None)
    page = written(tmp_path, tokenizer, silent, shows_texts=False)
    assert "good" not in page and "Words that decide" not in page and "Do these words decide?" in page


def test_a_reason_and_an_analysis_without_explanations(tmp_path, tokenizer):
    assert "Left out. There is a reason." in written(tmp_path, tokenizer, "There is a reason.")
    write_analysis(tmp_path, "test", analysis_of(labelled(["a", "b"])))
    draw_pictures(tmp_path)
    assert "explanations" not in write_report(tmp_path).read_text(encoding="utf-8")


def test_attention_is_kept_in_steps_of_one_255th(tokenizer):
    values = explanation_values(explanations(tokenizer), [{"text": "good film"}], tokenizer, True)["attention"]
    assert values["tokens"] == ["[CLS]", "good", "film", "[SEP]"]
    layers = decode_attention(values)
    assert len(layers) == 2
    assert all(layer.shape == (3, 4, 4) and np.abs(layer - 0.25).max() < 1 / 255 for layer in layers)
