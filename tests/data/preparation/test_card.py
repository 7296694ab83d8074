import itertools
import json
import subprocess
import sys

import matplotlib.image
import numpy as np
import pytest

from framework.data.preparation.card import CardBuilder, Lengths, length_edges
from framework.data.preparation.card_picture import _axis_start, _bars, _format_sources, _percent, _short, draw_card

UNKNOWN = 1
COUNTS = {
    "files": 2,
    "bytes": 1000,
    "documents": 3,
    "duplicates": 2,
    "near_duplicates": 1,
    "excluded": 0,
    "empty": 3,
    "skipped_rows": 1,
    "sentences": 5,
    "vocab_size": 50,
}


@pytest.fixture
def small() -> CardBuilder:
    """Three documents of 9, 2 and 4 tokens; sentences of 3, 1, 5, 2 and 4; 3 of 15 tokens unknown."""
    builder = CardBuilder(UNKNOWN)
    builder.add(np.array([7, 8, 9, 1, 7, 7, 1, 7, 7, 1, 3]), np.array([3, 1, 5, 2]), np.array([3, 1]))
    builder.add(np.array([4, 4, 4, 4]), np.array([4]), np.array([1]))
    return builder


def lognormal_lengths() -> np.ndarray:
    generator = np.random.Generator(np.random.Philox(3))
    return np.ceil(generator.lognormal(5.0, 1.0, size=20_000)).astype(np.int64)


def test_a_card_by_hand(small):
    content = small.content(COUNTS, [{"name": "mine", "documents": 3}], {512: 0.98, 128: 0.995})
    assert content["documents"] == {
        "read": 10,
        "kept": 3,
        "duplicates": 2,
        "near_duplicates": 1,
        "excluded": 0,
        "empty": 3,
        "skipped_rows": 1,
    }
    assert content["duplicate_rate"] == 0.2 and content["near_duplicate_rate"] == 0.1
    assert (content["files"], content["bytes"], content["vocab_size"]) == (2, 1000, 50)
    assert (content["sentences"], content["tokens"]) == (5, 15)
    assert content["unknown_token_rate"] == 3 / 15
    assert content["sources"] == [{"name": "mine", "documents": 3}]
    assert list(content["packing_efficiency"].items()) == [("128", 0.995), ("512", 0.98)]
    documents, sentences = content["tokens_per_document"], content["tokens_per_sentence"]
    assert documents["mean"] == 5.0 and documents["maximum"] == 9
    assert documents["quantiles"]["0.5"] == 4.0 and documents["quantiles"]["0.95"] == 9.0
    assert documents["histogram"] == {"edges": [2, 3, 4, 5, 6, 7, 8, 9, 10], "counts": [1, 0, 1, 0, 0, 0, 0, 1]}
    assert sentences["mean"] == 3.0 and sentences["maximum"] == 5
    assert sentences["histogram"] == {"edges": [1, 2, 3, 4, 5, 6], "counts": [1, 1, 1, 1, 1]}
    assert json.loads(json.dumps(content)) == content


def test_edges_by_hand():
    """Powers of the square root of 2, rounded up: 1, 1.41, 2, 2.83, 4, 5.66, 8, 11.3, 16, 22.6, 32."""
    edges = length_edges(2)
    assert edges[:10].tolist() == [1, 2, 3, 4, 6, 8, 12, 16, 23, 32] and edges[-1] == 2**24
    assert set(length_edges(4)) <= set(length_edges(8))


def test_every_length_falls_into_the_bin_around_it():
    for length in (1, 2, 7, 8, 15, 16, 17, 18, 4095, 4096, 2**24 - 1):
        lengths = Lengths()
        lengths.add(np.array([length]))
        first, past = lengths.content()["histogram"]["edges"]
        assert first <= length < past


def test_lengths_beyond_the_last_edge_are_counted_and_the_maximum_is_exact():
    lengths = Lengths()
    lengths.add(np.array([3, 2**24, 2**30]))
    content = lengths.content()
    assert content["maximum"] == 2**30 and sum(content["histogram"]["counts"]) == 3
    assert content["mean"] == (3 + 2**24 + 2**30) / 3


def test_quantiles_are_those_of_the_lengths_up_to_a_bin():
    values = lognormal_lengths()
    lengths = Lengths()
    for part in np.array_split(values, 7):
        lengths.add(part)
    content = lengths.content()
    for share, actual in content["quantiles"].items():
        exact = np.quantile(values, float(share), method="inverted_cdf")
        assert actual == pytest.approx(exact, rel=0.09)
    assert content["mean"] == pytest.approx(values.mean()) and content["maximum"] == values.max()


def test_quantiles_of_short_lengths_are_exact():
    values = np.array([1, 1, 2, 3, 3, 3, 4, 5, 6, 7, 7, 7, 7, 7, 7, 2, 2, 1, 5, 5])
    lengths = Lengths()
    lengths.add(values)
    for share, actual in lengths.content()["quantiles"].items():
        assert actual == np.quantile(values, float(share), method="inverted_cdf")


def test_a_builder_resumes_from_its_state():
    values = lognormal_lengths()[:300]
    whole, resumed = CardBuilder(UNKNOWN), CardBuilder(UNKNOWN)
    for first in range(0, 300, 100):
        sentences = values[first : first + 100]
        batch = (np.arange(sentences.sum()) % 13, sentences, np.array([40, 60]))
        whole.add(*batch)
        resumed = CardBuilder.from_state(json.loads(json.dumps(resumed.state())))
        resumed.add(*batch)
    content = resumed.content(COUNTS, [], {})
    assert content == whole.content(COUNTS, [], {})
    # One of every 13 ids is unknown.
    assert content["unknown_token_rate"] == pytest.approx(1 / 13, rel=0.01)
    assert len(json.dumps(whole.state())) < 3000


def test_without_ids_no_rate_of_unknown_tokens_is_shown(small):
    streamed = CardBuilder(UNKNOWN)
    streamed.add(None, np.array([3, 1]), np.array([2]))
    assert streamed.content({}, [], {})["unknown_token_rate"] is None
    assert streamed.content({}, [], {})["tokens"] == 4
    # If some ids were seen, the rate is theirs.
    small.add(None, np.array([100]), np.array([1]))
    assert small.content({}, [], {})["unknown_token_rate"] == 3 / 15


def test_an_empty_batch_changes_nothing(small):
    before = small.state()
    nothing = np.zeros(0, dtype=np.int64)
    small.add(nothing, nothing, nothing)
    assert small.state() == before
    empty = CardBuilder(UNKNOWN).content({}, [], {})
    assert empty["documents"]["read"] == 0 and empty["tokens_per_document"]["mean"] is None


@pytest.mark.parametrize("case", ["full", "one document", "no ids, no packing"])
def test_cards_are_drawn(case, small, tmp_path, rendered):
    if case == "full":
        lengths = lognormal_lengths()
        small.add(None, lengths, np.full(2000, 10))
        sources = [{"name": f"source {number}", "documents": number} for number in range(9)]
        content = small.content(COUNTS, sources, {128: 0.999, 512: 0.97, 1024: 0.93})
    else:
        builder = CardBuilder(UNKNOWN)
        builder.add(np.array([5]) if case == "one document" else None, np.array([1]), np.array([1]))
        content = builder.content({}, [], {512: 1.0} if case == "one document" else {})
    draw_card(json.loads(json.dumps(content)), tmp_path / "card.png", "a $_$ b")
    picture = matplotlib.image.imread(tmp_path / "card.png")
    assert picture.shape[:2] == (1140, 1650)
    # Bars are blue (47, 109, 179), the median orange.
    colors = np.round(picture[..., :3] * 255).astype(int)
    assert (np.abs(colors - [47, 109, 179]).max(axis=-1) <= 1).sum() > 5000
    assert (np.abs(colors - [217, 121, 43]).max(axis=-1) <= 1).sum() > 100


def test_bars_cover_the_counted_lengths():
    lengths = Lengths()
    values = lognormal_lengths()
    lengths.add(values)
    edges, heights = _bars(lengths.content()["histogram"])
    areas = heights * np.diff(np.log2(edges)) * 4
    assert areas.sum() == pytest.approx(len(values))
    # Each bar alone: the whole numbers between its edges.
    expected = [((values > low) & (values < high)).sum() for low, high in itertools.pairwise(edges)]
    assert areas.tolist() == pytest.approx(expected)


@pytest.mark.parametrize(("smallest", "start"), [(99.9, 95), (96.7, 95), (96.6, 90), (93.3, 80), (60.0, 0), (3.0, 0)])
def test_percent_axis_gives_every_bar_at_least_a_third(smallest, start):
    assert _axis_start(smallest) == start


def test_numbers_are_shown_with_few_digits():
    percents = {0.0: "0 %", 1.0: "100 %", 0.99999: "> 99.9 %", 0.982: "98.2 %", 0.0123: "1.2 %", 1e-9: "< 0.001 %"}
    assert {share: _percent(share) for share in percents} == percents
    assert (_short(999_999), _short(7_795_038), _short(33_132_823, "B"), _short(5, "B")) == (
        "999,999",
        "7.8 M",
        "33.1 MB",
        "5 B",
    )
    sources = [{"name": name, "documents": 1000} for name in "abcdef"]
    assert _format_sources(sources) == "a 1,000, b 1,000, c 1,000, d 1,000, 2 more sources"
    assert _format_sources(sources[:1]) == "a 1,000"


def test_importing_the_picture_does_not_import_matplotlib():
    program = "import sys, framework.data.preparation.card_picture; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, env={"PYTHONPATH": ":".join(sys.path)})
