"""Training with mined negatives beside random ones: `python -m tests.benchmarks.hard_negatives --data FOLDER`.

Data: the questions of XQuAD in English (Artetxe et al. 2020), each with the sentence that contains its answer, as in
ReQA (Ahmad et al. 2019). Training takes the questions of 36 of the 48 articles; those of the others are searched among
the sentences of all. `framework.mine` looks for the negatives among the sentences of the training articles, by the
published MiniLM weights; the random ones are drawn among the same sentences. Everything else is equal: rows, number of
negatives, epochs, learning rate, batch size. Ends with a table in Markdown: mean and sample deviation over the seeds.
"""

import argparse
import itertools
import json
import os
import re
import sys
import tempfile
from pathlib import Path

from framework.random import generator
from tests.benchmarks.finetuning import WEIGHTS, spread
from tests.benchmarks.finetuning_data import Row
from tests.benchmarks.pretraining import run
from tests.benchmarks.retrieval import BENCHMARKS, NUM_TRAIN_ARTICLES, score

EPOCHS, BATCH, LR, MAX_LENGTH = 2, 32, 1e-4, 64
SENTENCE = re.compile(r"\S.*?(?:[.!?](?=\s+[A-Z0-9\"“])|$)", re.DOTALL)
KINDS = ("none", "random", "mined")


def sentences(text: str) -> list[tuple[int, str]]:
    """Returns the sentences of a paragraph with their first characters."""
    return [(match.start(), match.group().strip()) for match in SENTENCE.finditer(text)]


def read(folder: Path) -> dict[str, list[Row]]:
    """Returns `train` and `test`, questions with their sentences, and `train_corpus` and `corpus`, all sentences."""
    articles = json.loads((folder / "qa/xquad.en.json").read_text(encoding="utf-8"))["data"]
    rows: dict[str, list[Row]] = {"train": [], "test": [], "train_corpus": [], "corpus": []}
    for number, article in enumerate(articles):
        of_training = number < NUM_TRAIN_ARTICLES
        for paragraph in article["paragraphs"]:
            parts = sentences(paragraph["context"])
            rows["corpus"] += [{"text": text} for _, text in parts]
            rows["train_corpus"] += [{"text": text} for _, text in parts if of_training]
            for question in paragraph["qas"]:
                answer = question["answers"][0]["answer_start"]
                text = [text for start, text in parts if start <= answer][-1]
                rows["train" if of_training else "test"].append({"text": question["question"], "pair": text})
    return rows


def mine(data: Path, num_negatives: int) -> None:
    """Writes mined.jsonl, and random.jsonl with as many negatives in each row."""
    output = data / "mined.jsonl"
    command = [
        *(sys.executable, "-m", "framework.mine", f"run={WEIGHTS}", f"queries={data / 'train.jsonl'}"),
        *(f"documents={data / 'train_corpus.jsonl'}", f"output={output}", f"num_negatives={num_negatives}"),
    ]
    run(command, len(os.sched_getaffinity(0)))
    texts = sorted({json.loads(line)["text"] for line in (data / "train_corpus.jsonl").read_text().splitlines()})
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    for index, row in enumerate(rows):
        others = [text for text in texts if text != row["positive"]]
        drawn = generator(0, "random negatives", index).choice(len(others), len(row["negatives"]), replace=False)
        row["negatives"] = [others[number] for number in drawn]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (data / "random.jsonl").write_text(lines, encoding="utf-8")


def train(kind: str, data: Path, seed: int, folder: Path) -> float:
    """Returns nDCG@10 of the test questions after training."""
    name = f"{kind}_{seed}"
    overrides = [
        *("experiment=_minilm", "task=embedding", "data=text_pairs", "strategy=single", "precision=bf16"),
        *(f"run.dir={folder}", f"run.id={name}", f"seed={seed}", "logger=none", "trainer.report_examples=null"),
        *(f"data.train={data / ('random' if kind == 'none' else kind)}.jsonl", "data.validation_fraction=0.0"),
        *("data.text_column=query", "data.pair_column=positive"),
        *(("data.negative_columns=[negatives]",) if kind != "none" else ()),
        *(f"task.max_length={MAX_LENGTH}", f"optimizer.lr={LR}", f"trainer.max_epochs={EPOCHS}"),
        *(f"trainer.global_batch_size={BATCH}", "trainer.micro_batch_tokens=4096"),
    ]
    threads = len(os.sched_getaffinity(0))
    run([sys.executable, "-m", "framework.train", *overrides], threads)
    run([sys.executable, "-m", "framework.export", f"run={folder / name}", "compare=false"], threads)
    return score(BENCHMARKS["xquad_en"], data, folder / name / "export")["score"]


def main() -> None:
    """Prints a line per run, and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--negatives", type=int, default=4, help="of each question")
    given = parser.parse_args()
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for split, rows in read(given.data).items():
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (folder / f"{split}.jsonl").write_text(lines, encoding="utf-8")
            print(json.dumps({"split": split, "rows": len(rows)}), flush=True)
        mine(folder, given.negatives)
        before = score(BENCHMARKS["xquad_en"], folder, Path(WEIGHTS))["score"]
        for seed, kind in itertools.product(given.seeds, KINDS):
            found[kind].append(train(kind, folder, seed, folder))
            print(json.dumps({"negatives": kind, "seed": seed, "ndcg@10": found[kind][-1]}), flush=True)
    print(f"\nBefore training: {before:.4f}\n\n| negatives | nDCG@10 |\n|---|---|")
    for kind in KINDS:
        print(f"| {kind} | {spread(found[kind])} |")


if __name__ == "__main__":
    main()
