"""Token sequences for recommendation: segments of users' likes as adjacent texts, and the catalogue, one text per item.

An item of the plan is a segment of one user's likes in time order: first likes that are only history, then likes that
are prediction targets. Each text is encoded once. It is the target at its own moment, part of the user's history at
later moments, and a negative for other users: the causal training of Kang and McAuley 2018 (arXiv:1808.09781, section
3.5) with texts instead of ids. A history has strictly earlier likes only, so likes of one moment do not see each other.

Targets, one per sequence: `users`, an id of the user in the split (NOBODY: a catalogue item, which is a search
candidate); `items`, the index in the catalogue; `earlier`, the number of strictly earlier sequences of the segment, 0
for a like that is not a prediction target; `log_shares`, the logarithm of the item's share of all training likes.
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
    """Items of a split, with the texts of the catalogue as search candidates.

    Attributes:
        trial: Questions of the split, set by the code that builds the source. None: there are no questions.
    """

    trial: Trial | None = None

    @property
    def fingerprint(self) -> str:
        """Returns the fingerprint of the texts and of the questions."""
        digest = hashlib.blake2b(digest_size=16)
        for question in self.trial.questions if self.trial is not None else ():
            digest.update(f"{question.user}:{question.history.tolist()}:{question.seen.tolist()}".encode())
        return f"{super().fingerprint} {digest.hexdigest()}"


def find_segments(likes: Likes, split: int, max_history: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Splits the likes of a split into segments of at most `max_history` targets, each preceded by its history.

    The first likes of a user are never targets, because the user has no history then.

    Args:
        likes: Likes of all users.
        split: Index in SPLITS.
        max_history: Number of likes that form the vector of a user.

    Returns:
        Three arrays (segments,) of indices into `likes`: the start of the segment, the start of its targets, and its
        exclusive end.
    """
    is_target = (likes.splits == split) & (likes.num_earlier > 0)
    # The likes of one user in a split are adjacent.
    indices = np.flatnonzero(is_target)
    runs = np.split(indices, np.flatnonzero(np.diff(likes.users[indices])) + 1) if len(indices) else []
    firsts = np.concatenate([run[::max_history] for run in runs] or [np.zeros(0, dtype=np.int64)])
    ends = np.array([min(first + max_history, run[-1] + 1) for run in runs for first in run[::max_history]], dtype=int)
    history = np.minimum(likes.num_earlier[firsts], max_history)
    begins = likes.starts[firsts] + likes.num_earlier[firsts] - history
    return begins, firsts, ends


def known_likes(likes: Likes, num_items: int) -> np.ndarray:
    """Returns ascending `user * num_items + item` of the known likes of each split.

    The known likes of a split exclude those of later splits. A user has a different id in each split (`split_users`).
    """
    parts = []
    for split in range(len(SPLITS)):
        is_known = likes.splits <= split
        parts.append(split_users(likes.users[is_known], split) * num_items + likes.item_indices[is_known])
    return np.sort(np.concatenate(parts))


def split_users(users: np.ndarray, split: int) -> np.ndarray:
    """Returns the ids of users in a split. Different splits have different ids."""
    return users * len(SPLITS) + split


def segment_source(
    likes: Likes, split: int, catalogue: Catalogue, texts: Layout, max_history: int, max_length: int
) -> SearchSource:
    """Builds the segments of a split. In an evaluated split the catalogue follows them.

    Args:
        likes: Likes of all users.
        split: Index in SPLITS. 0 is the training split.
        catalogue: Catalogue of items.
        texts: Tokenized texts of the catalogue.
        max_history: Number of likes that form the vector of a user.
        max_length: Maximum number of tokens of a sequence.
    """
    begins, firsts, ends = find_segments(likes, split, max_history)
    sizes = ends - begins
    rows = ragged.ranges(begins, sizes)
    is_target = rows >= np.repeat(firsts, sizes)
    earlier = np.where(is_target, likes.starts[rows] + likes.num_earlier[rows] - np.repeat(begins, sizes), 0)
    items, users = likes.item_indices[rows], split_users(likes.users[rows], split)
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


def history_source(
    catalogue: Catalogue, histories: Sequence[Sequence[str]], tokenizer: Tokenizer, max_length: int
) -> SearchSource:
    """Builds the source of rows to predict: the catalogue, then each other text of the histories once.

    Its records are the histories.

    Args:
        catalogue: Catalogue of items.
        histories: Item ids or texts of the likes of each row, in time order.
        tokenizer: Tokenizer that supplies ids and special tokens.
        max_length: Maximum number of tokens of a sequence.
    """
    index_of = {same_text(text): index for index, text in reversed([*enumerate(catalogue.texts)])}
    # If an id equals a text, the id wins.
    index_of |= {item: index for index, item in enumerate(catalogue.items)}
    texts = list(catalogue.texts)
    questions = []
    for row, history in enumerate(histories):
        for entry in history:
            if entry not in index_of and index_of.setdefault(same_text(entry), len(texts)) == len(texts):
                texts.append(entry)
        indices = np.array([index_of.get(entry, index_of.get(same_text(entry))) for entry in history], dtype=np.int64)
        questions.append(Question(row, indices, indices[indices < len(catalogue.items)], indices[:0]))
    layout = lay_out(texts, None, tokenizer, max_length)
    counts = {LOSS_TERM: np.zeros(len(texts))}
    source = SearchSource(layout.input_ids, layout.lengths, {}, counts, max_length, records=histories)
    source.trial = Trial(questions, 0, 0, {})
    return source
