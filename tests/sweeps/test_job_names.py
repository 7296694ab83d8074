"""Tests of the run ids of a sweep's jobs: readable and unique."""

import pytest

from framework.sweeps.plan import job_id


def test_a_name_says_the_values():
    assert job_id("mine", {"optimizer.lr": "1e-05", "seed": "-2"}) == "mine-lr_1e-05-seed_-2"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": "1-b_2", "b": "3"}, {"a": "1", "b": "2-b_3"}),
        ({"a": "x y", "b": "1"}, {"a": "x_y", "b": "1"}),
        ({"a": "x" * 80, "b": "1"}, {"a": "x" * 80, "b": "2"}),
    ],
)
def test_no_two_jobs_share_a_name(one, other):
    names = job_id("mine", one), job_id("mine", other)
    assert names[0] != names[1]
    assert all(len(name) <= 64 for name in names)
