"""The peer of the reranking benchmark: CrossEncoderTrainer of sentence-transformers with LambdaLoss, one process.

Run by `tests.benchmarks.finetuning`; prints one JSON line with nDCG, MRR and MAP of the test split, by the metrics of
Cloze, and the median of real tokens per second.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset
from sentence_transformers.cross_encoder import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments, losses

from framework.tasks.reranking.candidates import CandidateList
from framework.tasks.reranking.scores import metrics_by_list
from tests.benchmarks.peer_trainer import StepTimes

WARMUP_STEPS = 3


class CountedSteps(StepTimes):
    """Records the end and the number of real tokens of each step."""

    def __init__(self, model: CrossEncoder) -> None:
        super().__init__()
        self.tokens: list[int] = []
        self._current = 0
        preprocess = model.preprocess

        def counted(*arguments: Any, **more: Any) -> Any:
            features = preprocess(*arguments, **more)
            self._current += int(features["attention_mask"].sum())
            return features

        model.preprocess = counted  # type: ignore[method-assign]

    def on_step_end(self, args, state, control, **_) -> None:
        super().on_step_end(args, state, control)
        self.tokens.append(self._current)
        self._current = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with train.jsonl and test.jsonl")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--max-length", type=int, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--lr", type=float, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--max-steps", type=int, default=-1)
    parser.add_argument("--bf16", action="store_true")
    given = parser.parse_args()

    train, test = (
        [json.loads(line) for line in (given.data / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]
        for split in ("train", "test")
    )
    transformers.set_seed(given.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = CrossEncoder(given.weights, num_labels=1, max_length=given.max_length, device=device)
    times = CountedSteps(model)
    steps = -(-len(train) // given.batch) * given.epochs
    trainer = CrossEncoderTrainer(
        model=model,
        args=CrossEncoderTrainingArguments(
            output_dir=given.output,
            per_device_train_batch_size=given.batch,
            num_train_epochs=given.epochs,
            max_steps=given.max_steps,
            learning_rate=given.lr,
            warmup_steps=round(0.06 * steps),
            weight_decay=0.01,
            adam_beta2=0.98,
            adam_epsilon=1e-6,
            bf16=given.bf16,
            use_cpu=device == "cpu",
            seed=given.seed,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(train),
        loss=losses.LambdaLoss(model),
        callbacks=[times],
    )
    trainer.train()
    rates = np.array(times.tokens[1:], dtype=np.float64) / np.diff(times.ends)
    scores = {}
    if given.max_steps < 0:
        lists = [CandidateList("", each["query"], tuple(each["documents"]), tuple(each["labels"])) for each in test]
        found = [model.predict([(each.query, text) for text in each.documents]).tolist() for each in lists]
        scores = {name: float(values.mean()) for name, values in metrics_by_list(lists, found, 10).items()}
    print(json.dumps(scores | {"tokens_per_second": float(np.median(rates[WARMUP_STEPS - 1 :]))}))


if __name__ == "__main__":
    main()
