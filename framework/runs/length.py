"""Size and number of the steps of a run, from the trainer's keys and the training split."""

from framework.config.schema import TrainerConfig
from framework.data.planning.batch_size import BatchWarmup, TokenSteps, growth_steps, sequences_of, steps_until
from framework.data.planning.plan import SequenceSource, steps_per_epoch


def resolve_global_batch_size(trainer: TrainerConfig, source: SequenceSource) -> int:
    """Returns the sequences per optimizer step; `global_batch_tokens` is divided by the mean sequence length."""
    if trainer.global_batch_size is not None:
        return trainer.global_batch_size
    assert trainer.global_batch_tokens is not None
    return sequences_of(trainer.global_batch_tokens, source.mean_length)


def token_steps_of(trainer: TrainerConfig, source: SequenceSource) -> TokenSteps:
    """Returns the size of the steps, their growth, and the conversion between steps and tokens."""
    size, mean_length = resolve_global_batch_size(trainer, source), source.mean_length
    start, steps = trainer.batch_warmup_start, trainer.batch_warmup_steps
    if start is not None and trainer.batch_warmup_tokens is not None:
        steps = growth_steps(trainer.batch_warmup_tokens, mean_length, start, size)
    growth = None if start is None or steps is None else BatchWarmup(start, steps)
    return TokenSteps(mean_length, size, growth)


def run_length(trainer: TrainerConfig, token_steps: TokenSteps, num_sequences: int, wraps_epochs: bool) -> int:
    """Returns the optimizer steps of the run.

    Args:
        trainer: Trainer settings.
        token_steps: Result of `token_steps_of`.
        num_sequences: Sequences of the training split.
        wraps_epochs: True if steps continue over the ends of epochs. Then only the last step of the run is rounded up;
            otherwise the last step of each epoch.
    """
    if trainer.max_steps is not None:
        return trainer.max_steps
    if trainer.max_tokens is not None:
        return token_steps.steps(trainer.max_tokens)
    assert trainer.max_epochs is not None
    size = token_steps.global_batch_size
    if wraps_epochs:
        return steps_until(num_sequences * trainer.max_epochs, size, token_steps.batch_warmup)
    return steps_per_epoch(num_sequences, size) * trainer.max_epochs
