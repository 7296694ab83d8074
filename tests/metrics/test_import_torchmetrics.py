"""Tests that torchmetrics is imported without `scipy.signal`, which other code can still import."""

import subprocess
import sys

import pytest


def test_scipy_is_not_imported_and_works_afterwards():
    pytest.importorskip("scipy")
    program = (
        "import sys, framework.metrics.import_torchmetrics\n"
        "assert 'torchmetrics' in sys.modules and 'scipy.signal' not in sys.modules\n"
        "import scipy.signal\n"
        "assert scipy.signal.lfilter([1.0], [1.0], [2.0]) == [2.0]"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
