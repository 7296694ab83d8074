"""Plan of a private run: each step is a Poisson sample of the items, which only the secret of the run determines."""

import numpy as np

from framework.data.planning.plan import SequenceSource, StepPlan, StepSequences
from framework.privacy.secret import Secret


class PoissonPlan(StepPlan):
    """Plan whose steps contain each item with the same probability, independently; a step without items is legal.

    An epoch is the number of steps whose expected number of items is the size of the source.

    Args:
        source: Items of the training split.
        secret: Secret of the run, set before the first step is planned.
        expected_batch: Expected number of items in a step.
        micro_batch_tokens: Token budget of a micro-batch.
        num_ranks: Data-parallel ranks.
    """

    def __init__(
        self, source: SequenceSource, secret: Secret, expected_batch: int, micro_batch_tokens: int, num_ranks: int
    ) -> None:
        super().__init__(source, 0, expected_batch, micro_batch_tokens, num_ranks, shuffle=False)
        self._secret = secret

    def sequences(self, step: int) -> StepSequences:
        """Returns the items of a step in the order of the source."""
        size = len(self.source)
        draws = self._secret.uniforms("sampling", step, "", 0, size)
        indices = np.flatnonzero(draws < self.global_batch_size / size)
        epochs = np.full(len(indices), self.epoch(step), dtype=np.int64)
        return StepSequences(epochs, indices, step * size + indices)
