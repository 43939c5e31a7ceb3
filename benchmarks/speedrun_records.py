"""Records of the speedrun: JSON files, the tables of LEADERBOARD.md, and a figure."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jepa.config import InputError, require
from jepa.files import atomic_write
from jepa.report.figures import save
from jepa.report.style import CLASS_COLORS, STYLE, literal, new_figure

__all__ = [
    "BUDGETS",
    "DEVICE_TITLES",
    "RANKED_BY",
    "TRACKS",
    "draw_curve",
    "read_records",
    "tables",
    "unranked_reason",
    "update_leaderboard",
    "write_record",
]

BUDGETS = {2: "cpu", 10: "cpu", 30: "cpu", 5: "cuda", 20: "cuda"}
"""Minutes of training, and the device on which they are measured."""
TRACKS = {"movements": "crops, shifts, turns, zooms and flips only", "any": "any augmentation"}
DEVICE_TITLES = {"cpu": "two CPU cores", "cuda": "one GPU"}
RANKED_BY = "linear_2x2"
MIN_SEEDS = 3  # number of seeds of a ranked entry
CIFAR10 = {"train": 50_000, "test": 10_000}  # number of images
BEGIN, END = "<!-- speedrun tables: begin -->", "<!-- speedrun tables: end -->"
COLUMNS = (
    *("", "entry", "linear 2x2", "linear", "kNN", "RankMe", "untrained", "process s", "scaled s", "training s"),
    *("steps", "images", "PFLOP", "parameters", "seeds", "date"),
)
MARKERS = {"movements": "o^", "any": "sD"}  # the second ones are for names beyond the ten colors
TICKS = (0.5, 1, 2, 5, 10, 20, 30)  # of its axis of time, in minutes


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Write a record, one JSON file for each entry and budget."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n")


def read_records(folder: Path) -> dict[Path, dict[str, Any]]:
    """Read all records of a folder by path. Raises `InputError` if one is damaged or its budget is unknown."""
    records = {}
    for path in sorted(folder.glob("*.json")):
        try:
            record = json.loads(path.read_text())
            table_row(record, path.name)
            known = BUDGETS[record["minutes"]] == record["device"] and record["track"] in TRACKS
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise InputError(f"the record {path} is damaged ({error!r}); run its command again or remove it") from error
        require(
            known, f"the record {path} must have one of the budgets {budget_list()} and of the tracks {track_list()}"
        )
        records[path] = record
    return records


def budget_list() -> str:
    """Return the budgets in words."""
    parts = []
    for device, title in DEVICE_TITLES.items():
        *others, last = sorted(minutes for minutes, where in BUDGETS.items() if where == device)
        parts.append(f"{', '.join(map(str, others))} or {last} ({title})")
    return ", or ".join(parts)


def track_list() -> str:
    """Return the tracks in words."""
    return " or ".join(f"'{name}'" for name in TRACKS)


def column(record: dict[str, Any], key: str) -> list[float]:
    """Return a value of all seeds."""
    return [float(result[key]) for result in record["results"]]


def deviation(values: Sequence[float]) -> float:
    """Return the standard deviation over seeds, 0 for one seed."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Return the mean and, for several seeds, the standard deviation as text."""
    error = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):,.{digits}f}{error}"


def unranked_reason(record: dict[str, Any]) -> str:
    """Return why an entry is not ranked, or an empty string."""
    excess, seeds = max(column(record, "over_budget_seconds")), len(record["results"])
    if record["labels"]:
        return "with labels"
    if record["images"] != CIFAR10:
        return f"{record['images']['train']:,} and {record['images']['test']:,} images are not those of CIFAR-10"
    if excess > 0:
        return f"over budget by {excess:.1f} s"
    return f"{seeds} seed{'s' if seeds > 1 else ''} of {MIN_SEEDS}" if seeds < MIN_SEEDS else ""


def table_row(record: dict[str, Any], link: str, rank: str = "–") -> tuple[str, ...]:
    """Return the cells of a record."""
    results = record["results"]
    untrained, scaled = results[0]["untrained"], results[0]["scaled_seconds"]
    reason = unranked_reason(record)
    return (
        rank,
        f"[`{record['name']}`]({link})" + (f" ({reason})" if reason else ""),
        *(spread(column(record, key)) for key in (RANKED_BY, "linear", "knn", "rankme")),
        "–" if untrained is None else " / ".join(f"{untrained[key]:.1f}" for key in (RANKED_BY, "linear", "knn")),
        spread(column(record, "process_seconds"), 0),
        "–" if scaled is None else spread(column(record, "scaled_seconds"), 0),
        spread(column(record, "train_seconds"), 0),
        f"{results[0]['steps']:,}",
        f"{results[0]['images_seen']:,}",
        f"{results[0]['flops'] / 1e15:.3g}",
        f"{results[0]['parameters'] / 1e6:.2f} M",
        str(len(results)),
        record["date"],
    )


def table(records: dict[Path, dict[str, Any]], root: Path) -> list[str]:
    """Return the lines of the table of one budget and track: ranked entries, then those that are not ranked."""

    def order(item: tuple[Path, dict[str, Any]]) -> tuple[bool, float]:
        return bool(unranked_reason(item[1])), -statistics.mean(column(item[1], RANKED_BY))

    lines = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    ordered = sorted(records.items(), key=order)
    for rank, (path, record) in enumerate(ordered, 1):
        link = Path(os.path.relpath(path, root)).as_posix()
        lines.append("| " + " | ".join(table_row(record, link, "–" if unranked_reason(record) else str(rank))) + " |")
    return [*lines, "", f"The first row: `{repeating_command(ordered[0][1])}`"]


def repeating_command(record: dict[str, Any]) -> str:
    """Return the command that repeats an entry in any clone: with downloaded images, and with a record of its own."""
    command, separator, flags = record["command"].partition(" -- ")
    return f"{command.replace(' --data PATH', '')} --record my-record.json{separator}{flags}"


def tables(records: dict[Path, dict[str, Any]], root: Path) -> str:
    """Return the tables of all budgets and tracks as Markdown, with links relative to `root`."""
    lines: list[str] = []
    for minutes, device in BUDGETS.items():
        lines += [f"### {minutes} minutes of {DEVICE_TITLES[device]}", ""]
        for track, description in TRACKS.items():
            chosen = {
                path: record
                for path, record in records.items()
                if (record["minutes"], record["track"]) == (minutes, track)
            }
            lines += [f"Track `{track}` ({description}):" if chosen else f"Track `{track}`: no entry yet.", ""]
            lines += [*table(chosen, root), ""] if chosen else []
    return "\n".join(lines).strip()


def update_leaderboard(page: Path, folder: Path) -> int:
    """Rewrite the tables of LEADERBOARD.md from the records of a folder, and return the number of records.

    Raises `InputError` if the page has no markers.
    """
    text = page.read_text() if page.is_file() else ""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    require(bool(begin and end), f"{page} must contain the lines '{BEGIN}' and '{END}'; restore them with git")
    records = read_records(folder)
    with atomic_write(page) as temporary:
        temporary.write_text(f"{before}{BEGIN}\n\n{tables(records, page.parent)}\n\n{END}{after}")
    return len(records)


def draw_curve(folder: Path, target: Path) -> None:
    """Draw the accuracy of all entries against their training time, and their RankMe beside the linear probe."""
    records = list(read_records(folder).values())
    require(bool(records), f"there are no records in {folder}; run an entry first")
    with matplotlib.rc_context(STYLE):
        figure = entry_figure(records)
        target.parent.mkdir(parents=True, exist_ok=True)
        save(figure, target)


def entry_figure(records: list[dict[str, Any]]) -> Figure:
    """Return the figure; entries of the same name share a color and a marker and are connected over budgets."""
    figure = new_figure(3.4)
    left, right = figure.subplots(1, 2)
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for record in records:
        groups.setdefault((record["name"], record["device"], record["track"]), []).append(record)
    names = list(dict.fromkeys(name for name, _, _ in groups))
    for (name, device, track), group in groups.items():
        cycle, index = divmod(names.index(name), len(CLASS_COLORS))
        color, markers = CLASS_COLORS[index], MARKERS[track]
        style = {
            "color": color,
            "marker": markers[cycle % len(markers)],
            "label": f"{literal(name)}, {device}, {track}",
        }
        style["markerfacecolor"] = "none" if all(map(unranked_reason, group)) else color
        group.sort(key=lambda record: statistics.mean(column(record, "process_seconds")))
        draw_points(left, group, ("process_seconds", RANKED_BY), unit=60, linestyle="-", **style)
        draw_points(right, group, ("rankme", "linear"), linestyle="", **style)
    left.set(xscale="log", xlabel="training process, minutes", title="linear probe, 2x2 and 512 dimensions, %")
    left.set_xticks(TICKS, [f"{minutes:g}" for minutes in TICKS])
    left.set_xticks([], minor=True)
    right.set(xlabel="RankMe (hollow: not ranked)", title="linear probe, averaged tokens, %")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def draw_points(
    axes: Axes, records: list[dict[str, Any]], keys: tuple[str, str], unit: float = 1, **style: Any
) -> None:
    """Draw the means of two values of each record, the first in multiples of `unit`, with their standard deviations."""
    values = [
        [[x / scale for x in column(record, key)] for record in records]
        for key, scale in zip(keys, (unit, 1), strict=True)
    ]
    (x, y), (x_error, y_error) = ([list(map(f, part)) for part in values] for f in (statistics.mean, deviation))
    axes.errorbar(x, y, y_error, x_error, capsize=2, elinewidth=0.8, **style)
