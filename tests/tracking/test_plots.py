"""Pictures exist and have the documented size; smoothing is a centred mean."""

import json
import struct
from pathlib import Path

import numpy as np

from framework.tracking.metrics_jsonl import read_rows
from framework.tracking.plots import _draw_probes, draw_plots, new_figure, smooth


def write_rows(path: Path, rows: list[dict[str, float]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def png_size(path: Path) -> tuple[int, int]:
    """Returns width and height from the header (PNG specification, IHDR)."""
    return struct.unpack(">II", path.read_bytes()[16:24])


def test_three_pictures_are_drawn_at_150_dots_per_inch(tmp_path: Path):
    train_rows = [{"step": step, "train/loss": 1 / step, "optim/lr": 0.1} for step in range(1, 30)]
    write_rows(tmp_path / "metrics.jsonl", [*train_rows, {"step": 30, "val/loss": 0.5}])
    write_rows(tmp_path / "perf.jsonl", [{"step": 1, "perf/tokens_per_second": 100.0}])
    paths = draw_plots(tmp_path, "a run")
    assert [path.name for path in paths] == ["loss.png", "learning_rate.png", "throughput.png"]
    assert {png_size(path) for path in paths} == {(1080, 600)}


def test_metrics_without_rows_are_not_drawn(tmp_path: Path):
    write_rows(tmp_path / "metrics.jsonl", [{"step": 5, "val/loss": 0.5}, {"step": 6, "train/loss": None}])
    assert draw_plots(tmp_path, "a run") == []


def test_probes_are_drawn_by_their_first_metric(tmp_path: Path):
    rows = [{"step": step, "probe/sst2/accuracy": 0.5, "probe/sst2/macro_f1": 0.4} for step in (10, 20)]
    write_rows(tmp_path / "metrics.jsonl", [*rows, {"step": 20, "probe/similarity/spearman": 0.3}])
    assert [path.name for path in draw_plots(tmp_path, "a run")] == ["probes.png"]
    _, axes = new_figure("a run", (7.2, 4.0), "constrained")
    assert _draw_probes(axes, read_rows(tmp_path / "metrics.jsonl"))
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert lines == {
        "probe sst2 accuracy": [[10.0, 0.5], [20.0, 0.5]],
        "probe similarity Spearman's correlation": [[20.0, 0.3]],
    }


def test_smoothing_is_a_centred_mean_whose_window_shrinks_to_the_ends():
    values = np.arange(40.0) ** 2
    smoothed = smooth(values)
    assert smoothed[0] == values[0]
    assert smoothed[-1] == values[-1]
    assert smoothed[1] == np.mean(values[:3])
    assert smoothed[20] == np.mean(values[18:23])
    assert smooth(np.array([7.0])).tolist() == [7.0]
