import numpy as np
import pytest

from framework.data.preparation import card_packing
from framework.data.preparation.card_packing import packing_efficiency


def boundaries(lengths: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Builds documents from the lengths of their sentences."""
    flat = [length for document in lengths for length in document]
    return np.array(flat, dtype=np.int32), np.array([len(document) for document in lengths])


def test_by_hand():
    # 8 micro-batches of 16 x 128 tokens: sequences of 126 + 2 tokens fill them to the last token.
    full = boundaries([[63, 63]] * 1024)
    assert packing_efficiency([full])[128] == 1.0
    # One sequence of 30 tokens: the smallest budget that may hold any sequence is 128 for 128, and so on.
    efficiency = packing_efficiency([boundaries([[28]])])
    assert efficiency == {128: 30 / 128, 512: 30 / 512, 1024: 30 / 1024}


def test_short_and_long_documents_of_all_lengths_are_packed_well():
    lengths = [[1 + (index * 7919) % 97] for index in range(3000)]
    assert min(packing_efficiency([boundaries(lengths)]).values()) > 0.99


@pytest.mark.parametrize("count", [64, 65, 300])
def test_a_sample_is_spread_over_all_record_batches(count, monkeypatch):
    monkeypatch.setattr(card_packing, "_efficiency", lambda batches, length: [batch[0] for batch in batches])
    seen = packing_efficiency((number, None) for number in range(count))[128]
    assert len(seen) <= 65 and seen[0] == 0 and len(set(np.diff(seen))) == 1 and count - seen[-1] <= seen[1]
