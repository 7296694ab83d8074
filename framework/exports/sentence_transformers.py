"""Files that tell the sentence-transformers library how to pool an encoder's tokens to one vector.

The format is that of its `SentenceTransformer.save` (https://sbert.net). The encoder is in the same folder, in the
layout of transformers. All versions of the library since 2.0 can import the module names.
"""

from collections.abc import Mapping
from typing import Any

from framework.models.config import EncoderConfig

MODULES_FILE = "modules.json"
_POOLING_KEYS = {"cls": "pooling_mode_cls_token", "mean": "pooling_mode_mean_tokens"}
_OTHER_POOLING_KEYS = ("pooling_mode_max_tokens", "pooling_mode_mean_sqrt_len_tokens")
_PREFIX = "sentence_transformers.models"


def sentence_transformers_files(config: EncoderConfig, task_record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the contents of the JSON files by name; empty if the library lacks the pooling.

    Args:
        config: Encoder configuration.
        task_record: Record of the task: `pooling` ("cls" or "mean"), `normalize` (True scales vectors to length 1; by
            default False) and `max_length` (in tokens; by default the number of positions).
    """
    pooling = str(task_record.get("pooling", "cls"))
    if pooling not in _POOLING_KEYS:
        return {}
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    if task_record.get("normalize"):
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
            "max_seq_length": int(
                task_record.get("max_length") or config.max_position_embeddings - config.position_offset
            ),
            # The tokenizer's own files hold the setting for lower case.
            "do_lower_case": False,
        },
        "config_sentence_transformers.json": {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": None},
    }
