"""The teacher of a distillation: a trained model that runs its student's batches, without gradients and dropout."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from framework.batch import PackedBatch
from framework.distributed.parallel.precision import Precision
from framework.distributed.processes.position import begin_activity
from framework.models.config import EncoderConfig
from framework.models.layer_record import LayerRecord, record_layers
from framework.tasks.task import TaskModel


@dataclass(frozen=True)
class Teacher:
    """Trained model with frozen weights. Every rank holds all of them, under every strategy.

    Attributes:
        source: Origin of the weights, for messages.
        fingerprint: Hash of the weights.
        model: Encoder with its weights, on the CPU until the first batch; its head is used only for logits.
    """

    source: str
    fingerprint: str
    model: TaskModel

    @property
    def config(self) -> EncoderConfig:
        """Returns the configuration of the encoder."""
        return self.model.encoder.config

    def outputs(self, batch: PackedBatch, precision: Precision) -> dict[str, Tensor]:
        """Returns the outputs of the head for a micro-batch."""
        model = self._on_device_of(batch)
        begin_activity("forward of the teacher")
        with torch.no_grad(), precision.autocast(batch.input_ids.device.type):
            outputs: dict[str, Tensor] = model(batch)
        return outputs

    def layers(
        self, batch: PackedBatch, precision: Precision, hidden_states: Iterable[int], projections: Iterable[int]
    ) -> LayerRecord:
        """Returns hidden states and projections of layers for a micro-batch (`record_layers`)."""
        encoder = self._on_device_of(batch).encoder
        begin_activity("forward of the teacher")
        with (
            torch.no_grad(),
            precision.autocast(batch.input_ids.device.type),
            record_layers(encoder, hidden_states, projections) as record,
        ):
            encoder(batch)
        return record

    def _on_device_of(self, batch: PackedBatch) -> TaskModel:
        device = batch.input_ids.device
        if next(self.model.parameters()).device != device:
            self.model.to(device)
        return self.model


def weights_fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Returns a hash of the names and values of tensors on the CPU."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.detach().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
