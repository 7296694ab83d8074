"""The translation task: its inputs, loss and scores; the split of a step does not matter."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sacrebleu
import torch
from torch import Tensor
from torch.nn import functional

from framework.batch import IGNORE_INDEX, PackedBatch
from framework.config.checks import check_task_is_split
from framework.data.facts import Cutting
from framework.data.planning.plan import GroupedSequences, StepPlan, StepSequences
from framework.data.reading.table_format import TableFormat
from framework.data.tokenization.tokenizer import Tokenizer
from framework.distributed.mesh import build_mesh, data_parallel_size, mesh_shape
from framework.distributed.parallel.gradient_norm import clip_gradients
from framework.distributed.parallel.materialization import materialize
from framework.distributed.parallel.parallelize import parallelize, set_gradient_sync, transformer_layers
from framework.distributed.parallel.precision import Precision
from framework.distributed.reduce import sum_over_data_ranks
from framework.errors import ConfigError
from framework.models.config import EncoderConfig
from framework.models.decoder import DecoderConfig
from framework.models.encoder import TransformerEncoder
from framework.modules.passes.objective import SumCountObjective
from framework.nn.dropout import decoder_keys, dropout_base, layer_keys, token_keys
from framework.nn.initialization import initial_values
from framework.optim.parameter_groups import AdamW
from framework.published.pretrained import match_parameters, weights_from_state
from framework.runs.task_parts import build_model
from framework.tasks.task import TaskModel
from framework.tasks.token_classification.text_units import split_units
from framework.tasks.translation import head as head_module
from framework.tasks.translation.data import ParallelTextData
from framework.tasks.translation.decode import DecodedTarget, bleu_tokens_of, decode_targets
from framework.tasks.translation.features import TranslationSource, translation_source
from framework.tasks.translation.search import SearchSettings
from framework.tasks.translation.task import TranslationTask
from tests.support.processes.workers import WorkerPool

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c", "d", "x", "y", "z"]
CLS, SEP, A, B, C, D, X, Y, Z = (WORDS.index(word) for word in ("[CLS]", "[SEP]", "a", "b", "c", "d", "x", "y", "z"))
TERMS = ["translation", "smoothing"]
CONFIG = EncoderConfig(
    family="bert",
    vocab_size=len(WORDS),
    hidden_size=16,
    num_layers=2,
    num_heads=2,
    intermediate_size=32,
    max_position_embeddings=16,
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def make_tokenizer(folder: Path) -> Tokenizer:
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return Tokenizer.from_folder(folder)


def whole_batch(source: TranslationSource) -> PackedBatch:
    indices = np.arange(len(source))
    return source.build(StepSequences(np.zeros_like(indices), indices, 7 + indices), step=0)


def test_the_batch_by_hand(tokenizer):
    source = translation_source(["a b", "c"], ["x", "y z y"], tokenizer, 8, 8, TERMS)
    batch = whole_batch(source)
    assert batch.input_ids.tolist() == [CLS, A, B, SEP, CLS, C, SEP]
    assert (batch.lengths, batch.cu_seqlens.tolist()) == ((4, 3), [0, 4, 7])
    decoder = batch.decoder_inputs
    assert decoder.input_ids.tolist() == [CLS, X, CLS, Y, Z, Y]
    assert decoder.targets["labels"].tolist() == [X, SEP, Y, Z, Y, SEP]
    assert (decoder.lengths, decoder.position_ids.tolist()) == ((2, 4), [0, 1, 0, 1, 2, 3])
    assert batch.sequence_ids.tolist() == decoder.sequence_ids.tolist() == [7, 8]
    assert batch.counts == {"translation": 6.0, "smoothing": 6.0}
    # A pair is as long as both of its texts together.
    assert source.lengths(np.zeros(2), np.arange(2)).tolist() == [4 + 2, 3 + 4]
    assert (batch.num_tokens, source.mean_length, source.max_length) == (13, 6.5, 16)
    assert isinstance(source, GroupedSequences)
    assert source.max_sequence_length == 8


def test_long_texts_are_truncated_or_their_pairs_omitted(tokenizer):
    texts, translations = ["a b c d", "a", "b"], ["x", "x y z", "y"]
    source = translation_source(texts, translations, tokenizer, 4, 3, TERMS)
    cut = whole_batch(source)
    assert cut.input_ids.tolist() == [CLS, A, B, SEP, CLS, A, SEP, CLS, B, SEP]
    # The truncated next token is still the label; the target does not end there.
    assert cut.decoder_inputs.input_ids.tolist() == [CLS, X, CLS, X, Y, CLS, Y]
    assert cut.decoder_inputs.targets["labels"].tolist() == [X, SEP, X, Y, Z, Y, SEP]
    # 6 words in the sources, of which c and d are lost, and 5 in the targets, of which the second one loses its end.
    assert source.facts.cutting == Cutting(max_length=0, texts=3, cut=2, tokens=11, lost=2)
    kept = translation_source(texts, translations, tokenizer, 4, 3, TERMS, skips_long=True)
    assert whole_batch(kept).input_ids.tolist() == [CLS, B, SEP]
    assert kept.references == ["y"]
    assert (kept.facts.left_out, kept.facts.cutting) == ({"too long": 2}, Cutting(0, texts=1, cut=0, tokens=2, lost=0))


def test_without_targets_and_without_sequences(tokenizer):
    source = translation_source(["a b", "c"], None, tokenizer, 8, 8, TERMS)
    batch = whole_batch(source)
    assert batch.decoder_inputs.input_ids.tolist() == [CLS, CLS]
    assert batch.decoder_inputs.targets["labels"].tolist() == [IGNORE_INDEX] * 2
    assert batch.counts == {"translation": 0.0, "smoothing": 0.0}
    nothing = np.zeros(0, dtype=np.int64)
    empty = source.build(StepSequences(nothing, nothing, nothing), step=0)
    assert (empty.lengths, empty.decoder_inputs.lengths, empty.num_tokens) == ((1,), (1,), 0)


def task(**options) -> TranslationTask:
    return TranslationTask(DecoderConfig(2, 12), SearchSettings(2, 1.0, 10), **options)


def test_loss_equals_label_smoothing_of_torch():
    logits = torch.randn(9, 12, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels = torch.tensor([3, 4, IGNORE_INDEX, 0, 11, 5, 5, IGNORE_INDEX, 1])
    decoder = PackedBatch(*[None] * 9, targets={"labels": labels}, counts={})
    batch = PackedBatch(*[None] * 9, targets={}, counts={}, decoder_inputs=decoder)
    for smoothing in (0.0, 0.3):
        own = task(label_smoothing=smoothing)
        sums = own.loss_sums({"logits": logits}, batch)
        actual = sum(weight * sums[term] for term, weight in own.loss_weights.items())
        expected = functional.cross_entropy(logits, labels, reduction="sum", label_smoothing=smoothing)
        torch.testing.assert_close(actual, expected)
        grads = [torch.autograd.grad(loss, logits)[0] for loss in (actual, expected)]
        torch.testing.assert_close(*grads)
        assert own.validation_weights == {"translation": 1.0}


def test_scores_are_of_the_whole_corpus(tokenizer):
    references = ["x y z x", "y y z z", "x"]
    source = translation_source(["a", "b", "c"], references, tokenizer, 8, 8, TERMS)
    rows = torch.tensor([[X, Y, Z, X, SEP], [Y, Z, SEP, IGNORE_INDEX, IGNORE_INDEX], [SEP, *[IGNORE_INDEX] * 4]])
    decoded = decode_targets(rows, torch.tensor([-1.0, -0.5, -2.0]))
    assert decoded[1] == DecodedTarget((Y, Z, SEP), -0.5)
    texts = ["x y z x", "y z", ""]
    assert task().score(source, decoded) == {
        "bleu": sacrebleu.corpus_bleu(texts, [references]).score,
        "chrf": sacrebleu.corpus_chrf(texts, [references]).score,
    }
    assert task().assemble(source, decoded)[1] == {"translation": "y z", "score": -0.5}


def test_impossible_combinations():
    with pytest.raises(ConfigError, match=r"search\.max_length is 10, but decoder\.max_length=8"):
        TranslationTask(DecoderConfig(2, 8), SearchSettings(2, 1.0, 10))
    with pytest.raises(ConfigError, match=r"max_source_length is 2\. It must be at least 3"):
        task(max_source_length=2)
    with pytest.raises(ConfigError, match=r"label_smoothing is 1\.0\. It must be at least 0 and below 1"):
        task(label_smoothing=1.0)
    with pytest.raises(ConfigError, match=r"decoder\.num_layers is 0"):
        DecoderConfig(0)
    check_task_is_split(task(), 1)
    with pytest.raises(ConfigError, match="The head of TranslationTask cannot be split over 2 ranks"):
        check_task_is_split(task(), 2)


def test_without_sacrebleu_the_run_does_not_start(tokenizer, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="sacrebleu is not installed"):
        task().build_sources(ParallelTextData(train="there is no such file.csv"), tokenizer, 0)


def micro_batches(
    source: TranslationSource, step: int, rank: int, num_ranks: int, budget: int
) -> Iterator[PackedBatch]:
    plan = StepPlan(source, 5, 10, budget, num_ranks)
    for share in plan.micro_batches(step, rank):
        yield source.build(share, step)


def train_and_translate(strategy: str, budget: int, folder: str) -> tuple[Tensor, list[tuple[int, ...]]]:
    """Returns losses and gradient norms of a few steps, then a rank's results for its sequences of the first step."""
    world_size = int(os.environ.get("WORLD_SIZE", "1")) if strategy != "single" else 1
    shape = mesh_shape(strategy, world_size, 2 if strategy == "hsdp" else None)
    mesh = build_mesh(strategy, shape, "cpu")
    rank, num_ranks = (torch.distributed.get_rank() if mesh else 0), data_parallel_size(mesh)
    tokenizer = Tokenizer.from_folder(folder)
    texts = [" ".join("abcd"[(number >> index) % 4] for index in range(number % 5 + 1)) for number in range(23)]
    targets = [text.translate(str.maketrans("abcd", "xyzx")) for text in texts]
    source = translation_source(texts, targets, tokenizer, 8, 8, TERMS)
    own = task()
    model = own_model(own)
    parallelize(model, mesh, strategy, Precision("fp32"))
    materialize(model, initial_values(model, CONFIG, 1), "cpu")
    optimizer = AdamW(lr=3e-3).build(model.named_parameters(), {}, torch.float32)
    objective, steps = SumCountObjective(own.loss_weights), []
    for step in range(6):
        batches = list(micro_batches(source, step, rank, num_ranks, budget))
        counts = torch.stack([objective.counts(batch) for batch in batches]).sum(0)
        counts, loss = sum_over_data_ranks(counts, mesh), torch.zeros(())
        for index, batch in enumerate(batches):
            set_gradient_sync(model, index == len(batches) - 1)
            sums = own.loss_sums(model(batch, token_keys(dropout_base(3, step, 0), batch)), batch)
            part = objective.loss(sums, counts)
            (part * num_ranks).backward()
            loss += part.detach()
        norm = clip_gradients(model.parameters(), 1.0)
        optimizer.set_learning_rates(1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        steps.append((sum_over_data_ranks(loss, mesh).item(), norm.item()))
    with torch.no_grad():
        outputs = [(batch, model(batch)) for batch in micro_batches(source, 0, rank, num_ranks, budget)]
    by_item = {
        item: result.tokens
        for batch, output in outputs
        for item, result in zip(batch.item_indices(), own.decode(output, batch), strict=True)
    }
    return torch.tensor(steps), sorted(by_item.items())


@pytest.fixture(scope="module")
def one_process(tokenizer) -> tuple[Tensor, list]:
    return train_and_translate("single", 400, str(tokenizer.folder))


def test_micro_batches_do_not_matter(tokenizer, one_process):
    actual, translations = train_and_translate("single", 40, str(tokenizer.folder))
    torch.testing.assert_close(actual, one_process[0], rtol=1e-5, atol=0)
    assert translations == one_process[1]
    assert actual[-1, 0] < actual[0, 0]


@pytest.mark.parametrize(("strategy", "world_size"), [("ddp", 2), ("fsdp2", 2), ("hsdp", 4)])
def test_processes_equal_one(tokenizer, one_process, workers: WorkerPool, strategy, world_size):
    """Sharded layers are gathered in each call, so that a search that ends early on one rank would hang the other."""
    ranks = workers.run(train_and_translate, world_size, strategy, 60, str(tokenizer.folder))
    assert all(torch.equal(losses, ranks[0][0]) for losses, _ in ranks)
    torch.testing.assert_close(ranks[0][0], one_process[0], rtol=1e-5, atol=0)
    assert sorted(pair for _, pairs in ranks for pair in pairs) == one_process[1]


def search_of_one_step(strategy: str, folder: str) -> list[int]:
    """Runs a search that ends at once on rank 0; returns how often each layer was called."""
    mesh = build_mesh(strategy, mesh_shape(strategy, 2, None), "cpu")
    model = own_model(task())
    parallelize(model, mesh, strategy, Precision("fp32"))
    materialize(model, initial_values(model, CONFIG, 1), "cpu")
    calls = [0] * len(model.head.decoder.layers)

    def count(index: int) -> None:
        calls[index] += 1

    for index, layer in enumerate(model.head.decoder.layers):
        layer.register_forward_pre_hook(lambda *_, index=index: count(index))
    if torch.distributed.get_rank() == 0:
        model.head.search = replace(model.head.search, num_beams=1)
        head_module._Growing.__call__ = ends_at_once(head_module._Growing.__call__)
    source = translation_source(["a b", "c"], ["x", "y z y"], Tokenizer.from_folder(folder), 8, 8, TERMS)
    with torch.no_grad():
        model(whole_batch(source))
    return calls


def ends_at_once(grow):
    """Gives every token except the end a probability close to zero."""

    def changed(self, living):
        scores = torch.full_like(grow(self, living), -100.0)
        scores[:, SEP] = 0.0
        return scores

    return changed


def test_a_search_that_ends_early_waits_for_the_others(tokenizer, workers: WorkerPool):
    calls = workers.run(search_of_one_step, 2, "fsdp2", str(tokenizer.folder))
    workers.stop()  # One of them has a changed class.
    # The given targets, and each token of the longest possible target.
    assert calls == [[1 + 10] * 2] * 2


def own_model(own: TranslationTask) -> TaskModel:
    own.start_id, own.end_id = CLS, SEP
    return build_model(own, CONFIG)


def test_each_layer_of_the_decoder_has_its_own_dropout(tokenizer):
    model = own_model(task())
    materialize(model, initial_values(model, CONFIG, 1), "cpu")
    given = []
    for layer in model.head.decoder.layers:
        layer.register_forward_pre_hook(lambda _, args: given.append(args[4]))
    batch = whole_batch(translation_source(["a b", "c"], ["x", "y z y"], tokenizer, 8, 8, TERMS))
    keys = token_keys(dropout_base(3, 1, 0), batch)
    dropped = model(batch, keys)["logits"]
    expected = layer_keys(decoder_keys(keys, batch), 2)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(given, expected, strict=True))
    assert not torch.equal(given[0], given[1])
    assert not torch.allclose(dropped, model(batch)["logits"])


def test_a_decoder_begins_as_a_copy_of_the_encoder():
    encoder = TransformerEncoder(CONFIG)
    state = {f"encoder.{name}": torch.randn(parameter.shape) for name, parameter in encoder.named_parameters()}
    weights = weights_from_state("here", CONFIG, state)
    model = own_model(TranslationTask(DecoderConfig(1, 12, share_words=False), SearchSettings(max_length=12)))
    matched, new = match_parameters(model, weights)
    assert {name for name in new if "cross_attention" not in name} == {
        f"head.mlm.{name}" for name in ("dense.weight", "dense.bias", "norm.weight", "norm.bias", "decoder.bias")
    }
    for name, value in matched.items():
        if name.startswith("head.decoder."):
            # The first 12 positions and the first segment; everything of all others.
            assert torch.equal(value, state[name.replace("head.decoder.", "encoder.")][: value.shape[0]])
    assert {
        len(matched[f"head.decoder.embeddings.{name}_embeddings.weight"]) for name in ("position", "token_type")
    } == {
        12,
        1,
    }
    # A decoder of another kind, with too few positions, or with its own weights is not initialized as a copy.
    longer = own_model(TranslationTask(DecoderConfig(1, 17), SearchSettings(max_length=12)))
    assert "head.decoder.embeddings.position_embeddings.weight" in match_parameters(longer, weights)[1]
    given = weights_from_state("here", CONFIG, state | {"head.decoder.embeddings.norm.bias": torch.ones(16)})
    assert torch.equal(match_parameters(model, given)[0]["head.decoder.embeddings.norm.bias"], torch.ones(16))


def test_layers_of_encoder_and_decoder_are_listed():
    model = own_model(task())
    assert transformer_layers(model) == [*model.encoder.layers, *model.head.decoder.layers]


REFERENCES = {
    "zh": ["我不知道他在说什么。", "两个男人在街上踢足球，一个女人在看。", "他说：“你好！”"],
    "13a": ["Two men aren't swimming; it's cold.", "Don't go: we'll see the dog's owner, won't we?"],
    "char": ["東京は日本の首都です。", "これはペンではありません。"],
}


@pytest.mark.parametrize("tokens", REFERENCES)
def test_a_perfect_translation_scores_100_in_its_language(tmp_path, tokens):
    references = REFERENCES[tokens]
    words = sorted({unit.text for text in references for unit in split_units(text, "words")})
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    own = task()
    rows = "".join(f"{text}\t{text}\n" for text in references)
    (tmp_path / "rows.tsv").write_text("source\ttarget\n" + rows, encoding="utf-8")
    data = ParallelTextData(str(tmp_path / "rows.tsv"), test=str(tmp_path / "rows.tsv"), format=TableFormat(quote=None))
    tokenizer = Tokenizer.from_folder(tmp_path)
    source = own.build_sources(data, tokenizer, seed=0)["test"]
    perfect = [DecodedTarget((*ids.tolist(), tokenizer.sep_id), 0.0) for ids in tokenizer.encode_batch(references)]
    assert own.score(source, perfect) == pytest.approx({"bleu": 100.0, "chrf": 100.0})
    assert source.facts.notes["tokens for BLEU"] == bleu_tokens_of(references) == tokens
    wrong = [DecodedTarget(each.tokens[1:], 0.0) for each in perfect]
    assert own.score(source, wrong)["bleu"] < 95


def test_tokens_of_bleu_are_checked():
    with pytest.raises(ConfigError, match=r"bleu_tokens is 'bogus', which is unknown\. Choose one of 13a, intl, zh"):
        task(bleu_tokens="bogus")
