"""Mines hard negatives: `python -m framework.mine run=RUN queries=PAIRS documents=TEXTS output=FILE.jsonl`.

The same command runs under torchrun, where processes share the texts. The output does not depend on their number.
"""

if __name__ == "__main__":
    from framework.config.command import start

    start("framework.mine")  # imports this module, and so all of the below, when the config is composed

from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig

import framework.distributed.processes.early_check  # noqa: F401  must come before Lightning
from framework.config.command import command, resolve_config
from framework.config.dry_check import print_check
from framework.config.mine_schema import MineConfig
from framework.config.nodes import check_arguments
from framework.config.outputs import check_output_differs, write_to_stdout
from framework.distributed.processes.environment import ProcessInfo, process_info
from framework.errors import ConfigError, counted
from framework.mining.mining import OpenedModel, mine_negatives
from framework.mining.parts import MinedCounts, check_output
from framework.mining.texts import MinedTexts, read_texts
from framework.retrieval.approximate import import_faiss
from framework.runs.trained import (
    Trained,
    build_inference,
    describe_trained,
    open_inference,
    open_model,
    open_trained,
)
from framework.tasks.embedding.task import EmbeddingTask
from framework.tasks.reranking.task import RerankingTask
from framework.tracking.pass_bars import pass_bars


@command("mine")
def mine(composed: DictConfig) -> MinedCounts:
    """Writes a row with hard negatives for each pair of a query and its positive; returns their counts."""
    settings = MineConfig(**check_arguments("", resolve_config(composed, MineConfig), MineConfig))
    info = process_info()
    check_output_differs(settings.output, [settings.queries, settings.documents])
    if info.rank == 0:
        check_output(Path(settings.output))
    if settings.index == "faiss":
        import_faiss()
    texts = read_texts(settings)
    trained = open_model(settings, settings.task)
    reranker = None
    if settings.reranker is not None:
        reranker = open_trained(replace(settings, run=settings.reranker))
    check_models(settings, trained, reranker)
    if settings.check:
        if info.rank == 0:
            sizes = {"queries": len(texts.queries), "documents": texts.num_documents, "pairs": len(texts.pairs)}
            print_check([*describe_trained(trained), *((name, f"{size:,}") for name, size in sizes.items())])
        return MinedCounts()
    budget, precision = settings.micro_batch_tokens, settings.precision.name
    with open_inference(trained, budget, precision) as inference:
        own = ProcessInfo(local_rank=info.local_rank)
        model = OpenedModel(trained, inference.alone())
        scorer = None
        if reranker is not None:
            scorer = OpenedModel(reranker, build_inference(reranker, budget, precision, own).alone())
        with pass_bars("rows", is_shown=info.rank == 0) as advance:
            counts = mine_negatives(settings, texts, model, scorer, info, advance)
    if info.rank == 0:
        write_to_stdout([describe_rows(settings, texts, counts)])
    return counts


run = mine.run


def check_models(settings: MineConfig, trained: Trained, reranker: Trained | None) -> None:
    """Checks that the models have the tasks for which mining uses them.

    Raises:
        ConfigError: The first does not embed texts, or the second does not score pairs.
    """
    if not isinstance(trained.task, EmbeddingTask) or trained.task.head_kind != EmbeddingTask.head_kind:
        raise ConfigError(
            f"run={settings.run} has the task {type(trained.task).__name__}, which gives no vector for each text. "
            "Mining searches by such vectors. Give a run of task=embedding, or a published embedding model."
        )
    if reranker is not None and not isinstance(reranker.task, RerankingTask):
        raise ConfigError(
            f"reranker={settings.reranker} has the task {type(reranker.task).__name__}, which does not score pairs of "
            "a query and a document. Give a run of task=reranking, or null."
        )


def describe_rows(settings: MineConfig, texts: MinedTexts, counts: MinedCounts) -> str:
    """Describes the output in one or two lines."""
    skipped = f", {counted(texts.num_skipped, 'bad row')} skipped" if texts.num_skipped else ""
    repeats = f", {counted(texts.num_repeats, 'repeated document')} searched once" if texts.num_repeats else ""
    line = (
        f"{settings.output}: {counts.rows:,} rows, {counts.negatives / counts.rows:.2f} negatives each, from "
        f"{texts.num_documents:,} documents{skipped}{repeats}\n"
    )
    if not counts.fewer:
        return line
    return (
        f"{line}{counts.fewer:,} rows have fewer than {settings.num_negatives} negatives, {counts.without:,} of them "
        "none. Raise range_max, or relax the margins, max_score or min_score, for more.\n"
    )
