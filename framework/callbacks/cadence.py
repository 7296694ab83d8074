"""What is due after which step: functions of the step number alone, so that a resumed run does the same."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Cadence:
    """When probes are scored, rows logged, validations run and checkpoints written; in a step in that order.

    Attributes:
        max_steps: Optimizer steps of the whole run.
        log_every_n_steps: Steps between rows of training metrics.
        validate_every_n_steps: Steps between validations; None: there is nothing to validate on.
        checkpoint_every_n_steps: Steps between checkpoints; None: only at the end.
        probe_every_n_steps: Steps between scores of probes; None: only at the end.
    """

    max_steps: int
    log_every_n_steps: int = 10
    validate_every_n_steps: int | None = None
    checkpoint_every_n_steps: int | None = None
    probe_every_n_steps: int | None = None

    def logs(self, step: int) -> bool:
        """True where a row of training metrics is due after a number of completed steps."""
        return step % self.log_every_n_steps == 0 or step == self.max_steps

    def validates(self, step: int) -> bool:
        """True where validation is due; always at the end of a run that has something to validate on."""
        every = self.validate_every_n_steps
        return every is not None and (step % every == 0 or step == self.max_steps)

    def saves(self, step: int) -> bool:
        """True where a checkpoint is due; always at the end of a run."""
        every = self.checkpoint_every_n_steps
        return step == self.max_steps or (every is not None and step % every == 0)

    def probes(self, step: int) -> bool:
        """True where probes are due, if there are any; always at the end of a run."""
        every = self.probe_every_n_steps
        return step == self.max_steps or (every is not None and step % every == 0)
