"""The peer of the retrieval benchmark: sentence-transformers, one process.

Run by `tests.benchmarks.retrieval`. Trains a SentenceTransformer, or only scores a folder (`--score`), which is how
exports of Cloze are scored by the same code. Prints one JSON line with the score of the test rows and, after training,
the median of real tokens per second.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset
from scipy.stats import spearmanr
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
    losses,
)
from sentence_transformers.training_args import BatchSamplers

from framework.random import key
from tests.benchmarks.peer_finetuning import WARMUP_STEPS, CountedTokens
from tests.benchmarks.peer_trainer import StepTimes

SCALE = 20.0
"""Factor of cosines in the losses: the inverse of Cloze's `task.temperature`."""
TOP = 10

Rows = list[dict[str, Any]]


class CountedPairs(CountedTokens):
    """Collator that records the number of real tokens of each batch over all its columns of texts."""

    def __call__(self, rows: Rows) -> dict[str, torch.Tensor]:
        batch = self.collate(rows)
        masks = [tensor for name, tensor in batch.items() if name.endswith("attention_mask")]
        self.tokens.append(int(sum(mask.sum() for mask in masks)))
        return batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["collate"], name)  # the trainer reads settings of its collator


def labelled_pairs(rows: Rows, seed: int) -> Rows:
    """Pairs each text with another one of its label, drawn by a hash."""
    by_label: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        by_label.setdefault(row["label"], []).append(index)
    pairs = []
    for index, row in enumerate(rows):
        others = [each for each in by_label[row["label"]] if each != index] or [index]
        pairs.append({"text": row["text"], "pair": rows[others[key(seed, index) % len(others)]]["text"]})
    return pairs


def read(file: Path) -> Rows:
    """Returns the rows of a JSONL file."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def score(model: SentenceTransformer, kind: str, data: Path) -> float:
    """Scores the test rows.

    Returns:
        "scored": Spearman's correlation of cosines and scores. "labelled": share of texts whose nearest training text
        has their label. "matches": nDCG@10 in corpus.jsonl, where each query has one relevant document.
    """
    test = read(data / "test.jsonl")

    def vectors(texts: list[str]) -> np.ndarray:
        return model.encode(texts, batch_size=64, normalize_embeddings=True, show_progress_bar=False).astype(np.float64)

    queries = vectors([row["text"] for row in test])
    if kind == "scored":
        cosines = (queries * vectors([row["pair"] for row in test])).sum(1)
        return float(spearmanr(cosines, [row["score"] for row in test]).statistic)
    if kind == "labelled":
        train = read(data / "train.jsonl")
        nearest = (queries @ vectors([row["text"] for row in train]).T).argmax(1)
        return float(np.mean([train[index]["label"] == row["label"] for index, row in zip(nearest, test, strict=True)]))
    documents = [row["text"] for row in read(data / "corpus.jsonl")]
    ranked = np.argsort(-(queries @ vectors(documents).T), axis=1, kind="stable")[:, :TOP]
    relevant = np.array([documents.index(row["pair"]) for row in test])
    ranks = [
        list(row).index(document) if document in row else None for row, document in zip(ranked, relevant, strict=True)
    ]
    return float(np.mean([0.0 if rank is None else 1.0 / math.log2(2 + rank) for rank in ranks]))


def train(given: argparse.Namespace) -> tuple[SentenceTransformer, float]:
    """Trains on train.jsonl; returns the model and real tokens per second, the median over steps."""
    transformers.set_seed(given.seed)
    model = SentenceTransformer(str(given.weights), device="cuda" if torch.cuda.is_available() else "cpu")
    model.max_seq_length = given.max_length
    rows = read(given.data / "train.jsonl")
    rows = labelled_pairs(rows, given.seed) if given.kind == "labelled" else rows
    names = ("text", "pair", "score") if given.kind == "scored" else ("text", "pair")
    data = Dataset.from_list([{name: row[name] for name in names} for row in rows])
    loss = (losses.CoSENTLoss if given.kind == "scored" else losses.MultipleNegativesRankingLoss)(model, scale=SCALE)
    steps = -(-len(rows) // given.batch) * given.epochs
    times = StepTimes()
    trainer = SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(
            output_dir=str(given.output),
            per_device_train_batch_size=given.batch,
            num_train_epochs=given.epochs,
            max_steps=given.max_steps,
            learning_rate=given.lr,
            warmup_steps=round(0.06 * steps),
            weight_decay=0.01,
            adam_beta2=0.98,
            adam_epsilon=1e-6,
            bf16=given.bf16,
            use_cpu=not torch.cuda.is_available(),
            seed=given.seed,
            batch_sampler=BatchSamplers.BATCH_SAMPLER if given.kind == "scored" else BatchSamplers.NO_DUPLICATES,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
        ),
        train_dataset=data,
        loss=loss,
        callbacks=[times],
    )
    trainer.data_collator = collate = CountedPairs(trainer.data_collator)
    trainer.train()
    counted = np.array(collate.tokens[: len(times.ends)], dtype=np.float64)
    return model, float(np.median((counted[1:] / np.diff(times.ends))[WARMUP_STEPS - 1 :]))


def main() -> None:
    """Trains and scores, or only scores."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", choices=["scored", "labelled", "matches"], required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder with train.jsonl and test.jsonl")
    parser.add_argument("--score", type=Path, help="a folder to score without training")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=5e-5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-steps", type=int, default=-1)
    parser.add_argument("--bf16", action="store_true")
    given = parser.parse_args()
    if given.score is not None:
        found = {"score": score(SentenceTransformer(str(given.score)), given.kind, given.data)}
    else:
        model, rate = train(given)
        found = {"tokens_per_second": rate}
        found |= {"score": score(model, given.kind, given.data)} if given.max_steps < 0 else {}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
