"""Builds our translation model and EncoderDecoderModel of transformers with the same random weights."""

from dataclasses import replace

import transformers
from torch import Tensor

from framework.batch import PackedBatch
from framework.models.config import EncoderConfig
from framework.models.decoder import DecoderConfig
from framework.models.encoder import TransformerEncoder
from framework.published.bert import BERT
from framework.published.rules import Rule, fused_qkv, renamed, to_ours
from framework.tasks.task import TaskModel
from framework.tasks.translation.head import build_translation_head
from framework.tasks.translation.search import SearchSettings
from tests.support.models import peers

START, END, PAD = 2, 3, 0
SOURCES, TARGETS = (5, 23, 1, 12), (7, 3, 9, 1)
LAYERS = 3
SEGMENTS = "bert.embeddings.token_type_embeddings.weight"


def decoder_rules() -> list[Rule]:
    rules = [
        *renamed("decoder.embeddings.word_embeddings", "bert.embeddings.word_embeddings", bias=False),
        *renamed("decoder.embeddings.position_embeddings", "bert.embeddings.position_embeddings", bias=False),
        *renamed("decoder.embeddings.norm", "bert.embeddings.LayerNorm"),
        *renamed("mlm.dense", "cls.predictions.transform.dense"),
        *renamed("mlm.norm", "cls.predictions.transform.LayerNorm"),
        *renamed("mlm.decoder", "cls.predictions.decoder"),
    ]
    for layer in range(LAYERS):
        ours, theirs = f"decoder.layers.{layer}", f"bert.encoder.layer.{layer}"
        attention, cross = f"{theirs}.attention.self", f"{theirs}.crossattention.self"
        names = (f"{attention}.query", f"{attention}.key", f"{attention}.value")
        rules += fused_qkv(f"{ours}.attention.qkv", names, bias=True)
        rules += renamed(f"{ours}.attention.output", f"{theirs}.attention.output.dense")
        rules += renamed(f"{ours}.attention_norm", f"{theirs}.attention.output.LayerNorm")
        for name in ("query", "key", "value"):
            rules += renamed(f"{ours}.cross_attention.{name}", f"{cross}.{name}")
        rules += renamed(f"{ours}.cross_attention.output", f"{theirs}.crossattention.output.dense")
        rules += renamed(f"{ours}.cross_attention_norm", f"{theirs}.crossattention.output.LayerNorm")
        rules += renamed(f"{ours}.feed_forward.up", f"{theirs}.intermediate.dense")
        rules += renamed(f"{ours}.feed_forward.down", f"{theirs}.output.dense")
        rules += renamed(f"{ours}.feed_forward_norm", f"{theirs}.output.LayerNorm")
    return rules


def both_models(
    share_words: bool = False, tie_output: bool = True, search: SearchSettings | None = None
) -> tuple[TaskModel, transformers.EncoderDecoderModel]:
    """Returns our model and the transformers model, with the same random weights."""
    special = {"bos_token_id": START, "eos_token_id": END, "pad_token_id": PAD, "decoder_start_token_id": START}
    options = {"is_decoder": True, "add_cross_attention": True, "num_hidden_layers": LAYERS, **special}
    theirs = transformers.EncoderDecoderModel(
        encoder=peers.peer("BertModel", "bert"),
        decoder=peers.peer("BertLMHeadModel", "bert", seed=1, tie_word_embeddings=tie_output, **options),
    ).eval()
    if share_words:
        theirs.decoder.bert.embeddings.word_embeddings.weight = theirs.encoder.embeddings.word_embeddings.weight
        if tie_output:
            theirs.decoder.cls.predictions.decoder.weight = theirs.encoder.embeddings.word_embeddings.weight
    config: EncoderConfig = BERT.read_config(peers.CONFIGS["bert"].to_dict())
    tensors = {name.removeprefix("bert."): tensor for name, tensor in theirs.encoder.state_dict().items()}
    encoder_state = to_ours(BERT.encoder_rules(config), tensors, config.num_heads)
    encoder = TransformerEncoder(config)
    encoder.load_state_dict(encoder_state)
    decoder_config = DecoderConfig(LAYERS, 64, share_words, tie_output)
    head = build_translation_head(encoder, config, decoder_config, START, END, search or SearchSettings())
    theirs_state = theirs.decoder.state_dict()
    state = to_ours(decoder_rules(), theirs_state, config.num_heads)
    state["decoder.embeddings.token_type_embeddings.weight"] = theirs_state[SEGMENTS][:1]
    head.load_state_dict(state)
    return TaskModel(encoder, head).eval(), theirs


def both_inputs(source_lengths: tuple[int, ...] = SOURCES) -> tuple[PackedBatch, dict[str, Tensor]]:
    sources, targets = peers.sequences(source_lengths), peers.sequences(TARGETS, seed=2)
    batch = replace(peers.pack(sources), decoder_inputs=peers.pack(targets))
    inputs = peers.pad(sources, PAD) | {f"decoder_{name}": tensor for name, tensor in peers.pad(targets, PAD).items()}
    return batch, inputs


def unpadded(x: Tensor, inputs: dict[str, Tensor]) -> Tensor:
    return x[inputs["decoder_attention_mask"].bool()]
