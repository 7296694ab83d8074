"""Puts Lightning's Trainer where a run stood after a number of steps.

Lightning's own `ckpt_path` is not used: weights and optimizer come from our sharded checkpoints, and data, masks,
dropout and schedule are functions of the step. What is left is its counters.
"""

import lightning.pytorch as pl


def set_progress(trainer: pl.Trainer, step: int) -> None:
    """Makes `global_step`, validation and `max_steps` continue from a step. Call before the loop runs.

    The counter of the current pass over the loader stays 0: the loader's length is that of the whole run also after a
    resume, so Lightning cannot take the remaining steps for an epoch's end.

    Args:
        trainer: With manual optimization and one optimizer.
        step: Optimizer steps that are completed.
    """
    loop = trainer.fit_loop.epoch_loop
    optimizer_steps = loop.manual_optimization.optim_step_progress.total
    optimizer_steps.ready = optimizer_steps.completed = step
    batches = loop.batch_progress.total
    batches.ready = batches.started = batches.processed = batches.completed = step  # type: ignore[attr-defined]
    loop._batches_that_stepped = step
