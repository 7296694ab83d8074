"""Builds a toy module for each form of loss."""

from typing import Any

from framework.distributed.parallel.precision import Precision
from framework.modules.encoder_module import EncoderModule
from framework.modules.passes.adversarial import Adversarial
from framework.modules.passes.r_drop import RDrop
from tests.support.training.toy_contrast import ContrastTask
from tests.support.training.toy_run import FP32, build_module

ALPHA, EPSILON, WEIGHT = 2.0, 3.0, 0.5


def module_of(form: str, precision: Precision = FP32) -> EncoderModule:
    if form == "step_level":
        return build_module(precision=precision, task=ContrastTask())
    regularizations: dict[str, Any] = {"r_drop": RDrop(ALPHA), "adversarial": Adversarial(EPSILON, WEIGHT)}
    return build_module(precision=precision, regularization=regularizations.get(form))
