"""Exports a model as a folder that Hugging Face transformers loads: config.json, model.safetensors and the tokenizer.

Further files hold what no class of transformers supports. `cloze.json` holds the exact config and the task's settings
for predictions. `modeling_cloze.py` is the class of classifiers that transformers lacks (mean pooling in BERT and
RoBERTa, no projection). `cloze_heads.safetensors` holds the tensors of other heads without a class (next-sentence
prediction outside BERT, heads of external tasks) and patch embeddings, so the class of an encoder of pictures reads
texts alone. `framework.published.pretrained` reads such a folder without loss.
"""

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from framework.data.tokenization.tokenizer import SEPARATORS_KEY, TOKENIZER_KEY, Tokenizer
from framework.errors import CheckpointError
from framework.exports.model_card import CARD_FILE, ExportedModel, RunFacts, model_card
from framework.exports.new_folder import new_folder
from framework.exports.sentence_transformers import late_interaction_files, sentence_transformers_files, sparse_files
from framework.exports.tokenizer import tokenizer_files
from framework.files import TOKENIZER_FILES
from framework.models.config import EncoderConfig
from framework.published.dense import PROJECTION, PUBLISHED_PROJECTION
from framework.published.encoder_decoder import CLASS_NAME, fits_bert_decoder, write_encoder_decoder
from framework.published.export_record import CHECKSUMS_KEY, FORMAT, checksums_of
from framework.published.families import FAMILIES
from framework.published.family import BASE_SUFFIX, Family, PublishedClass
from framework.published.files import (
    CONFIG_FILE,
    DENSE_FILE,
    EXPORT_RECORD_FILE,
    EXTRA_WEIGHTS_FILE,
    LENGTH_FILE,
    MODULES_FILE,
    POOLING_FOLDER,
    WEIGHTS_FILE,
    read_json,
    tokenizer_folder,
)
from framework.published.kinds import (
    EMBEDDING,
    IMAGE_TEXT,
    KINDS,
    LATE_INTERACTION,
    PRETRAINING,
    RERANKING,
    RERANKS_KEY,
    SPARSE_EMBEDDING,
    TRANSLATION,
    HeadKind,
    label_names,
)
from framework.published.own_class import MODEL_TYPE as OWN_MODEL_TYPE
from framework.published.own_class import MODELING_FILE, class_name, own_class, write_own_class
from framework.published.pretrained import PATCH_EMBEDDINGS
from framework.published.rules import part_of, to_theirs
from framework.published.vision import PREPROCESSOR_FILE, preprocessor_config

_TIED_NAME = "mlm.decoder.weight"
_ONNX_FOLDER = "onnx"
_UNRECORDED_FILES = {
    *(EXTRA_WEIGHTS_FILE, MODULES_FILE, MODELING_FILE, POOLING_FOLDER, "2_Normalize", LENGTH_FILE),
    *TOKENIZER_FILES,
}
"""Files of older exports that their record does not list."""


def export_huggingface(
    folder: Path,
    config: EncoderConfig,
    state_dict: Mapping[str, Tensor],
    head_kind: str,
    tokenizer_dir: Path,
    task_record: Mapping[str, Any],
    facts: RunFacts | None = None,
    extra_files: Mapping[str, str] | None = None,
) -> None:
    """Writes the folder completely or not at all, under a temporary name first.

    Args:
        folder: Output folder. An earlier export in it is replaced.
        config: Encoder configuration.
        state_dict: Full CPU tensors of a TaskModel ("encoder.*", "head.*").
        head_kind: `Task.head_kind`. Kinds without a class in transformers are exported as the base class.
        tokenizer_dir: Folder of the tokenizer, whose files are copied.
        task_record: Record of the task, which is stored completely. `labels` (names in the order of scores), `pooling`
            and `problem` also determine the class and its config.
        facts: Facts of the run for README.md; None writes no README.md.
        extra_files: Further files of the task (`Task.extra_files`): texts by file name.

    Raises:
        CheckpointError: No class of transformers supports the encoder, the tokenizer is missing or does not fit, or the
            folder holds something else.
    """
    folder = Path(folder)
    check_target(folder)
    tokenizer = _load_tokenizer(Path(tokenizer_dir), config, task_record.get(SEPARATORS_KEY))
    encoder = part_of(state_dict, "encoder.")
    heads = part_of(state_dict, "head.")
    if FAMILIES[config.family].ties_decoder:
        heads = _untied(heads, encoder["embeddings.word_embeddings.weight"])
    published = _publish(config, encoder, heads, head_kind, task_record, tokenizer)
    reads_pictures = FAMILIES[config.family].pixels is not None
    without_class = _without_class({} if reads_pictures else encoder, heads, published.head_names)
    dense = {PUBLISHED_PROJECTION: without_class.pop(PROJECTION)} if head_kind == LATE_INTERACTION.name else {}
    files = {CONFIG_FILE: published.config} | _files_of_other_libraries(
        config, head_kind, task_record, tokenizer, heads, published.kind
    )
    record: dict[str, Any] = {
        "format": FORMAT,
        "head": head_kind,
        "encoder": config.record(),
        "task": dict(task_record),
        "tensors_without_class": {"file": EXTRA_WEIGHTS_FILE, "names": list(without_class)} if without_class else None,
    }
    weights = {WEIGHTS_FILE: published.tensors, EXTRA_WEIGHTS_FILE: without_class, DENSE_FILE: dense}
    texts = {name: _as_json(content) for name, content in files.items()}
    texts |= extra_files or {}
    if facts is not None:
        other = KINDS.get(head_kind, EMBEDDING) if MODULES_FILE in files else None
        exported = _described(config, published, head_kind, task_record, without_class, other)
        texts[CARD_FILE] = model_card(exported, facts)
    if published.config["model_type"] == OWN_MODEL_TYPE:
        texts[MODELING_FILE] = Path(__file__).with_name(MODELING_FILE).read_text(encoding="utf-8")
    texts |= tokenizer_files(config, head_kind, task_record, tokenizer)
    _write(folder, texts, weights, tokenizer, record, extra_files or {})


def _files_of_other_libraries(
    config: EncoderConfig,
    head_kind: str,
    task_record: Mapping[str, Any],
    tokenizer: Tokenizer,
    heads: Mapping[str, Tensor],
    kind: HeadKind | None,
) -> dict[str, Any]:
    """Returns the contents of the JSON files that sentence-transformers and readers of pictures need, by name."""
    files: dict[str, Any] = {}
    if head_kind == IMAGE_TEXT or (head_kind == EMBEDDING.name and not heads):
        files |= sentence_transformers_files(config, task_record)
    if head_kind == SPARSE_EMBEDDING.name and kind is PRETRAINING:
        files |= sparse_files(config, task_record)
    if head_kind == LATE_INTERACTION.name:
        files |= late_interaction_files(config, task_record, len(heads[PROJECTION]), tokenizer)
    if FAMILIES[config.family].pixels is not None:
        files[PREPROCESSOR_FILE] = preprocessor_config(config)
    return files


@dataclass(frozen=True)
class _Published:
    """A model as a class of transformers. `head_names` are our names for the head's tensors that the class holds."""

    class_name: str
    kind: HeadKind | None
    head_names: Collection[str]
    config: Mapping[str, Any]
    tensors: dict[str, Tensor]


def _described(
    config: EncoderConfig,
    published: _Published,
    head_kind: str,
    task_record: Mapping[str, Any],
    without_class: Collection[str],
    other: HeadKind | None,
) -> ExportedModel:
    """Returns the facts of the model for its card; `other` is the kind of head if the class holds only the encoder."""
    kind = other or published.kind
    if kind is not None and task_record.get(RERANKS_KEY):
        head_kind, kind = RERANKING.name, RERANKING
    labels = task_record.get("labels") or ()
    return ExportedModel(config, published.class_name, head_kind, kind, list(without_class), labels)


def _publish(
    config: EncoderConfig,
    encoder: Mapping[str, Tensor],
    heads: Mapping[str, Tensor],
    head_kind: str,
    task_record: Mapping[str, Any],
    tokenizer: Tokenizer,
) -> _Published:
    """Converts the model to a class of the encoder's family, or to one that wraps the encoder."""
    family = FAMILIES[config.family]
    class_kind = PRETRAINING.name if head_kind == SPARSE_EMBEDDING.name else head_kind
    published_class = family.export_class(config, class_kind, heads.keys(), _pooling(task_record))
    is_free = published_class.kind is None and family.has_class
    own = own_class(head_kind, config.hidden_size, heads) if is_free else None
    if own is not None:
        published_class = PublishedClass(BASE_SUFFIX)
    published_config = family.write_config(config)
    published_config |= _head_config(family, published_class, task_record, heads)
    if family.pixels is None:
        published_config |= {"tie_word_embeddings": family.ties_decoder, **_special_token_config(family, tokenizer)}
    tensors = _published_tensors(family, published_class, config, encoder, heads)
    if own is not None:
        full_config, tensors = write_own_class(
            family.pooler_activation, own, published_config, tensors, config, heads, task_record
        )
        return _Published(class_name(own), own, heads.keys(), full_config, tensors)
    if head_kind == TRANSLATION.name and fits_bert_decoder(config):
        full_config, tensors = write_encoder_decoder(published_config, tensors, config, encoder, heads, task_record)
        return _Published(CLASS_NAME, TRANSLATION, heads.keys(), full_config, tensors)
    if published_class.kind is None and heads:
        published_config |= label_names(task_record["labels"]) if task_record.get("labels") else {}
        # transformers rejects a tensor of another size. Without one, its classes with a head would only warn, and
        # compute random scores.
        tensors |= {name: torch.zeros(0) for name in sorted(family.score_names(config))}
    if published_class.kind is not None:
        published_config = family.wrap_config(published_config)
    name = str(published_config["architectures"][0])
    return _Published(name, published_class.kind, published_class.names, published_config, tensors)


def _without_class(
    encoder: Mapping[str, Tensor], heads: Mapping[str, Tensor], head_names: Collection[str]
) -> dict[str, Tensor]:
    """Returns the patch embeddings of an encoder of texts, and the tensors of the head that its class does not hold."""
    tensors = {name: heads[name].contiguous() for name in sorted(heads.keys() - set(head_names))}
    patches = {name: tensor for name, tensor in encoder.items() if name.startswith(PATCH_EMBEDDINGS)}
    return tensors | {f"encoder.{name}": tensor.contiguous() for name, tensor in patches.items()}


def _pooling(task_record: Mapping[str, Any]) -> str:
    return str(task_record.get("pooling", "cls"))


def _head_config(
    family: Family, published_class: PublishedClass, task_record: Mapping[str, Any], heads: Mapping[str, Tensor]
) -> dict[str, Any]:
    """Returns the keys of config.json for the class and its head."""
    config: dict[str, Any] = {
        "architectures": [family.class_prefix + published_class.suffix],
    }
    if published_class.kind is not None:
        config |= published_class.kind.write(task_record, heads)
    if published_class.pooling_key is not None:
        pooling = _pooling(task_record)
        config[published_class.pooling_key] = published_class.pooling_names.get(pooling, pooling)
    return config


def _untied(heads: dict[str, Tensor], word_embeddings: Tensor) -> dict[str, Tensor]:
    """Returns the tensors of the head without an MLM decoder that equals the word embeddings."""
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
    base = to_theirs(family.encoder_rules(config), family.before_writing(encoder), config.num_heads)
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
    if (
        folder.exists()
        and not (folder / EXPORT_RECORD_FILE).is_file()
        and (not folder.is_dir() or any(folder.iterdir()))
    ):
        raise CheckpointError(
            f"{folder} exists and is not an export of Cloze, so it is not replaced. Choose another folder."
        )


def _load_tokenizer(folder: Path, config: EncoderConfig, pair_separators: int | None) -> Tokenizer:
    if tokenizer_folder(folder) is None:
        raise CheckpointError(f"{folder} holds no tokenizer. Give the folder with tokenizer.json or vocab.txt.")
    tokenizer = Tokenizer.from_folder(folder, pair_separators)
    if tokenizer.vocab_size > config.vocab_size:
        raise CheckpointError(
            f"The tokenizer in {folder} has {tokenizer.vocab_size} tokens, but the model's vocab_size is "
            f"{config.vocab_size}. Give the tokenizer that the model was trained with."
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
    record: dict[str, Any],
    task_files: Iterable[str],
) -> None:
    """Writes all files. The record of the export is written last."""
    with new_folder(folder, _files_of_earlier(folder)) as temporary:
        tokenizer.save(temporary)
        for name, text in texts.items():
            (temporary / name).parent.mkdir(exist_ok=True)
            (temporary / name).write_text(text, encoding="utf-8")
        for name, tensors in weights.items():
            if tensors:
                save_file(tensors, temporary / name, metadata={"format": "pt"})
        written = Tokenizer.from_folder(temporary, tokenizer.pair_separators)
        record["task"][TOKENIZER_KEY] = written.fingerprint
        record["files"] = sorted({EXPORT_RECORD_FILE, *(entry.name for entry in temporary.iterdir())})
        record[CHECKSUMS_KEY] = checksums_of(temporary, task_files)
        (temporary / EXPORT_RECORD_FILE).write_text(_as_json(record), encoding="utf-8")


def _files_of_earlier(folder: Path) -> set[str]:
    """Returns the names of files that an earlier export wrote, without files that users added."""
    if not (folder / EXPORT_RECORD_FILE).is_file():
        return set()
    try:
        files = read_json(folder / EXPORT_RECORD_FILE).get("files")
    except CheckpointError:
        files = None
    recorded = {str(name) for name in files} if isinstance(files, list) else _UNRECORDED_FILES
    return recorded | {_ONNX_FOLDER}


def _as_json(content: Any) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
