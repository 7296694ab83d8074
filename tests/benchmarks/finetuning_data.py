"""Public data sets of the fine-tuning benchmark, converted to one form: a JSONL file per split, for both trainers."""

import csv
import gzip
import itertools
import json
import random
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from sklearn.feature_extraction.text import TfidfVectorizer

Row = dict[str, Any]
Splits = dict[str, list[Row]]

NUM_CHOICES = 4
NUM_CANDIDATES, NUM_ANSWERS = 10, 3


def sst2(folder: Path) -> Splits:
    """Sentiment of sentences (Socher et al. 2013), two labels."""
    return {
        split: [{"text": text, "label": label} for text, label in lines(folder / f"sentiment/sst2_{split}.tsv")]
        for split in ("train", "test")
    }


def cola(folder: Path) -> Splits:
    """Acceptability (Warstadt et al. 2019), tested on the in-domain development set."""
    names = {"train": "cola_in_domain_train.tsv", "test": "cola_in_domain_dev.tsv"}
    return {
        split: [{"text": text, "label": label} for _, label, _, text in lines(folder / "glue_parts" / name)]
        for split, name in names.items()
    }


def rte(folder: Path) -> Splits:
    """Entailment: the three PASCAL challenges that make up RTE; the test set is that of the third."""
    names = {"train": ("rte1_dev", "rte2_dev", "rte3_dev", "rte1_test", "rte2_test"), "test": ("rte3_test",)}
    with zipfile.ZipFile(folder / "glue_parts/rte_1_2_3.zip") as archive:

        def pairs(name: str) -> Iterator[Row]:
            for pair in ElementTree.fromstring(archive.read(f"rte/{name}.xml")).iter("pair"):
                answer = pair.get("value") or pair.get("entailment")
                label = "yes" if answer in ("TRUE", "YES") else "no"
                yield {"text": pair.findtext("t"), "pair": pair.findtext("h"), "label": label}

        return {split: [row for name in parts for row in pairs(name)] for split, parts in names.items()}


def stsb(folder: Path) -> Splits:
    """Similarity of sentences, 0 to 5 (Cer et al. 2017)."""

    def read(split: str) -> list[Row]:
        with open(folder / f"similarity/stsb_en_{split}.csv", encoding="utf-8", newline="") as file:
            return [{"text": first, "pair": second, "label": float(score)} for first, second, score in csv.reader(file)]

    return {"train": read("train"), "test": read("test")}


def clinc(folder: Path) -> Splits:
    """150 intents (Larson et al. 2019), only those in scope."""
    with gzip.open(folder / "intent/clinc150_full.json.gz", "rt", encoding="utf-8") as file:
        content = json.load(file)
    return {split: [{"text": text, "label": label} for text, label in content[split]] for split in ("train", "test")}


def phrasebank(folder: Path) -> Splits:
    """Financial sentiment (Malo et al. 2014), sentences with at least 50 % agreement, 3,800 of them for training."""
    text = (folder / "financial/phrasebank_Sentences_50Agree.txt").read_text(encoding="latin-1")
    return shuffled(
        [dict(zip(("text", "label"), line.rsplit("@", 1), strict=True)) for line in text.splitlines()], 3800
    )


def wnut17(folder: Path) -> Splits:
    """Emerging entities (Derczynski et al. 2017)."""

    def read(split: str) -> list[Row]:
        text = (folder / f"ner/wnut17_{split}.conll").read_text(encoding="utf-8")
        rows = []
        # Some of the lines between sentences contain a tab.
        for is_word, group in itertools.groupby(text.split("\n"), key=lambda line: bool(line.strip())):
            if is_word:
                words, tags = zip(*(line.split("\t") for line in group), strict=True)
                rows.append({"tokens": list(words), "tags": list(tags)})
        return rows

    return {"train": read("train"), "test": read("test")}


def policyqa(folder: Path) -> Splits:
    """Questions on privacy policies (Ahmad et al. 2020); a fifth of the web sites is the test set."""
    with gzip.open(folder / "qa/policyqa_dev.json.gz", "rt", encoding="utf-8") as file:
        sites = json.load(file)["data"]
    splits: Splits = {"train": [], "test": []}
    for index, site in enumerate(sites):
        for paragraph in site["paragraphs"]:
            for question in paragraph["qas"]:
                answers = [{"text": each["text"], "answer_start": each["answer_start"]} for each in question["answers"]]
                row = {"question": question["question"], "context": paragraph["context"], "answers": answers}
                splits["test" if index % 5 == 0 else "train"].append(row)
    return splits


def agnews(folder: Path) -> Splits:
    """Topics of news (Zhang et al. 2015, arXiv:1509.01626), from the test file, 6,000 rows of it for training."""
    with gzip.open(folder / "topic/ag_news_7600.csv.gz", "rt", encoding="utf-8", newline="") as file:
        rows = [{"text": f"{title}. {text}", "label": label} for label, title, text in csv.reader(file)]
    return shuffled(rows, 6000)


def films(folder: Path) -> Splits:
    """Genres of films, from their titles and users' tags (Harper and Konstan 2015, ml-latest-small)."""
    tags: dict[str, dict[str, None]] = {}
    for row in table(folder / "recommendation/ml_latest_small_tags.csv"):
        tags.setdefault(row["movieId"], {})[row["tag"].lower()] = None
    rows = [
        {"text": "; ".join([row["title"], *tags.get(row["movieId"], ())]), "label": row["genres"].split("|")}
        for row in table(folder / "recommendation/ml_latest_small_movies.csv")
        if row["genres"] != "(no genres listed)"
    ]
    return shuffled(rows, 7766)


def policyqa_choice(folder: Path) -> Splits:
    """Choice of the answer to a question among four texts: the right one of PolicyQA, and three answers to others."""
    splits = policyqa(folder)
    draw = random.Random(0)
    made: Splits = {}
    for split, rows in splits.items():
        first = {row["question"]: row["answers"][0]["text"] for row in rows}
        others = sorted(set(first.values()))
        made[split] = []
        for question, answer in first.items():
            choices = draw.sample([text for text in others if text != answer], NUM_CHOICES - 1)
            label = draw.randrange(NUM_CHOICES)
            choices.insert(label, answer)
            made[split].append({"question": question, "choices": choices, "label": label})
    return made


def policyqa_candidates(folder: Path) -> Splits:
    """Paragraphs of a web site that answer a question (Ahmad et al. 2020), beside the most similar others by TF-IDF.

    A list has ten candidates at most, of which three at most are relevant. A fifth of the web sites is the test set.
    """
    with gzip.open(folder / "qa/policyqa_dev.json.gz", "rt", encoding="utf-8") as file:
        sites = json.load(file)["data"]
    splits: Splits = {"train": [], "test": []}
    for index, site in enumerate(sites):
        relevant: dict[str, set[str]] = {}
        for paragraph in site["paragraphs"]:
            for question in paragraph["qas"]:
                relevant.setdefault(question["question"], set()).add(paragraph["context"])
        texts = list(dict.fromkeys(paragraph["context"] for paragraph in site["paragraphs"]))
        weights = TfidfVectorizer(sublinear_tf=True)
        similarities = (weights.fit_transform(texts) @ weights.transform(relevant).T).toarray().T
        for (question, right), scores in zip(relevant.items(), similarities, strict=True):
            ranked = [texts[place] for place in (-scores).argsort(kind="stable")]
            answers = [text for text in ranked if text in right][:NUM_ANSWERS]
            others = [text for text in ranked if text not in right][: NUM_CANDIDATES - len(answers)]
            documents = sorted([*answers, *others], key=ranked.index)
            labels = [int(text in right) for text in documents]
            row = {"query": question, "documents": documents, "labels": labels}
            splits["test" if index % 5 == 0 else "train"].append(row)
    return splits


def shuffled(rows: list[Row], num_train: int) -> Splits:
    """Returns a seeded part of the rows for training, and the others for the test."""
    random.Random(0).shuffle(rows)
    return {"train": rows[:num_train], "test": rows[num_train:]}


def table(path: Path) -> list[dict[str, str]]:
    """Returns the rows of a CSV file with a header."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def lines(path: Path) -> list[list[str]]:
    """Returns the fields of a file of tab-separated lines, in which quotes have no meaning."""
    return [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]


def write(splits: Splits, folder: Path, max_train_rows: int | None, held_out: int = 0) -> None:
    """Saves the splits, with a seeded part of the training rows in a seeded order.

    `held_out`: number of training rows that are excluded from training and replace the test set.
    """
    train = list(splits["train"])
    random.Random(0).shuffle(train)
    test = train[:held_out] if held_out else splits["test"]
    for split, rows in (("train", train[held_out:][:max_train_rows]), ("test", test)):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")


DATA: Mapping[str, Callable[[Path], Splits]] = {
    "sst2": sst2,
    "cola": cola,
    "rte": rte,
    "stsb": stsb,
    "clinc": clinc,
    "phrasebank": phrasebank,
    "agnews": agnews,
    "films": films,
    "wnut17": wnut17,
    "policyqa": policyqa,
    "choice": policyqa_choice,
    "reranking": policyqa_candidates,
}
