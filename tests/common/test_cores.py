"""The cores of this process, and how lanes share them."""

from __future__ import annotations

import os

import pytest

from streamloader.common import cores
from streamloader.common.cores import _read_quota, cores_per_worker, count_cores, threads_per_lane


@pytest.mark.parametrize(
    ("text", "quota"),
    [("200000 100000\n", 2.0), ("150000 100000\n", 1.5), ("max 100000\n", None), ("0 100000\n", None), ("x\n", None)],
)
def test_quotas(tmp_path, text, quota):
    (tmp_path / "cpu.max").write_text(text)
    assert _read_quota(tmp_path) == quota


def test_quotas_of_the_first_version(tmp_path):
    assert _read_quota(tmp_path) is None
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    assert _read_quota(tmp_path) is None
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert _read_quota(tmp_path) is None
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("400000\n")
    assert _read_quota(tmp_path) == 4.0


def test_a_quota_limits_the_cores_of_the_affinity(tmp_path, monkeypatch):
    monkeypatch.setattr(cores, "_CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    assert count_cores() == 16
    for text, expected in (("300000 100000", 3), ("20000 100000", 1), ("9900000 100000", 16)):
        (tmp_path / "cpu.max").write_text(text)
        assert count_cores() == expected


def test_lanes_share_the_cores(monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr(cores, "count_cores", lambda: 16)
    assert [threads_per_lane(lanes) for lanes in (1, 2, 3, 8, 9, 16, 64)] == [8, 8, 5, 2, 1, 1, 1]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert [threads_per_lane(lanes) for lanes in (1, 2, 4, 8)] == [4, 2, 1, 1]
    for odd in ("", "0", "x", "-2"):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", odd)
        assert threads_per_lane(2) == 8


def test_workers_share_the_cores_and_leave_none_over(monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr(cores, "count_cores", lambda: 6)
    assert [cores_per_worker(workers) for workers in (1, 2, 4, 6, 7)] == [6, 3, 2, 1, 1]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert [cores_per_worker(workers) for workers in (1, 2, 3)] == [3, 2, 1]
