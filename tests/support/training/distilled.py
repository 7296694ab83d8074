"""Toy students and a toy teacher of another width and depth."""

from dataclasses import replace
from typing import Any

from framework.distributed.parallel.materialization import materialize
from framework.distributed.parallel.precision import Precision
from framework.modules.encoder_module import EncoderModule
from framework.modules.passes.distillation import Distillation, Match
from framework.modules.passes.teacher import Teacher, weights_fingerprint
from framework.nn.initialization import initial_values
from framework.runs.task_parts import build_model
from tests.support.training.toy_run import CONFIG, FP32, ToyTask, build_module

TEACHER_CONFIG = replace(CONFIG, hidden_size=24, num_layers=4, num_heads=4, hidden_dropout=0.2)
MATCHES: tuple[Match, ...] = ("logits", "hidden", "relations")


def toy_teacher(seed: int = 9) -> Teacher:
    """Returns a teacher with random weights, large enough that its outputs differ between tokens."""
    model = build_model(ToyTask(), TEACHER_CONFIG)
    materialize(model, initial_values(model, replace(TEACHER_CONFIG, initializer_range=0.2), seed), "cpu")
    model.requires_grad_(False)
    return Teacher("toy", weights_fingerprint(dict(model.named_parameters())), model)


def distilled_module(match: Match, precision: Precision = FP32, **settings: Any) -> EncoderModule:
    """Builds the module of a student."""
    if match == "relations":
        settings = {"relation_heads": 8} | settings
    regularization = Distillation("toy", match, **settings)
    module = build_module(precision=precision, regularization=regularization)
    regularization.follow(toy_teacher(), module.model)
    return module
