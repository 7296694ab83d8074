"""Small configs of the model families."""

from framework.models.config import EncoderConfig

BERT = EncoderConfig(
    family="bert",
    vocab_size=50,
    hidden_size=32,
    num_layers=3,
    num_heads=4,
    intermediate_size=48,
    max_position_embeddings=64,
)
MODERN = EncoderConfig(
    family="modernbert",
    vocab_size=50,
    hidden_size=32,
    num_layers=4,
    num_heads=4,
    intermediate_size=48,
    max_position_embeddings=64,
    type_vocab_size=0,
    position_encoding="rotary",
    local_attention_window=4,
    global_attention_every=3,
    norm_placement="pre",
    gated=True,
    bias=False,
    norm_bias=False,
    norm_eps=1e-5,
)
ROBERTA = EncoderConfig(
    family="roberta",
    vocab_size=50,
    hidden_size=32,
    num_layers=2,
    num_heads=4,
    intermediate_size=48,
    max_position_embeddings=66,
    type_vocab_size=1,
    position_offset=2,
    norm_eps=1e-5,
    pad_token_id=1,
)
