"""Words sampled as replacements, compared with a loop over one text at a time, and their shares with probabilities."""

import numpy as np
import pytest
import torch

from framework.data.augmentation.edits import Replace, chosen_tokens, draws_of
from framework.data.augmentation.source import AugmentedSource
from framework.data.flat_source import FlatSource, FlatTarget
from framework.data.layout import lay_out
from framework.data.planning.collate import pack_sequences
from framework.data.tokenization.tokenizer import Tokenizer
from framework.data.tokenization.word_counts import WordCounts
from framework.data.tokenization.wordpiece_training import WordPieceTraining
from framework.models.config import EncoderConfig
from framework.models.encoder import TransformerEncoder
from framework.modules.word_samples import sample, sample_words
from framework.tasks.pretraining.head import build_pretraining_head
from framework.tasks.task import TaskModel
from tests.support.processes.workers import WorkerPool

WORDS = [f"{a}{b}{c}" for a in "bcdfgk" for b in "aeiou" for c in "lmnrst"]
NUM_TEXTS = 12


def texts() -> list[str]:
    """Returns texts; some of their words are in the vocabulary only as pieces."""
    return [
        " ".join(WORDS[(7 * index + 11 * position) % len(WORDS)] for position in range(2 + index))
        for index in range(12)
    ]


def build(folder: str) -> tuple[TaskModel, AugmentedSource, Tokenizer]:
    tokenizer = Tokenizer.from_folder(folder)
    layout = lay_out(texts(), None, tokenizer, 30)
    flat = FlatSource(layout.input_ids, layout.lengths, {"labels": FlatTarget(np.arange(12), "sequences")}, {}, 30)
    source = AugmentedSource(flat, Replace(0.4, num_variants=3, temperature=1.5), tokenizer, seed=3)
    torch.manual_seed(0)
    config = EncoderConfig("bert", tokenizer.vocab_size + 3, 16, 1, 2, 32, 32, initializer_range=0.5)
    encoder = TransformerEncoder(config)
    model = TaskModel(encoder, build_pretraining_head(encoder, config, nsp=False))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model, source, tokenizer


def sampled(folder: str) -> np.ndarray:
    model, source, tokenizer = build(folder)
    return sample_words(model, source, source.augmentation, tokenizer, torch.device("cpu"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("tokenizer")
    training = WordPieceTraining(60)
    training.train(WordCounts(training.count(WORDS)), path)
    return str(path)


def test_samples_equal_those_of_one_text_at_a_time(folder: str):
    model, source, tokenizer = build(folder)
    found = sampled(folder)
    offset = num_pieces = num_changed = 0
    for index in range(NUM_TEXTS):
        one = np.array([index])
        tokens = source.source.tokens(one)
        for variant in range(3):
            keys = source.keys(np.array([variant]), one, tokens)
            chosen = np.flatnonzero(chosen_tokens(tokens.lengths, source.is_editable(tokens), keys, 0.4))
            draws = draws_of(tokens.lengths, keys, -3)
            expected = tokens.input_ids.copy()
            hidden = tokens.input_ids.copy()
            hidden[chosen] = tokenizer.mask_id
            batch = pack_sequences(hidden, tokens.lengths, one)
            with torch.no_grad():
                logits = model.head.mlm(model.encoder(batch)).double() / 1.5
            for position in chosen:
                begins = tokenizer.starts_word[tokens.input_ids[position]]
                words = [int(w) for w in tokenizer.ordinary_ids if tokenizer.starts_word[w] == begins]
                probabilities = logits[position, words].softmax(0).numpy()
                expected[position] = words[int(np.searchsorted(probabilities.cumsum(), draws[position], side="right"))]
                num_pieces += not begins
            assert found[variant, offset : offset + len(expected)].tolist() == expected.tolist()
            num_changed += sum(expected != tokens.input_ids)
        offset += int(tokens.lengths[0])
    assert num_pieces > 10 and num_changed > 30
    assert found.shape == (3, offset) and len({row.tobytes() for row in found}) == 3


def test_ranks_divide_the_work_and_get_the_same_bits(folder: str, workers: WorkerPool):
    expected = sampled(folder)
    for of_rank in workers.run(sampled, 2, folder):
        assert of_rank.tolist() == expected.tolist()


def test_words_are_drawn_with_their_probability():
    logits = torch.tensor([1.0, -torch.inf, 0.0, 2.0, -torch.inf])
    draws = (torch.arange(10000, dtype=torch.float64) + 0.5) / 10000
    shares = sample(logits.expand(10000, 5), draws).bincount(minlength=5) / 10000
    torch.testing.assert_close(shares, logits.softmax(0), atol=2e-4, rtol=0)
    assert sample(logits.unsqueeze(0), torch.zeros(1, dtype=torch.float64)).item() == 0
    assert sample(logits.unsqueeze(0), torch.tensor([1 - 2.0**-53], dtype=torch.float64)).item() == 3
