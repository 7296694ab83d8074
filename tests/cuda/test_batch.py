"""Copies of packed batches to a GPU do not wait for its work."""

import numpy as np
import torch

from framework.data.planning.collate import pack_sequences
from tests.support.needs import cuda

pytestmark = cuda


def test_a_copy_does_not_wait_for_earlier_kernels():
    tokens = 1 << 16
    batch = pack_sequences(np.arange(tokens), np.array([tokens]), np.zeros(1, dtype=np.int64))
    batch.to("cuda", non_blocking=True)
    torch.cuda.synchronize()
    torch.cuda._sleep(2_000_000_000)  # cycles, about a second
    end = torch.cuda.Event()
    end.record()
    copy = batch.to("cuda", non_blocking=True)
    assert not end.query()
    assert torch.equal(copy.input_ids.cpu(), batch.input_ids)
