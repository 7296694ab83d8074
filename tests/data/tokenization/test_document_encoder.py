import numpy as np

from framework.data.tokenization import document_encoder
from framework.data.tokenization.document_encoder import DocumentEncoder
from tests.support.data.stores import trained

TEXTS = ["The cat sat. On a mat. A dog sat.", "\x07", "Dogs play. \x07. The cat.", "A mat."]


def test_documents_by_hand(tmp_path, monkeypatch):
    tokenizer = trained(["the cat sat on a mat. dogs play."], tmp_path / "tokenizer")
    monkeypatch.setattr(document_encoder, "SENTENCES_AT_ONCE", 2)
    encoded = DocumentEncoder(tokenizer.folder)(TEXTS)
    assert encoded.kept.tolist() == [True, False, True, True]
    assert encoded.document_sentences.tolist()[0] == 3 and encoded.document_sentences.tolist()[-1] == 1
    sentences = ["The cat sat.", "On a mat.", "A dog sat.", "Dogs play.", "\x07.", "The cat.", "A mat."]
    expected = tokenizer.encode_batch(sentences)
    assert encoded.input_ids.tolist() == np.concatenate(expected).tolist()
    assert encoded.sentence_lengths.tolist() == [len(ids) for ids in expected if len(ids)]
    assert encoded.num_unknown == sum(int((ids == tokenizer.unk_id).sum()) for ids in expected)


def test_nothing_to_encode(tmp_path):
    tokenizer = trained(["the cat sat on a mat. dogs play."], tmp_path / "tokenizer")
    encoded = DocumentEncoder(tokenizer.folder)([])
    assert len(encoded.input_ids) == len(encoded.sentence_lengths) == len(encoded.kept) == 0
