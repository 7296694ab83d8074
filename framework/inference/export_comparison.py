"""Loads an export with transformers, if installed, and compares its ids and outputs with those of Cloze."""

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from framework.batch import PackedBatch
from framework.data.layout import lay_out
from framework.data.planning.collate import Patches, Target, pack_sequences
from framework.errors import CheckpointError
from framework.published.encoder_decoder import CLASS_NAME as ENCODER_DECODER
from framework.published.families import FAMILIES
from framework.published.files import CONFIG_FILE, read_json
from framework.published.kinds import (
    KINDS,
    MULTIPLE_CHOICE,
    PRETRAINING,
    QUESTION_ANSWERING,
    REPLACED_TOKENS,
    SEQUENCE_CLASSIFICATION,
    SPARSE_EMBEDDING,
    TOKEN_CLASSIFICATION,
)
from framework.published.own_class import auto_class
from framework.runs.trained import Trained, build_trained_model
from framework.tasks.token_classification.features import encode_words

_TOLERANCE = 1e-4
"""Largest accepted difference of an output, relative to its largest value or to 1, whichever is larger.

A score can be close to zero because it is the difference of large products. Rounding errors of these products then
exceed any fraction of the score.
"""
_TEXT_TOKENS = 12
_TEXTS = ("Is it so?", "Déjà vu, 今天天气好!")
_LOGITS = (("logits", ("logits",)),)
_OUTPUTS = {
    PRETRAINING.name: (("mlm", ("logits", "prediction_logits")),),
    REPLACED_TOKENS.name: (("discriminator", ("logits",)),),
    SEQUENCE_CLASSIFICATION.name: _LOGITS,
    TOKEN_CLASSIFICATION.name: _LOGITS,
    QUESTION_ANSWERING.name: (("start_logits", ("start_logits",)), ("end_logits", ("end_logits",))),
    MULTIPLE_CHOICE.name: _LOGITS,
}
"""Outputs of a head in Cloze, each with its possible names in transformers."""


@dataclass(frozen=True)
class _Sequence:
    """One input: arguments for the tokenizer of transformers, and the ids and segments that Cloze computes."""

    call: dict[str, Any]
    input_ids: np.ndarray
    segments: np.ndarray | None = None


def compare_with_transformers(folder: Path, trained: Trained) -> str:
    """Compares an export with its original model.

    Returns:
        One line with the result, or with the reason why nothing was compared.

    Raises:
        CheckpointError: transformers cannot load the export, or computes different ids or outputs.
    """
    if importlib.util.find_spec("transformers") is None:
        return "not compared with transformers, which is not installed"
    import transformers

    name = str(read_json(folder / CONFIG_FILE)["architectures"][0])
    own = auto_class(name)
    loader = getattr(transformers, own or name, None)
    if loader is None:
        return f"not compared with transformers {transformers.__version__}, which has no {name}"
    # Only the code file that the export wrote is trusted.
    trusted = {"trust_remote_code": True} if own is not None else {}
    reads_pictures = FAMILIES[trained.weights.config.family].pixels is not None
    with _quiet(transformers):
        try:
            tokenizer = None
            if not reads_pictures:
                tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **trusted)
            peer = None
            if name != ENCODER_DECODER:
                peer = loader.from_pretrained(folder, dtype=torch.float32, **trusted).eval()
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise CheckpointError(
                f"{folder} was written, but transformers {transformers.__version__} cannot load it ({reason}). Use the "
                "export only with Cloze, or try another version of transformers. compare=false skips this comparison."
            ) from error
        if tokenizer is None:
            _check_pictures(folder, trained, peer)
            return f"outputs agree with transformers {transformers.__version__}"
        sequences = _sequences(trained)
        for each in sequences:
            _check_ids(folder, each, tokenizer(**each.call)["input_ids"])
        if peer is not None:
            _check_outputs(folder, trained, sequences, tokenizer, peer)
    return f"{'ids' if peer is None else 'ids and outputs'} agree with transformers {transformers.__version__}"


def _sequences(trained: Trained) -> list[_Sequence]:
    """Builds single texts and pairs of texts; for models that read words, lists of words."""
    tokenizer = trained.tokenizer
    # Include tokens of the vocabulary, because its language may differ from that of the fixed texts.
    sampled_ids = tokenizer.ordinary_ids[:: max(1, len(tokenizer.ordinary_ids) // _TEXT_TOKENS)]
    texts = [*_TEXTS, *tokenizer.decode_batch([sampled_ids.tolist()])]
    kind = KINDS.get(trained.task.head_kind)
    if kind is not None and kind.reads_words:
        return [_words(text.split(), trained) for text in texts if text.split()]
    length = trained.weights.config.max_sequence_length
    sequences = []
    for first, second in ((texts, None), (texts, texts[::-1])):
        layout = lay_out(first, second, tokenizer, length)
        ends = np.cumsum(layout.lengths)[:-1]
        ids = np.split(layout.input_ids, ends)
        segments = np.split(layout.token_type_ids, ends) if layout.token_type_ids is not None else [None] * len(ids)
        # Same truncation as `lay_out`. The text "[SEP]" is not parsed as a special token.
        options = {"truncation": "longest_first", "max_length": length, "split_special_tokens": True}
        pairs = [{}] * len(first) if second is None else [{"text_pair": text} for text in second]
        sequences += [
            _Sequence({"text": text, **pair, **options}, own_ids, own_segments)
            for text, pair, own_ids, own_segments in zip(first, pairs, ids, segments, strict=True)
        ]
    return sequences


def _words(words: Sequence[str], trained: Trained) -> _Sequence:
    tokenizer = trained.tokenizer
    words = [word for word in words if len(tokenizer.encode_batch([word])[0])]
    ids_of = encode_words(words, tokenizer)
    room = trained.weights.config.max_sequence_length - 2
    inside = np.concatenate([np.zeros(0, dtype=np.int32), *(ids_of[word] for word in words)])[:room]
    ids = np.concatenate([[tokenizer.cls_id], inside, [tokenizer.sep_id]]).astype(np.int32)
    options = {"truncation": True, "max_length": room + 2, "split_special_tokens": True}
    return _Sequence({"text": words, "is_split_into_words": True, **options}, ids)


def _check_ids(folder: Path, sequence: _Sequence, peer_ids: Sequence[int]) -> None:
    if list(peer_ids) != sequence.input_ids.tolist():
        shown = {key: value for key, value in sequence.call.items() if key in ("text", "text_pair")}
        raise CheckpointError(
            f"{folder} was written, but its tokenizer returns {list(peer_ids)} for {shown} in transformers and "
            f"{sequence.input_ids.tolist()} in Cloze. Both must be the same. Use the export only with Cloze."
        )


@torch.no_grad()
def _check_outputs(
    folder: Path, trained: Trained, sequences: Sequence[_Sequence], tokenizer: Callable[..., Any], peer: Any
) -> None:
    model = build_trained_model(trained, torch.device("cpu")).eval()
    kind = trained.task.head_kind
    # If transformers has no class for the head, the export names the base class, which returns encoder outputs.
    has_head = "For" in type(peer).__name__
    for each in sequences:
        inputs = tokenizer(**each.call, return_tensors="pt")
        if has_head and kind == MULTIPLE_CHOICE.name:
            inputs = {name: tensor[None] for name, tensor in inputs.items()}
        peer_outputs, batch = peer(**inputs), _batch(each)
        if not has_head:
            _check_same(folder, peer, model.encoder(batch), peer_outputs["last_hidden_state"])
            continue
        outputs = model(batch)
        if kind == SPARSE_EMBEDDING.name:
            _check_same(folder, peer, outputs["weights"], peer_outputs["logits"].amax(dim=1).relu().log1p())
            continue
        for ours, theirs in _OUTPUTS[kind]:
            # A custom head may use other names for its scores.
            if ours not in outputs:
                continue
            _check_same(
                folder, peer, outputs[ours], next(peer_outputs[name] for name in theirs if name in peer_outputs)
            )


@torch.no_grad()
def _check_pictures(folder: Path, trained: Trained, peer: Any) -> None:
    """Compares outputs for a picture of the size of the position table, and for one of another aspect ratio."""
    model, config = build_trained_model(trained, torch.device("cpu")).eval(), trained.weights.config
    side, edge = config.patch_grid, config.patch_size
    # SigLIP has no class token.
    first = [] if config.family == "siglip" else [trained.tokenizer.cls_id]
    for rows, columns in ((side, side), (1, side + 1)):
        pixels = np.arange(rows * columns * edge * edge * 3).reshape(rows * edge, columns * edge, 3) * 7919 % 256
        patches = pixels.reshape(rows, edge, columns, edge, 3).transpose(0, 2, 1, 3, 4).reshape(rows * columns, -1)
        places = np.stack(np.divmod(np.arange(rows * columns), columns), axis=1)
        ids = np.array(first + [0] * len(patches))
        tokens = np.arange(len(first), len(ids))
        batch = pack_sequences(
            ids, np.array([len(ids)]), np.zeros(1), patches=Patches(patches.astype(np.uint8), tokens, places)
        )
        values = torch.from_numpy(pixels / 127.5 - 1).float().permute(2, 0, 1)[None]
        outputs = peer(pixel_values=values, interpolate_pos_encoding=True)
        if "logits" in outputs:
            _check_same(folder, peer, model(batch)["logits"], outputs["logits"])
            continue
        states = outputs["last_hidden_state"]
        # CLIP applies its last norm when it pools.
        states = peer.post_layernorm(states) if config.family == "clip" else states
        _check_same(folder, peer, model.encoder(batch), states)


def _check_same(folder: Path, peer: Any, ours: Tensor, theirs: Tensor) -> None:
    difference = float((ours.float() - theirs.reshape(ours.shape)).abs().max() / theirs.abs().max().clamp(min=1))
    if not difference <= _TOLERANCE:
        raise CheckpointError(
            f"{folder} was written, but outputs of {type(peer).__name__} and Cloze differ by {difference:.1e}, "
            f"relative to their largest value (or to 1). At most {_TOLERANCE:.0e} is allowed. Use the export only "
            "with Cloze."
        )


def _batch(sequence: _Sequence) -> PackedBatch:
    """Packs one sequence, with every token as a target of masked language modeling."""
    positions = np.arange(len(sequence.input_ids))
    return pack_sequences(
        sequence.input_ids.astype(np.int64),
        np.array([len(positions)]),
        np.zeros(1, dtype=np.int64),
        sequence.segments,
        {"mlm_positions": Target(positions, "targets", filler=0)},
    )


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Keeps the load report and the progress bars of transformers off the terminal."""
    logging = transformers.utils.logging
    level = logging.get_verbosity()
    had_bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if had_bars:
            logging.enable_progress_bar()
