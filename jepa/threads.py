"""Number and waiting of threads on machines whose cores are not all free, chosen before torch is imported."""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from pathlib import Path

__all__ = ["adapt_threads", "choose_threads", "core_limit", "free_cores"]

SAMPLE_SECONDS = 0.2
BUSY_CORES = 0.5  # number of cores that may be in use by other processes for a short time
CPU_MAX, CFS_QUOTA, CFS_PERIOD = "cpu.max", "cpu.cfs_quota_us", "cpu.cfs_period_us"


def adapt_threads() -> None:
    """Choose the threads of this process with `choose_threads`, and print what was chosen, unless torch is running."""
    if "torch" not in sys.modules and (note := choose_threads()):
        print(f"jepa: {note}", file=sys.stderr)


def choose_threads() -> str | None:
    """Choose the number of threads in a container, and how they wait on a busy machine; return a note on it, or None.

    The threads of OpenMP spin while they wait for each other. If there are fewer free cores than threads, those that
    spin keep the cores from those that compute, and training takes several times as long (see "Busy machines" in
    EXPERIMENTS.md). Environment variables that are set are left as they are.
    """
    if not hasattr(os, "sched_getaffinity"):
        return None
    cores = os.sched_getaffinity(0)
    limit = core_limit(Path("/sys/fs/cgroup"))
    notes = []
    if "OMP_NUM_THREADS" not in os.environ and limit < len(cores):
        os.environ["OMP_NUM_THREADS"] = str(max(1, int(limit)))
        notes.append(f"this container may use {limit:g} of {len(cores)} cores (OMP_NUM_THREADS={max(1, int(limit))})")
    given = os.environ.get("OMP_NUM_THREADS", "")
    threads = int(given) if given.isdecimal() else len(cores)
    if threads == 1 and not given and (free := free_cores(cores)) is not None and free < 1 - BUSY_CORES:
        notes.append("other programs use the only core, so training and evaluation take longer than stated")
    if threads > 1 and not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        free = free_cores(cores)
        if free is not None and free < threads - BUSY_CORES:
            os.environ["OMP_WAIT_POLICY"] = "passive"
            notes.append(
                f"only {free:.1f} of {len(cores)} cores are free, so the {threads} threads wait without spinning "
                "(OMP_WAIT_POLICY=passive)"
            )
    return "; ".join(notes) or None


def core_limit(root: Path, membership: str | None = None) -> float:
    """Return the number of cores that the control groups of this process allow, or infinity.

    `root` is where control groups are mounted, and `membership` the content of /proc/self/cgroup.
    """
    if membership is None:
        membership = ""
        with suppress(OSError):
            membership = Path("/proc/self/cgroup").read_text(encoding="utf-8")
    limit = float("inf")
    for line in membership.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mounted = root / controllers if controllers else root
        group = mounted / path.lstrip("/")
        for folder in (group, *group.parents):  # in a container, its own group is mounted as the root
            if not folder.is_relative_to(mounted):
                break
            limit = min(limit, _limit(folder))
    return limit


def _limit(group: Path) -> float:
    """Return the limit of one control group, of version 2 or 1."""
    with suppress(OSError, ValueError):
        quota, period = (group / CPU_MAX).read_text(encoding="utf-8").split()
        return float(quota) / float(period)  # "max" is no number
    with suppress(OSError, ValueError):
        quota, period = ((group / name).read_text(encoding="utf-8") for name in (CFS_QUOTA, CFS_PERIOD))
        return float(quota) / float(period) if float(quota) > 0 else float("inf")
    return float("inf")


def free_cores(cores: set[int], stat: Path = Path("/proc/stat")) -> float | None:
    """Return how many of the cores are idle, measured over a fraction of a second, or None if it is unknown."""
    try:
        before = _idle_and_total(cores, stat)
        time.sleep(SAMPLE_SECONDS)
        after = _idle_and_total(cores, stat)
    except (OSError, ValueError):
        return None
    idle, total = (now - then for now, then in zip(after, before, strict=True))
    return len(cores) * idle / total if total else None


def _idle_and_total(cores: set[int], stat: Path) -> tuple[int, int]:
    """Return the idle and the total time of the cores since the machine was started."""
    idle = total = 0
    for line in stat.read_text(encoding="utf-8").splitlines():
        name, *times = line.split()
        if name[:3] == "cpu" and name[3:].isdigit() and int(name[3:]) in cores:
            numbers = [int(value) for value in times[:8]]
            idle, total = idle + numbers[3] + numbers[4], total + sum(numbers)
    return idle, total
