"""GPU code as far as a machine without a GPU can check it: traced on fake tensors, no kernel runs.

The CPU builds of torch cannot build an autograd graph on fake CUDA tensors. There only the forward pass is traced. The
whole layer with gradients is traced on fake CPU tensors, with the kernel that CUDA would choose.
"""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from framework.models.config import EncoderConfig
from framework.models.encoder import TransformerEncoder
from framework.nn import attention_backend
from framework.nn.attention_backend import self_attention
from framework.nn.dropout import HashedDropout, dropout_base, token_keys
from tests.support.models.fixed_shape import PACKS, Called, fixed_shape_batch
from tests.support.models.shapes import BERT, MODERN


@pytest.fixture
def varlen_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_backend, "_has_varlen_kernel", lambda x: x.dtype == torch.bfloat16)


def test_cuda_in_half_precision_uses_the_varlen_kernel_and_copies_no_value_to_the_host() -> None:
    with FakeTensorMode(), torch.no_grad(), Called() as called:
        batch = fixed_shape_batch(*PACKS[0], "cuda")
        keys = token_keys(dropout_base(1, 2, 0), batch)
        qkv = torch.empty(128, 4, 3, 16, dtype=torch.bfloat16, device="cuda")
        rotary = (torch.empty(128, 8, device="cuda"), torch.empty(128, 8, device="cuda"))
        mixed = self_attention(qkv, rotary, batch.cu_seqlens, batch.lengths, batch.max_seqlen, window=8)
        residual = torch.empty(128, 64, device="cuda")
        out = HashedDropout(0.1, "site")(mixed.flatten(1), keys, residual=residual)
    assert (mixed.shape, mixed.dtype, mixed.device.type) == ((128, 4, 16), torch.bfloat16, "cuda")
    assert (out.shape, out.dtype) == ((128, 64), torch.float32)
    assert any("varlen_attn" in name for name in called.names)
    assert not [name for name in called.names if "_local_scalar_dense" in name or "nonzero" in name]


@pytest.mark.parametrize("config", [BERT, MODERN], ids=["bert", "modernbert"])
def test_no_layer_copies_a_value_to_the_host(config: EncoderConfig, varlen_everywhere: None) -> None:
    with FakeTensorMode():
        model = TransformerEncoder(config)
        batch = fixed_shape_batch(*PACKS[0], "cpu")
        with Called() as called, torch.autocast("cpu", torch.bfloat16):
            model(batch, token_keys(dropout_base(1, 2, 0), batch)).sum().backward()
    assert sum("varlen_attn" in name for name in called.names) >= config.num_layers
    assert not [name for name in called.names if "_local_scalar_dense" in name or "nonzero" in name]


def test_masks_of_the_path_for_other_devices_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from framework.nn import dropout

    keys = torch.arange(50) * 7919
    expected = dropout.dropout_mask(keys, 10, 3000, 11)
    monkeypatch.setattr(dropout, "_is_little_endian_cpu", lambda x: False)
    assert torch.equal(dropout.dropout_mask(keys, 10, 3000, 11), expected)
