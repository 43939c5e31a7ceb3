import os

import pytest

from jepa import threads
from jepa.threads import choose_threads, core_limit, free_cores


@pytest.mark.parametrize(
    ("files", "membership", "limit"),
    [
        ({}, "0::/", float("inf")),
        ({"cpu.max": "150000 100000"}, "0::/", 1.5),
        ({"cpu.max": "max 100000"}, "0::/a/b", float("inf")),
        ({"cpu.max": "400000 100000", "a/cpu.max": "max 100000", "a/b/cpu.max": "200000 100000"}, "0::/a/b", 2),
        ({"a/cpu.max": "50000 100000"}, "0::/a/b", 0.5),
        ({"cpu.max": "100000 100000"}, "0::/../../outside", 1),
        ({"cpu.max": "damaged"}, "0::/", float("inf")),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, "4:memory:/x\n1:cpu:/y\n0::/", 3),
        ({"cpu,cpuacct/y/cpu.cfs_quota_us": "-1"}, "1:cpu,cpuacct:/y", float("inf")),
    ],
)
def test_the_limit_of_a_container(tmp_path, files, membership, limit):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert core_limit(tmp_path, membership) == limit


def test_free_cores_are_measured(tmp_path, monkeypatch):
    stat = tmp_path / "stat"

    def later(_: float) -> None:
        stat.write_text("cpu 0 0\ncpu0 100 0 0 30 0 0 0 0 0 0\ncpu1 0 0 0 80 20 0 0 0\ncpu2 900 0 0 0 0 0 0 0\n")

    stat.write_text("cpu 0 0\ncpu0 30 0 0 0 0 0 0 0 0 0\ncpu1 0 0 0 0 0 0 0 0\ncpu2 0 0 0 0 0 0 0 0\n")
    monkeypatch.setattr(threads.time, "sleep", later)
    assert free_cores({0, 1}, stat) == pytest.approx(2 * 130 / 200)
    assert free_cores({0, 1}, tmp_path / "none") is None
    assert free_cores({7}, stat) is None


@pytest.mark.parametrize(
    ("given", "free", "limit", "changed"),
    [
        ({}, 4.0, 9.0, {}),
        ({}, 3.8, 9.0, {}),
        ({}, 1.2, 9.0, {"OMP_WAIT_POLICY": "passive"}),
        ({}, 4.0, 2.5, {"OMP_NUM_THREADS": "2"}),
        ({}, 0.5, 0.5, {"OMP_NUM_THREADS": "1"}),
        ({}, 1.0, 3.0, {"OMP_NUM_THREADS": "3", "OMP_WAIT_POLICY": "passive"}),
        ({"OMP_NUM_THREADS": "1"}, 0.0, 2.0, {}),
        ({"OMP_NUM_THREADS": "2"}, 2.0, 9.0, {}),
        ({"OMP_WAIT_POLICY": "active"}, 0.0, 9.0, {}),
        ({}, None, 9.0, {}),
    ],
)
def test_threads_are_those_of_the_cores(monkeypatch, given, free, limit, changed):
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    monkeypatch.setattr(threads, "free_cores", lambda _: free)
    monkeypatch.setattr(threads, "core_limit", lambda _: limit)
    before = dict(os.environ)
    note = choose_threads()
    now = {name: value for name, value in os.environ.items() if before.get(name) != value}
    for name in now:
        monkeypatch.delenv(name)
    assert now == changed
    assert (note is not None) == bool(changed)
    assert all(f"{name}={value}" in str(note) for name, value in changed.items())


def test_a_busy_core_is_said(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    monkeypatch.setattr(threads, "core_limit", lambda _: float("inf"))
    for free, note in ((0.0, "other programs use the only core"), (0.9, "None"), (None, "None")):
        monkeypatch.setattr(threads, "free_cores", lambda _, free=free: free)
        assert str(choose_threads()).startswith(note)
