"""Files that tell sentence-transformers and PyLate how to turn an encoder's tokens into the vectors of texts.

The format is that of their `save` (https://sbert.net, https://github.com/lightonai/pylate). The encoder is in the same
folder, in the layout of transformers. All versions of sentence-transformers that have a class can import the module
names.
"""

from collections.abc import Mapping
from typing import Any

from framework.data.tokenization.markers import marker_id, punctuation_tokens
from framework.data.tokenization.tokenizer import Tokenizer
from framework.models.config import EncoderConfig
from framework.published.dense import COLBERT
from framework.published.files import (
    CONFIG_FILE,
    DENSE_FOLDER,
    LENGTH_FILE,
    LIBRARY_CONFIG_FILE,
    MODULES_FILE,
    POOLING_FILE,
    POOLING_FOLDER,
)

_POOLING_KEYS = {"cls": "pooling_mode_cls_token", "mean": "pooling_mode_mean_tokens"}
_OTHER_POOLING_KEYS = ("pooling_mode_max_tokens", "pooling_mode_mean_sqrt_len_tokens")
_PREFIX = "sentence_transformers.models"


def sentence_transformers_files(config: EncoderConfig, task_record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the contents of the JSON files of a `SentenceTransformer` by name; empty if it lacks the pooling.

    Args:
        config: Encoder configuration.
        task_record: Record of the task: `pooling` ("cls" or "mean"), `normalize` (True scales vectors to length 1; by
            default False), `max_length` (in tokens; by default the number of positions) and `prompts` (by default
            none).
    """
    pooling = str(task_record.get("pooling", "cls"))
    if pooling not in _POOLING_KEYS:
        return {}
    modules = [("", f"{_PREFIX}.Transformer"), (POOLING_FOLDER, f"{_PREFIX}.Pooling")]
    if task_record.get("normalize"):
        modules.append(("2_Normalize", f"{_PREFIX}.Normalize"))
    return {
        **_module_files(config, task_record, modules),
        POOLING_FILE: {
            "word_embedding_dimension": config.hidden_size,
            **{key: pooling == name for name, key in _POOLING_KEYS.items()},
            **dict.fromkeys(_OTHER_POOLING_KEYS, False),
        },
        LIBRARY_CONFIG_FILE: {
            "prompts": dict(task_record.get("prompts") or {}),
            "default_prompt_name": None,
            "similarity_fn_name": None,
        },
    }


def sparse_files(config: EncoderConfig, task_record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the contents of the JSON files of a `SparseEncoder`.

    Args:
        config: Encoder configuration.
        task_record: Record of the task `sparse_embedding`.
    """
    prefix = "sentence_transformers.sparse_encoder.models"
    modules = [("", f"{prefix}.MLMTransformer"), ("1_SpladePooling", f"{prefix}.SpladePooling")]
    return {
        **_module_files(config, task_record, modules),
        "1_SpladePooling/config.json": {
            "pooling_strategy": "max",
            "activation_function": "relu",
            "word_embedding_dimension": config.vocab_size,
        },
        LIBRARY_CONFIG_FILE: {
            "model_type": "SparseEncoder",
            "prompts": {"query": "", "document": ""},
            "default_prompt_name": None,
            "similarity_fn_name": "dot",
        },
    }


def late_interaction_files(
    config: EncoderConfig, task_record: Mapping[str, Any], width: int, tokenizer: Tokenizer
) -> dict[str, Any]:
    """Returns the contents of the JSON files of a `ColBERT` of PyLate, which `MultiVectorEncoder` reads too.

    A marker that is a token is the prefix that PyLate inserts. Another marker is a prompt, a text before the text:
    `MultiVectorEncoder` adds it by itself, and PyLate with `prompt_name="query"` or `"document"`.

    Args:
        config: Encoder configuration.
        task_record: Record of the task `late_interaction`.
        width: Number of channels of a token's vector.
        tokenizer: Tokenizer of the model.
    """
    prefixes, prompts = {}, {}
    for side in ("query", "document"):
        marker = str(task_record[f"{side}_marker"])
        inserted = marker_id(marker, tokenizer)
        prefixes[f"{side}_prefix"] = "" if inserted is None else tokenizer.backend.id_to_token(inserted)
        prompts[side] = marker if inserted is None else ""
    return {
        **_module_files(
            config, task_record, [("", f"{_PREFIX}.Transformer"), (DENSE_FOLDER, "pylate.models.Dense.Dense")]
        ),
        f"{DENSE_FOLDER}/{CONFIG_FILE}": {
            "in_features": config.hidden_size,
            "out_features": width,
            "bias": False,
            "activation_function": "torch.nn.modules.linear.Identity",
            "use_residual": False,
        },
        LIBRARY_CONFIG_FILE: {
            "model_type": COLBERT,
            "prompts": prompts,
            "default_prompt_name": None,
            "similarity_fn_name": "MaxSim",
            **prefixes,
            "query_length": task_record["query_length"],
            "document_length": task_record["document_length"],
            "do_query_expansion": task_record["expand_queries"],
            "attend_to_expansion_tokens": task_record["expand_queries"],
            "skiplist_words": [*punctuation_tokens(tokenizer)] if task_record["skip_punctuation"] else [],
        },
    }


def _module_files(
    config: EncoderConfig, task_record: Mapping[str, Any], modules: list[tuple[str, str]]
) -> dict[str, Any]:
    """Returns the list of modules, given their folders and classes, and the settings of the encoder."""
    max_length = task_record.get("max_length") or config.max_position_embeddings - config.position_offset
    return {
        MODULES_FILE: [
            {"idx": index, "name": str(index), "path": path, "type": name} for index, (path, name) in enumerate(modules)
        ],
        # The tokenizer's own files hold the setting for lower case.
        LENGTH_FILE: {"max_seq_length": int(max_length), "do_lower_case": False},
    }
