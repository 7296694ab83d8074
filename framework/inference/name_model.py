"""Finds names in texts with a trained run of token classification, for `framework.prepare`."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import framework.distributed.processes.early_check  # noqa: F401  must come before Lightning
from framework.config.command_schema import TrainedConfig
from framework.data.preparation.personal_data import FindNames, Span
from framework.data.reading.rows import Row
from framework.errors import ConfigError
from framework.published.pretrained import PretrainedWeights
from framework.runs.trained import Trained, build_inference, open_trained
from framework.tasks.token_classification.task import TokenClassificationTask

_MICRO_BATCH_TOKENS = 8192


@dataclass(frozen=True)
class TrainedNames:
    """Search for names with a trained model, which each worker process builds for itself.

    Predictions are made in fp32 and, on a CPU, by one thread. So they do not depend on the number of processes.

    Attributes:
        source: Checkpoint or export.
        types: Entity types that count as names.
        fingerprint: Hash of all that determines the predictions: weights, tokenizer and task.
    """

    source: str
    types: tuple[str, ...]
    fingerprint: str

    @classmethod
    def of(cls, run: str, types: Sequence[str]) -> "TrainedNames":
        """Checks the model and the types.

        Args:
            run: Run (id or folder), checkpoint, or export.
            types: Entity types that count as names; empty: all types of the model.

        Raises:
            CheckpointError: The model does not exist or cannot be read.
            ConfigError: The model was trained for another task, or does not know a type.
        """
        trained = open_trained(TrainedConfig(run=run))
        task = trained.task
        if not isinstance(task, TokenClassificationTask):
            raise ConfigError(
                f"corpus.personal_data_model is {run}, which was trained for {type(task).__name__}. Names are found by "
                "a model that tags words. Give a run of task=token_classification, or set it to null."
            )
        for name in types:
            if name not in task.types:
                raise ConfigError(
                    f"corpus.personal_data_types has {name!r}, but {run} knows the types {', '.join(task.types)}. "
                    "Choose among them, or write [] for all."
                )
        source = trained.weights.source if trained.folder is not None else str(Path(run).resolve())
        return cls(source, tuple(types or task.types), _fingerprint(trained, trained.weights))

    def identity(self) -> dict[str, Any]:
        """Returns what determines the finds, as JSON values."""
        return {"types": list(self.types), "fingerprint": self.fingerprint}

    def __call__(self) -> FindNames:
        """Loads the model into this process."""
        trained = open_trained(TrainedConfig(run=self.source))
        inference = build_inference(trained, _MICRO_BATCH_TOKENS, "fp32")

        def find(texts: Sequence[str]) -> list[list[Span]]:
            rows = [Row(number, None, {"text": text}) for number, text in enumerate(texts, start=1)]
            num_threads = torch.get_num_threads()
            torch.set_num_threads(1)
            try:
                predictions = inference.predict(trained.task.build_source(rows, trained.tokenizer))
            finally:
                torch.set_num_threads(num_threads)
            return [
                [(each["start"], each["end"]) for each in prediction["entities"] if each["label"] in self.types]
                for prediction in predictions
            ]

        return find


def _fingerprint(trained: Trained, weights: PretrainedWeights) -> str:
    digest = hashlib.blake2b(digest_size=16)
    digest.update(repr((weights.config, sorted(trained.task.to_record().items()))).encode())
    digest.update(trained.tokenizer.fingerprint.encode())
    for part in (weights.encoder, weights.heads):
        for name in sorted(part):
            digest.update(name.encode() + part[name].contiguous().numpy().tobytes())
    return digest.hexdigest()
