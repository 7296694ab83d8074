"""Number of operations that the host launches in a training step on CUDA. Bounds may only be lowered.

A step of this size waits for the host, which launches about two kernels for each operation.
"""

import pytest

from tests.support.training.counted_step import count_step, describe, total
from tests.support.training.workloads import workload

MODELS = {"bert_base": 803, "modernbert_base": 2050, "minilm_sst2": 440}
"""Most operations of a step that is neither compiled nor replayed."""


@pytest.mark.parametrize(("name", "bound"), MODELS.items())
def test_a_step_launches_no_more_operations(name, bound):
    phases = count_step(workload(name))
    assert total(phases) <= bound, f"{total(phases)} operations, more than {bound}:\n{describe(phases)}"
