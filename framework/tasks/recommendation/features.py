"""Stretches of what users liked, as sequences of texts that lie side by side; and the catalogue, one text an item.

An item of the plan is a stretch of one user's likes in the order of time: some that only go before, then those that
must be found. Each text is encoded once, and is what is looked for at its moment, a part of the user's history at later
ones, and a negative for other users: the causal training of Kang and McAuley 2018 (arXiv:1808.09781, section 3.5) with
texts for ids. Histories are of strictly earlier likes; likes of one moment do not know of each other.

Targets, one a sequence: `users`, an id of the user in the split (NOBODY: an item of the catalogue, which is searched);
`items`, its place in the catalogue; `earlier`, how many sequences of the stretch are strictly earlier, 0 where it need
not be found; `log_shares`, the logarithm of the item's share of all likes of the training.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

from framework import ragged
from framework.data.examples.splits import same_text
from framework.data.flat_source import FlatSource, FlatTarget
from framework.data.layout import Layout, lay_out
from framework.data.tokenization.tokenizer import Tokenizer
from framework.tasks.recommendation.catalogue import Catalogue
from framework.tasks.recommendation.data import SPLITS, Likes
from framework.tasks.recommendation.losses import NOBODY
from framework.tasks.recommendation.trial import Question, Trial

LOSS_TERM = "recommendation"


class SearchSource(FlatSource):
    """Items that end with, or are, texts that are searched.

    Attributes:
        trial: What is asked of them, set by who builds it; None: nothing is.
    """

    trial: Trial | None = None

    @property
    def fingerprint(self) -> str:
        """Of the texts and of what is asked."""
        digest = hashlib.blake2b(digest_size=16)
        for question in self.trial.questions if self.trial is not None else ():
            digest.update(f"{question.user}:{question.history.tolist()}:{question.seen.tolist()}".encode())
        return f"{super().fingerprint} {digest.hexdigest()}"


def find_stretches(likes: Likes, split: int, max_history: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cuts the likes of a split into stretches of at most `max_history`, and puts before each what its first one needs.

    A user's first likes need not be found by anything, as nothing is known of the user then.

    Args:
        likes: Of all users.
        split: Place in SPLITS.
        max_history: Likes that make the vector of a user.

    Returns:
        (stretches,) each: where the sequences of the stretch begin, where those that must be found begin, and where
        both end, as places in `likes`.
    """
    is_found = (likes.splits == split) & (likes.num_earlier > 0)
    # Of one user the likes of a split stand together.
    places = np.flatnonzero(is_found)
    runs = np.split(places, np.flatnonzero(np.diff(likes.users[places])) + 1) if len(places) else []
    firsts = np.concatenate([run[::max_history] for run in runs] or [np.zeros(0, dtype=np.int64)])
    ends = np.array([min(first + max_history, run[-1] + 1) for run in runs for first in run[::max_history]], dtype=int)
    history = np.minimum(likes.num_earlier[firsts], max_history)
    begins = likes.starts[firsts] + likes.num_earlier[firsts] - history
    return begins, firsts, ends


def known_likes(likes: Likes, num_items: int) -> np.ndarray:
    """Ascending `user * num_items + item` of what is known to be liked in each split: nothing of a later one.

    A user has another id in each split (`split_users`).
    """
    parts = []
    for split in range(len(SPLITS)):
        is_known = likes.splits <= split
        parts.append(split_users(likes.users[is_known], split) * num_items + likes.places[is_known])
    return np.sort(np.concatenate(parts))


def split_users(users: np.ndarray, split: int) -> np.ndarray:
    """Ids of users in a split, of which no two splits have the same."""
    return users * len(SPLITS) + split


def stretch_source(
    likes: Likes, split: int, catalogue: Catalogue, texts: Layout, max_history: int, max_length: int
) -> SearchSource:
    """The stretches of a split; where it is evaluated, behind them the catalogue.

    Args:
        likes: Of all users.
        split: Place in SPLITS; 0 is trained on.
        catalogue: Its items.
        texts: Of the catalogue.
        max_history: Likes that make the vector of a user.
        max_length: Most tokens of a sequence.
    """
    begins, firsts, ends = find_stretches(likes, split, max_history)
    sizes = ends - begins
    rows = ragged.ranges(begins, sizes)
    is_found = rows >= np.repeat(firsts, sizes)
    earlier = np.where(is_found, likes.starts[rows] + likes.num_earlier[rows] - np.repeat(begins, sizes), 0)
    items, users = likes.places[rows], split_users(likes.users[rows], split)
    if split > 0:
        num_items = len(catalogue.items)
        items = np.concatenate([items, np.arange(num_items)])
        users = np.concatenate([users, np.full(num_items, NOBODY)])
        earlier = np.concatenate([earlier, np.zeros(num_items, dtype=np.int64)])
        sizes = np.concatenate([sizes, np.ones(num_items, dtype=np.int64)])
    targets = {"users": users, "items": items, "earlier": earlier, "log_shares": catalogue.log_shares[items]}
    lengths = texts.lengths[items]
    starts = ragged.starts(texts.lengths)[items]
    return SearchSource(
        texts.input_ids[ragged.ranges(starts, lengths)],
        lengths,
        {name: FlatTarget(values, "sequences", NOBODY) for name, values in targets.items()},
        {LOSS_TERM: earlier > 0},
        max_length,
        item_sizes=sizes,
        cutting=texts.cutting,
    )


def asked_source(
    catalogue: Catalogue, histories: Sequence[Sequence[str]], tokenizer: Tokenizer, max_length: int
) -> SearchSource:
    """The catalogue, and behind it the texts of histories that are not in it, each once; records are the histories.

    Args:
        catalogue: Its items.
        histories: Of each row the ids or texts of what was liked, in the order of time.
        tokenizer: Gives ids and special tokens.
        max_length: Most tokens of a sequence.
    """
    place_of = {same_text(text): place for place, text in reversed([*enumerate(catalogue.texts)])}
    # An id that reads as a text is an id.
    place_of |= {item: place for place, item in enumerate(catalogue.items)}
    texts = list(catalogue.texts)
    questions = []
    for row, history in enumerate(histories):
        for entry in history:
            if entry not in place_of and place_of.setdefault(same_text(entry), len(texts)) == len(texts):
                texts.append(entry)
        places = np.array([place_of.get(entry, place_of.get(same_text(entry))) for entry in history], dtype=np.int64)
        questions.append(Question(row, places, places[places < len(catalogue.items)], places[:0]))
    layout = lay_out(texts, None, tokenizer, max_length)
    counts = {LOSS_TERM: np.zeros(len(texts))}
    source = SearchSource(layout.input_ids, layout.lengths, {}, counts, max_length, records=histories)
    source.trial = Trial(questions, 0, 0, {})
    return source
