"""Builds the section of a report with explanations: words that decide, faithfulness, attention; and coloured texts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from framework.tracking.analysis.fonts import font_for
from framework.tracking.analysis.page import Picture, Piece, Section, Table, WordList, WordRow

_FAINT = 0.05
"""Share of the strongest word below which a word has no colour."""

_MOST_LISTS = 12
"""Classes whose words are shown: those with the most explained rows."""

_COLUMNS = {
    "comprehensiveness": "comprehensiveness",
    "random_comprehensiveness": "random words",
    "sufficiency": "sufficiency",
    "random_sufficiency": "random words",
}
"""Columns of the table of faithfulness: key in the analysis, and heading."""

_CLEAR_ERRORS = 3.0
"""Standard errors by which a difference must exceed 0 to be called clear."""


def explanation_section(run_folder: Path, name: str, title: str, explanations: Mapping[str, Any]) -> Section:
    """Builds the section of the explanations of an analysis; without content if it has none.

    Args:
        run_folder: Run folder, which has the pictures in `plots/`.
        name: Name of the analysis.
        title: Heading of the analysis.
        explanations: Values of `framework.tracking.analysis.explanations`; empty: the analysis has none.
    """
    identity, heading = f"{name}-explanations", f"{title}: explanations"
    if not explanations:
        return Section(identity, heading)
    if "omitted" in explanations:
        return Section(identity, heading, details=f"Left out. {explanations['omitted']}")
    details = (
        f"{explanations['rows']:,} evenly spaced rows, explained by integrated gradients (Sundararajan et al. 2017) "
        f"with {explanations['steps']} points. A score is the part of a word in the score of the prediction, compared "
        f"with a text in which every word is masked. Median error of the sums: {explanations['error']:.1%}."
    )
    parts = [
        _words(explanations["words"], explanations["labels"]),
        _faithfulness(run_folder, name, explanations["faithfulness"]),
        _attention(run_folder, name, explanations["attention"]),
    ]
    return Section(identity, heading, details=details, parts=[part for part in parts if part.has_content])


def pieces_of(text: str, words: Sequence[Sequence[Any]], length: int) -> tuple[list[Piece], bool]:
    """Splits a text into its words, with their scores relative to the strongest word, and the text between them.

    Args:
        text: Text.
        words: Start, end and score of each word, ascending.
        length: Number of characters to return.

    Returns:
        The pieces of the first characters, and True if the text is longer.
    """
    strongest = max((abs(score) for _, _, score in words), default=0.0) or 1.0
    pieces: list[Piece] = []
    position = 0
    for start, end, score in words:
        if end > length:
            break
        if start > position:
            pieces.append(Piece(text[position:start]))
        share = score / strongest
        pieces.append(
            Piece(text[start:end], share, f"{score:+.3f}") if abs(share) >= _FAINT else Piece(text[start:end])
        )
        position = end
    if position < min(length, len(text)):
        pieces.append(Piece(text[position:length]))
    return pieces, len(text) > length


def _words(tables: Mapping[str, Any], num_labels: int) -> Section:
    """Builds a list of words for each class, or for a single score the words that raise and that lower it."""
    if num_labels == 1 and tables:
        (table,) = tables.values()
        lists = [_word_list("raise the score", table, "raise"), _word_list("lower the score", table, "lower")]
    else:
        names = sorted(tables, key=lambda name: -tables[name]["rows"])[:_MOST_LISTS]
        lists = [_word_list(name, tables[name], "raise") for name in sorted(names)]
    lists = [each for each in lists if each.rows]
    some = f" The {len(lists)} classes with the most explained rows." if len(tables) > _MOST_LISTS else ""
    details = (
        "The words that raise the score of each predicted class the most: the mean score of a word over the explained "
        "rows that contain it, and their number. A name, a number or a punctuation mark high in a list is a hint that "
        f"the data has an artefact.{some}"
    )
    return Section("words", "Words that decide", details=details if lists else "", word_lists=lists)


def _word_list(title: str, table: Mapping[str, Any], key: str) -> WordList:
    strongest = max((abs(score) for _, score, _ in table[key]), default=0.0) or 1.0
    rows = [WordRow(word, f"{score:+.2f}", f"{count:,}", score / strongest) for word, score, count in table[key]]
    return WordList(title, f"{table['rows']:,} {'row' if table['rows'] == 1 else 'rows'}", rows)


def _faithfulness(run_folder: Path, name: str, measured: Mapping[str, Any] | None) -> Section:
    title = "Do these words decide?"
    if measured is None:
        return Section("faithfulness", title)
    details = (
        f"How much the {measured['value']} of the prediction drops when words are masked, on {measured['rows']:,} rows "
        f"(ERASER, DeYoung et al. 2020). {_verdict(measured['gain'], measured['value'])}"
    )
    errors = "Bars are means over rows, and lines are their standard errors."
    captions = {
        "comprehensiveness": "The words with the highest scores are masked. A large drop means that the model needs "
        f"them. {errors}",
        "sufficiency": "Only the words with the highest scores are kept. A small drop means that they are enough. "
        f"{errors}",
    }
    pictures = _pictures(run_folder, name, captions)
    rows = [
        (f"{fraction:.0%}", *(_with_error(*measured[column][index]) for column in _COLUMNS))
        for index, fraction in enumerate(measured["fractions"])
    ]
    table = Table(("words", *_COLUMNS.values()), rows, full_length=True)
    return Section("faithfulness", title, details=details, pictures=pictures, tables=[table])


def _verdict(gain: Sequence[float | None], value: str) -> str:
    """Compares the mean comprehensiveness with that of random words in one sentence."""
    mean, error = gain
    if mean is None or error is None:
        return ""
    if mean > _CLEAR_ERRORS * error:
        return (
            f"Masking the words with the highest scores lowers the {value} by {mean:.3f} ± {error:.3f} more than "
            "masking as many random words, so the explanations name words that the model uses."
        )
    return (
        f"Masking the words with the highest scores changes the {value} by {-mean:+.3f} ± {error:.3f} compared with "
        "random words, which is not clearly more, so do not trust these explanations."
    )


def _with_error(mean: float, error: float | None) -> str:
    return f"{mean:.3f}" if error is None else f"{mean:.3f} ± {error:.3f}"


def _attention(run_folder: Path, name: str, attention: Mapping[str, Any] | None) -> Section:
    if attention is None:
        return Section("attention", "Attention")
    shown, length = len(attention["tokens"]), attention["length"]
    some = f" Here are the first {shown} of its {length} tokens." if shown < length else ""
    details = (
        f"Where the attention heads look in row {attention['row'] + 1:,} of the split.{some} This shows how the model "
        "moves information between tokens. It is no reason for a prediction: explanations from attention weights are "
        "often little better than random ones (Jain, Wallace 2019)."
    )
    captions = {
        "attention": "The token at the left looks at the tokens at the top. A row sums to 100\u00a0%, and the "
        f"strongest colour is the most.{_numbered(attention['tokens'])}",
        "attention_heads": "The same rows and columns for each head. A stripe down is a token that all others look at, "
        "often a special token; a diagonal is a token that looks at itself or at its neighbour.",
    }
    pictures = _pictures(run_folder, name, captions)
    return Section("attention", "Attention", details=details, pictures=pictures)


def _numbered(tokens: Sequence[str]) -> str:
    """Returns the tokens by their numbers, if the picture has numbers because no font has all their characters."""
    if font_for(tokens) is not None:
        return ""
    return " Tokens: " + ", ".join(f"{number} {token}" for number, token in enumerate(tokens, start=1)) + "."


def _pictures(run_folder: Path, name: str, captions: Mapping[str, str]) -> list[Picture]:
    paths = {key: run_folder / "plots" / f"{name}_{key}.png" for key in captions}
    return [
        Picture(path, f"{key.replace('_', ' ')} of {name}", captions[key])
        for key, path in paths.items()
        if path.is_file()
    ]
