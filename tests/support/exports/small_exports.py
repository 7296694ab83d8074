"""Small configs of the model families, a tokenizer for them, and an export loaded by transformers."""

import json

from tokenizers import Tokenizer, models, pre_tokenizers, processors

from framework.models.config import EncoderConfig

SHAPE = {"vocab_size": 99, "hidden_size": 32, "num_layers": 4, "num_heads": 4, "max_position_embeddings": 66}
CONFIGS = {
    "bert": EncoderConfig(family="bert", intermediate_size=64, **SHAPE),
    "roberta": EncoderConfig(
        family="roberta",
        intermediate_size=64,
        type_vocab_size=1,
        position_offset=2,
        pad_token_id=1,
        norm_eps=1e-5,
        **SHAPE,
    ),
    "modernbert": EncoderConfig(
        family="modernbert",
        intermediate_size=48,
        type_vocab_size=0,
        position_encoding="rotary",
        rope_theta_global=5000.0,
        rope_theta_local=100.0,
        local_attention_window=16,
        global_attention_every=3,
        norm_placement="pre",
        gated=True,
        bias=False,
        norm_bias=False,
        norm_eps=1e-5,
        output_initialization="zero",
        **SHAPE,
    ),
}


def make_tokenizer(folder, pad_id):
    specials = ["[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    specials.insert(pad_id, "[PAD]")
    vocabulary = {word: index for index, word in enumerate([*specials, *"abcdefgh"])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.add_special_tokens(specials)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {f"{name.strip('[]').lower()}_token": name for name in specials}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "notes.txt").write_text("not of the tokenizer")
    return folder


def load_peer(auto, folder):
    peer, report = auto.from_pretrained(folder, output_loading_info=True, trust_remote_code=True)
    return peer.eval(), {name: set(found) for name, found in report.items() if found}
