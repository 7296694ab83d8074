"""Builds the items of the splits of texts to embed, of one data set or of several."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from framework.data.examples.splits import ReadSplits
from framework.data.facts import range_of, with_facts
from framework.data.tokenization.tokenizer import Tokenizer
from framework.errors import ConfigError
from framework.tasks.embedding.data import TextGroup, TextPairData
from framework.tasks.embedding.features import (
    LayOut,
    labelled_source,
    match_source,
    scored_source,
    single_source,
)
from framework.tasks.embedding.judged_files import JudgedSplit
from framework.tasks.embedding.losses import POSITIVE
from framework.tasks.embedding.mixed_sets import NO_OBJECTIVE, JoinedSets, MixedSets, Source
from framework.tasks.embedding.search_sets import search_source

_EVALUATED_SEED = 0
"""Seed for the second texts of evaluated splits. It is fixed so that runs with different seeds are comparable."""


@dataclass(frozen=True)
class ItemBuilder:
    """Builder of the items of texts.

    Attributes:
        tokenizer: Tokenizer that supplies ids and special tokens.
        max_length: Maximum number of tokens of a sequence, special tokens included.
        layout_of: Layout of the texts.
        searches_training: True adds the training texts to the search candidates of evaluated splits.
        seed: Seed of the second texts of labelled training texts.
    """

    tokenizer: Tokenizer
    max_length: int
    layout_of: LayOut
    searches_training: bool
    seed: int

    def splits(
        self,
        kind: str,
        pairs: ReadSplits[TextGroup],
        judged: Mapping[str, JudgedSplit],
        terms: Sequence[str],
        evaluated_terms: Sequence[str],
    ) -> dict[str, Source]:
        """Builds the items of each split of one data set.

        Args:
            kind: Kind of the rows (`TextPairData.kind`).
            pairs: Rows.
            judged: Splits that are BEIR folders.
            terms: Names of the loss terms of training.
            evaluated_terms: Names of the loss terms of the other splits.
        """
        sources: dict[str, Source] = {}
        for split, groups in pairs.splits.items():
            is_train = split == "train"
            searched = pairs.splits["train"] if self.searches_training and not is_train else []
            seed = self.seed if is_train else _EVALUATED_SEED
            source = self._source(kind, groups, searched, terms if is_train else evaluated_terms, seed)
            labels = [str(group.answer) for group in groups] if kind == "labelled" else []
            read = pairs.facts[split]
            if kind == "scored":
                read = replace(read, notes={"scores": range_of([float(group.answer or 0) for group in groups])})
            sources[split] = with_facts(source, read, labels)
        for split, each in judged.items():
            found = search_source(each.sets, evaluated_terms, self.tokenizer, self.max_length, self.layout_of)
            sources[split] = with_facts(found, each.facts)
        return sources

    def _source(
        self, kind: str, groups: list[TextGroup], searched: list[TextGroup], terms: Sequence[str], seed: int
    ) -> Source:
        own = self.tokenizer, self.max_length
        if kind == "scored":
            return scored_source(groups, terms, *own, self.layout_of)
        if kind == "labelled":
            return labelled_source(groups, searched, terms, *own, seed, self.layout_of)
        if kind == "single":
            return single_source(groups, terms, *own, self.layout_of)
        candidates = [group.texts[POSITIVE] for group in searched]
        return match_source(groups, candidates, terms, *own, self.layout_of)


def check_search(objective: str, judged: Mapping[str, JudgedSplit]) -> None:
    """Checks that an objective has the search that BEIR folders need.

    Raises:
        ConfigError: It has none.
    """
    if judged and objective in ("similarity", "simcse"):
        raise ConfigError(
            f"task.objective is {objective}, but the split {next(iter(judged))} is a BEIR folder, whose "
            "queries are searched. This objective has no search. To evaluate such a run, add "
            "'task={objective: contrastive}' to framework.evaluate."
        )


def join_splits(
    data: TextPairData, sets: Mapping[str, Mapping[str, Source]], objectives: Sequence[int]
) -> dict[str, Source | JoinedSets]:
    """Joins the training items of several sets, and the items of those that have an evaluated split.

    The loss of an evaluated split is that of the data itself.

    Args:
        data: The data with its further sets.
        sets: Items of each split, by the name of the set. The first set is the data itself.
        objectives: Index of the objective of each set.

    Raises:
        ConfigError: A further set has a split that the data lacks.
    """
    first = next(iter(sets))
    shares = [each.share for each in (data.more or {}).values()]
    joined: dict[str, Source | JoinedSets] = {}
    for split, source in sets[first].items():
        own = {name: each[split] for name, each in sets.items() if split in each}
        if split == "train":
            joined[split] = MixedSets(own, objectives, shares)
        else:
            joined[split] = source if len(own) == 1 else JoinedSets(own, [0, *[NO_OBJECTIVE] * (len(own) - 1)])
    for name, each in sets.items():
        missing = [split for split in each if split not in joined]
        if missing:
            raise ConfigError(
                f"data.more.{name}.{missing[0]} is set, but data has no {missing[0]} split. The loss of a split is "
                f"that of data. Set data.{missing[0]} too."
            )
    return joined
