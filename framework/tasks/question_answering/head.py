"""Question answering head: the scores of each token as first and as last token of the answer."""

from torch import Tensor, nn

from framework.batch import PackedBatch
from framework.models.config import EncoderConfig
from framework.tasks.pooling import PredictionTransform, family_transform


class QuestionAnsweringHead(nn.Module):
    """Two scores per token (Devlin et al. 2019, section 4.2; `BertForQuestionAnswering` in transformers).

    Args:
        qa_outputs: Linear layer from hidden to 2.
        transform: Projection of ModernBERT. None for BERT and RoBERTa.
    """

    def __init__(self, qa_outputs: nn.Linear, transform: PredictionTransform | None = None) -> None:
        super().__init__()
        self.transform = transform
        self.qa_outputs = qa_outputs

    def forward(
        self, hidden_states: Tensor, batch: PackedBatch, dropout_keys: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Scores each token.

        Args:
            hidden_states: (tokens, hidden).
            batch: Unused.
            dropout_keys: Unused, because this head has no dropout.

        Returns:
            `start_logits` and `end_logits`, each (tokens,).
        """
        x = hidden_states if self.transform is None else self.transform(hidden_states)
        start_logits, end_logits = self.qa_outputs(x).unbind(dim=1)
        return {"start_logits": start_logits, "end_logits": end_logits}


def build_question_answering_head(config: EncoderConfig) -> QuestionAnsweringHead:
    """Builds the head with the projection of the encoder's model family, if the family has one."""
    return QuestionAnsweringHead(nn.Linear(config.hidden_size, 2), family_transform(config))
