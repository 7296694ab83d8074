"""The decoder and its search give the results of EncoderDecoderModel of transformers with the same weights."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from framework.published.rules import join_qkv, to_ours
from framework.tasks.translation.search import SearchSettings
from tests.support.models import peers
from tests.support.models.translation_peer import (
    END,
    LAYERS,
    PAD,
    SEGMENTS,
    SOURCES,
    START,
    TARGETS,
    both_inputs,
    both_models,
    decoder_rules,
    unpadded,
)

MANY_SOURCES = (5, 23, 1, 12, 2, 30, 7, 9, 41, 3, 17, 6)
MAX_LENGTH = 20
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.mark.parametrize(("share_words", "tie_output"), [(False, True), (False, False), (True, True), (True, False)])
def test_logits(share_words: bool, tie_output: bool) -> None:
    model, theirs = both_models(share_words, tie_output)
    words = model.encoder.embeddings.word_embeddings.weight
    decoder_words, output = model.head.decoder.embeddings.word_embeddings.weight, model.head.mlm.decoder.weight
    assert (decoder_words is words, output is decoder_words) == (share_words, tie_output)
    batch, inputs = both_inputs()
    assert_close(model(batch)["logits"], unpadded(theirs(**inputs).logits, inputs), **TOLERANCE)


def test_gradients() -> None:
    model, theirs = both_models(share_words=True)
    batch, inputs = both_inputs()
    weights = torch.randn(sum(TARGETS), 99, generator=torch.Generator().manual_seed(3)) / 100
    (model(batch)["logits"] * weights).sum().backward()
    (unpadded(theirs(**inputs).logits, inputs) * weights).sum().backward()
    grads = {name: parameter.grad for name, parameter in theirs.decoder.named_parameters()}
    expected = to_ours(decoder_rules(), grads, model.encoder.config.num_heads)
    expected["decoder.embeddings.token_type_embeddings.weight"] = grads[SEGMENTS][:1]
    actual = {name: parameter.grad for name, parameter in model.head.named_parameters()}
    assert len(expected) > 20 * LAYERS
    for name, grad in expected.items():
        if name in actual:
            assert_close(actual[name], grad, **TOLERANCE, msg=lambda text, name=name: f"{name}: {text}")
    # The shared words are those of the encoder; their gradient is the sum of three uses.
    words = model.encoder.embeddings.word_embeddings.weight.grad
    assert_close(words, theirs.encoder.embeddings.word_embeddings.weight.grad, **TOLERANCE)
    first = theirs.encoder.encoder.layer[0].attention.self
    qkv = join_qkv([first.query.weight.grad, first.key.weight.grad, first.value.weight.grad], 4)[0]
    assert_close(model.encoder.layers[0].attention.qkv.weight.grad, qkv, **TOLERANCE)


@pytest.mark.parametrize(("num_beams", "penalty"), [(1, 1.0), (4, 1.0), (4, 0.0), (4, 2.0), (2, -1.0)])
@torch.no_grad()
def test_beam_search(num_beams: int, penalty: float) -> None:
    model, theirs = both_models(share_words=True, search=SearchSettings(num_beams, penalty, MAX_LENGTH))
    # Weights are random: without this no target would end before the maximum length.
    for bias in (model.head.mlm.decoder.bias, theirs.decoder.cls.predictions.decoder.bias):
        bias[END] += 4.5
    batch, inputs = both_inputs(MANY_SOURCES)
    actual = model.head.find_targets(model.encoder(batch), batch)
    expected = theirs.generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        num_beams=num_beams,
        length_penalty=penalty,
        num_return_sequences=num_beams,
        max_new_tokens=MAX_LENGTH,
        do_sample=False,
        early_stopping=False,
        decoder_start_token_id=START,
        eos_token_id=END,
        pad_token_id=PAD,
        output_scores=True,
        return_dict_in_generate=True,
    )
    rows = expected.sequences.view(len(MANY_SOURCES), num_beams, -1).tolist()
    lengths = set()
    for number, (hypotheses, tokens) in enumerate(zip(actual, rows, strict=True)):
        for position, (hypothesis, row) in enumerate(zip(hypotheses, tokens, strict=True)):
            end = row.index(END) + 1 if END in row else len(row)
            assert list(hypothesis.tokens) == row[1:end]
            lengths.add(len(hypothesis.tokens))
            if num_beams > 1:
                score = expected.sequences_scores[number * num_beams + position]
                assert hypothesis.score == pytest.approx(float(score), rel=1e-4)
    assert min(lengths) < MAX_LENGTH
    assert len(lengths) > 1


@torch.no_grad()
def test_targets_do_not_depend_on_other_sequences_of_the_batch() -> None:
    model, _ = both_models(search=SearchSettings(4, 1.0, MAX_LENGTH))
    model.head.mlm.decoder.bias[END] += 4.5
    batch, _ = both_inputs()
    outputs = model(batch)
    sources, targets = peers.sequences(SOURCES), peers.sequences(TARGETS, seed=2)
    for row, (source, target) in enumerate(zip(sources, targets, strict=True)):
        alone = model(replace(peers.pack([source]), decoder_inputs=peers.pack([target])))
        width = alone["tokens"].shape[1]
        assert outputs["tokens"][row, :width].tolist() == alone["tokens"][0].tolist()
        assert_close(outputs["scores"][row], alone["scores"][0], **TOLERANCE)
        first = sum(TARGETS[:row])
        assert_close(outputs["logits"][first : first + TARGETS[row]], alone["logits"], **TOLERANCE)
