"""Classifiers of Cloze for Hugging Face transformers, whose own classes lack their pooling or their projection.

This file belongs to an exported model and needs transformers and torch only. transformers runs it with
`trust_remote_code=True`; without it, it refuses to load the model rather than give it a random head.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ModelOutput, MultipleChoiceModelOutput, SequenceClassifierOutput

_ACTIVATIONS = {
    "tanh": nn.Tanh(),
    "gelu": nn.GELU(),
    "gelu_tanh": nn.GELU(approximate="tanh"),
    "relu": nn.ReLU(),
    "silu": nn.SiLU(),
}

_POOLED = ("bert", "roberta", "xlm-roberta", "camembert", "mpnet")
"""Model types of encoders whose class has a pooler of its own, which is not used here."""


class ClozeConfig(PretrainedConfig):
    """Configuration of an encoder and a classifier; the base class takes the values from config.json.

    Attributes:
        encoder_type: Model type of the encoder in transformers.
        encoder: The other settings of its config.json.
        pooling: "cls" (first token) or "mean" (all tokens).
        projection: Layer between pooling and classifier: "pooler" (linear layer and activation), "transform" (linear
            layer, activation, norm) or "none".
        pooler_activation: Activation of "pooler".
        transform: Settings of "transform": bias, norm_bias, norm_eps, activation.
        classifier_dropout: Probability of dropping a channel before the classifier, in training.
    """

    model_type = "cloze"
    encoder_type = None
    encoder = None
    pooling = "cls"
    projection = "none"
    pooler_activation = "tanh"
    transform = None
    classifier_dropout = 0.1


class Projection(nn.Module):
    """Layer between pooling and classifier, with the parameter names of Cloze."""

    def __init__(self, config: ClozeConfig, hidden_size: int):
        super().__init__()
        self.kind = config.projection
        settings = config.transform or {}
        self.dense = nn.Linear(hidden_size, hidden_size, bias=settings.get("bias", True))
        self.activation = config.pooler_activation
        if self.kind == "transform":
            self.norm = nn.LayerNorm(hidden_size, eps=settings["norm_eps"], bias=settings["norm_bias"])
            self.activation = settings["activation"]

    def forward(self, x: Tensor) -> Tensor:
        """Maps (sequences, hidden) to (sequences, hidden)."""
        x = _ACTIVATIONS[self.activation](self.dense(x))
        return x if self.kind == "pooler" else self.norm(x)


class ClozeForSequenceClassification(PreTrainedModel):
    """Encoder, pooling, projection and classifier."""

    config_class = ClozeConfig
    base_model_prefix = "encoder"
    scores_labels = True
    _supports_sdpa = True

    def __init__(self, config: ClozeConfig):
        super().__init__(config)
        encoder_config = AutoConfig.for_model(config.encoder_type, **config.encoder)
        without_pooler = {"add_pooling_layer": False} if encoder_config.model_type in _POOLED else {}
        self.encoder = AutoModel.from_config(encoder_config, **without_pooler)
        self.takes_segments = getattr(encoder_config, "type_vocab_size", 0) > 1
        hidden_size = encoder_config.hidden_size
        if config.projection != "none":
            self.add_module(config.projection, Projection(config, hidden_size))
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(hidden_size, config.num_labels if self.scores_labels else 1)
        self.post_init()

    def scores(self, input_ids, attention_mask, token_type_ids, options) -> tuple[Tensor, ModelOutput]:
        """Maps ids (sequences, seq) to scores (sequences, labels); also returns the outputs of the encoder."""
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if self.takes_segments:
            options = {**options, "token_type_ids": token_type_ids}
        outputs = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **options)
        hidden = outputs.last_hidden_state
        if self.config.pooling == "mean":
            mask = attention_mask[..., None].to(hidden.dtype)
            x = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
        else:
            x = hidden[:, 0]
        if self.config.projection != "none":
            x = getattr(self, self.config.projection)(x)
        return self.classifier(self.dropout(x)), outputs

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        token_type_ids=None,
        labels=None,
        output_hidden_states=False,
        output_attentions=False,
        return_dict=None,
    ):
        """Scores each sequence, and computes the loss if labels are given."""
        options = {"output_hidden_states": output_hidden_states, "output_attentions": output_attentions}
        logits, outputs = self.scores(input_ids, attention_mask, token_type_ids, options)
        result = SequenceClassifierOutput(
            loss=None if labels is None else self.loss(logits, labels),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
        return result.to_tuple() if return_dict is False else result

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Returns the mean loss of `problem_type`."""
        if self.config.problem_type == "regression":
            return functional.mse_loss(logits.squeeze(), labels.squeeze().to(logits.dtype))
        if self.config.problem_type == "multi_label_classification":
            return functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
        return functional.cross_entropy(logits.view(-1, logits.shape[-1]), labels.view(-1))


class ClozeForMultipleChoice(ClozeForSequenceClassification):
    """One score for each choice: inputs are (batch, choices, seq)."""

    scores_labels = False

    def forward(self, input_ids=None, attention_mask=None, token_type_ids=None, labels=None):
        """Scores the choices of each item: logits (batch, choices)."""
        batch, choices = input_ids.shape[:2]
        ids, mask, segments = (
            None if each is None else each.flatten(0, 1) for each in (input_ids, attention_mask, token_type_ids)
        )
        logits = self.scores(ids, mask, segments, {})[0].view(batch, choices)
        loss = None if labels is None else functional.cross_entropy(logits, labels)
        return MultipleChoiceModelOutput(loss=loss, logits=logits)
