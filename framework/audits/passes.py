"""Runs audits: the rows of all audits of predictions are predicted together, each different row once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from framework.audits.audit import Audit, Finding, ModelAudit, RowAudit, Subject
from framework.data.facts import facts_of
from framework.data.reading.rows import Row
from framework.errors import ConfigError, DataError
from framework.modules.inference import Inference


@dataclass(frozen=True)
class NeededRows:
    """Rows of several audits.

    Attributes:
        different: Different rows of all audits.
        needed: (rows,) int64 indices of each audit's rows in `different`, by name of the audit.
    """

    different: Sequence[Row]
    needed: Mapping[str, np.ndarray]


def gather_rows(audits: Mapping[str, RowAudit], subject: Subject) -> NeededRows:
    """Collects the different rows of audits, and checks each for the task.

    Args:
        audits: Audits by name; `Audit.check` has passed.
        subject: Model that is audited.

    Raises:
        ConfigError: The task does not predict rows.
        DataError: The task cannot predict a row.
    """
    task = subject.task
    if audits and not task.predicts_rows:
        raise ConfigError(
            f"{type(task).__name__} does not predict texts, but the audit {next(iter(audits))} needs predictions. Give "
            "a fine-tuned run or export."
        )
    indices: dict[tuple[tuple[str, str], ...], int] = {}
    different: list[Row] = []
    needed: dict[str, np.ndarray] = {}
    for name, audit in audits.items():
        own = []
        for texts in audit.rows():
            identity = tuple(texts.items())
            if identity not in indices:
                indices[identity] = len(different)
                row = Row(len(different) + 1, None, dict(texts))
                try:
                    task.check_row(row, subject.tokenizer)
                except DataError as error:
                    raise DataError(f"audit {name}, text {next(iter(texts.values()), '')[:60]!r}: {error}") from error
                different.append(row)
            own.append(indices[identity])
        needed[name] = np.array(own, dtype=np.int64)
    return NeededRows(different, needed)


def run_audits(
    audits: Mapping[str, Audit], rows: NeededRows, subject: Subject, inference: Inference
) -> dict[str, Finding]:
    """Returns the finding of each audit by name. Collective: all ranks must call.

    Args:
        audits: Audits by name.
        rows: Rows of `gather_rows`.
        subject: Model that is audited.
        inference: Model on its device.
    """
    predictions = []
    is_cut = np.zeros(len(rows.different), dtype=bool)
    limit = ""
    if rows.different:
        source = subject.task.build_source(rows.different, subject.tokenizer)
        predictions = inference.predict(source)
        cutting = facts_of({"rows": source})["rows"].cutting
        if cutting.cut and cutting.max_length and len(source) == len(is_cut):
            indices = np.arange(len(source))
            is_cut = source.lengths(np.zeros_like(indices), indices) >= cutting.max_length
            limit = cutting.limit
    findings = {}
    for name, audit in audits.items():
        if isinstance(audit, RowAudit):
            needed = rows.needed[name]
            finding = audit.judge([predictions[index] for index in needed.tolist()])
            findings[name] = _with_cut_texts(finding, int(is_cut[needed].sum()), len(needed), limit)
        elif isinstance(audit, ModelAudit):
            findings[name] = audit.measure(inference)
    return findings


def _with_cut_texts(finding: Finding, num_cut: int, num_texts: int, limit: str) -> Finding:
    """Adds a note about texts that reach the largest length of the model."""
    if not num_cut:
        return finding
    note = f"{num_cut:,} of {num_texts:,} texts reach the largest length of the model and are cut{limit}."
    return replace(finding, notes=(*finding.notes, note))
