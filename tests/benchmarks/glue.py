"""`experiment=glue` beside transformers' Trainer: `python -m tests.benchmarks.glue --data FOLDER [--tasks SST-2 ...]`.

Writes SST-2, CoLA, RTE and STS-B from the files of finetuning_data.py into GLUE's own layout in a temporary folder.
Runs `framework.train -m experiment=glue` over them from the published MiniLM weights, and the Trainer over the same
rows with the epochs, rate, batch size, schedule and length of conf/experiment/glue.yaml, both in bf16. Scores are those
of the last step on the development sets. Ends with a table in Markdown: mean and sample deviation over the seeds.

SST-2 has the 6,920 sentences of the treebank instead of GLUE's phrases. RTE lacks the fifth challenge, and its
development set is the test set of the third.
"""

import argparse
import csv
import json
import os
import sys
import tempfile
from pathlib import Path

from tests.benchmarks.finetuning import WEIGHTS, spread
from tests.benchmarks.finetuning_data import Row, Splits, cola, lines, rte, sst2, stsb
from tests.benchmarks.pretraining import run

METRICS = {"SST-2": ["accuracy"], "CoLA": ["matthews"], "RTE": ["accuracy"], "STS-B": ["pearson", "spearman"]}
EPOCHS, BATCH, LR, WARMUP, MAX_LENGTH = 5, 16, 4e-5, 0.1, 128
"""Settings of conf/experiment/glue.yaml."""

NAMES = {"yes": "entailment", "no": "not_entailment"}


def lines_of(task: str, rows: list[Row]) -> list[str]:
    """Returns the lines of a file of GLUE with these rows."""
    texts = [[_clean(row["text"]), _clean(row["pair"]) if "pair" in row else ""] for row in rows]
    labels = [str(row["label"]) for row in rows]
    pairs = list(zip(texts, labels, strict=True))
    if task == "CoLA":
        return ["\t".join(("source", label, "", text)) for (text, _), label in pairs]
    if task == "SST-2":
        return ["sentence\tlabel", *("\t".join((text, label)) for (text, _), label in pairs)]
    if task == "RTE":
        head = "index\tsentence1\tsentence2\tlabel"
        return [head, *("\t".join((str(i), *both, NAMES[label])) for i, (both, label) in enumerate(pairs))]
    head = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore"
    return [head, *("\t".join((str(i), *["x"] * 6, *both, label)) for i, (both, label) in enumerate(pairs))]


def _clean(text: str) -> str:
    return " ".join(text.split())


def parts(task: str, folder: Path, max_rows: int | None) -> Splits:
    """Returns the rows of a task, with whitespace as in GLUE's files."""
    read, dev = PARTS[task][1:]
    splits = {"train": read(folder)["train"], "dev": dev(folder)}
    return {
        split: [{**row, **{key: _clean(row[key]) for key in ("text", "pair") if key in row}} for row in rows][:max_rows]
        for split, rows in splits.items()
    }


def _sst2_dev(folder: Path) -> list[Row]:
    return [{"text": text, "label": label} for text, label in lines(folder / "sentiment/sst2_dev.tsv")]


def _cola_dev(folder: Path) -> list[Row]:
    names = ("cola_in_domain_dev.tsv", "cola_out_of_domain_dev.tsv")
    return [
        {"text": text, "label": label} for name in names for _, label, _, text in lines(folder / "glue_parts" / name)
    ]


def _rte_dev(folder: Path) -> list[Row]:
    return rte(folder)["test"]


def _stsb_dev(folder: Path) -> list[Row]:
    with open(folder / "similarity/stsb_en_dev.csv", encoding="utf-8", newline="") as file:
        return [{"text": first, "pair": second, "label": float(score)} for first, second, score in csv.reader(file)]


PARTS = {
    "SST-2": ("sst2", sst2, _sst2_dev),
    "CoLA": ("cola", cola, _cola_dev),
    "RTE": ("rte", rte, _rte_dev),
    "STS-B": ("stsb", stsb, _stsb_dev),
}
"""Option of conf/glue, reader of the training rows, and reader of the development rows of each task."""


def cloze(tasks: list[str], glue: Path, seeds: list[int], folder: Path, overrides: list[str]) -> dict[str, dict]:
    """Returns the final metrics of each seed by task."""
    sweep = folder / "glue"
    command = [
        *(sys.executable, "-m", "framework.train", "--multirun", "experiment=glue", f"init_from={WEIGHTS}"),
        *(f"data.folder={glue}", f"glue={','.join(PARTS[task][0] for task in tasks)}"),
        *(f"seed={','.join(map(str, seeds))}", f"hydra.sweep.dir={sweep}", "precision=bf16", "logger=none"),
        "trainer.report_examples=null",
        *overrides,
    ]
    run(command, len(os.sched_getaffinity(0)))
    content = json.loads((sweep / "sweep.json").read_text())
    print((sweep / "sweep.csv").read_text(), flush=True)
    found: dict[str, dict] = {task: {} for task in tasks}
    by_name = {PARTS[task][0]: task for task in tasks}
    for job in content["jobs"]:
        task = by_name[job["values"].get("glue", PARTS[tasks[0]][0])]
        seed = int(job["values"].get("seed", seeds[0]))
        found[task][seed] = {name: job["metrics"][f"val/{name}"] for name in METRICS[task]}
    return found


def peer(data: Path, seed: int, folder: Path) -> dict:
    """Returns the scores of transformers' Trainer."""
    command = [
        *(sys.executable, "-m", "tests.benchmarks.peer_finetuning", "--kind", "classification"),
        *("--data", str(data), "--weights", WEIGHTS, "--output", str(folder / "peer")),
        *("--max-length", str(MAX_LENGTH), "--epochs", str(EPOCHS), "--batch", str(BATCH), "--lr", str(LR)),
        *("--schedule", "cosine", "--warmup", str(WARMUP), "--seed", str(seed), "--bf16"),
    ]
    return json.loads(run(command, len(os.sched_getaffinity(0))))


def main() -> None:
    """Prints a line per run of the Trainer, the results of the sweep, and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets, see finetuning_data.py")
    parser.add_argument("--tasks", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--max-rows", type=int, help="rows of each split, for a trial")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="overrides for Cloze")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for task in given.tasks:
            splits = parts(task, given.data, given.max_rows)
            (folder / "GLUE" / task).mkdir(parents=True)
            (folder / "rows" / task).mkdir(parents=True)
            for split, of_peer in (("train", "train"), ("dev", "test")):
                text = "\n".join(lines_of(task, splits[split])) + "\n"
                (folder / "GLUE" / task / f"{split}.tsv").write_text(text, encoding="utf-8")
                rows = "".join(json.dumps(row) + "\n" for row in splits[split])
                (folder / "rows" / task / f"{of_peer}.jsonl").write_text(rows, encoding="utf-8")
        theirs: dict[str, dict] = {task: {} for task in given.tasks}
        for task in given.tasks:
            for seed in given.seeds:
                theirs[task][seed] = peer(folder / "rows" / task, seed, folder)
                print(
                    json.dumps({"task": task, "side": "transformers", "seed": seed, **theirs[task][seed]}), flush=True
                )
        ours = cloze(given.tasks, folder / "GLUE", given.seeds, folder, given.set)
    print("\n| task | metric | transformers | Cloze |\n|---|---|---|---|")
    for task in given.tasks:
        for metric in METRICS[task]:
            cells = [spread([side[task][seed][metric] for seed in given.seeds]) for side in (theirs, ours)]
            print(f"| {task} | {metric} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
