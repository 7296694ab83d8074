"""Associations of embeddings: WEAT on words and SEAT on sentences, for the sets of a file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from framework.audits.audit import Finding, ModelAudit, Subject
from framework.audits.word_associations import associations, effect_size, permutation_p
from framework.config.resolvers import conf_folder
from framework.data.reading.rows import Row
from framework.data.tokenization.tokenizer import Tokenizer
from framework.errors import ConfigError, check_at_least, check_choice
from framework.modules.inference import Inference
from framework.modules.pooled import pooled_inference

WORD_SETS = "word_sets"
"""Folder of the word sets that come with the configs, in conf/audit."""

_BLANK = "{}"
_KINDS = ("targets", "attributes")
_SIGNIFICANT = 0.01
_TEST_NAMES = {"words": "WEAT", "sentences": "SEAT"}


@dataclass(frozen=True)
class WordSets:
    """One association test.

    Attributes:
        name: Name of the test.
        targets: Names of the two target sets, whose words are compared.
        attributes: Names of the two attribute sets, to which they are near or far.
        words: Words of the four sets, targets first.
    """

    name: str
    targets: tuple[str, str]
    attributes: tuple[str, str]
    words: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class _Test:
    """One test on words or on sentences.

    Attributes:
        file: Name of the file of the test.
        form: Key of _TEST_NAMES.
        sets: Sets of words.
        texts: Texts of each of the four sets.
    """

    file: str
    form: str
    sets: WordSets
    texts: Sequence[Sequence[str]]


class Associations(ModelAudit):
    """Effect size and permutation p-value of each test, on the embeddings of words and of sentences with these words.

    Texts are embedded as the task pools, or by the mean of all tokens. The rate of the audit is the share of tests
    with p < 0.01. A test is one-sided: a small p means that the first targets are nearer to the first attributes.

    Args:
        sets: Files of tests, or names of files in conf/audit/word_sets.
        forms: "words" (WEAT), "sentences" (SEAT), or both.
        num_samples: Number of permutations of a test with more than 50,000 partitions.

    Raises:
        ConfigError: A list is empty, or a form is unknown.
    """

    def __init__(
        self,
        sets: Sequence[str] = ("en",),
        forms: Sequence[Literal["words", "sentences"]] = ("words", "sentences"),
        num_samples: int = 9_999,
    ) -> None:
        if not sets or not forms:
            raise ConfigError(
                "audit.associations.sets or audit.associations.forms is empty. The audit needs tests. Give, for "
                "example, audit.associations.sets=[en]."
            )
        for form in forms:
            check_choice("audit.associations.forms", form, _TEST_NAMES)
        check_at_least("audit.associations.num_samples", num_samples, 1000)
        self._sets = list(sets)
        self._forms = list(forms)
        self._num_samples = num_samples

    def check(self, subject: Subject) -> None:
        """Reads the files.

        Raises:
            ConfigError: A file cannot be read or has no tests, or a test does not have two targets and two attributes.
        """
        self._subject = subject
        self._tests: list[_Test] = []
        for name in self._sets:
            templates, tests = read_word_sets(name)
            for form in self._forms:
                shapes = templates if form == "sentences" else (_BLANK,)
                for test in tests:
                    texts = [[each.replace(_BLANK, word) for word in words for each in shapes] for words in test.words]
                    self._tests.append(_Test(Path(name).stem, form, test, texts))
        self._texts = list(dict.fromkeys(text for test in self._tests for words in test.texts for text in words))
        self._notes = _notes_on_unknown_words(self._tests, subject.tokenizer)

    def measure(self, inference: Inference) -> Finding:
        """Embeds all texts once and computes the tests. Collective: all ranks must call."""
        pooled = pooled_inference(inference, self._subject.trained.record, normalize=False)
        rows = [Row(number, None, {"text": text}) for number, text in enumerate(self._texts, start=1)]
        predictions = pooled.predict(pooled.task.build_source(rows, self._subject.tokenizer))
        vectors = {text: row["embedding"] for text, row in zip(self._texts, predictions, strict=True)}
        parts: list[dict[str, str | int | float | None]] = []
        results: list[tuple[float, float, str]] = []
        for test in self._tests:
            x, y, a, b = (np.array([vectors[text] for text in words], dtype=np.float64) for words in test.texts)
            one, other = associations(x, a, b), associations(y, a, b)
            key = (self._subject.seed, test.file, test.sets.name, test.form)
            p, is_exact = permutation_p(one, other, self._num_samples, *key)
            # Packing changes later decimals.
            size, p = round(effect_size(one, other), 3), round(p, 3 if p >= _SIGNIFICANT else 4)
            results.append((size, p, f"{test.file} {test.sets.name}, {test.form}"))
            parts.append(
                {
                    "test": f"{test.file} {test.sets.name}",
                    "form": f"{test.form} ({_TEST_NAMES[test.form]})",
                    "targets": " / ".join(test.sets.targets),
                    "attributes": " / ".join(test.sets.attributes),
                    "effect_size": size,
                    "p": p,
                    "permutations": "all" if is_exact else f"{self._num_samples:,}",
                    "target_texts": len(one) + len(other),
                }
            )
        num_significant = sum(p < _SIGNIFICANT for _, p, _ in results)
        largest, _, name = max(results, key=lambda result: abs(result[0]))
        return Finding(
            measure=f"association tests with p < {_SIGNIFICANT}",
            rate=num_significant / len(parts),
            interval=None,
            num_cases=len(parts),
            summary=f"{num_significant} of {len(parts)} association tests have p < {_SIGNIFICANT}. The largest effect "
            f"size is {largest:.2f} ({name}).",
            parts=parts,
            notes=[*self._notes, "Embeddings can be biased in ways that no word set tests."],
        )


def read_word_sets(name: str) -> tuple[tuple[str, ...], list[WordSets]]:
    """Reads a YAML file of tests with the keys `templates` and `tests`.

    Args:
        name: Path of the file, or name of a file in conf/audit/word_sets without its suffix.

    Returns:
        Templates of sentences, in which {} stands for a word, and the tests.

    Raises:
        ConfigError: The file cannot be read, or its content is invalid.
    """
    folder = conf_folder() / "audit" / WORD_SETS
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    path = folder / f"{name}.yaml" if name in known else Path(name)
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise ConfigError(
            f"audit.associations.sets names {name}, which cannot be read ({reason}). It must be a YAML file or one of "
            f"{', '.join(known)}. Correct it."
        ) from error
    given = content if isinstance(content, dict) else {}
    templates: Any = given.get("templates")
    tests: Any = given.get("tests")
    if not _are_texts(templates) or not all(_BLANK in each for each in templates) or not isinstance(tests, dict):
        raise ConfigError(
            f"{name} has no `templates`, a list of sentences with {{}} for a word, or no `tests`, a mapping of names "
            "to tests. Both are required. Write it like conf/audit/word_sets/en.yaml."
        )
    return tuple(templates), [_word_sets(name, str(test), sets) for test, sets in tests.items()]


def _word_sets(file: str, test: str, sets: Any) -> WordSets:
    groups: list[Any] = [sets.get(kind) for kind in _KINDS] if isinstance(sets, Mapping) else []
    is_valid = len(groups) == len(_KINDS) and all(
        isinstance(group, Mapping) and len(group) == 2 and all(map(_are_texts, group.values())) for group in groups
    )
    if not is_valid:
        raise ConfigError(
            f"{file}: the test {test!r} is invalid. It needs `targets` and `attributes` with two lists of words each. "
            "Quote words that YAML reads as other values, such as 'no'."
        )
    targets, attributes = groups
    words = tuple(tuple(each) for group in groups for each in group.values())
    first, second = (set(each) for each in words[:2])
    if first & second or min(len(first), len(second)) < 2:
        raise ConfigError(
            f"{file}: the target sets of the test {test!r} share a word or have fewer than 2. A permutation test needs "
            "two different sets. Correct them."
        )
    return WordSets(test, tuple(map(str, targets)), tuple(map(str, attributes)), words)  # type: ignore[arg-type]


def _notes_on_unknown_words(tests: Sequence[_Test], tokenizer: Tokenizer) -> list[str]:
    """Returns a note for each file with words that the tokenizer cannot represent."""
    words: dict[str, dict[str, None]] = {}
    for test in tests:
        words.setdefault(test.file, {}).update(dict.fromkeys(word for each in test.sets.words for word in each))
    notes = []
    for file, own in words.items():
        encoded = tokenizer.encode_batch(list(own))
        unknown = [word for word, ids in zip(own, encoded, strict=True) if tokenizer.unk_id in ids]
        if unknown:
            notes.append(
                f"{file}: the tokenizer does not know {len(unknown)} of {len(own)} words, for example {unknown[0]}. "
                "The tests of this file say little about the model."
            )
    return notes


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, str) and each.strip() for each in value)
