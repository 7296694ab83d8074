"""Compares the plans of several settings: a row for each, and the cheapest that fits."""

from collections.abc import Sequence
from dataclasses import dataclass

from framework.errors import FrameworkError
from framework.planning.alternatives import combinations, fitted
from framework.planning.estimate import step_time
from framework.planning.planner import Plan, Planner
from framework.planning.settings import PlanSettings
from framework.tracking.quantities import format_duration, format_gb, format_seconds

_HOUR = 3600.0


@dataclass(frozen=True)
class Totals:
    """Numbers of a plan over all of its phases.

    Attributes:
        ranks: Number of ranks.
        steps: Optimizer steps.
        seconds: Expected seconds, and the least and the most of them.
        tokens: Tokens of all steps.
        gpu_hours: Expected hours of all devices together.
        cost: Price of these hours; None: unknown.
    """

    ranks: int
    steps: int
    seconds: tuple[float, float, float]
    tokens: float
    gpu_hours: float
    cost: float | None

    @property
    def tokens_per_second(self) -> tuple[float, float, float]:
        """Returns the expected tokens per second, and the least and the most of them."""
        expected, least, most = self.seconds
        return self.tokens / expected, self.tokens / most, self.tokens / least


def totals_of(plan: Plan) -> Totals:
    """Adds up the phases of a plan."""
    ranks, steps, tokens, seconds = plan.settings.first_rank.world_size, 0, 0.0, [0.0, 0.0, 0.0]
    for record in plan.records:
        parts, time = record.phase.parts, step_time(record, plan.hardware)
        count = parts.max_steps - parts.first_step
        steps += count
        tokens += float(count) * record.tokens
        seconds = [a + count * b for a, b in zip(seconds, (time.expected, time.lowest, time.highest), strict=True)]
    hours, price = ranks * seconds[0] / _HOUR, plan.hardware.price_per_hour
    return Totals(
        ranks, steps, (seconds[0], seconds[1], seconds[2]), tokens, hours, None if price is None else hours * price
    )


@dataclass(frozen=True)
class Compared:
    """One combination of the compared settings.

    Attributes:
        overrides: Overrides of the combination.
        plan: Its plan; None: it cannot be planned.
        error: Reason for which it cannot be planned.
    """

    overrides: tuple[str, ...]
    plan: Plan | None
    error: str = ""

    @property
    def label(self) -> str:
        """Returns the values of the combination."""
        return ", ".join(each.partition("=")[2] for each in self.overrides)


def compare(planner: Planner, settings: PlanSettings) -> list[Compared]:
    """Plans each combination of `plan.compare`.

    Raises:
        FrameworkError: None of them can be planned; the error of the first one.
    """
    compared: list[Compared] = []
    first_error: FrameworkError | None = None
    for overrides in combinations(settings.compare or {}):
        try:
            plan = fitted(planner, overrides, settings.fit)
            plan.records  # noqa: B018  which are recorded now
            compared.append(Compared(overrides, plan))
        except FrameworkError as error:
            first_error = first_error or error
            compared.append(Compared(overrides, None, str(error)))
    if first_error is not None and all(each.plan is None for each in compared):
        raise first_error
    return compared


def cheapest(compared: Sequence[Compared]) -> Compared | None:
    """Returns the combination that fits with the lowest cost, or GPU hours if a price is unknown; None: none fits."""
    fitting = [(each, totals_of(each.plan)) for each in compared if each.plan is not None and each.plan.fits]
    if not fitting:
        return None
    has_prices = all(totals.cost is not None for _, totals in fitting)
    return min(fitting, key=lambda pair: (pair[1].cost or 0.0) if has_prices else pair[1].gpu_hours)[0]


def describe_comparison(compared: Sequence[Compared], settings: PlanSettings) -> tuple[list[str], list[list[str]]]:
    """Returns the columns and the rows of the table."""
    best = cheapest(compared)
    plans = [each.plan for each in compared if each.plan is not None]
    has_prices = any(plan.hardware.price_per_hour is not None for plan in plans)
    columns = [*(settings.compare or {}), *([settings.fit] if settings.fit else [])]
    columns += ["memory", "fits", "step time", "tokens/s", "run", "GPU hours", *(["cost"] if has_prices else []), ""]
    rows = []
    for each in compared:
        row = [override.partition("=")[2] for override in each.overrides]
        if each.plan is None:
            rows.append([*row, *[""] * (len(columns) - len(row) - 1), "cannot be planned"])
            continue
        plan, totals = each.plan, totals_of(each.plan)
        if settings.fit:
            budget = max(record.phase.data.plans["train"].micro_batch_tokens for record in plan.records)
            row.append(f"{budget if settings.fit == 'micro_batch' else plan.settings.nodes:,}")
        seconds = totals.seconds[0]
        row += [format_gb(plan.required_bytes), "yes" if plan.fits else "NO", format_seconds(seconds / totals.steps)]
        row += [f"{totals.tokens_per_second[0]:,.0f}", format_duration(seconds), f"{totals.gpu_hours:,.0f}"]
        row += [("" if totals.cost is None else f"{totals.cost:,.0f}")] if has_prices else []
        rows.append([*row, "cheapest" if each is best else ""])
    return columns, rows
