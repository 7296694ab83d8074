"""Tests on real English and Chinese text, from file to batch: nothing is lost, and pair labels are right."""

import numpy as np
import pytest

from framework.batch import PackedBatch
from framework.data.planning.plan import StepPlan, StepSequences
from framework.data.preparation.prepare import StoreSpec, prepare_store
from framework.data.reading.documents import split_sentences
from framework.data.reading.files import Reading
from framework.data.reading.sources import Source, TableFiles, TextFiles
from framework.data.store_data import StoreData
from framework.data.tokenization.tokenizer import Tokenizer
from framework.data.tokenization.wordpiece_training import WordPieceTraining
from framework.tasks.pretraining.features import PretrainingSource
from framework.tasks.pretraining.task import PretrainingTask
from tests.support.real_data import needs_real_data, real_data

pytestmark = needs_real_data
LENGTH = 64

SOURCES = {
    "english": TextFiles(str(real_data("pretrain/wikitext2_valid.txt.gz")), "blank_lines"),
    "chinese": TableFiles(str(real_data("sentiment/zh_waimai_10k.csv.gz")), "review"),
}


@pytest.fixture(scope="module", params=list(SOURCES))
def prepared(request, tmp_path_factory) -> tuple[Source, StoreData]:
    source, folder = SOURCES[request.param], tmp_path_factory.mktemp("real")
    training = WordPieceTraining(vocab_size=6000, alphabet=4000)
    prepare_store(StoreSpec({request.param: source}, training, folder / "store"))
    return source, StoreData(str(folder / "store"), validation_fraction=0.0)


def built(data: StoreData, **options) -> tuple[PretrainingSource, PackedBatch, np.ndarray]:
    """Builds one batch of a whole epoch, and returns it with its unmasked ids."""
    tokenizer = Tokenizer.from_folder(data.opened.folder / "tokenizer")
    source = PretrainingTask(LENGTH, **options).build_sources(data, tokenizer, seed=0)["train"]
    indices = np.arange(len(source))
    batch = source.build(StepSequences(np.zeros_like(indices), indices, indices), step=0)
    ids = batch.input_ids.numpy().copy()
    ids[batch.targets["mlm_positions"].numpy()] = batch.targets["mlm_labels"].numpy()
    return source, batch, ids


def test_the_store_holds_every_word_of_the_text(prepared):
    """Checks that the ids of each document decode to the tokenizer's output on the whole text."""
    source, data = prepared
    store = data.opened
    tokenizer = Tokenizer.from_folder(store.folder / "tokenizer")
    assert store.meta["counts"]["unknown_tokens"] < 0.005 * store.num_tokens
    texts = list(dict.fromkeys(" ".join(text.split()) for text in source.read(Reading()) if text.strip()))
    assert store.num_documents == len(texts)
    expected = np.concatenate(tokenizer.encode_batch(texts))
    lengths = np.concatenate([batch.sentence_lengths for batch in store.batches()]).astype(np.int64)
    assert store.gather(np.cumsum(lengths) - lengths, lengths).tolist() == expected.tolist()


def test_single_segments_use_all_text_once(prepared):
    _, data = prepared
    _, batch, ids = built(data, nsp=False)
    assert max(batch.lengths) <= LENGTH
    special = Tokenizer.from_folder(data.opened.folder / "tokenizer")
    inner = ids[~np.isin(ids, [special.cls_id, special.sep_id])]
    lengths = np.concatenate([stored.sentence_lengths for stored in data.opened.batches()]).astype(np.int64)
    assert inner.tolist() == data.opened.gather(np.cumsum(lengths) - lengths, lengths).tolist()


def test_pairs_follow_or_come_from_another_document(prepared):
    source, data = prepared
    sequences, batch, ids = built(data)
    tokenizer = Tokenizer.from_folder(data.opened.folder / "tokenizer")
    # Text of each document, decoded from its ids.
    documents = [" ".join(map(str, encoded.tolist())) for encoded in encoded_documents(source, tokenizer)]
    labels = batch.targets["nsp_labels"].numpy()
    stretches = np.split(ids, batch.cu_seqlens.numpy()[1:-1])
    segments = np.split(batch.token_type_ids.numpy(), batch.cu_seqlens.numpy()[1:-1])
    rows = np.flatnonzero(np.arange(len(labels)) % max(1, len(labels) // 60) == 0)
    followed = 0
    for row in rows.tolist():
        first, second = (stretches[row][segments[row] == number] for number in (0, 1))
        a, b = (" ".join(map(str, part.tolist())) for part in (first[1:-1], second[:-1]))
        together = any(f" {a} {b} " in f" {document} " for document in documents)
        if labels[row] == 0:
            assert together
            followed += 1
        else:
            assert any(f" {b} " in f" {document} " for document in documents)
    assert 0 < followed < len(rows)
    # Binomial bound of 5 standard deviations. Chunks of one piece always get another document's text.
    pieces = sequences.chunks._index.chunks
    several = float((pieces[:, 1] - pieces[:, 0] > 1).mean())
    # A short target reduces at most one in ten chunks to one piece.
    most, least = 0.5 * several, 0.5 * several * 0.9
    spread = 5 * np.sqrt(0.25 / len(labels))
    assert least - spread < float((labels == 0).mean()) < most + spread


def encoded_documents(source: Source, tokenizer: Tokenizer) -> list[np.ndarray]:
    texts = [text for text in source.read(Reading()) if text.strip()]
    return [np.concatenate(tokenizer.encode_batch(split_sentences(text))) for text in texts]


def test_steps_hold_what_the_plan_says(prepared):
    _, data = prepared
    sequences, _, _ = built(data)
    plan = StepPlan(sequences, 0, 64, 1024, num_ranks=2, wraps_epochs=True)
    for step in (0, 1, 500):
        drawn = plan.sequences(step)
        lengths = dict(zip(drawn.sequence_ids.tolist(), sequences.lengths(drawn.epochs, drawn.indices), strict=True))
        seen = {}
        for rank in range(2):
            for share in plan.micro_batches(step, rank):
                batch = sequences.build(share, step)
                assert batch.num_tokens <= share.budget
                seen |= dict(zip(batch.sequence_ids.tolist(), batch.lengths, strict=False))
        assert {number: seen[number] for number in lengths} == lengths
