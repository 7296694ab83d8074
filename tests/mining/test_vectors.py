"""Texts of both sides are encoded with the prompts of their sides."""

from types import SimpleNamespace

import numpy as np
import pytest

from framework.data.tokenization.tokenizer import Tokenizer
from framework.mining.vectors import encode_texts
from framework.tasks.embedding.task import EmbeddingTask
from tests.support.exports.small_exports import make_tokenizer


@pytest.mark.parametrize(("side", "prompt"), [("query", ["a"]), ("document", ["b", "c"])])
def test_prompts_of_sides(tmp_path, side, prompt):
    tokenizer = Tokenizer.from_folder(make_tokenizer(tmp_path, 0))
    seen: list[list[str]] = []

    def record(source, done):
        ids = source.tokens(np.arange(len(source))).input_ids
        seen.append([tokenizer.backend.id_to_token(token_id) for token_id in ids])
        done(len(source))
        return [np.ones((1, 2), dtype=np.float32)] * len(source)

    task = EmbeddingTask(prompts={"query": "a ", "document": "b c "}, side="document")
    model = SimpleNamespace(encoder=SimpleNamespace(config=SimpleNamespace(hidden_size=2)))
    inference, reported = SimpleNamespace(task=task, decode=record, model=model), []
    vectors = encode_texts(inference, tokenizer, tmp_path / "texts.npy", ["d", "e f"], side, reported.append)
    assert reported == [0, 2, 2]
    assert seen == [["[CLS]", *prompt, "d", "[SEP]", "[CLS]", *prompt, "e", "f", "[SEP]"]]
    np.testing.assert_allclose(vectors, np.full((2, 2), 0.5**0.5), rtol=1e-6)
    assert task.side == "document"
