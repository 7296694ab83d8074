"""Plans a run on any number of GPUs: `python -m framework.plan experiment=NAME plan.nodes=N hardware=NAME`.

The model, the optimizer and the strategy of training run on fake tensors, as rank 0 of fake ranks.
"""

if __name__ == "__main__":
    from framework.config.command import start

    start("framework.plan")  # imports this module, and so all of the below, when the config is composed

import tempfile
from pathlib import Path

from omegaconf import DictConfig
from rich.table import Table
from rich.text import Text

import framework.distributed.processes.early_check
import framework.metrics.import_torchmetrics  # noqa: F401  must come before Lightning
from framework.config.command import command
from framework.planning.alternatives import fitted, nearest_fits
from framework.planning.comparison import cheapest, compare, describe_comparison
from framework.planning.picture import draw_comparison
from framework.planning.planner import Plan, Planner
from framework.planning.report import describe_plan
from framework.planning.settings import PlanSettings
from framework.tracking.console import open_console


@command("plan")
def plan(composed: DictConfig) -> list[Plan]:
    """Prints the plan of a run, or a comparison of several; returns the plans."""
    with tempfile.TemporaryDirectory(prefix="cloze-plan-") as folder:
        planner = Planner(composed, Path(folder))
        own = planner.plan()
        plans = _compare(planner, own.settings) if own.settings.compare is not None else [_plan(planner, own)]
        if not any(each.fits for each in plans):
            nearest = nearest_fits(planner, min(plans, key=lambda each: each.required_bytes))
            fitting = " or with ".join(" ".join(each.changes) for each in nearest)
            remedy = f"It fits with {fitting}." if nearest else "No change of these settings helps. Use larger devices."
            text = f"The run does not fit in {own.hardware.memory_gb:g} GB. {remedy}"
            open_console().print(text, soft_wrap=True, markup=False)
    return plans


run = plan.run


def _plan(planner: Planner, own: Plan) -> Plan:
    """Prints one plan."""
    plan = own if own.settings.fit is None else fitted(planner, (), own.settings.fit)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, text in describe_plan(plan.records, plan.hardware, plan.settings, plan.lengths):
        table.add_row(name, Text(text))
    open_console().print(table)
    if plan.settings.fit == "nodes" and plan.fits:
        open_console().print(f"The fewest nodes on which it fits: plan.nodes={plan.settings.nodes}.", soft_wrap=True)
    if plan.settings.fit == "micro_batch" and plan.fits:
        budget = max(record.phase.data.plans["train"].micro_batch_tokens for record in plan.records)
        open_console().print(
            f"The largest micro-batch that fits and splits a step evenly: trainer.micro_batch_tokens={budget}.",
            soft_wrap=True,
        )
    return plan


def _compare(planner: Planner, settings: PlanSettings) -> list[Plan]:
    """Prints a table of plans, and draws them if there is a folder for the picture."""
    compared = compare(planner, settings)
    columns, rows = describe_comparison(compared, settings)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, justify="left" if column in (settings.compare or {}) or not column else "right")
    for row in rows:
        table.add_row(*map(Text, row))
    console = open_console()
    console.print(table)
    for each in compared:
        if each.plan is None:
            console.print(f"{' '.join(each.overrides)}: {each.error}", soft_wrap=True, markup=False)
    best = cheapest(compared)
    if best is not None and best.plan is not None:
        console.print(f"The cheapest that fits: {' '.join(best.plan.changes)}", soft_wrap=True, markup=False)
    if settings.output is not None:
        title = ", ".join(settings.compare or {})
        console.print(f"picture: {draw_comparison(compared, settings.output, title)}", soft_wrap=True, markup=False)
    return [each.plan for each in compared if each.plan is not None]
