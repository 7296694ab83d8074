"""Calibrations of this machine: files that plans read, with links if there are several processes."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate

from framework import calibrate
from framework.config.resolvers import conf_folder, register_resolvers
from framework.distributed.processes.environment import process_info
from framework.errors import ConfigError
from framework.planning import calibration, device_rates
from framework.planning.hardware import Hardware
from tests.support.processes.workers import WorkerPool

SMALL = {"cpu": (64, 128, 2**16)}


def measured_links() -> calibration.Links | None:
    calibration._LINK_BYTES = 2**16
    return calibration.measure_links(process_info(), torch.device("cpu"))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_rates, "_SIZES", SMALL)
    monkeypatch.setattr(calibration, "_STORED_BYTES", 2**16)


def test_a_calibration_is_a_hardware_file_that_plans_read(small: None, tmp_path: Path, capsys):
    file = calibrate.run(["lab-1", "--output", str(tmp_path), "--price", "2.5"])
    assert file == tmp_path / "hardware" / "lab-1.yaml"
    printed = capsys.readouterr().out
    assert file.read_text() in printed and f"--config-dir {tmp_path} hardware=lab-1" in printed
    register_resolvers()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        composed = compose("plan", [f"hydra.searchpath=[file://{tmp_path}]", "hardware=lab-1"])
    hardware: Hardware = instantiate(composed.hardware)
    assert (hardware.name, hardware.device, hardware.price_per_hour) == ("lab-1", "cpu", 2.5)
    for low, high in (hardware.matmul_share, hardware.memory_share):
        assert 0 < low <= high <= 1
    assert "Links were not measured" in file.read_text()


def test_a_calibration_replaces_no_file_and_needs_a_name_for_a_file(small: None, tmp_path: Path):
    (tmp_path / "hardware").mkdir()
    (tmp_path / "hardware" / "mine.yaml").write_text("kept")
    with pytest.raises(ConfigError, match=r"mine\.yaml exists\. A calibration replaces no file"):
        calibrate.run(["mine", "--output", str(tmp_path)])
    assert (tmp_path / "hardware" / "mine.yaml").read_text() == "kept"
    with pytest.raises(ConfigError, match="NAME is 'a/b'"):
        calibrate.run(["a/b", "--output", str(tmp_path)])


def test_links_are_measured_on_all_ranks(workers: WorkerPool):
    for links in workers.run(measured_links, 2):
        assert links is not None and links.network_gb_per_second is None
        assert links.node_gb_per_second > 0 and links.latency_seconds > 0 and 0 < links.small_share <= 1


def test_rates_are_operations_and_bytes_of_the_shortest_round(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(device_rates, "_SIZES", SMALL)
    monkeypatch.setattr(device_rates, "seconds_of", lambda action, device: 2.0)
    cpu = torch.device("cpu")
    assert device_rates.copy_rate(cpu) == 2**16
    # The chain has 200 products and 200 views forward, one sum, and as many and some more backward.
    assert 2.0 / 1400 < device_rates.operator_seconds(cpu) < 2.0 / 800


def test_products_take_time_to_start():
    flops = [1e6, 4e6, 1e8, 1e9]
    exact = device_rates.fitted_rates(flops, [each / 1e11 + 3e-5 for each in flops])
    assert (exact.peak, exact.start_seconds) == pytest.approx((1e11, 3e-5))
    assert exact.shares == pytest.approx((1.0, 1.0))
    # Small products are faster: nothing starts slowly, and the peak is theirs.
    other = device_rates.fitted_rates(flops, [1e-6, 4e-6, 2e-4, 2e-3])
    assert (other.peak, other.start_seconds, *other.shares) == pytest.approx((1e12, 0.0, 0.5, 1.0))
    # One of two equal products took twice as long as the other.
    uneven = device_rates.fitted_rates([1e9, 1e9, 1e6], [0.01, 0.02, 1.3e-5])
    assert uneven.shares[1] == 1.0 and 0.4 < uneven.shares[0] <= 0.5


def test_a_product_has_its_batch_and_shape(monkeypatch: pytest.MonkeyPatch):
    shapes = []
    monkeypatch.setattr(device_rates, "seconds_of", lambda action, device: shapes.append(tuple(action().shape)) or 1.0)
    cpu = torch.device("cpu")
    device_rates.product_seconds(1, 3, 5, 7, torch.float32, cpu)
    device_rates.product_seconds(4, 3, 5, 7, torch.float32, cpu)
    assert shapes == [(3, 7), (4, 3, 7)]
