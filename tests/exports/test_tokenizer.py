"""White space in a text only separates words in the tokenizer of an exported model of words."""

import pytest
import transformers
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers

from framework.data.tokenization.byte_level_training import ByteLevelBpeTraining
from framework.data.tokenization.tokenizer import Tokenizer
from framework.data.tokenization.word_counts import WordCounts
from framework.errors import DataError
from framework.exports.tokenizer import tokenizer_files
from framework.published.kinds import TOKEN_CLASSIFICATION
from tests.support.exports.small_exports import CONFIGS

WORDS = ["Anna", "met", "Müller"]
TEXT = "Anna  met\t\r\nMüller "


def byte_level(folder):
    training = ByteLevelBpeTraining(300)
    return training.train(WordCounts(training.count([" ".join(WORDS)] * 9)), folder)


def metaspace(folder):
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *(f"▁{word}" for word in WORDS), "▁", *WORDS]
    backend = Backend(models.Unigram([(token, -float(index)) for index, token in enumerate(tokens)], 3))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.add_special_tokens(tokens[:5])
    backend.save(str(folder / "tokenizer.json"))
    return Tokenizer.from_folder(folder)


@pytest.mark.parametrize("make", [byte_level, metaspace])
def test_whitespace_only_separates_words(make, tmp_path):
    files = tokenizer_files(CONFIGS["roberta"], TOKEN_CLASSIFICATION.name, {}, make(tmp_path))
    backend = Backend.from_str(files["tokenizer.json"])
    as_words = backend.encode(WORDS, is_pretokenized=True)
    actual = backend.encode(TEXT)
    assert actual.ids == as_words.ids == backend.encode(" ".join(WORDS)).ids
    # Offsets are those of the words; no token covers the white space between them.
    starts = [start for start, _ in actual.offsets[1:-1]]
    stops = [stop for _, stop in actual.offsets[1:-1]]
    assert (starts[0], stops[-1]) == (0, 18) and {6, 9, 12} & {*starts, *stops} == {6, 9, 12}
    assert "".join(TEXT[start:stop] for start, stop in dict.fromkeys(actual.offsets)) == "AnnametMüller"


@pytest.mark.parametrize("family", ["XLMRoberta", "Camembert", "DebertaV2"])
def test_sentencepiece_tokenizers_of_published_families(family, tmp_path):
    named = getattr(transformers, f"{family}Tokenizer")()
    special = [named.cls_token, named.pad_token, named.sep_token, named.unk_token, named.mask_token]
    pieces = ["▁", *(f"▁{word}" for word in WORDS), "An", "na", *"Anmetülr"]
    vocabulary = [(token, 0.0) for token in special] + [(piece, -1.0 - index) for index, piece in enumerate(pieces)]
    named = type(named)(vocab=list(dict(vocabulary).items()), **({"unk_id": 3} if family == "DebertaV2" else {}))
    named.save_pretrained(tmp_path)
    ours = Tokenizer.from_folder(tmp_path)
    texts = ["Anna met Müller", "  met\nAnna", "xyz Anna"]
    for text, ids in zip(texts, ours.encode_batch(texts), strict=True):
        assert ids.tolist() == named(text, add_special_tokens=False).input_ids
    # Pieces other than the mark of a space begin a word only with it.
    assert ours.starts_word[ours.backend.token_to_id("▁met")] and not ours.starts_word[ours.backend.token_to_id("na")]
    files = tokenizer_files(CONFIGS["roberta"], "sequence_classification", {}, ours)
    exported = Backend.from_str(files["tokenizer.json"])
    assert exported.encode(*texts[:2]).ids == named(*texts[:2]).input_ids


def test_a_sentencepiece_file_alone_is_named_with_the_remedy(tmp_path):
    (tmp_path / "spm.model").write_bytes(b"model")
    with pytest.raises(DataError, match=r"holds spm.model and no tokenizer.json.*save_pretrained"):
        Tokenizer.from_folder(tmp_path)
