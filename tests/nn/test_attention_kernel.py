"""Choice of the attention kernel: the logic with kernels and times made up, since a CPU has none of them."""

import pytest
import torch
from torch import Tensor

from framework.nn import attention_kernel
from framework.nn.attention_kernel import UnusableKernelError, attention_pass, time_kernels, use_kernel
from tests.support.models.packs import make_batch


class Machine:
    """A machine whose kernels take the given seconds. A kernel with an error cannot run or computes with that error."""

    def __init__(
        self, seconds: dict[str, float], errors: dict[str, float | Exception], missing: tuple[str, ...]
    ) -> None:
        self.seconds, self.errors, self.missing = seconds, errors, missing
        self.time, self.kernel = 0.0, ""

    def use(self, name: str) -> None:
        if name in self.missing:
            raise UnusableKernelError("no module")
        self.kernel = name

    def run(self) -> list[Tensor]:
        error = self.errors.get(self.kernel, 0.0)
        if isinstance(error, Exception):
            raise error
        self.time += self.seconds[self.kernel]
        return [torch.tensor([3.0, 4.0 + 5.0 * error])]


@pytest.mark.parametrize(
    ("errors", "missing", "expected"),
    [
        ({}, (), {"flash2": 3.0, "flash3": 1.0, "flash4": 2.0}),
        ({}, ("flash3",), {"flash2": 3.0, "flash4": 2.0}),
        ({"flash3": RuntimeError("no backward pass")}, (), {"flash2": 3.0, "flash4": 2.0}),
        ({"flash3": 0.1, "flash4": 0.001}, (), {"flash2": 3.0, "flash4": 2.0}),
    ],
)
def test_only_kernels_that_train_and_agree_get_a_time(errors, missing, expected, monkeypatch):
    machine = Machine({"flash2": 3.0, "flash3": 1.0, "flash4": 2.0}, errors, missing)
    monkeypatch.setattr(attention_kernel, "use_kernel", machine.use)
    found = time_kernels(("flash2", "flash3", "flash4"), machine.run, lambda: machine.time)
    assert found == pytest.approx(dict.fromkeys(machine.seconds, float("inf")) | expected)


def test_a_kernel_that_is_not_installed_is_reported():
    with pytest.raises(UnusableKernelError, match="flash_attn_interface"):
        use_kernel("flash3")
    use_kernel("flash2")


def test_a_pass_has_outputs_and_gradients_of_each_layer():
    batch = make_batch((5, 3))
    found = attention_pass(batch, 2, 4, [None, 2, None], torch.float32)()
    assert [tuple(tensor.shape) for tensor in found] == [(8, 2, 4), (8, 2, 3, 4)] * 3
    assert torch.equal(found[0], found[4]) and not torch.equal(found[0], found[2])
