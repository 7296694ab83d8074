"""Defines what is due after which step, from the step number alone, so that a resumed run follows the same schedule."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Cadence:
    """Schedule of probes, rows, validations and checkpoints. Within a step they run in this order.

    Attributes:
        max_steps: Step of the run after which training ends: the last one of the run, or of a phase.
        log_every_n_steps: Steps between rows of training metrics.
        validate_every_n_steps: Steps between validations; None: there is no validation split.
        checkpoint_every_n_steps: Steps between checkpoints; None: one at the end only.
        probe_every_n_steps: Steps between scorings of probes; None: one at the end only.
        run_steps: Optimizer steps of the whole run, if it has phases; None: `max_steps`.
        evaluates_test: True: the test split is evaluated after the last step of the run.
    """

    max_steps: int
    log_every_n_steps: int = 10
    validate_every_n_steps: int | None = None
    checkpoint_every_n_steps: int | None = None
    probe_every_n_steps: int | None = None
    run_steps: int | None = None
    evaluates_test: bool = False

    @property
    def total_steps(self) -> int:
        """Returns the optimizer steps of the whole run."""
        return self.max_steps if self.run_steps is None else self.run_steps

    @property
    def ends_run(self) -> bool:
        """Returns True if the run ends with `max_steps`; otherwise another phase follows."""
        return self.max_steps == self.total_steps

    def logs(self, step: int) -> bool:
        """Returns True if a row of training metrics is due after this many completed steps."""
        return step % self.log_every_n_steps == 0 or step == self.max_steps

    def validates(self, step: int) -> bool:
        """Returns True if validation is due. It always is at the end of a run with a validation split."""
        every = self.validate_every_n_steps
        return every is not None and (step % every == 0 or step == self.max_steps)

    def tests(self, step: int) -> bool:
        """Returns True if the evaluation of the test split is due."""
        return self.evaluates_test and step == self.total_steps

    def saves(self, step: int) -> bool:
        """Returns True if a checkpoint is due. It always is at the end of a run."""
        every = self.checkpoint_every_n_steps
        return step == self.max_steps or (every is not None and step % every == 0)

    def probes(self, step: int) -> bool:
        """Returns True if probes, where configured, are due. They always are at the end of a run."""
        every = self.probe_every_n_steps
        return step == self.max_steps or (every is not None and step % every == 0)
