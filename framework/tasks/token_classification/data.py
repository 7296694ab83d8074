"""Tagged sentences, validated, split (`splits`) and converted from the tag scheme of the files to BIO."""

import json
from collections.abc import Collection, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from framework.data.examples.answers import parse_list
from framework.data.examples.splits import FileRecords, ReadSplits, SplitFiles
from framework.data.reading.files import Reading
from framework.data.reading.table_format import TableFile, TableFormat
from framework.data.reading.table_kind import json_kind
from framework.errors import ConfigError, DataError
from framework.tasks.token_classification.masked_words import mask_words
from framework.tasks.token_classification.tag_schemes import Scheme, bio_tags, detect_scheme, first_violation, is_tag
from framework.tasks.token_classification.tagged_json import read_tagged_json
from framework.tasks.token_classification.tagged_rows import ConllFormat, TaggedSentence, read_conll
from framework.tasks.token_classification.text_units import Units


@dataclass(frozen=True)
class TaggedData(SplitFiles):
    """Tagged sentences, one per row. Files are JSON, by suffix or content (`tagged_json`), or else CoNLL columns.

    Attributes:
        scheme: Tag scheme of the files. "auto" detects it in `train`.
        invalid_tags: Handling of tags that the scheme forbids, such as I- after O in BIO. "error" makes the sentence a
            bad row, "repair" reads the tags as conlleval does.
        on_bad_row: "error" stops at a sentence that cannot be used, "skip" counts and reports it.
        labels: Entity types. None: the types in the files, sorted. A sentence with another type is a bad row.
        conll: Layout of CoNLL files, and the encoding of all files. None: the defaults of ConllFormat.
    """

    scheme: Literal["auto", "iob1", "bio", "bioes"] = "auto"
    invalid_tags: Literal["error", "repair"] = "error"
    on_bad_row: Literal["error", "skip"] = "error"
    labels: list[str] | None = None
    conll: ConllFormat | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.labels is not None and not 0 < len(self.labels) == len(set(self.labels)):
            raise ConfigError(
                f"data.labels is {self.labels}. It must name at least one entity type, and no type twice. Correct the "
                "list, or set it to null to use the types in the data."
            )

    def load(self, units: Units, labels: Sequence[str] | None = None) -> ReadSplits[TaggedSentence]:
        """Reads, checks, converts and splits the sentences.

        Args:
            units: Units of a text that are tagged, for files with texts and spans.
            labels: Entity types of an earlier run. They override the config and the data.

        Raises:
            DataError: A file is missing, empty or damaged; a sentence cannot be used and `on_bad_row` is "error"; a
                split has no usable sentence; or `train` has no entity.
        """
        read = self.read_files(lambda path, reading: self._read(path, units, reading), self.on_bad_row)
        scheme = self._scheme(read.records["train"])
        names = tuple(labels or self.labels or ())
        repaired = dict.fromkeys(read.records, 0)

        def checked(split: str, types: tuple[str, ...], sentence: TaggedSentence) -> TaggedSentence:
            repaired[split] += self._checked(sentence, scheme, types) is not None
            text = None if self.masking is None else sentence.text
            return replace(sentence, tags=bio_tags(sentence.tags), lines=(), text=text)

        for split in read.records:
            read.checked(split, partial(checked, split, names))
        names = names or _types(self.train, read)
        tagged = self.split(read, names)
        facts = {split: replace(each, repaired=repaired.get(split, 0)) for split, each in tagged.facts.items()}
        return replace(tagged, facts=facts)

    def masked_values(self, values: Mapping[str, str], list_fields: Collection[str]) -> dict[str, str]:
        """Returns the row with masks; of a list of words, all words of a find become one word, as in training."""
        masked = super().masked_values(values, list_fields)
        words = parse_list(values.get("tokens", ""))
        if self.masking is None or not words or not all(isinstance(word, str) and word.strip() for word in words):
            return masked
        return {**masked, "tokens": json.dumps(mask_words(words, ["O"] * len(words), self.masking, None)[0])}

    def _read(self, path: Path, units: Units, reading: Reading) -> Iterator[TaggedSentence]:
        layout = self.conll or ConllFormat()
        kind = json_kind(path, TableFormat(encoding=layout.encoding))
        if kind is None:
            return read_conll(path, layout, reading)
        table = TableFile(path, (), TableFormat(encoding=layout.encoding), kind=kind)
        return read_tagged_json(table, units, reading)

    def _scheme(self, sentences: list[TaggedSentence]) -> Scheme:
        if self.scheme != "auto":
            return self.scheme
        tags = (sentence.tags for sentence in sentences if sentence.text is None)
        return detect_scheme(each for each in tags if all(map(is_tag, each)))

    def _checked(self, sentence: TaggedSentence, scheme: Scheme, labels: Container[str]) -> int | None:
        """Returns the index of the first tag that the scheme forbids and that is to be repaired, or None.

        Raises:
            DataError: The sentence cannot be used.
        """
        for index, tag in enumerate(sentence.tags):
            if not is_tag(tag):
                raise DataError(
                    f"{sentence.location_of(index)}: the tag {tag!r} is invalid. A tag is O, or B-, I-, E- or S- with "
                    "a type. Correct it, or set `conll.tag_column` to the column of the tags."
                )
            if labels and tag != "O" and tag[2:] not in labels:
                raise DataError(
                    f"{sentence.location_of(index)}: the type of {tag!r} is not in `labels`. All types must be listed "
                    "there. Correct the tag, add the type to `labels`, or set `on_bad_row` to skip."
                )
        violation = first_violation(sentence.tags, scheme if sentence.text is None else "bio")
        if violation is not None and self.invalid_tags == "error":
            last = len(sentence.tags) - 1
            before = repr(sentence.tags[violation - 1]) if violation else "the beginning"
            after = repr(sentence.tags[violation]) if violation <= last else "the end of the sentence"
            origin = " (the scheme that fits `train` best)" if self.scheme == "auto" else ""
            raise DataError(
                f"{sentence.location_of(min(violation, last))}: {after} follows {before}. The scheme {scheme}{origin} "
                "forbids that. Correct the tag, set `scheme` to the scheme of the files, or set `invalid_tags` to "
                "repair, which reads tags as conlleval does."
            )
        return violation


def _types(train: str, read: FileRecords[TaggedSentence]) -> tuple[str, ...]:
    sentences = read.records["train"]
    if all(tag == "O" for sentence in sentences for tag in sentence.tags):
        raise DataError(
            f"{train}: the {len(sentences)} sentences have no entity. Training needs at least one. Add sentences with "
            "entities."
        )
    return tuple(sorted(read.collect_labels(lambda each: [tag[2:] for tag in each.tags if tag != "O"])))
