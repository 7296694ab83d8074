"""The files by which the sentence-transformers library knows how an encoder's tokens become one vector.

The format is that of its `SentenceTransformer.save` (https://sbert.net); the encoder itself stands in the same folder
in the layout of transformers. The names of its modules are those that all its versions since 2.0 import.
"""

from collections.abc import Mapping
from typing import Any

from framework.models.config import EncoderConfig

MODULES_FILE = "modules.json"
_POOLING_KEYS = {"cls": "pooling_mode_cls_token", "mean": "pooling_mode_mean_tokens"}
_OTHER_POOLING_KEYS = ("pooling_mode_max_tokens", "pooling_mode_mean_sqrt_len_tokens")
_PREFIX = "sentence_transformers.models"


def sentence_transformers_files(config: EncoderConfig, side: Mapping[str, Any]) -> dict[str, Any]:
    """Contents of the JSON files by their names; none where the library has no such pooling.

    Args:
        config: Of the encoder.
        side: Of the task: `pooling` ("cls" or "mean"), `normalize` (to length 1; absent: no) and `max_length` (tokens;
            absent: as many as there are positions).
    """
    pooling = str(side.get("pooling", "cls"))
    if pooling not in _POOLING_KEYS:
        return {}
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    if side.get("normalize"):
        modules.append(("2_Normalize", "Normalize"))
    return {
        MODULES_FILE: [
            {"idx": index, "name": str(index), "path": path, "type": f"{_PREFIX}.{name}"}
            for index, (path, name) in enumerate(modules)
        ],
        "1_Pooling/config.json": {
            "word_embedding_dimension": config.hidden_size,
            **{key: pooling == name for name, key in _POOLING_KEYS.items()},
            **dict.fromkeys(_OTHER_POOLING_KEYS, False),
        },
        "sentence_bert_config.json": {
            "max_seq_length": int(side.get("max_length") or config.max_position_embeddings - config.position_offset),
            # The tokenizer's own files say whether it does.
            "do_lower_case": False,
        },
        "config_sentence_transformers.json": {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": None},
    }
