"""MaxSim in blocks against two loops over texts; gradients by autograd of the loops."""

import pytest
import torch

from framework.nn import max_sim as module
from framework.nn.max_sim import max_sim


def by_loops(vectors, lengths, queries, documents):
    texts = vectors.split(lengths.tolist())
    return torch.stack(
        [torch.stack([(texts[q] @ texts[d].T).max(dim=1).values.sum() for d in documents]) for q in queries]
    )


@pytest.mark.parametrize("limits", [(2048, 8192), (8, 10), (1, 1)], ids=["one_block", "small", "each_text"])
def test_scores_and_gradients_equal_those_of_loops(limits, monkeypatch):
    monkeypatch.setattr(module, "_QUERY_TOKENS", limits[0])
    monkeypatch.setattr(module, "_DOCUMENT_TOKENS", limits[1])
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([3, 7, 1, 2, 9, 4, 4, 1])
    vectors = torch.randn(int(lengths.sum()), 5, generator=generator).requires_grad_()
    queries, documents = torch.tensor([4, 0, 3]), torch.tensor([7, 1, 5, 2, 6])
    weights = torch.randn(3, 5, generator=generator)
    ours, theirs = (f(vectors, lengths, queries, documents) for f in (max_sim, by_loops))
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad((scores * weights).sum(), vectors)[0] for scores in (ours, theirs)]
    torch.testing.assert_close(*gradients)
    with torch.no_grad():
        assert torch.equal(max_sim(vectors, lengths, queries, documents), ours)


def test_a_step_without_queries_has_a_gradient_of_zero():
    vectors = torch.randn(4, 2, requires_grad=True)
    nothing = torch.zeros(0, dtype=torch.int64)
    scores = max_sim(vectors, torch.tensor([1, 3]), nothing, torch.tensor([0]))
    assert scores.shape == (0, 1)
    scores.sum().backward()
    assert vectors.grad.abs().sum() == 0
