"""The peer of the fine-tuning benchmark: the Auto classes of transformers under its Trainer, one process.

Run by `tests.benchmarks.finetuning`; prints one JSON line with the scores of the test split, by scikit-learn, SciPy and
seqeval, and the median of real tokens per second. Batches are padded to their longest row, as in its examples if no
fixed length is requested; features are made as in its examples.
"""

import argparse
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset
from scipy.stats import pearsonr, spearmanr
from seqeval.metrics import f1_score as entity_f1
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from transformers import Trainer, TrainingArguments

from framework.metrics.span_f1 import score_answers
from tests.benchmarks.peer_trainer import StepTimes

IGNORED = -100
N_BEST = 20
QA_OVERLAP = 128
MAX_ANSWER_LENGTH = 100
WARMUP_STEPS = 3

Rows = list[dict[str, Any]]

PROBLEMS = {float: "regression", str: "single_label_classification", list: "multi_label_classification"}
"""Problem type by the type of a row's label."""


@dataclass
class Job:
    """Model, features of both splits, collator, and the function that scores outputs."""

    model: transformers.PreTrainedModel
    train: Rows
    test: Rows
    collate: Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]]
    score: Callable[[Any], dict[str, float]]


class CountedTokens:
    """Collator that records the number of real tokens of each batch."""

    def __init__(self, collate: Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]]) -> None:
        self.collate = collate
        self.tokens: list[int] = []

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = self.collate(rows)
        self.tokens.append(int(batch["attention_mask"].sum()))
        return batch


def classification(train: Rows, test: Rows, weights: str, tokenizer: Any, longest: int) -> Job:
    """Prepares a task with one label of a text or a pair, several labels, or a number."""
    problem = PROBLEMS[type(train[0]["label"])]
    several = [row["label"] if isinstance(row["label"], list) else [row["label"]] for row in train]
    names = [] if problem == "regression" else sorted(set(itertools.chain(*several)))
    encode = {
        "regression": lambda label: label,
        "single_label_classification": names.index,
        "multi_label_classification": lambda labels: [float(name in labels) for name in names],
    }[problem]

    def features(rows: Rows) -> Rows:
        pairs = [row["pair"] for row in rows] if "pair" in rows[0] else None
        encoded = tokenizer([row["text"] for row in rows], pairs, truncation=True, max_length=longest)
        return columns_to_rows(encoded, labels=[encode(row["label"]) for row in rows])

    def score(prediction: Any) -> dict[str, float]:
        logits, labels = prediction.predictions, prediction.label_ids
        if problem == "regression":
            found = logits[:, 0]
            return {
                "spearman": float(spearmanr(found, labels).statistic),
                "pearson": float(pearsonr(found, labels).statistic),
            }
        if problem == "multi_label_classification":
            return {
                f"{average}_f1": float(f1_score(labels, logits > 0, average=average, zero_division=0))
                for average in ("micro", "macro")
            }
        found = logits.argmax(-1)
        return {
            "accuracy": float(accuracy_score(labels, found)),
            "macro_f1": float(f1_score(labels, found, average="macro")),
            "matthews": float(matthews_corrcoef(labels, found)),
        }

    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        weights, num_labels=max(1, len(names)), problem_type=problem
    )
    collate = transformers.DataCollatorWithPadding(tokenizer)
    return Job(model, features(train), features(test), collate, score)


def tokens(train: Rows, test: Rows, weights: str, tokenizer: Any, longest: int) -> Job:
    """Prepares a task with a tag for each word, at its first token."""
    names = sorted({tag for row in train for tag in row["tags"]})

    def features(rows: Rows) -> Rows:
        words = [row["tokens"] for row in rows]
        encoded = tokenizer(words, is_split_into_words=True, truncation=True, max_length=longest)
        labels = []
        for position, row in enumerate(rows):
            owners = encoded.word_ids(position)
            firsts = [None, *owners[:-1]]
            labels.append(
                [
                    names.index(row["tags"][owner]) if owner is not None and owner != before else IGNORED
                    for owner, before in zip(owners, firsts, strict=True)
                ]
            )
        return columns_to_rows(encoded, labels=labels)

    def score(prediction: Any) -> dict[str, float]:
        found = prediction.predictions.argmax(-1)
        predicted = []
        for row, labels, tags in zip(test, prediction.label_ids, found, strict=True):
            kept = [names[tag] for tag in tags[labels != IGNORED]]
            predicted.append(kept + ["O"] * (len(row["tags"]) - len(kept)))
        return {"entity_f1": float(entity_f1([row["tags"] for row in test], predicted))}

    model = transformers.AutoModelForTokenClassification.from_pretrained(weights, num_labels=len(names))
    collate = transformers.DataCollatorForTokenClassification(tokenizer)
    return Job(model, features(train), features(test), collate, score)


def questions(train: Rows, test: Rows, weights: str, tokenizer: Any, longest: int) -> Job:
    """Prepares a task with the span of a context that answers a question, in windows."""

    def encode(rows: Rows) -> Any:
        return tokenizer(
            [row["question"] for row in rows],
            [row["context"] for row in rows],
            truncation="only_second",
            max_length=longest,
            stride=QA_OVERLAP,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )

    def features(rows: Rows) -> tuple[Rows, list[int], list[Any]]:
        encoded = encode(rows)
        owners, offsets = encoded.pop("overflow_to_sample_mapping"), encoded.pop("offset_mapping")
        starts, ends = [], []
        for index, (owner, spans) in enumerate(zip(owners, offsets, strict=True)):
            answer = rows[owner]["answers"][0]
            begin, end = answer["answer_start"], answer["answer_start"] + len(answer["text"])
            inside = [
                token
                for token, (first, last) in enumerate(spans)
                if encoded.sequence_ids(index)[token] == 1 and first < end and last > begin
            ]
            context = [token for token, which in enumerate(encoded.sequence_ids(index)) if which == 1]
            whole = inside and spans[context[0]][0] <= begin and spans[context[-1]][1] >= end
            starts.append(inside[0] if whole else 0)
            ends.append(inside[-1] if whole else 0)
        masked = [
            [span if which == 1 else None for span, which in zip(spans, encoded.sequence_ids(index), strict=True)]
            for index, spans in enumerate(offsets)
        ]
        return columns_to_rows(encoded, start_positions=starts, end_positions=ends), owners, masked

    made, owners, offsets = features(test)

    def score(prediction: Any) -> dict[str, float]:
        best: dict[int, tuple[float, str]] = {}
        for owner, spans, start_row, end_row in zip(owners, offsets, *prediction.predictions, strict=True):
            size = len(spans)
            for start in np.argsort(start_row[:size])[::-1][:N_BEST]:
                for end in np.argsort(end_row[:size])[::-1][:N_BEST]:
                    if spans[start] is None or spans[end] is None or not start <= end < start + MAX_ANSWER_LENGTH:
                        continue
                    text = test[owner]["context"][spans[start][0] : spans[end][1]]
                    best[owner] = max(best.get(owner, (-np.inf, "")), (float(start_row[start] + end_row[end]), text))
        answers = [best.get(index, (0.0, ""))[1] for index in range(len(test))]
        return score_answers(answers, [[each["text"] for each in row["answers"]] for row in test])

    model = transformers.AutoModelForQuestionAnswering.from_pretrained(weights)
    return Job(model, features(train)[0], made, transformers.DataCollatorWithPadding(tokenizer), score)


def choices(train: Rows, test: Rows, weights: str, tokenizer: Any, longest: int) -> Job:
    """Prepares a task with the choice of one text among several."""

    def features(rows: Rows) -> Rows:
        made = []
        for row in rows:
            firsts = [row["question"]] * len(row["choices"])
            encoded = tokenizer(firsts, row["choices"], truncation=True, max_length=longest)
            made.append({**encoded, "label": row["label"]})
        return made

    def score(prediction: Any) -> dict[str, float]:
        return {"accuracy": float(accuracy_score(prediction.label_ids, prediction.predictions.argmax(-1)))}

    model = transformers.AutoModelForMultipleChoice.from_pretrained(weights)
    collate = transformers.DataCollatorForMultipleChoice(tokenizer)
    return Job(model, features(train), features(test), collate, score)


KINDS: dict[str, Callable[[Rows, Rows, str, Any, int], Job]] = {
    "classification": classification,
    "tokens": tokens,
    "questions": questions,
    "choices": choices,
}


def columns_to_rows(encoded: Any, **more: Sequence[Any]) -> Rows:
    """Returns one dict per row from the tokenizer's lists and further columns."""
    columns = {**{name: encoded[name] for name in encoded}, **more}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", choices=sorted(KINDS), required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder with train.jsonl and test.jsonl")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--max-length", type=int, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--lr", type=float, required=True)
    parser.add_argument("--schedule", default="linear", help="as transformers names it")
    parser.add_argument("--warmup", type=float, default=0.06, help="share of the steps")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--max-steps", type=int, default=-1)
    parser.add_argument("--bf16", action="store_true")
    given = parser.parse_args()

    train, test = (
        [json.loads(line) for line in (given.data / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]
        for split in ("train", "test")
    )
    transformers.set_seed(given.seed)
    tokenizer = transformers.AutoTokenizer.from_pretrained(given.weights)
    job = KINDS[given.kind](train, test, given.weights, tokenizer, given.max_length)
    times, collate = StepTimes(), CountedTokens(job.collate)
    steps = -(-len(job.train) // given.batch) * given.epochs
    trainer = Trainer(
        model=job.model,
        args=TrainingArguments(
            output_dir=given.output,
            per_device_train_batch_size=given.batch,
            per_device_eval_batch_size=given.batch,
            num_train_epochs=given.epochs,
            max_steps=given.max_steps,
            learning_rate=given.lr,
            lr_scheduler_type=given.schedule,
            warmup_steps=round(given.warmup * steps),
            weight_decay=0.01,
            adam_beta2=0.98,
            adam_epsilon=1e-6,
            bf16=given.bf16,
            use_cpu=not torch.cuda.is_available(),
            seed=given.seed,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(job.train),
        data_collator=collate,
        callbacks=[times],
    )
    trainer.train()
    # The collator may have prepared batches beyond the last step.
    counted = np.array(collate.tokens[: len(times.ends)], dtype=np.float64)
    rates = counted[1:] / np.diff(times.ends)
    scores = job.score(trainer.predict(Dataset.from_list(job.test))) if given.max_steps < 0 else {}
    print(json.dumps(scores | {"tokens_per_second": float(np.median(rates[WARMUP_STEPS - 1 :]))}))


if __name__ == "__main__":
    main()
