"""Patch embeddings in the parts of a run: their size, their start from an encoder of texts, and frozen ones."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from framework.errors import ConfigError
from framework.models.config import EncoderConfig
from framework.models.freezing import freeze
from framework.nn.lora import LoraSettings
from framework.published.pretrained import match_parameters, weights_from_state
from framework.runs.build import _check_new_weights, build_encoder_config
from framework.runs.task_parts import build_model
from framework.tasks.embedding.task import EmbeddingTask
from framework.tasks.image_text.task import ImageTextTask
from tests.support.exports.random_models import random_model

TEXTS = EncoderConfig("bert", 50, 16, 1, 2, 32, 32)
PICTURES = replace(TEXTS, patch_size=4, patch_grid=8)


def weights_of(config: EncoderConfig):
    model = random_model(config, torch.nn.Identity())
    return weights_from_state("WEIGHTS", config, model.state_dict())


def config_for(task, weights, **given) -> EncoderConfig:
    settings = SimpleNamespace(model=SimpleNamespace(build=lambda **supplied: EncoderConfig(**{**supplied, **given})))
    return build_encoder_config(settings, SimpleNamespace(vocab_size=50), weights, task)


def test_the_task_decides_whether_the_encoder_reads_pictures():
    task = ImageTextTask(patch_size=4)
    assert config_for(task, weights_of(TEXTS)) == replace(TEXTS, patch_size=4)
    assert config_for(task, weights_of(PICTURES)) == PICTURES
    assert config_for(EmbeddingTask(), weights_of(PICTURES)) == replace(PICTURES, patch_size=0)
    with pytest.raises(ConfigError, match=r"task\.patch_size is 8, but the encoder reads patches of 4 pixels"):
        config_for(ImageTextTask(patch_size=8), weights_of(PICTURES))


def test_patches_are_new_after_an_encoder_of_texts_and_kept_otherwise():
    task = ImageTextTask(patch_size=4)
    model = build_model(task, PICTURES)
    new = match_parameters(model, weights_of(TEXTS))[1]
    patches = [f"encoder.embeddings.patch_embeddings.{name}" for name in ("projection.weight", "projection.bias")]
    assert set(patches) < set(new) and len(new) == 5
    values, new = match_parameters(model, weights_of(PICTURES))
    assert new == ["head.scale_bias"] and patches[0] in values
    # An encoder of texts takes the rest of an encoder of pictures.
    assert match_parameters(build_model(EmbeddingTask(), TEXTS), weights_of(PICTURES))[1] == []


def test_new_patches_must_be_trained():
    task, weights = ImageTextTask(patch_size=4), weights_of(TEXTS)
    lora = LoraSettings(rank=2, alpha=4.0, targets=["query"], train_also=["head.*"])
    with_lora, frozen, trained = (
        build_model(task, PICTURES, lora),
        build_model(task, PICTURES),
        build_model(task, PICTURES),
    )
    freeze(frozen, ["encoder.*"], "trainer.freeze")
    freeze(trained, ["encoder.layers.*"], "trainer.freeze")
    for model in (with_lora, frozen):
        with pytest.raises(
            ConfigError,
            match=r"patch_embeddings.\S* has no weights in init_from and is frozen, so it would stay random",
        ):
            _check_new_weights(task, model, weights)
    _check_new_weights(task, trained, weights)
