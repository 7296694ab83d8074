"""The peer of the pre-training benchmark: transformers' Trainer on the sequences that Cloze trains on.

Run by `tests.benchmarks.pretraining` as a separate process; prints one JSON line with the median of tokens per second
of the steps after the warm-up. Batches are padded to their longest sequence, attention is SDPA, logits are computed at
every position: the Trainer as its documentation shows it. Only real tokens are counted, as for Cloze.
"""

import argparse
import json
import time

import numpy as np
import torch
from datasets import Dataset
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForPreTraining,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)


class StepTimes(TrainerCallback):
    """Records the time at which each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args, state, control, **_) -> None:
        self.ends.append(time.perf_counter())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--sequences", required=True, help="npz: input_ids, token_type_ids, lengths, next_sentence_label"
    )
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--output", required=True)
    for size in ("--hidden", "--layers", "--heads", "--intermediate"):
        parser.add_argument(size, type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--warmup", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--mask-rate", type=float, required=True)
    parser.add_argument("--dropout", type=float, required=True)
    parser.add_argument("--bf16", action="store_true")
    arguments = parser.parse_args()

    stored = np.load(arguments.sequences)
    offsets = np.concatenate([[0], np.cumsum(stored["lengths"])])
    rows = [
        {
            "input_ids": stored["input_ids"][start:end].tolist(),
            "token_type_ids": stored["token_type_ids"][start:end].tolist(),
            "next_sentence_label": int(label),
        }
        for start, end, label in zip(offsets[:-1], offsets[1:], stored["next_sentence_label"], strict=True)
    ]
    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=arguments.hidden,
        num_hidden_layers=arguments.layers,
        num_attention_heads=arguments.heads,
        intermediate_size=arguments.intermediate,
        hidden_dropout_prob=arguments.dropout,
        attention_probs_dropout_prob=0.0,
    )
    torch.manual_seed(0)
    times = StepTimes()
    trainer = Trainer(
        model=BertForPreTraining(config),
        args=TrainingArguments(
            output_dir=arguments.output,
            per_device_train_batch_size=arguments.batch,
            max_steps=arguments.steps,
            learning_rate=1e-4,
            bf16=arguments.bf16,
            use_cpu=not torch.cuda.is_available(),
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            train_sampling_strategy="sequential",
        ),
        train_dataset=Dataset.from_list(rows),
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm_probability=arguments.mask_rate),
        callbacks=[times],
    )
    trainer.train()
    lengths = stored["lengths"][: arguments.steps * arguments.batch]
    tokens = lengths.reshape(arguments.steps, arguments.batch).sum(axis=1)
    rates = tokens[1:] / np.diff(times.ends)
    print(json.dumps({"tokens_per_second": float(np.median(rates[arguments.warmup - 1 :]))}))


if __name__ == "__main__":
    main()
