"""transformers' Trainer on the sentences of a fine-tuning workload, for `tests.benchmarks.gpu_step`."""

import tempfile
import time
from typing import Any

import numpy as np
import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainerCallback, TrainingArguments

from tests.benchmarks.gpu_cases import emit
from tests.support.training.workloads import DrawnSource, Workload

WARM_UP_STEPS = 20


def measure_trainer(drawn: Workload, device: str, quick: bool) -> None:
    """Reports the real tokens that `transformers.Trainer` trains on in a second."""
    config, steps = drawn.encoder, 5 if quick else 120
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            intermediate_size=config.intermediate_size,
            attention_probs_dropout_prob=0.0,
        )
    )
    source = DrawnSource(drawn, drawn.sequences * (WARM_UP_STEPS + steps))
    rows = [{"input_ids": source.words[index], "labels": int(source.labels[index])} for index in range(len(source))]

    def collate(items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        lengths = np.array([len(item["input_ids"]) for item in items])
        ids = np.zeros((len(items), lengths.max()), dtype=np.int64)
        for row, item in zip(ids, items, strict=True):
            row[: len(item["input_ids"])] = item["input_ids"]
        mask = np.arange(lengths.max())[None, :] < lengths[:, None]
        return {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.from_numpy(mask.astype(np.int64)),
            "labels": torch.tensor([item["labels"] for item in items]),
        }

    class Times(TrainerCallback):
        begin = end = 0.0

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step in (WARM_UP_STEPS, WARM_UP_STEPS + steps):
                if device == "cuda":
                    torch.cuda.synchronize()
                self.begin, self.end = self.end, time.perf_counter()

    times = Times()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=drawn.sequences,
            max_steps=WARM_UP_STEPS + steps,
            bf16=True,
            use_cpu=device == "cpu",
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collate, callbacks=[times]).train()
    tokens = float(source.mean_length) * drawn.sequences * steps
    seconds = times.end - times.begin
    emit(
        tokens_per_second=tokens / seconds,
        sequences_per_second=drawn.sequences * steps / seconds,
        step_ms=seconds / steps * 1e3,
    )
