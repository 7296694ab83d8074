import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.data.sentence_pairs import FOLLOWS, RANDOM, Segments, SentenceChunks
from framework.errors import ConfigError, DataError
from framework.random import key, mix
from tests.support.data.chunks import chunks_of


def draw(chunks: SentenceChunks, seed: int, epochs: np.ndarray, indices: np.ndarray) -> Segments:
    return chunks.draw_pairs(mix(mix(key(seed, "pairs of this test"), epochs), indices), indices)


def whole(chunks: SentenceChunks) -> list[tuple[int, int]]:
    segments = chunks.single_segments(np.arange(len(chunks)))
    return list(zip(segments.starts[:, 0].tolist(), segments.lengths[:, 0].tolist(), strict=True))


def random_documents(seed: int, num_documents: int) -> list[list[int]]:
    draws = np.random.default_rng(seed)
    return [draws.integers(1, 40, draws.integers(1, 12)).tolist() for _ in range(num_documents)]


documents_strategy = st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=8), min_size=2, max_size=8)


def test_chunks_by_hand():
    documents = [[3, 4, 4, 2], [10], [25, 1]]
    # One segment of at most 10: 3 + 4 | 4 + 2; 10; 25 in thirds of 8, 8, 9, and 1 joins the last.
    assert whole(chunks_of(documents, 10, pairs=False)) == [(0, 7), (7, 6), (13, 10), (23, 8), (31, 8), (39, 10)]
    # Pairs: pieces of at most 5, 10 = 5 + 5 and 25 = 5 x 5.
    assert whole(chunks_of(documents, 10, pairs=True)) == [(0, 7), (7, 6), (13, 10), (23, 10), (33, 10), (43, 6)]


def test_only_the_documents_of_the_split_exist():
    documents = [[3, 4], [5, 1], [2, 2], [6, 1]]
    chunks = chunks_of(documents, 8, pairs=True, used=[1, 3])
    # 6 is cut into two threes.
    assert whole(chunks) == [(7, 6), (17, 7)]
    drawn = draw(chunks, 0, np.arange(400), np.arange(400) % 2)
    ends = drawn.starts + drawn.lengths
    inside = ((drawn.starts >= 7) & (ends <= 13)) | ((drawn.starts >= 17) & (ends <= 24))
    assert inside.all()


def slow_chunks(documents: list[list[int]], max_tokens: int, largest: int) -> list[tuple[int, int]]:
    """Applies the rule of `SentenceChunks` sentence by sentence."""
    result, position = [], 0
    for document in documents:
        start = position
        for length in document:
            count = -(-length // largest)
            for part in range(count):
                piece = length * (part + 1) // count - length * part // count
                if position + piece - start > max_tokens:
                    result.append((start, position - start))
                    start = position
                position += piece
        result.append((start, position - start))
    return result


@given(documents_strategy, st.integers(2, 25), st.booleans())
def test_chunks_cover_all_text_in_order(documents, max_tokens, pairs):
    chunks = chunks_of(documents, max_tokens, pairs)
    assert whole(chunks) == slow_chunks(documents, max_tokens, max_tokens // 2 if pairs else max_tokens)
    covered = [position for start, length in whole(chunks) for position in range(start, start + length)]
    assert covered == list(range(sum(map(sum, documents))))


@settings(deadline=None)
@given(documents_strategy, st.integers(2, 25), st.integers(0, 5))
def test_pairs_satisfy_their_rules(documents, max_tokens, seed):
    chunks = chunks_of(documents, max_tokens, pairs=True)
    indices = np.tile(np.arange(len(chunks)), 20)
    drawn = draw(chunks, seed, np.repeat(np.arange(20), len(chunks)), indices)
    of_chunk = chunks.single_segments(indices)
    owner = np.repeat(np.arange(len(documents)), [sum(document) for document in documents])
    follows = drawn.labels == FOLLOWS
    ends = drawn.starts + drawn.lengths
    assert (drawn.lengths > 0).all() and (drawn.lengths.sum(axis=1) <= max_tokens).all()
    # A begins the chunk; a following B continues within it; a random B is from one other document.
    assert (drawn.starts[:, 0] == of_chunk.starts[:, 0]).all()
    assert (ends[:, 0] == drawn.starts[:, 1])[follows].all()
    assert (ends.max(axis=1) <= (of_chunk.starts + of_chunk.lengths)[:, 0])[follows].all()
    assert (owner[drawn.starts[:, 0]] != owner[drawn.starts[:, 1]])[~follows].all()
    assert (owner[drawn.starts] == owner[ends - 1]).all()


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(30)), st.integers(1, 29))
def test_a_pair_depends_only_on_seed_epoch_and_index(order, cut):
    chunks = chunks_of(random_documents(0, 12), 40, pairs=True)
    indices, epochs = np.arange(30) % len(chunks), np.arange(30) // 7
    together = draw(chunks, 3, epochs, indices)
    for part in (np.array(order[:cut]), np.array(order[cut:])):
        alone = draw(chunks, 3, epochs[part], indices[part])
        assert (alone.starts == together.starts[part]).all() and (alone.lengths == together.lengths[part]).all()
        assert (alone.labels == together.labels[part]).all()


def test_epochs_and_seeds_differ():
    chunks = chunks_of(random_documents(0, 30), 40, pairs=True)
    indices = np.arange(len(chunks))
    base, epoch, seed = (draw(chunks, s, np.full(len(indices), e), indices) for s, e in ((0, 0), (0, 1), (1, 0)))
    for other in (epoch, seed):
        assert 0.3 < (other.labels == base.labels).mean() < 0.9
        assert (other.starts[:, 1] != base.starts[:, 1]).mean() > 0.5


def test_rates_are_those_of_the_recipe():
    """Documents of 12 sentences with 5 tokens each; a chunk holds 6 of them. Bounds are 5 standard deviations."""
    chunks = chunks_of([[5] * 12] * 50, 30, pairs=True)
    number = 40_000
    drawn = draw(chunks, 0, np.arange(number) // len(chunks), np.arange(number) % len(chunks))
    # With two pieces or more half of the B are random. A short target leaves one piece if it is 2 to 5 of 2 to 30.
    single = 0.1 * 4 / 29
    random_rate = single + (1 - single) * 0.5
    assert abs((drawn.labels == RANDOM).mean() - random_rate) < 5 * np.sqrt(0.25 / number)
    # If B follows, the pair is the whole chunk if the target is full or a short one of 26 to 30.
    full = (0.9 + 0.1 * 5 / 29) / (1 - single)
    total = drawn.lengths[drawn.labels == FOLLOWS].sum(axis=1)
    assert abs((total == 30).mean() - full) < 5 * np.sqrt(full * (1 - full) / len(total))
    # In these, A has 1 to 5 sentences, equally often (chi-square, 4 degrees, p = 1e-5).
    sizes = np.bincount(drawn.lengths[drawn.labels == FOLLOWS, 0][total == 30] // 5, minlength=7)[1:6]
    expected = sizes.sum() / 5
    assert ((sizes - expected) ** 2 / expected).sum() < 28.5
    # Random documents are uniform over the 49 others (48 degrees, p = 1e-5), for any document of A.
    random = drawn.labels == RANDOM
    distance = (drawn.starts[random, 1] // 60 - drawn.starts[random, 0] // 60) % 50
    counts = np.bincount(distance, minlength=50)
    assert counts[0] == 0
    expected = counts.sum() / 49
    assert ((counts[1:] - expected) ** 2 / expected).sum() < 102


def test_single_sentences_always_get_a_random_next():
    chunks = chunks_of([[4], [6], [5]], 12, pairs=True)
    drawn = draw(chunks, 0, np.arange(300), np.arange(300) % 3)
    assert (drawn.labels == RANDOM).all()
    # The chunk itself is never cut, and B is complete: at most 6 + 6 tokens.
    assert (drawn.lengths[:, 0] == np.array([4, 6, 5])[np.arange(300) % 3]).all()
    assert set(drawn.lengths[:, 1].tolist()) == {4, 5, 6}


def test_unused_text():
    # Two sentences in each document: a random B omits the second one; so does a short target of 2 tokens.
    chunks = chunks_of([[2, 2]] * 4000, 4, pairs=True)
    short = 0.1 * 1 / 3
    expected = 0.5 * (short + (1 - short) * 0.5)
    indices = np.arange(4000)
    first, second = (mix(key(epoch, "unused"), indices) for epoch in (0, 1))
    assert abs(chunks.unused_fraction(first, indices) - expected) < 5 * 0.5 * np.sqrt(0.25 / 4000)
    assert chunks.unused_fraction(first, indices) != chunks.unused_fraction(second, indices)
    assert chunks_of([[2, 2]] * 4, 4, pairs=False).unused_fraction(first[:4], indices[:4]) == 0


def test_random_seconds_from_the_neighbourhood():
    """Documents of 2 chunks each, 8 to a neighbourhood: chunks 8 to 15 are those of documents 4 to 7."""
    chunks = chunks_of([[5, 5, 5, 5]] * 12, 10, pairs=True, neighbourhood=8)
    indices = np.tile(np.arange(24), 400)
    drawn = draw(chunks, 0, np.arange(len(indices)) // 24, indices)
    random = drawn.labels == RANDOM
    own, other = drawn.starts[random, 0] // 20, drawn.starts[random, 1] // 20
    assert (own // 4 == other // 4).all() and (own != other).all()
    # Each of the three others equally often (chi-square over the pairs of a neighbourhood, 11 degrees, p = 1e-5).
    for neighbourhood in range(3):
        here = own // 4 == neighbourhood
        counts = np.bincount(own[here] % 4 * 4 + other[here] % 4, minlength=16).reshape(4, 4)
        counts = counts[~np.eye(4, dtype=bool)]
        expected = counts.sum() / 12
        assert ((counts - expected) ** 2 / expected).sum() < 44


def test_a_document_that_fills_its_neighbourhood_is_paired_with_adjacent_ones():
    chunks = chunks_of([[5] * 8, [5] * 16, [5] * 8], 10, pairs=True, neighbourhood=4)
    # Chunks 4 to 7 and 8 to 11 are of document 1 alone.
    drawn = draw(chunks, 0, np.arange(800), 4 + np.arange(800) % 8)
    others = drawn.starts[drawn.labels == RANDOM, 1]
    assert set((others < 40).tolist()) == {True, False} and not ((others >= 40) & (others < 120)).any()


def test_an_empty_request_draws_nothing():
    none = np.zeros(0, dtype=np.int64)
    chunks = chunks_of([[2, 2], [3]], 6, pairs=True)
    assert draw(chunks, 0, none, none).starts.shape == (0, 2)
    assert chunks.single_segments(none).starts.shape == (0, 1)


def test_impossible_settings():
    with pytest.raises(DataError, match=r"the split has 1 document\. Next-sentence prediction draws from another"):
        chunks_of([[3, 3]], 10, pairs=True)
    with pytest.raises(ConfigError, match="room for 1 tokens"):
        chunks_of([[3], [3]], 1, pairs=True)
