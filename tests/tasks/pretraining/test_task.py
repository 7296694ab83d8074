import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from framework.batch import IGNORE_INDEX, PackedBatch
from framework.data.masking import num_masked
from framework.data.planning.collate import FixedShape
from framework.data.planning.plan import StepSequences
from framework.data.preparation.prepare import StoreSpec, prepare_store
from framework.data.reading.sources import TextFiles
from framework.data.store_data import StoreData
from framework.data.tokenization.tokenizer import Tokenizer
from framework.data.tokenization.wordpiece_training import WordPieceTraining
from framework.errors import ConfigError, DataError
from framework.models.config import EncoderConfig
from framework.models.encoder import TransformerEncoder
from framework.tasks.pretraining.features import MaskRate, PretrainingSource
from framework.tasks.pretraining.task import PretrainingTask
from framework.tasks.task import TaskModel

LENGTH = 32


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> StoreData:
    """Writes 60 documents of 8 sentences with 3 to 9 words."""
    folder = tmp_path_factory.mktemp("corpus")
    draws = np.random.default_rng(0)
    words = [f"{first}{middle}{last}" for first in "bdfgk" for middle in ("a", "ere", "ulo") for last in "lmnst"]
    for document in range(60):
        sentences = [" ".join(draws.choice(words, draws.integers(3, 10))) for _ in range(8)]
        (folder / f"{document}.txt").write_text(". ".join(sentence.capitalize() for sentence in sentences) + ".")
    prepare_store(
        StoreSpec({"texts": TextFiles(str(folder / "*.txt"))}, WordPieceTraining(vocab_size=90), folder / "store")
    )
    return StoreData(str(folder / "store"), validation_fraction=0.2)


@pytest.fixture(scope="module")
def tokenizer(data) -> Tokenizer:
    return Tokenizer.from_folder(data.opened.folder / "tokenizer")


def sources_of(data: StoreData, tokenizer: Tokenizer, seed: int = 0, **options) -> dict[str, PretrainingSource]:
    return PretrainingTask(sequence_length=LENGTH, **options).build_sources(data, tokenizer, seed)


def build(source: PretrainingSource, epochs, indices, step: int = 0, shape: FixedShape | None = None) -> PackedBatch:
    indices = np.asarray(indices, dtype=np.int64)
    epochs = np.broadcast_to(np.asarray(epochs, dtype=np.int64), indices.shape)
    return source.build(StepSequences(epochs, indices, indices + 1000), step, shape)


def sequences_of(batch: PackedBatch) -> list[tuple]:
    """Returns (input ids, segments, masked positions, their labels, next-sentence label) of each real sequence."""
    result = []
    positions, labels = batch.targets["mlm_positions"], batch.targets["mlm_labels"]
    for number in range(batch.num_sequences):
        begin, end = batch.cu_seqlens[number : number + 2].tolist()
        here = (positions >= begin) & (positions < end) & (labels != IGNORE_INDEX)
        next_label = batch.targets["nsp_labels"][number].item() if "nsp_labels" in batch.targets else None
        parts = (batch.input_ids[begin:end], batch.token_type_ids[begin:end], positions[here] - begin, labels[here])
        result.append((*(part.tolist() for part in parts), next_label))
    return result


def original_ids(sequence: tuple) -> list[int]:
    ids = list(sequence[0])
    for position, label in zip(sequence[2], sequence[3], strict=True):
        ids[position] = label
    return ids


def store_text(source: PretrainingSource, epoch: int, index: int) -> tuple[list[list[int]], int]:
    """Returns the segments of a sequence, read from the store range by range, and the next-sentence label."""
    drawn = source._segments(np.array([epoch]), np.array([index]))
    stretches = zip(drawn.starts[0], drawn.lengths[0], strict=True)
    return [source._store.gather(np.array([a]), np.array([n])).tolist() for a, n in stretches], int(drawn.labels[0])


@pytest.mark.parametrize("nsp", [True, False])
def test_layout_and_targets(data, tokenizer, nsp):
    source = sources_of(data, tokenizer, nsp=nsp)["train"]
    indices = np.arange(len(source))
    batch = build(source, 2, indices)
    lengths = source.lengths(np.full(len(source), 2), indices)
    assert list(batch.lengths) == lengths.tolist() and lengths.max() <= LENGTH == source.max_length
    assert batch.sequence_ids.tolist() == (indices + 1000).tolist()
    for index, sequence in enumerate(sequences_of(batch)):
        segments, next_label = store_text(source, 2, index)
        expected = [tokenizer.cls_id]
        types = [0]
        for number, segment in enumerate(segments):
            expected += [*segment, tokenizer.sep_id]
            types += [number] * (len(segment) + 1)
        assert original_ids(sequence) == expected
        assert sequence[1] == types
        assert sequence[4] == (next_label if nsp else None)
        maskable = sum(token not in tokenizer.special_ids for token in expected)
        assert len(sequence[2]) == num_masked(np.array([maskable]), 0.3)[0]
        assert not np.isin(sequence[3], tokenizer.special_ids).any()
    assert batch.counts["mlm"] == len(batch.targets["mlm_labels"])
    assert batch.counts.get("nsp") == (len(source) if nsp else None)


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(20)), st.integers(0, 20), st.sampled_from(["token", "whole_word", "span"]))
def test_a_sequence_is_the_same_in_any_batch(data, tokenizer, order, cut, masking):
    """For any micro-batch, rank and order: same sequence, epoch and seed, same pair and same masks."""
    source = sources_of(data, tokenizer, masking=masking)["train"]
    indices, epochs = np.arange(20) * 3 % len(source), np.arange(20) // 8
    expected = sequences_of(build(source, epochs, indices))
    got = []
    for part in (np.array(order[:cut], dtype=np.int64), np.array(order[cut:], dtype=np.int64)):
        got += sequences_of(build(source, epochs[part], indices[part]))
    assert got == [expected[one] for one in order]


def test_masks_depend_on_epoch_and_seed_but_not_on_the_step(data, tokenizer):
    first, other_seed = (sources_of(data, tokenizer, seed)["train"] for seed in (0, 1))
    indices = np.arange(len(first))
    base = sequences_of(build(first, 0, indices, step=5))
    assert sequences_of(build(first, 0, indices, step=900)) == base
    for batch in (build(first, 1, indices), build(other_seed, 0, indices)):
        assert sum(a[2] != b[2] for a, b in zip(base, sequences_of(batch), strict=True)) > 0.8 * len(base)


def test_evaluation_is_fixed(data, tokenizer):
    sources = [sources_of(data, tokenizer, seed)["validation"] for seed in (0, 1)]
    indices = np.arange(len(sources[0]))
    base = sequences_of(build(sources[0], 0, indices))
    assert sequences_of(build(sources[0], 7, indices, step=3)) == base == sequences_of(build(sources[1], 0, indices))
    assert (sources[0].lengths(indices * 0 + 4, indices) == sources[1].lengths(indices * 0, indices)).all()
    hidden = sum(len(sequence[2]) for sequence in base)
    # 0.15 of the maskable tokens, rounded in each sequence.
    assert 0.12 < hidden / sum(len(sequence[0]) - 3 for sequence in base) < 0.18
    train, validation = (source.chunks._index.documents for source in sources_of(data, tokenizer).values())
    assert not set(train) & set(validation)


def test_mask_rate_follows_the_step(data, tokenizer):
    rate = MaskRate(0.3, 0.1, 10)
    assert [round(rate.at(step), 6) for step in (0, 5, 10, 99)] == [0.3, 0.2, 0.1, 0.1]
    assert MaskRate(0.3, 0.3).at(0) == 0.3
    source = sources_of(data, tokenizer, mask_rate_end=0.1, mask_rate_steps=10)["train"]
    constant = sources_of(data, tokenizer)["train"]
    indices = np.arange(30)
    assert sequences_of(build(source, 0, indices, step=0)) == sequences_of(build(constant, 0, indices))
    counts = [build(source, 0, indices, step).counts["mlm"] for step in (0, 5, 10, 50)]
    assert counts[0] > counts[1] > counts[2] == counts[3]


def test_empty_batches_and_fixed_shapes(data, tokenizer):
    source = sources_of(data, tokenizer)["train"]
    empty = build(source, 0, [])
    assert (empty.num_sequences, empty.num_tokens, empty.lengths) == (0, 0, (1,))
    assert set(empty.counts.values()) == {0.0} and empty.targets["nsp_labels"].tolist() == [IGNORE_INDEX]
    shape = FixedShape.around(256, 16, 100, LENGTH)
    for indices in ([], [1, 2, 3]):
        batch = build(source, 0, indices, shape=shape)
        assert len(batch.input_ids) == shape.tokens and len(batch.targets["mlm_labels"]) == shape.targets
    assert sequences_of(batch) == sequences_of(build(source, 0, [1, 2, 3]))


@pytest.mark.parametrize("masking", ["token", "whole_word", "span"])
def test_a_micro_batch_has_at_most_as_many_targets_as_expected(data, tokenizer, masking):
    """Only whole words and spans may have a few more."""
    source = sources_of(data, tokenizer, masking=masking)["train"]
    slack = 0 if masking == "token" else 8
    for count in range(1, 20):
        batch = build(source, 0, np.arange(count))
        assert len(batch.targets["mlm_positions"]) <= source.most_targets(batch.num_tokens, count) + slack


def test_the_kind_of_masking_reaches_both_splits(data, tokenizer):
    """Masked tokens come in runs, which are longer if larger units are masked."""
    for split in ("train", "validation"):
        mean_run = []
        for masking in ("token", "whole_word", "span"):
            source = sources_of(data, tokenizer, masking=masking, nsp=False)[split]
            hidden = build(source, 0, np.arange(len(source))).targets["mlm_positions"].numpy()
            mean_run.append(len(hidden) / (1 + np.count_nonzero(np.diff(hidden) > 1)))
        assert mean_run[0] < 0.8 * mean_run[1] < 0.8 * 0.8 * mean_run[2]


@pytest.mark.parametrize("nsp", [True, False])
def test_mean_length_is_that_of_the_first_epoch(data, tokenizer, nsp):
    source = sources_of(data, tokenizer, nsp=nsp)["train"]
    built = [build(source, 0, [index]).num_tokens for index in range(len(source))]
    assert source.mean_length == pytest.approx(sum(built) / len(built))


def test_unused_text_is_stated(data, tokenizer):
    assert 0.1 < sources_of(data, tokenizer)["train"].unused_fraction(0) < 0.5
    assert sources_of(data, tokenizer, nsp=False)["train"].unused_fraction(0) == 0


def tiny_config(vocab_size: int) -> EncoderConfig:
    return EncoderConfig(
        family="bert",
        vocab_size=vocab_size,
        hidden_size=16,
        num_layers=1,
        num_heads=2,
        intermediate_size=32,
        max_position_embeddings=LENGTH,
    )


@pytest.mark.parametrize("nsp", [True, False])
def test_loss_and_metrics(data, tokenizer, nsp):
    task = PretrainingTask(sequence_length=LENGTH, nsp=nsp, nsp_weight=0.5)
    assert task.loss_weights == ({"mlm": 1.0, "nsp": 0.5} if nsp else {"mlm": 1.0})
    torch.manual_seed(0)
    config = tiny_config(tokenizer.vocab_size)
    encoder = TransformerEncoder(config)
    model = TaskModel(encoder, task.build_head(encoder, config))
    source = task.build_sources(data, tokenizer, 0)["train"]
    batches = [
        build(source, 0, [0, 1, 2]),
        build(source, 0, []),
        build(source, 0, [3], shape=FixedShape.around(64, 2, 40, LENGTH)),
    ]
    metrics = task.build_metrics()
    right = {"mlm": 0, "nsp": 0}
    counted = {"mlm": 0, "nsp": 0}
    for batch in batches:
        outputs = model(batch)
        sums = task.loss_sums(outputs, batch)
        task.update_metrics(metrics, outputs, batch)
        assert set(sums) == set(task.loss_weights) <= set(batch.counts)
        for term in sums:
            labels = batch.targets[f"{term}_labels"]
            real = labels != IGNORE_INDEX
            expected = cross_entropy(outputs[term][real], labels[real], reduction="sum")
            torch.testing.assert_close(sums[term], expected)
            assert int(batch.counts[term]) == int(real.sum())
            right[term] += int((outputs[term].argmax(-1)[real] == labels[real]).sum())
            counted[term] += int(real.sum())
    assert {name: metric.compute().item() for name, metric in metrics.items()} == pytest.approx(
        {f"{term}_accuracy": right[term] / counted[term] for term in task.loss_weights}
    )


@pytest.mark.parametrize("nsp", [True, False])
def test_z_loss_is_a_term_of_training_and_not_of_validation(data, tokenizer, nsp):
    task = PretrainingTask(sequence_length=LENGTH, nsp=nsp, z_loss=1e-4)
    predicted = {"mlm": 1.0, "nsp": 1.0} if nsp else {"mlm": 1.0}
    assert task.loss_weights == predicted | {"z": 1e-4} and task.validation_weights == predicted
    assert set(task.build_metrics()) == {f"{term}_accuracy" for term in predicted}
    source = task.build_sources(data, tokenizer, 0)["train"]
    batch = build(source, 0, [3], shape=FixedShape.around(64, 2, 40, LENGTH))
    real = batch.targets["mlm_labels"] != IGNORE_INDEX
    logits = torch.randn(len(real), tokenizer.vocab_size, generator=torch.Generator().manual_seed(0))
    outputs = {"mlm": logits, "nsp": torch.zeros(len(batch.lengths), 2)}
    sums = task.loss_sums(outputs, batch)
    torch.testing.assert_close(sums["z"], torch.logsumexp(logits[real].double(), 1).square().sum().float())
    torch.testing.assert_close(
        sums["mlm"], cross_entropy(logits[real], batch.targets["mlm_labels"][real], reduction="sum")
    )
    assert batch.counts["z"] == int(real.sum()) < len(real)


def test_impossible_settings(data, tokenizer, tmp_path):
    for options, message in (
        ({"mask_rate": 0.0}, r"mask_rate is 0\.0"),
        ({"eval_mask_rate": 1.5}, r"eval_mask_rate is 1\.5"),
        ({"mask_rate_end": 0.1}, "mask_rate_steps is None"),
        ({"z_loss": -1.0}, r"z_loss is -1\.0"),
        ({"nsp_weight": -1.0}, r"nsp_weight is -1\.0"),
    ):
        with pytest.raises(ConfigError, match=message):
            PretrainingTask(**options)
    with pytest.raises(ConfigError, match="room for 1 tokens"):
        PretrainingTask(sequence_length=4).build_sources(data, tokenizer, 0)
    config = tiny_config(tokenizer.vocab_size)
    with pytest.raises(ConfigError, match="sequence_length is 33, but the encoder has 32 positions"):
        PretrainingTask(sequence_length=LENGTH + 1).build_head(TransformerEncoder(config), config)
    tokenizer.save(tmp_path)
    PretrainingTask().build_sources(data, Tokenizer.from_folder(tmp_path), 0)
    text = (tmp_path / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(text + "\n")
    PretrainingTask().build_sources(data, Tokenizer.from_folder(tmp_path), 0)
    (tmp_path / "tokenizer.json").write_text(text.replace("##ulo", "##ulu"))
    with pytest.raises(DataError, match="was made with another tokenizer"):
        PretrainingTask().build_sources(data, Tokenizer.from_folder(tmp_path), 0)


def test_a_source_that_is_seen_twice_in_an_epoch_gets_other_masks(data, tokenizer):
    twice = StoreData(data.store, validation_fraction=0.2, weights={"texts": 2.0})
    source = sources_of(twice, tokenizer, nsp=False)["train"]
    half = len(source) // 2
    first, second = (sequences_of(build(source, 0, np.arange(half) + begin)) for begin in (0, half))
    assert [original_ids(sequence) for sequence in first] == [original_ids(sequence) for sequence in second]
    assert sum(one[2] == other[2] for one, other in zip(first, second, strict=True)) < 0.1 * half


@pytest.mark.parametrize("nsp", [False, True])
def test_training_text_with_the_masks_of_evaluation_depends_neither_on_the_seed_nor_on_the_step(data, tokenizer, nsp):
    """Both splits then have the same mask rate, so that their losses can be compared."""
    task = PretrainingTask(sequence_length=LENGTH, nsp=nsp, mask_rate=0.9, eval_mask_rate=0.2)
    first, second = (task.build_sources(data, tokenizer, seed)["train"] for seed in (0, 5))
    trained = sequences_of(build(first, 0, range(20)))
    compared = first.for_evaluation(task.sequences.eval_mask_rate)
    found = sequences_of(build(compared, 0, range(20)))
    assert found == sequences_of(build(second.for_evaluation(task.sequences.eval_mask_rate), 3, range(20), step=9))
    assert found != trained
    for ids, _, positions, *_ in found:
        num_text = len(ids) - (3 if nsp else 2)
        assert len(positions) == num_masked(np.array([num_text]), 0.2)[0]
    assert sequences_of(build(first, 0, range(20))) == trained
