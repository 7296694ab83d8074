"""A global step does not depend on how it was split, and equals a step written without any of our code."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from framework.batch import IGNORE_INDEX
from framework.callbacks.cadence import Cadence
from framework.data.planning.collate import RoundedShape
from framework.data.planning.plan import StepPlan
from framework.distributed.parallel.materialization import materialize
from framework.nn.dropout import dropout_base, token_keys
from framework.nn.initialization import initial_values
from tests.support.training.toy_run import CONFIG, SEED, ToySource, build_module, train

STEPS = 4
ONLY_STEPS = Cadence(max_steps=STEPS, log_every_n_steps=1, validate_every_n_steps=STEPS)


def rows(run_folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]


def losses_and_norms(run_folder: Path) -> list[float]:
    keys = ("train/loss", "train/word_loss", "train/pair_loss", "train/z_loss", "optim/grad_norm")
    return [row[key] for row in rows(run_folder) for key in keys]


def run_rank(run_folder: str, strategy: str, budget: int) -> None:
    train(Path(run_folder), strategy, ONLY_STEPS, budget)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Makes a run of one process whose steps are one micro-batch each."""
    run_folder = tmp_path_factory.mktemp("whole")
    train(run_folder, cadence=ONLY_STEPS, budget=1000)
    return run_folder


def reference_run() -> tuple[list[float], float]:
    """Makes the same run with a plain loop: full batch, autograd, torch's AdamW and clipping, no counts but `mean`."""
    model = build_module().model
    materialize(model, initial_values(model, CONFIG, SEED), "cpu")
    decayed = [p for name, p in model.named_parameters() if not name.endswith(("bias", "norm.weight"))]
    kept = [p for name, p in model.named_parameters() if name.endswith(("bias", "norm.weight"))]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": kept, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.98), eps=1e-6)
    plan = StepPlan(ToySource(37), SEED, 6, 1000, wraps_epochs=True)
    measured = []
    for step in range(STEPS):
        share = plan.sequences(step)
        batch = plan.source.build(share, step)
        outputs = model(batch, token_keys(dropout_base(SEED, step, 0), batch))
        word = functional.cross_entropy(outputs["word"], batch.targets["words"])
        pair = functional.cross_entropy(outputs["pair"], batch.targets["labels"], ignore_index=IGNORE_INDEX)
        z = torch.logsumexp(outputs["word"].double(), dim=1).square().mean()
        loss = word + 0.5 * pair + 0.01 * z
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 / (1 + step)
        optimizer.step()
        measured += [value.item() for value in (loss, word, pair, z, norm)]
    share = StepPlan(ToySource(11), SEED, 11, 1000, shuffle=False).sequences(0)
    batch = ToySource(11).build(share, 0)
    with torch.no_grad():
        outputs = model(batch)
        word = functional.cross_entropy(outputs["word"], batch.targets["words"])
        pair = functional.cross_entropy(outputs["pair"], batch.targets["labels"], ignore_index=IGNORE_INDEX)
    return measured, float(word + 0.5 * pair)


def test_run_equals_a_plain_loop_with_torchs_own_optimizer_clipping_and_means(whole: Path):
    measured, val_loss = reference_run()
    assert losses_and_norms(whole) == pytest.approx(measured, rel=1e-5)
    assert rows(whole)[-1]["val/loss"] == pytest.approx(val_loss, rel=1e-5)


def test_the_micro_batch_budget_does_not_matter(whole: Path, tmp_path: Path):
    train(tmp_path, cadence=ONLY_STEPS, budget=20)
    assert losses_and_norms(tmp_path) == pytest.approx(losses_and_norms(whole), rel=1e-5)


def test_dummies_of_rounded_micro_batches_do_not_matter(whole: Path, tmp_path: Path):
    train(tmp_path, cadence=ONLY_STEPS, budget=20, shape=RoundedShape())
    assert losses_and_norms(tmp_path) == pytest.approx(losses_and_norms(whole), rel=1e-5)
    for key, value in rows(whole)[-1].items():
        if key.startswith(("val/", "train/")):
            assert rows(tmp_path)[-1][key] == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "tp"])
def test_the_number_of_ranks_does_not_matter(strategy: str, whole: Path, tmp_path: Path, workers):
    workers.run(run_rank, 2, str(tmp_path), strategy, 20)
    assert losses_and_norms(tmp_path) == pytest.approx(losses_and_norms(whole), rel=1e-5)
    ours, theirs = rows(tmp_path)[-1], rows(whole)[-1]
    assert ours["train/tokens"] == theirs["train/tokens"]
    for key in ("val/loss", "val/word_loss", "val/pair_loss", "val/word_accuracy"):
        assert ours[key] == pytest.approx(theirs[key], rel=1e-5)


def test_tokens_are_the_sum_of_the_lengths_of_all_sequences(whole: Path):
    plan = StepPlan(ToySource(37), SEED, 6, 1000, wraps_epochs=True)
    expected = sum(int(plan.source.lengths(s.epochs, s.indices).sum()) for s in map(plan.sequences, range(STEPS)))
    assert rows(whole)[-1]["train/tokens"] == expected


def test_a_loader_at_another_step_is_rejected(tmp_path: Path):
    module = build_module()

    class Displaced(type(module)):
        def training_step(self, batch, batch_idx):
            super().training_step(type(batch)(batch.step + 1, batch.epoch, batch.micro_batches), batch_idx)

    module.__class__ = Displaced
    with pytest.raises(RuntimeError, match="returned step 1, but 0 steps"):
        train(tmp_path, cadence=ONLY_STEPS, module=module)
