"""Reference loops for every form of loss: whole steps, autograd, torch's own optimizer, and means."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from framework.batch import IGNORE_INDEX, PackedBatch
from framework.data.planning.plan import StepPlan
from framework.distributed.parallel.materialization import materialize
from framework.nn.dropout import dropout_base, token_keys
from framework.nn.initialization import initial_values
from framework.tasks.task import TaskModel
from tests.support.training.toy_contrast import TEMPERATURE
from tests.support.training.toy_run import CONFIG, SEED, ToySource

Terms = dict[str, Tensor]


def toy_terms(outputs: dict[str, Tensor], batch: PackedBatch) -> Terms:
    """Computes the terms of ToyTask as means."""
    labels = batch.targets["labels"]
    return {
        "word": functional.cross_entropy(outputs["word"], batch.targets["words"]),
        "pair": functional.cross_entropy(outputs["pair"], labels, ignore_index=IGNORE_INDEX),
        "z": torch.logsumexp(outputs["word"], dim=1).square().mean(),
    }


def toy_loss(terms: Terms) -> Tensor:
    return terms["word"] + 0.5 * terms["pair"] + 0.01 * terms["z"]


def r_drop(model: TaskModel, batch: PackedBatch, step: int, alpha: float) -> tuple[Tensor, Terms]:
    """Computes R-Drop (Liang et al. 2021, section 2.2), one target after the other."""
    first, second = (model(batch, token_keys(dropout_base(SEED, step, index), batch)) for index in (0, 1))
    ours, theirs = toy_terms(first, batch), toy_terms(second, batch)
    terms = {name: 0.5 * ours[name] + 0.5 * theirs[name] for name in ours}
    divergences = []
    for name, labels in (("word", batch.targets["words"]), ("pair", batch.targets["labels"])):
        for p, q, label in zip(first[name].log_softmax(1), second[name].log_softmax(1), labels, strict=True):
            if label != IGNORE_INDEX:
                forward = functional.kl_div(q, p, reduction="sum", log_target=True)
                backward = functional.kl_div(p, q, reduction="sum", log_target=True)
                divergences.append(0.5 * (forward + backward))
    terms["r_drop"] = torch.stack(divergences).mean()
    return toy_loss(terms) + alpha * terms["r_drop"], terms


def adversarial(model: TaskModel, batch: PackedBatch, step: int, epsilon: float, weight: float) -> tuple[Tensor, Terms]:
    """Computes the adversarial loss (Miyato et al. 2017, equations 1 to 3), one sequence after the other."""
    keys = token_keys(dropout_base(SEED, step, 0), batch)
    embeddings = model.encoder.embed(batch, keys)
    clean = toy_terms(model.head(model.encoder.encode(embeddings, batch, keys), batch, keys), batch)
    (gradient,) = torch.autograd.grad(toy_loss(clean), embeddings, retain_graph=True)
    moves = [epsilon * part / part.norm() for part in gradient.split(list(batch.lengths))]
    moved = embeddings + torch.cat(moves)
    terms = toy_terms(model.head(model.encoder.encode(moved, batch, keys), batch, keys), batch)
    named = {f"adversarial_{name}": value for name, value in terms.items()}
    return toy_loss(clean) + weight * toy_loss(terms), clean | named


def contrast(model: TaskModel, batch: PackedBatch, step: int | None) -> tuple[Tensor, Terms]:
    """Computes InfoNCE of a step in one graph (van den Oord et al. 2018, equation 4). Step None disables dropout."""
    outputs = model(batch, None if step is None else token_keys(dropout_base(SEED, step, 0), batch))
    losses, lengths = [], []
    for index, query in enumerate(outputs["query"]):
        similarity = torch.stack([functional.cosine_similarity(query, key, dim=0) for key in outputs["key"]])
        losses.append(-(similarity / TEMPERATURE).log_softmax(0)[index])
        if batch.targets["labels"][index] != IGNORE_INDEX:
            lengths.append(query.square().sum())
    terms = {"contrast": torch.stack(losses).mean(), "pair": torch.stack(lengths).mean()}
    return terms["contrast"] + 0.01 * terms["pair"], terms


def loop(
    form: Callable[[TaskModel, PackedBatch, int], tuple[Tensor, Terms]], model: TaskModel, num_steps: int
) -> list[dict[str, float]]:
    """Trains as the toy runs do, and returns the measured terms of each step by name."""
    materialize(model, initial_values(model, CONFIG, SEED), "cpu")
    named = list(model.named_parameters())
    decayed = [p for name, p in named if not name.endswith(("bias", "norm.weight"))]
    kept = [p for name, p in named if name.endswith(("bias", "norm.weight"))]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": kept, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.98), eps=1e-6)
    plan = StepPlan(ToySource(37), SEED, 6, 1000, wraps_epochs=True)
    measured = []
    for step in range(num_steps):
        share = plan.sequences(step)
        batch = plan.source.build(share, step)
        loss, terms = form(model, batch, step)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 / (1 + step)
        optimizer.step()
        values = {"loss": loss} | {f"{name}_loss": value for name, value in terms.items()}
        measured.append({f"train/{name}": float(value.detach()) for name, value in values.items()})
        measured[-1]["optim/grad_norm"] = float(norm)
    return measured


def contrast_validation(model: TaskModel) -> dict[str, float]:
    """Validates in steps of 6 and 5 sequences, and returns the mean of each term over all sequences."""
    plan = StepPlan(ToySource(11), SEED, 6, 1000, shuffle=False)
    totals = {"contrast": 0.0, "pair": 0.0}
    counts = {"contrast": 0, "pair": 0}
    for step in range(len(plan)):
        share = plan.sequences(step)
        batch = plan.source.build(share, step)
        with torch.no_grad():
            _, terms = contrast(model, batch, None)
        sizes = {"contrast": len(share), "pair": int((batch.targets["labels"] != IGNORE_INDEX).sum())}
        for name, value in terms.items():
            totals[name] += float(value) * sizes[name]
            counts[name] += sizes[name]
    means = {name: totals[name] / counts[name] for name in totals}
    return {"val/contrast_loss": means["contrast"], "val/loss": means["contrast"] + 0.01 * means["pair"]}
