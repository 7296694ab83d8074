"""Personal data in a store: counted, masked by tokens of the vocabulary, or dropped, and the same after a kill."""

import json
from pathlib import Path

import datasets
import pytest

from framework.data.personal_data.masks import TOKENS, masks_of
from framework.data.preparation.corpus import Cleaning
from framework.data.preparation.prepare import StoreSpec, describe_preparation, prepare_store
from framework.data.reading.documents import text_hash
from framework.data.reading.shards import ParquetShards
from framework.data.reading.sources import TableFiles, TextFiles
from framework.data.tokenization.byte_level_training import ByteLevelBpeTraining
from framework.data.tokenization.tokenizer import Tokenizer
from framework.data.tokenization.vocabulary import GivenTokenizer
from framework.data.tokenization.word_counts import WordCounts
from framework.data.tokenization.wordpiece_training import WordPieceTraining
from framework.errors import ConfigError, DataError
from tests.support.data.capital_names import Capitals
from tests.support.data.run_prepare import run_process
from tests.support.data.small_corpus import VOCABULARY, files_of

pytest.importorskip("phonenumbers")
pytest.importorskip("stdnum")

MODEL = {"personal_data_model": "runs/ner"}
PLAIN = "The cat sat on a mat. It was warm."
WITH_DATA = {
    "mail": "Write to jane@example.com, or to joe@example.com. The cat sat.",
    "card": "My card is 4111 1111 1111 1111. Call 415-555-2671 now.",
}


@pytest.fixture
def sources(tmp_path) -> dict[str, TextFiles]:
    for name, text in {"plain": PLAIN, **WITH_DATA}.items():
        (tmp_path / f"{name}.txt").write_text(text)
    (tmp_path / "second.txt").write_text("I am @jane. The mat sat.")
    return {
        "first": TextFiles([str(tmp_path / f"{name}.txt") for name in ("plain", "mail", "card")]),
        "second": TextFiles(str(tmp_path / "second.txt")),
    }


def stored_texts(folder: Path) -> list[str]:
    tokenizer = Tokenizer.from_folder(folder / "tokenizer")
    rows = datasets.Dataset.from_file(str(folder / "data.arrow"))
    return [" ".join(map(tokenizer.backend.id_to_token, row["input_ids"])) for row in rows]


def test_report_counts_by_kind_and_source_and_changes_no_text(tmp_path, sources):
    counted = prepare_store(StoreSpec(sources, VOCABULARY, tmp_path / "store", Cleaning(personal_data="report")))
    whole = prepare_store(StoreSpec(sources, VOCABULARY, tmp_path / "whole"))
    assert (counted.folder / "data.arrow").read_bytes() == (whole.folder / "data.arrow").read_bytes()
    card, without = (json.loads((folder / "card.json").read_text()) for folder in (counted.folder, whole.folder))
    assert card["personal_data"] == {
        "action": "report",
        "documents": 3,
        "finds": {"card": 1, "email": 2, "handle": 1, "phone": 1},
    }
    assert [source["personal_data"] for source in card["sources"]] == [
        {"card": 1, "documents": 2, "email": 2, "phone": 1},
        {"documents": 1, "handle": 1},
    ]
    assert "personal_data" not in without and "personal_data" not in without["sources"][0]
    assert counted.counts == {**whole.counts, "personal_data_finds": 5, "personal_data_documents": 3}


@pytest.mark.parametrize("vocabulary", [WordPieceTraining(vocab_size=200), ByteLevelBpeTraining(300)])
def test_masks_are_tokens_of_a_trained_vocabulary(tmp_path, sources, vocabulary):
    prepare_store(StoreSpec(sources, vocabulary, tmp_path / "store", Cleaning(personal_data="mask")))
    tokenizer = Tokenizer.from_folder(tmp_path / "store" / "tokenizer")
    texts = [text.replace("Ġ", "").split() for text in stored_texts(tmp_path / "store")]
    assert [[word for word in text if word in TOKENS.values()] for text in texts] == [
        [],
        ["[EMAIL]", "[EMAIL]"],
        ["[CARD]", "[PHONE]"],
        ["[HANDLE]"],
    ]
    ids = {token: tokenizer.backend.token_to_id(token) for token in TOKENS.values() if token != "[NAME]"}
    assert set(ids.values()) <= set(tokenizer.ordinary_ids.tolist())
    assert all(tokenizer.starts_word[token_id] for token_id in ids.values())
    words = {
        token for token in tokenizer.backend.get_vocab() if token.strip("#Ġ") in ("jane", "joe", "example", "4111")
    }
    assert words == set()
    assert [tokenizer.encode_batch([f"At [EMAIL], {token}."])[0].tolist().count(ids[token]) for token in ids] == [
        2 if token == "[EMAIL]" else 1 for token in ids
    ]


def test_a_vocabulary_is_not_trained_on_the_letters_of_masks(tmp_path, sources):
    prepare_store(StoreSpec(sources, VOCABULARY, tmp_path / "store", Cleaning(personal_data="mask")))
    vocabulary = Tokenizer.from_folder(tmp_path / "store" / "tokenizer").backend.get_vocab()
    assert "[" not in vocabulary and "." in vocabulary


def test_the_tokens_of_masks_load_in_transformers(tmp_path, sources):
    transformers = pytest.importorskip("transformers")
    prepare_store(StoreSpec(sources, VOCABULARY, tmp_path / "store", Cleaning(personal_data="mask")))
    folder = tmp_path / "store" / "tokenizer"
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    text = "Write to [EMAIL], or call[PHONE]."
    ids = theirs(text, add_special_tokens=False)["input_ids"]
    assert ids == Tokenizer.from_folder(folder).encode_batch([text])[0].tolist()


def test_masked_documents_have_the_hash_of_the_masked_text(tmp_path, sources):
    prepare_store(StoreSpec(sources, VOCABULARY, tmp_path / "store", Cleaning(personal_data="mask")))
    rows = datasets.Dataset.from_file(str(tmp_path / "store" / "data.arrow"))
    texts = [PLAIN, "Write to [EMAIL], or to [EMAIL]. The cat sat.", "My card is [CARD]. Call [PHONE] now."]
    assert set(rows["text_hash"]) == {text_hash(text) for text in [*texts, "I am [HANDLE]. The mat sat."]}


def test_dropped_documents_are_counted(tmp_path, sources):
    dropped = prepare_store(StoreSpec(sources, VOCABULARY, tmp_path / "store", Cleaning(personal_data="drop")))
    card = json.loads((dropped.folder / "card.json").read_text())
    assert stored_texts(dropped.folder) == ["the cat sat on a mat . it was warm ."]
    assert card["documents"] == {
        "read": 4, "kept": 1, "duplicates": 0, "near_duplicates": 0, "excluded": 0, "empty": 0, "skipped_rows": 0,
        "personal_data": 3,
    }  # fmt: skip
    assert dropped.counts["empty"] == 0 and dropped.counts["personal_data"] == 3
    assert "jane" not in Tokenizer.from_folder(dropped.folder / "tokenizer").backend.get_vocab()
    (tmp_path / "plain.txt").write_text(WITH_DATA["mail"])
    given = GivenTokenizer(str(dropped.folder / "tokenizer"))
    with pytest.raises(DataError, match=r"no documents remain after cleaning \(4 read\)"):
        prepare_store(StoreSpec(sources, given, tmp_path / "none", Cleaning(personal_data="drop")))


def test_a_given_vocabulary_masks_by_a_word_that_it_has_or_is_refused(tmp_path, sources):
    folder = tmp_path / "tokenizer"
    words = "the cat sat on a mat write to or my card is phone mail now call user it was warm i am ."
    training = WordPieceTraining(vocab_size=400)
    tokenizer = training.train(WordCounts(training.count([words] * 9)), folder)
    given = GivenTokenizer(str(folder))
    kinds = ("email", "phone", "card", "handle")
    assert masks_of(tokenizer, kinds) == {"email": "mail", "phone": "phone", "card": "card", "handle": "user"}
    cleaning = Cleaning(personal_data="mask", personal_data_kinds=kinds)
    prepare_store(StoreSpec(sources, given, tmp_path / "store", cleaning))
    assert stored_texts(tmp_path / "store")[2] == "my card is card . call phone now ."
    refused = StoreSpec(sources, given, tmp_path / "refused", Cleaning(personal_data="mask"))
    with pytest.raises(ConfigError, match=r"splits each mask for iban \(\[IBAN\], account, .*or leave out iban"):
        describe_preparation(refused)


def test_the_settings_are_part_of_the_identity(tmp_path, sources):
    def prepare(**settings):
        return prepare_store(StoreSpec(sources, VOCABULARY, tmp_path / "store", Cleaning(**settings)))

    prepare(personal_data="mask")
    assert prepare(personal_data="mask").reused
    (tmp_path / "names.txt").write_text("Jane Doe\n")
    for other in (
        {},
        {"personal_data": "report"},
        {"personal_data": "mask", "personal_data_kinds": ["email"]},
        {"personal_data": "mask", "personal_data_regions": ["US"]},
        {"personal_data": "mask", "personal_data_names": str(tmp_path / "names.txt")},
    ):
        with pytest.raises(DataError, match="made from other files or settings"):
            prepare(**other)


def test_settings_that_would_have_no_effect_are_rejected():
    with pytest.raises(ConfigError, match=r"is names\.txt, but personal_data is null"):
        Cleaning(personal_data_names="names.txt")
    with pytest.raises(ConfigError, match="'passport', which is unknown"):
        Cleaning(personal_data="report", personal_data_kinds=["passport"])
    with pytest.raises(ConfigError, match=r"personal_data_model is runs/ner, but personal_data is null"):
        Cleaning(**MODEL)
    with pytest.raises(ConfigError, match=r"personal_data_types is \['PER'\], but personal_data_model is null"):
        Cleaning(personal_data="report", personal_data_types=["PER"])


def test_masking_a_streamed_store_is_refused_and_dropping_is_not(tmp_path):
    shards = tmp_path / "shards.parquet"
    datasets.Dataset.from_dict({"text": [PLAIN, *WITH_DATA.values()]}).to_parquet(str(shards))
    sources = {"shards": ParquetShards(str(shards))}
    with pytest.raises(ConfigError, match=r"personal_data is mask and stream is true.*Use personal_data=drop"):
        prepare_store(StoreSpec(sources, VOCABULARY, tmp_path / "a", Cleaning(personal_data="mask"), streamed=True))
    prepare_store(StoreSpec(sources, VOCABULARY, tmp_path / "b", Cleaning(personal_data="drop"), streamed=True))
    assert len(datasets.Dataset.from_file(str(tmp_path / "b" / "data.arrow"))) == 1


def test_names_by_a_model_are_masked_beside_other_finds(tmp_path):
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "a.txt").write_text("Write to JANE jane@example.com, not to Joe or DOE.")
    (texts / "b.txt").write_text(PLAIN)
    (tmp_path / "names.txt").write_text("Joe\n")
    cleaning = Cleaning(personal_data="mask", personal_data_names=str(tmp_path / "names.txt"), **MODEL)
    sources = {"texts": TextFiles(str(texts / "*.txt"))}
    spec = StoreSpec(sources, VOCABULARY, tmp_path / "store", cleaning, names=Capitals(tmp_path / "log"))
    made = prepare_store(spec)
    assert stored_texts(made.folder)[0] == "write to [NAME] [EMAIL] , not to [NAME] or [NAME] ."
    assert json.loads((made.folder / "card.json").read_text())["personal_data"]["finds"] == {"email": 1, "name": 3}
    # Both passes need the names of each text, which is predicted once.
    assert sorted((tmp_path / "log").read_text().splitlines()) == sorted([PLAIN, (texts / "a.txt").read_text()])
    assert prepare_store(spec).reused
    other = StoreSpec(sources, VOCABULARY, tmp_path / "store", cleaning, names=Capitals(tmp_path / "log", "ORG"))
    with pytest.raises(DataError, match="made from other files or settings"):
        prepare_store(other)


def test_names_by_a_model_are_masked_alone_and_by_a_given_vocabulary(tmp_path):
    (tmp_path / "a.txt").write_text("Write to JANE at jane@example.com.")
    training = WordPieceTraining(vocab_size=400)
    training.train(WordCounts(training.count(["write to name at . jane example com @"] * 9)), tmp_path / "given")
    sources, given = {"texts": TextFiles(str(tmp_path / "a.txt"))}, GivenTokenizer(str(tmp_path / "given"))
    cleaning = Cleaning(personal_data="mask", personal_data_kinds=[], **MODEL)
    prepare_store(StoreSpec(sources, given, tmp_path / "store", cleaning, names=Capitals(tmp_path / "log")))
    assert stored_texts(tmp_path / "store") == ["write to name at jane @ example . com ."]


def test_killed_and_resumed_masking_gives_the_same_bytes(tmp_path, small_batches):
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(14):
        (texts / f"{number:02}.txt").write_text(f"I am JOE, user{number}@example.com, text {number}. {PLAIN}")
    pattern, cleaning = str(texts / "*.txt"), {"personal_data": "mask", **MODEL}
    folder = tmp_path / "stores"
    folder.mkdir()
    log = tmp_path / "killed.log"
    num_stores = int(run_process(texts=pattern, folder=str(folder), every=53, cleaning=cleaning, capitals=str(log)))
    for workers in (0, 2):
        sources, names = {"texts": TextFiles(pattern)}, Capitals(tmp_path / f"{workers}.log")
        spec = StoreSpec(sources, VOCABULARY, tmp_path / f"whole{workers}", Cleaning(**cleaning), names=names)
        prepare_store(spec, num_workers=workers)
        # The vocabulary and the encoding both need the names, but each text is predicted once.
        assert len((tmp_path / f"{workers}.log").read_text().splitlines()) == 14
    whole = files_of(tmp_path / "whole0")
    assert num_stores > 2 and files_of(tmp_path / "whole2") == whole
    assert json.loads(whole["card.json"])["personal_data"]["finds"] == {"email": 14, "name": 14}
    for number in range(num_stores):
        assert files_of(folder / str(number)) == whole, number
    # At most one batch of each killed preparation is predicted again.
    assert len(log.read_text().splitlines()) < 14 * num_stores + 5 * num_stores


def test_messages_about_rows_show_no_personal_data(tmp_path):
    (tmp_path / "rows.jsonl").write_text(
        json.dumps({"text": PLAIN}) + "\n" + json.dumps({"text": ["jane@example.com"]})
    )
    sources = {"rows": TableFiles(str(tmp_path / "rows.jsonl"))}
    for action in ("mask", "drop"):
        spec = StoreSpec(sources, VOCABULARY, tmp_path / action, Cleaning(personal_data=action), on_bad_row="skip")
        (message,) = prepare_store(spec).skipped
        assert "line 2" in message and "jane" not in message
        assert "jane" not in (tmp_path / action / "store.json").read_text()
