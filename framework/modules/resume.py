"""Sets Lightning's Trainer to the progress of a run after a number of steps.

Lightning's own `ckpt_path` is not used: weights and optimizer are loaded from our sharded checkpoints, and data, masks,
dropout and schedule are functions of the step. Only Lightning's counters remain to be set.
"""

import lightning.pytorch as pl


def set_progress(trainer: pl.Trainer, step: int) -> None:
    """Makes `global_step`, validation and `max_steps` continue from a step. Call it before the loop runs.

    The counter of the current pass over the loader stays 0. The loader's length is that of the whole run also after a
    resume, so Lightning does not mistake the last of the remaining steps for the end of an epoch.

    Args:
        trainer: Trainer with manual optimization and one optimizer.
        step: Number of completed optimizer steps.
    """
    loop = trainer.fit_loop.epoch_loop
    optimizer_steps = loop.manual_optimization.optim_step_progress.total
    optimizer_steps.ready = optimizer_steps.completed = step
    batches = loop.batch_progress.total
    batches.ready = batches.started = batches.processed = batches.completed = step  # type: ignore[attr-defined]
    loop._batches_that_stepped = step
