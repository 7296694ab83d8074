"""Embeddings beside sentence-transformers: `python -m tests.benchmarks.retrieval --data FOLDER [--tasks stsb ...]`.

Both start from the published MiniLM weights and use the same rows, epochs, learning rate, schedule, AdamW, batch size
and temperature, in bf16 (`--precision fp32` for both otherwise). Each is one process with one thread per core. The two
alternate over seeds; the test rows are scored by sentence-transformers for both, of Cloze from its export. Ends with a
table in Markdown: mean and sample deviation over the seeds, and the ratio of real tokens per second.

Data: STS-B (scored pairs), banking77 (texts with an intent; the peer gets pairs of one intent), and questions with
their paragraphs from XQuAD in English and Chinese (36 of 48 articles for training; all paragraphs are searched).

`--speed STEPS` measures only the ratio of speed, on this number of steps, in rounds that alternate.
"""

import argparse
import csv
import itertools
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.finetuning import WEIGHTS, spread
from tests.benchmarks.finetuning_data import Row, Splits
from tests.benchmarks.pretraining import LOG_EVERY, WARMUP_STEPS, run

NUM_TRAIN_ARTICLES = 36


@dataclass(frozen=True)
class Benchmark:
    """Settings of one data set for both sides."""

    kind: str
    read: Callable[[Path], Splits]
    lr: float
    epochs: int
    batch: int
    max_length: int
    overrides: tuple[str, ...]


def stsb(folder: Path) -> Splits:
    """Similarity of sentences, 0 to 5 (Cer et al. 2017)."""

    def rows(split: str) -> list[Row]:
        with open(folder / f"similarity/stsb_en_{split}.csv", encoding="utf-8", newline="") as file:
            return [{"text": text, "pair": pair, "score": float(score)} for text, pair, score in csv.reader(file)]

    return {"train": rows("train"), "test": rows("test")}


def banking(folder: Path) -> Splits:
    """Questions of customers with 77 intents (Casanueva et al. 2020)."""

    def rows(split: str) -> list[Row]:
        with open(folder / f"faq_retrieval/banking77_{split}.csv", encoding="utf-8", newline="") as file:
            return [{"text": row["text"], "label": row["category"]} for row in csv.DictReader(file)]

    return {"train": rows("train"), "test": rows("test")}


def xquad(language: str) -> Callable[[Path], Splits]:
    """Returns a reader of questions and their paragraphs (Artetxe et al. 2020)."""

    def read(folder: Path) -> Splits:
        articles = json.loads((folder / f"qa/xquad.{language}.json").read_text(encoding="utf-8"))["data"]
        pairs = [
            [
                {"text": question["question"], "pair": paragraph["context"]}
                for paragraph in article["paragraphs"]
                for question in paragraph["qas"]
            ]
            for article in articles
        ]
        corpus = [{"text": paragraph["context"]} for article in articles for paragraph in article["paragraphs"]]
        return {
            "train": [*itertools.chain(*pairs[:NUM_TRAIN_ARTICLES])],
            "test": [*itertools.chain(*pairs[NUM_TRAIN_ARTICLES:])],
            "corpus": corpus,
        }

    return read


SCORED = ("task.objective=similarity", "data.score_column=score")
LABELLED = ("data.pair_column=null", "data.label_column=label")
BENCHMARKS = {
    "stsb": Benchmark("scored", stsb, 5e-5, 1, 64, 128, SCORED),
    "banking77": Benchmark("labelled", banking, 1e-4, 1, 128, 64, LABELLED),
    "xquad_en": Benchmark("matches", xquad("en"), 1e-4, 1, 32, 256, ()),
    "xquad_zh": Benchmark("matches", xquad("zh"), 1e-4, 1, 32, 256, ()),
}


def score(benchmark: Benchmark, data: Path, folder: Path) -> dict:
    """Returns the score of a folder, computed by sentence-transformers."""
    command = [sys.executable, "-m", "tests.benchmarks.peer_retrieval", "--kind", benchmark.kind, "--data", str(data)]
    return json.loads(run([*command, "--score", str(folder)], len(os.sched_getaffinity(0))))


def cloze(benchmark: Benchmark, data: Path, seed: int, folder: Path, precision: str, steps: int | None) -> dict:
    """Trains with Cloze; returns real tokens per second, and the score of the export unless `steps` is given."""
    run_folder = folder / f"seed{seed}"
    overrides = [
        *("experiment=_minilm", "task=embedding", "data=text_pairs", "strategy=single", f"precision={precision}"),
        *(f"run.dir={folder}", f"run.id=seed{seed}", f"seed={seed}", "logger=none", "trainer.report_examples=null"),
        *(f"data.train={data / 'train.jsonl'}", "data.validation_fraction=0.0"),
        *(f"task.max_length={benchmark.max_length}", f"optimizer.lr={benchmark.lr}"),
        *(f"trainer.global_batch_size={benchmark.batch}", "trainer.micro_batch_tokens=4096"),
        *(f"trainer.log_every_n_steps={LOG_EVERY}", *benchmark.overrides),
        f"trainer.max_epochs={benchmark.epochs}" if steps is None else f"trainer.max_steps={steps}",
        *(("trainer.max_epochs=null",) if steps is not None else ()),
    ]
    threads = len(os.sched_getaffinity(0))
    run([sys.executable, "-m", "framework.train", *overrides], threads)
    rows = [json.loads(line) for line in (run_folder / "perf.jsonl").read_text().splitlines()]
    rate = statistics.median(row["perf/tokens_per_second"] for row in rows if row["step"] >= WARMUP_STEPS + LOG_EVERY)
    if steps is not None:
        return {"tokens_per_second": rate}
    run([sys.executable, "-m", "framework.export", f"run={run_folder}", "compare=false"], threads)
    return score(benchmark, data, run_folder / "export") | {"tokens_per_second": rate}


def peer(benchmark: Benchmark, data: Path, seed: int, folder: Path, precision: str, steps: int | None) -> dict:
    """Trains with sentence-transformers; returns real tokens per second, and the score unless `steps` is given."""
    command = [
        *(sys.executable, "-m", "tests.benchmarks.peer_retrieval", "--kind", benchmark.kind, "--data", str(data)),
        *("--weights", WEIGHTS, "--output", str(folder / "peer"), "--max-length", str(benchmark.max_length)),
        *("--epochs", str(benchmark.epochs), "--batch", str(benchmark.batch), "--lr", str(benchmark.lr)),
        *("--seed", str(seed), *(("--bf16",) if precision == "bf16" else ())),
        *(("--max-steps", str(steps)) if steps is not None else ()),
    ]
    return json.loads(run(command, len(os.sched_getaffinity(0))))


SIDES = {"sentence-transformers": peer, "Cloze": cloze}


def main() -> None:
    """Prints a line per run, and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--tasks", nargs="+", choices=sorted(BENCHMARKS), default=list(BENCHMARKS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--speed", type=int, metavar="STEPS", help="only the speed, of so many steps")
    parser.add_argument("--output", type=Path, help="a JSONL file that gets a line a run")
    given = parser.parse_args()
    table = []
    for name in given.tasks:
        benchmark = BENCHMARKS[name]
        found: dict[str, list[dict]] = {side: [] for side in SIDES}
        with tempfile.TemporaryDirectory() as folder:
            data = Path(folder) / "data"
            data.mkdir()
            for split, rows in benchmark.read(given.data).items():
                lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
                (data / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
            before = None if given.speed else score(benchmark, data, Path(WEIGHTS))["score"]
            for seed, side in itertools.product(given.seeds, SIDES):
                result = SIDES[side](benchmark, data, seed, Path(folder), given.precision, given.speed)
                found[side].append(result)
                line = json.dumps({"task": name, "side": side, "seed": seed, **result})
                print(line, flush=True)
                if given.output is not None:
                    with given.output.open("a", encoding="utf-8") as file:
                        file.write(line + "\n")
        rates = {side: [each["tokens_per_second"] for each in results] for side, results in found.items()}
        ratio = statistics.median(ours / theirs for theirs, ours in zip(*rates.values(), strict=True))
        scores = [spread([each["score"] for each in results if "score" in each]) for results in found.values()]
        table.append((name, "" if before is None else f"{before:.4f}", *scores, f"{ratio:.2f}"))
    print("\n| data | before training | sentence-transformers | Cloze | ratio of tokens/s |\n|---|---|---|---|---|")
    for row in table:
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
