"""Writes a model as a folder that Hugging Face transformers loads: config.json, model.safetensors and the tokenizer.

What no class of transformers can hold goes beside them: `cloze.json` has the exact config and what is needed to read
predictions, `modeling_cloze.py` the class of classifiers that transformers lacks (mean pooling in BERT and RoBERTa, no
projection), `cloze_heads.safetensors` the tensors of other heads without a class (next-sentence prediction outside
BERT, heads of tasks from elsewhere). `framework.published.pretrained` reads such a folder back without loss.
"""

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from framework.data.tokenization.tokenizer import SEPARATORS_KEY, TOKENIZER_FILES, TOKENIZER_KEY, Tokenizer
from framework.errors import CheckpointError
from framework.exports.model_card import CARD_FILE, ExportedModel, RunFacts, model_card
from framework.exports.new_folder import new_folder
from framework.exports.sentence_transformers import MODULES_FILE, sentence_transformers_files
from framework.exports.tokenizer import tokenizer_files
from framework.models.config import EncoderConfig
from framework.published.encoder_decoder import CLASS_NAME, can_hold, write_encoder_decoder
from framework.published.export_record import CHECKSUMS_KEY, FORMAT, checksums_of
from framework.published.family import BASE_SUFFIX, Family, PublishedClass
from framework.published.files import (
    CONFIG_FILE,
    SIDE_CONFIG_FILE,
    SIDE_WEIGHTS_FILE,
    WEIGHTS_FILE,
    read_json,
    tokenizer_folder,
)
from framework.published.kinds import EMBEDDING, TRANSLATION, HeadKind, label_names
from framework.published.own_class import MODEL_TYPE as OWN_MODEL_TYPE
from framework.published.own_class import MODELING_FILE, class_name, own_class, write_own_class
from framework.published.pretrained import FAMILIES
from framework.published.rules import to_theirs

_TIED_NAME = "mlm.decoder.weight"
_ONNX_FOLDER = "onnx"
_BEFORE_THE_RECORD = {
    *(SIDE_WEIGHTS_FILE, MODULES_FILE, MODELING_FILE, "1_Pooling", "2_Normalize", "sentence_bert_config.json"),
    *TOKENIZER_FILES,
}
"""Files of older exports, whose record does not list them."""


def export_huggingface(
    folder: Path,
    config: EncoderConfig,
    state_dict: Mapping[str, Tensor],
    head_kind: str,
    tokenizer_dir: Path,
    side: Mapping[str, Any],
    facts: RunFacts | None = None,
    side_files: Mapping[str, str] | None = None,
) -> None:
    """Writes the folder, under another name first, so that it is whole or not there.

    Args:
        folder: To be written; it may exist if it is an earlier export, which is then replaced.
        config: Of the encoder.
        state_dict: Full CPU tensors of a TaskModel ("encoder.*", "head.*").
        head_kind: `Task.head_kind`; one that no class of transformers is for gives the base class.
        tokenizer_dir: Its tokenizer files are copied.
        side: Of the task; `labels` (names in the order of scores), `pooling` and `problem` are read here, all of it is
            kept.
        facts: Of the run, for README.md; None: there is no README.md.
        side_files: `Task.side_files`; None: there are none.

    Raises:
        CheckpointError: No class of transformers has such an encoder, the tokenizer is missing or does not fit, or the
            folder holds something else.
    """
    folder = Path(folder)
    check_target(folder)
    tokenizer = _load_tokenizer(Path(tokenizer_dir), config, side.get(SEPARATORS_KEY))
    encoder = _part(state_dict, "encoder.")
    heads = _untied(_part(state_dict, "head."), encoder["embeddings.word_embeddings.weight"])
    published = _publish(config, encoder, heads, head_kind, side, tokenizer)
    without_class = {name: heads[name].contiguous() for name in sorted(heads.keys() - published.held)}
    side_config: dict[str, Any] = {
        "format": FORMAT,
        "head": head_kind,
        "encoder": asdict(config),
        "task": dict(side),
        "tensors_without_class": {"file": SIDE_WEIGHTS_FILE, "names": list(without_class)} if without_class else None,
    }
    weights = {WEIGHTS_FILE: published.tensors, SIDE_WEIGHTS_FILE: without_class}
    files: dict[str, Any] = {CONFIG_FILE: published.config}
    if head_kind == EMBEDDING.name and not heads:
        files |= sentence_transformers_files(config, side)
    texts = {name: _as_json(content) for name, content in files.items()}
    texts |= side_files or {}
    if facts is not None:
        kind = EMBEDDING if MODULES_FILE in files else published.kind
        labels = side.get("labels") or ()
        exported = ExportedModel(config, published.class_name, head_kind, kind, list(without_class), labels)
        texts[CARD_FILE] = model_card(exported, facts)
    if published.config["model_type"] == OWN_MODEL_TYPE:
        texts[MODELING_FILE] = Path(__file__).with_name(MODELING_FILE).read_text(encoding="utf-8")
    texts |= tokenizer_files(config, head_kind, side, tokenizer)
    _write(folder, texts, weights, tokenizer, side_config, side_files or {})


@dataclass(frozen=True)
class _Published:
    """A model as a class of transformers has it: `held` are our names of the head's tensors that the class has."""

    class_name: str
    kind: HeadKind | None
    held: Collection[str]
    config: Mapping[str, Any]
    tensors: dict[str, Tensor]


def _publish(
    config: EncoderConfig,
    encoder: Mapping[str, Tensor],
    heads: Mapping[str, Tensor],
    head_kind: str,
    side: Mapping[str, Any],
    tokenizer: Tokenizer,
) -> _Published:
    """A class of the encoder's family, or one around it."""
    family = FAMILIES[config.family]
    found = family.export_class(config, head_kind, heads.keys(), _pooling(side))
    own = own_class(head_kind, config.hidden_size, heads) if found.kind is None else None
    if own is not None:
        found = PublishedClass(BASE_SUFFIX)
    published_config = family.write_config(config)
    published_config |= _special_token_config(family, tokenizer) | _head_config(family, found, side, heads)
    tensors = _published_tensors(family, found, config, encoder, heads)
    if own is not None:
        whole, tensors = write_own_class(own, published_config, tensors, config, heads, side)
        return _Published(class_name(own), own, heads.keys(), whole, tensors)
    if head_kind == TRANSLATION.name and can_hold(config):
        whole, tensors = write_encoder_decoder(published_config, tensors, config, encoder, heads, side)
        return _Published(CLASS_NAME, TRANSLATION, heads.keys(), whole, tensors)
    if found.kind is None and heads:
        published_config |= label_names(side["labels"]) if side.get("labels") else {}
        tensors |= _refusing_tensors(family, config)
    return _Published(family.class_prefix + found.suffix, found.kind, found.names, published_config, tensors)


def _refusing_tensors(family: Family, config: EncoderConfig) -> dict[str, Tensor]:
    """Returns empty tensors in the place of classifiers, for a head that no class of transformers has.

    transformers rejects a tensor of another size. Without one, its classes with a head only warn, and score at random.
    """
    return {name: torch.zeros(0) for name in sorted(family.score_names(config))}


def _pooling(side: Mapping[str, Any]) -> str:
    return str(side.get("pooling", "cls"))


def _head_config(
    family: Family, published_class: PublishedClass, side: Mapping[str, Any], heads: Mapping[str, Tensor]
) -> dict[str, Any]:
    """What config.json says of the class and of its head."""
    config: dict[str, Any] = {
        "architectures": [family.class_prefix + published_class.suffix],
        "tie_word_embeddings": True,
    }
    if published_class.kind is not None:
        config |= published_class.kind.write(side, heads)
    if published_class.pooling_key is not None:
        config[published_class.pooling_key] = _pooling(side)
    return config


def _part(state_dict: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state_dict.items() if name.startswith(prefix)}


def _untied(heads: dict[str, Tensor], word_embeddings: Tensor) -> dict[str, Tensor]:
    """Without the decoder over words where it is the word embeddings."""
    decoder = heads.get(_TIED_NAME)
    if decoder is None or not torch.equal(decoder, word_embeddings):
        return heads
    return {name: tensor for name, tensor in heads.items() if name != _TIED_NAME}


def _published_tensors(
    family: Family,
    published_class: PublishedClass,
    config: EncoderConfig,
    encoder: Mapping[str, Tensor],
    heads: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    base = to_theirs(family.encoder_rules(config), encoder, config.num_heads)
    base |= to_theirs(published_class.base_rules, heads, config.num_heads)
    prefix = "" if published_class.suffix == BASE_SUFFIX else family.prefix
    tensors = {prefix + name: tensor for name, tensor in base.items()}
    tensors |= to_theirs(published_class.head_rules, heads, config.num_heads)
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def check_target(folder: Path) -> None:
    """Checks that a folder is missing, empty, or holds an earlier export.

    Raises:
        CheckpointError: The folder holds something else.
    """
    if folder.exists() and not (folder / SIDE_CONFIG_FILE).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} exists and is no export of Cloze, so it is left alone; choose another folder.")


def _load_tokenizer(folder: Path, config: EncoderConfig, pair_separators: int | None) -> Tokenizer:
    if tokenizer_folder(folder) is None:
        raise CheckpointError(f"{folder} holds no tokenizer; give the folder with tokenizer.json or vocab.txt.")
    tokenizer = Tokenizer.from_folder(folder, pair_separators)
    if tokenizer.vocab_size > config.vocab_size:
        raise CheckpointError(
            f"The tokenizer in {folder} has {tokenizer.vocab_size} words, but the model has {config.vocab_size} rows; "
            "give the tokenizer that the model was trained with."
        )
    return tokenizer


def _special_token_config(family: Family, tokenizer: Tokenizer) -> dict[str, int]:
    ids = {"cls": tokenizer.cls_id, "sep": tokenizer.sep_id}
    return {"pad_token_id": tokenizer.pad_id} | {key: ids[token] for key, token in family.special_tokens.items()}


def _write(
    folder: Path,
    texts: Mapping[str, str],
    weights: Mapping[str, dict[str, Tensor]],
    tokenizer: Tokenizer,
    side_config: dict[str, Any],
    task_files: Iterable[str],
) -> None:
    """Writes all files; the record of the export is written last."""
    with new_folder(folder, _files_of_earlier(folder)) as temporary:
        tokenizer.save(temporary)
        for name, text in texts.items():
            (temporary / name).parent.mkdir(exist_ok=True)
            (temporary / name).write_text(text, encoding="utf-8")
        for name, tensors in weights.items():
            if tensors:
                save_file(tensors, temporary / name, metadata={"format": "pt"})
        written = Tokenizer.from_folder(temporary, tokenizer.pair_separators)
        side_config["task"][TOKENIZER_KEY] = written.fingerprint
        side_config["files"] = sorted({SIDE_CONFIG_FILE, *(entry.name for entry in temporary.iterdir())})
        side_config[CHECKSUMS_KEY] = checksums_of(temporary, task_files)
        (temporary / SIDE_CONFIG_FILE).write_text(_as_json(side_config), encoding="utf-8")


def _files_of_earlier(folder: Path) -> set[str]:
    """Returns the names of files that an earlier export wrote; other files in the folder are not ours."""
    if not (folder / SIDE_CONFIG_FILE).is_file():
        return set()
    try:
        files = read_json(folder / SIDE_CONFIG_FILE).get("files")
    except CheckpointError:
        files = None
    recorded = {str(name) for name in files} if isinstance(files, list) else _BEFORE_THE_RECORD
    return recorded | {_ONNX_FOLDER}


def _as_json(content: Any) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
