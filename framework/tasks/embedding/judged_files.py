"""Files of judged queries in the data of embeddings: BEIR folders instead of files of pairs."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from framework.data.examples.beir import BeirSet, is_beir, read_beir
from framework.data.facts import SplitFacts
from framework.data.personal_data.masking import TextMasking
from framework.data.reading.files import Reading
from framework.errors import ConfigError


@dataclass(frozen=True, eq=False)
class JudgedSplit:
    """Sets of judged queries of one evaluated split.

    Attributes:
        sets: Sets with different names.
        facts: Facts about the judged queries of all sets.
    """

    sets: Sequence[BeirSet]
    facts: SplitFacts


def judged_paths(files: Mapping[str, str | list[str] | None]) -> dict[str, list[Path]]:
    """Returns the BEIR folders of the splits that have any.

    Args:
        files: Value of each split in the config.

    Raises:
        ConfigError: A list names something else than BEIR folders.
    """
    found = {}
    for split, given in files.items():
        paths = [given] if isinstance(given, str) else given or []
        if not (isinstance(given, list) or any(map(is_beir, paths))):
            continue
        for path in paths:
            if not is_beir(path):
                raise ConfigError(
                    f"`data.{split}` lists {path}, which is no BEIR folder: it has no corpus.jsonl. Only BEIR folders "
                    "can be listed. Correct the path, or give a single file."
                )
        if not paths:
            raise ConfigError(f"`data.{split}` is an empty list. It must name a BEIR folder. Use null for no split.")
        found[split] = [Path(path) for path in paths]
    return found


def read_judged(
    split: str, paths: Sequence[Path], on_bad_row: Literal["error", "skip"], masking: TextMasking | None
) -> JudgedSplit:
    """Reads the sets of one split.

    Args:
        split: Name of the split, whose judgments are read from the folders.
        paths: BEIR folders, or files of judgments in them.
        on_bad_row: Handling of bad rows.
        masking: Masking of personal data; None: no masks.

    Raises:
        ConfigError: A folder is listed twice.
        DataError: A set cannot be read (`read_beir`).
    """
    conceal, mask = (None, None) if masking is None else (masking.message, masking.text)
    if masking is not None:
        masking.counts.clear()
    reading = Reading(on_bad_row, max_remembered=None, conceal=conceal)
    sets = [read_beir(path, split, reading, mask) for path in paths]
    names = Counter(each.name for each in sets)
    # Two files of one folder.
    sets = [replace(each, name=f"{each.name}_{each.qrels.stem}") if names[each.name] > 1 else each for each in sets]
    repeated = [name for name, number in Counter(each.name for each in sets).items() if number > 1]
    if repeated:
        raise ConfigError(
            f"`data.{split}` lists two folders of the name {repeated[0]}. Metrics have the names of the folders as "
            "prefix. Remove or rename one of them."
        )
    judged = sum(len(each.queries) for each in sets)
    facts = SplitFacts(
        rows=judged,
        file=", ".join(map(str, paths)),
        read=judged + reading.num_skipped,
        skipped=reading.skipped,
        num_skipped=reading.num_skipped,
        notes={
            "documents": f"{sum(len(each.documents) for each in sets):,}",
            "relevant pairs": f"{sum(len(grades) for each in sets for grades in each.grades()):,}",
        },
        personal_data={} if masking is None else dict(sorted(masking.counts.items())),
        warnings=[warning for each in sets for warning in each.warnings],
    )
    return JudgedSplit(sets, facts)
