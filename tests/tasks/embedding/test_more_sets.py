"""Further training sets: a step has rows of one set, each set has its share, and its own objective."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from framework.data.planning.plan import StepPlan, StepSequences
from framework.data.tokenization.tokenizer import Tokenizer
from framework.errors import ConfigError, FrameworkError
from framework.tasks.embedding.data import TextPairData
from framework.tasks.embedding.losses import cosent, info_nce
from framework.tasks.embedding.more_texts import MoreTexts
from framework.tasks.embedding.task import EmbeddingTask
from tests.support.data.beir_folders import write_beir
from tests.support.exports.small_exports import make_tokenizer

STEP = 4


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    return Tokenizer.from_folder(make_tokenizer(tmp_path_factory.mktemp("tokenizer"), 0))


@pytest.fixture
def data(tmp_path) -> TextPairData:
    (tmp_path / "nli.csv").write_text("text,pair\n" + "".join(f"a dog {n},the cat {n}\n" for n in range(40)))
    (tmp_path / "val.csv").write_text("text,pair\n" + "".join(f"the dog {n},a cat {n}\n" for n in range(3)))
    (tmp_path / "sts.csv").write_text("text,pair,score\n" + "".join(f"big {n},bad {n},{n % 5}\n" for n in range(9)))
    (tmp_path / "own.csv").write_text("text\n" + "".join(f"own {n}\n" for n in range(6)))
    more = {
        "sts": MoreTexts(str(tmp_path / "sts.csv"), 0.25, score_column="score"),
        "own": MoreTexts(str(tmp_path / "own.csv"), 0.25, pair_column=None),
    }
    return TextPairData(str(tmp_path / "nli.csv"), str(tmp_path / "val.csv"), more=more)


def test_a_step_has_rows_of_one_set(data, tokenizer):
    task = EmbeddingTask(max_length=16, symmetric=True)
    sources = task.build_sources(data, tokenizer, 0)
    assert task.loss_weights == {"contrast": 0.5, "reverse_contrast": 0.5, "cosent": 1.0}
    source = sources["train"]
    assert len(sources["validation"]) == 3 and len(source) == 80
    sets_of_ranks = {}
    for num_ranks in (1, 2):
        plan, sets, seen = StepPlan(source, 5, STEP, 64, num_ranks), [], []
        for step in range(len(plan)):
            batches = [batch for rank in range(num_ranks) for batch in plan.batches(step, rank)]
            indices = plan.sequences(step).indices
            numbers = np.searchsorted([40, 49], indices, side="right")
            assert len(indices) == STEP == len(set(indices.tolist())) and len(set(numbers)) == 1
            sets.append(int(numbers[0]))
            seen += indices.tolist()
            terms = {name for batch in batches for name, count in batch.counts.items() if count}
            assert terms == [{"contrast", "reverse_contrast"}, {"cosent"}, {"contrast", "reverse_contrast"}][sets[-1]]
            assert sum(batch.counts["contrast"] + batch.counts["cosent"] for batch in batches) == STEP
        assert np.bincount(sets).tolist() == [10, 5, 5]
        # The first set is run through once.
        assert sorted(index for index in seen if index < 40) == list(range(40))
        sets_of_ranks[num_ranks] = sets, seen
    assert sets_of_ranks[1] == sets_of_ranks[2]
    assert sets_of_ranks[1][0] != sorted(sets_of_ranks[1][0])


def test_each_set_has_its_objective(data, tokenizer):
    task = EmbeddingTask(max_length=16)
    source = task.build_sources(data, tokenizer, 0)["train"]
    # Rows of all sets at once, as in a trial of the token budget.
    indices = np.array([0, 1, 40, 41, 42, 49, 50, 51])
    batch = source.build(StepSequences(np.zeros(8, int), indices, np.arange(8)), 0)
    vectors = torch.randn(len(batch.sequence_ids), 6, generator=torch.Generator().manual_seed(0))
    rows = task.representations({"embeddings": vectors}, batch)
    sums = task.step_loss_sums(rows)

    def of(start, stop):
        return {name: value[start:stop] for name, value in rows.items()}

    contrast = info_nce(of(0, 4), 0.05)[0] + info_nce(of(10, 16), 0.05)[0]
    assert float(sums["contrast"]) == pytest.approx(float(contrast), rel=1e-5)
    assert float(sums["cosent"]) == pytest.approx(float(cosent(of(4, 10), 0.05)), rel=1e-5)
    # A micro-batch without items has the same targets.
    none = np.zeros(0, int)
    empty = source.build(StepSequences(none, none, none), 0)
    assert empty.targets.keys() == batch.targets.keys() and set(empty.counts.values()) == {0.0}
    with pytest.raises(ConfigError, match=r"the split train has several data sets \(data.more\)"):
        task.score(source, [])


def test_sets_that_cannot_be_used(data, tokenizer):
    source = EmbeddingTask(max_length=16).build_sources(data, tokenizer, 0)["train"]
    with pytest.raises(ConfigError, match=r"the data set own has 6 training rows, but trainer.global_batch_size is 7"):
        StepPlan(source, 0, 7, 64)
    with pytest.raises(ConfigError, match=r"the shares of data.more have the sum 1.2"):
        TextPairData("x.csv", more={name: MoreTexts("x.csv", 0.6) for name in "ab"})


def test_further_sets_are_validated_apart(data, tokenizer, tmp_path):
    """Metrics of each set are those of a task on that set alone, and the loss is that of the data itself."""
    (tmp_path / "dev.csv").write_text("text,pair,score\n" + "".join(f"big dog {n},a bad,{n % 4}\n" for n in range(5)))
    corpus = [{"_id": f"d{n}", "text": f"the dog {n}"} for n in range(4)]
    write_beir(tmp_path / "beir", corpus, {"q": "dog 2", "p": "dog"}, {"dev": [("q", "d2", 1), ("p", "d0", 2)]})
    own = {"sts": str(tmp_path / "dev.csv"), "faq": str(tmp_path / "beir")}
    faq = MoreTexts(str(tmp_path / "nli.csv"), 0.25)
    more = {"sts": replace(data.more["sts"], validation=own["sts"]), "faq": replace(faq, validation=own["faq"])}
    task = EmbeddingTask(max_length=16, matryoshka_sizes=[4])
    source = task.build_sources(replace(data, more={**more, "own": data.more["own"]}), tokenizer, 0)["validation"]
    assert len(source) == 3 + 5 + 4
    items = np.arange(len(source))
    batch = source.build(StepSequences(items * 0, items, items), 0)
    vectors = torch.randn(len(batch.sequence_ids), 8, generator=torch.Generator().manual_seed(0))
    decoded = task.decode({"embeddings": vectors}, batch)
    expected = {}
    for name, objective, part, given in (
        ("", "contrastive", slice(3), replace(data, more=None)),
        ("sts_", "similarity", slice(3, 8), TextPairData(data.more["sts"].train, own["sts"], score_column="score")),
        ("faq_", "contrastive", slice(8, 12), TextPairData(None, own["faq"])),
    ):
        alone = EmbeddingTask(objective, max_length=16, matryoshka_sizes=[4])
        of_set = alone.build_sources(given, tokenizer, 0)["validation"]
        expected |= {f"{name}{key}": value for key, value in alone.score(of_set, decoded[part]).items()}
        if not name:
            first = of_set.build(StepSequences(items[:3] * 0, items[:3], items[:3]), 0)
            rows = alone.representations({"embeddings": vectors[:6]}, first)
            loss = alone.step_loss_sums(rows)["contrast"]
            assert {term: count for term, count in batch.counts.items() if count} == first.counts == {"contrast": 3}
    assert task.score(source, decoded) == expected
    assert {"mrr", "sts_spearman_4", "faq_ndcg_at_10"} <= expected.keys()
    sums = task.step_loss_sums(task.representations({"embeddings": vectors}, batch))
    assert float(sums["contrast"]) == pytest.approx(float(loss)) and float(sums["cosent"]) == 0
    assert len(task.explained(source, decoded, None)) == 3


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("sts", {"train": "nowhere.csv"}, "data.more.sts: .*nowhere.csv cannot be read"),
        ("sts", {"pair_column": "other"}, r"data.more.sts: .*sts.csv, line 1: no column 'other'"),
        ("own", {"train": "empty.csv"}, "data.more.own: .*empty.csv is empty"),
        ("own", {"train": "blank.csv"}, r"data.more.own: .*blank.csv, row 2 \(line 3\): 'text' is empty"),
        ("own", {"validation": "blank.csv"}, "data.more.own: texts alone have no metrics"),
        ("own", {"share": 0}, "data.more.own: `share` is 0. It must be above 0"),
        ("sts", {"label_column": "pair"}, "data.more.sts: data.pair_column is pair and label_column is pair"),
        ("sts", {"test": "sts.csv"}, "data.more.sts.test is set, but data has no test split"),
    ],
)
def test_errors_name_the_set(name, changes, message, data, tokenizer, tmp_path):
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "blank.csv").write_text("text\na\n \n")
    files = {key: str(tmp_path / value) for key, value in changes.items() if key in ("train", "validation", "test")}
    changed = {key: value for key, value in changes.items() if key not in ("train", "validation", "test")} | files

    def sources():
        more = {**data.more, name: replace(data.more[name], **changed)}
        return EmbeddingTask(max_length=16).build_sources(replace(data, more=more), tokenizer, 0)

    with pytest.raises(FrameworkError, match=message):
        sources()
