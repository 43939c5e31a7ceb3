"""Runs side by side: the work behind `jepa compare`."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jepa.config import InputError, require
from jepa.config_json import flat
from jepa.evaluation import COLUMNS
from jepa.figures import save, writable
from jepa.figures.style import CLASSES, GREY, STYLE, canvas
from jepa.runs import Run

__all__ = ["Group", "compare", "gather", "table"]

SHOWN = ("knn", "linear")  # in the figure


@dataclass
class Group:
    """Runs of one config, seeds apart."""

    name: str
    runs: list[Run]
    results: list[dict[str, Any]]  # evaluation.json of each

    def mean(self, row: str, key: str) -> tuple[float, float] | None:
        """Mean and standard deviation of a score over seeds; None where a run has none."""
        values = [result.get(row, {}).get(key) for result in self.results]
        if None in values:
            return None
        return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def compare(paths: Sequence[Path], figure: Path) -> str:
    """Return a table of judged runs, and draw it; runs that differ by their seed alone are one row.

    Raises `InputError` where there is none, or one was not judged yet.
    """
    require(len(paths) > 0, "no run is given; 'jepa compare' takes run folders that 'jepa evaluate' has judged")
    writable(figure)
    groups = gather(paths)
    with matplotlib.rc_context(STYLE):
        drawn = draw(groups)
        figure.parent.mkdir(parents=True, exist_ok=True)
        save(drawn, figure)
    return table(groups)


def gather(paths: Sequence[Path]) -> list[Group]:
    """Open runs and group them by config."""
    groups: dict[str, Group] = {}
    for path in {path.resolve(): path for path in paths}.values():  # a run counts once
        run = Run.open(path)
        file = run.path / "evaluation.json"
        if not file.is_file():
            raise InputError(f"{path} was not judged yet: 'jepa evaluate {path}' does that")
        try:
            result = json.loads(file.read_text())
            settings = flat(run.config) | {"seed": None, "judged on": result["data"]}
            result["trained"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{file} is damaged; 'jepa evaluate {path}' writes it again") from error
        group = groups.setdefault(json.dumps(settings, sort_keys=True), Group("", [], []))
        group.runs.append(run)
        group.results.append(result)
    found = list(groups.values())
    for group, name in zip(found, names(found), strict=True):
        group.name = name
    return found


def names(groups: list[Group]) -> list[str]:
    """Name groups by experiment, and by the settings in which those of one name differ."""
    configs = [
        flat(group.runs[0].config) | {"judged on": group.results[0]["data"]["source"], "seed": None} for group in groups
    ]
    found = []
    for config in configs:
        alike = [other for other in configs if other["name"] == config["name"]]
        keys = sorted({key for other in alike for key in other} - {"data.mean", "data.std"})
        differ = [key for key in keys if any(other.get(key) != config.get(key) for other in alike)]
        told = ", ".join(f"{key} {config[key]}" for key in differ[:3] if key in config)
        found.append(config["name"] + (f" ({told})" if told else ""))
    counts = {name: found.count(name) for name in found}
    return [
        f"{name} [{group.runs[0].path.name}]" if counts[name] > 1 else name
        for name, group in zip(found, groups, strict=True)
    ]


def table(groups: list[Group]) -> str:
    """Lay groups out as text: mean ± standard deviation over seeds, and the untrained encoder below."""
    columns = [key for key in COLUMNS if any(group.mean("trained", key) for group in groups)]
    lines = [(f"{'':<2}", "seeds", [COLUMNS[key] for key in columns])]
    for group in groups:
        for row, title in (("trained", group.name), ("untrained", "  untrained")):
            seeds = str(len(group.runs)) if row == "trained" else ""
            lines.append((title, seeds, [cell(group.mean(row, key), len(group.runs)) for key in columns]))
    width = max(len(title) for title, _, _ in lines)
    text = [f"{title:<{width}}{seeds:>7}" + "".join(f"{each:>14}" for each in cells) for title, seeds, cells in lines]
    return "\n".join(text)


def cell(value: tuple[float, float] | None, count: int) -> str:
    """Write a mean, with the deviation where there are several seeds."""
    if value is None:
        return "–"
    return f"{value[0]:.1f}" + (f" ± {value[1]:.1f}" if count > 1 else "")


def draw(groups: list[Group]) -> Figure:
    """Draw every score as a point a seed, untrained beside trained, and below online kNN against the step."""
    scores = [key for key in SHOWN if any(group.mean("trained", key) for group in groups)] or ["rankme"]
    height = 1.0 + 0.42 * len(groups)
    curves = any("rankme" in record for group in groups for run in group.runs for record in run.metrics())
    figure = canvas(height + (2.8 if curves else 0))
    parts = figure.subfigures(2 if curves else 1, 1, height_ratios=(height, 2.8)[: 1 + curves], squeeze=False)[:, 0]
    for axes, key in zip(parts[0].subplots(1, len(scores), sharey=True, squeeze=False)[0], scores, strict=True):
        draw_scores(axes, groups, key)
    if curves:
        draw_curves(parts[1].subplots(), groups)
    return figure


def draw_scores(axes: Axes, groups: list[Group], key: str) -> None:
    """Draw a score of every run, that of the untrained encoder hollow."""
    for place, (group, color) in enumerate(zip(groups, colors(groups), strict=True)):
        for row, edge, face, size in (("trained", color, color, 4), ("untrained", GREY, "none", 7)):
            values = [result[row][key] for result in group.results if key in result.get(row, {})]
            axes.plot(values, [place] * len(values), "o", color=edge, markerfacecolor=face, markersize=size)
    axes.set_yticks(range(len(groups)), [group.name for group in groups])
    axes.set(ylim=(len(groups) - 0.5, -0.5), xlabel=COLUMNS[key] + (", %" if key in SHOWN else ""))
    axes.grid(axis="x", linewidth=0.4)
    if key in SHOWN:
        axes.set_xlim(right=min(100.5, axes.get_xlim()[1]))
    axes.set_title("filled: trained, hollow: untrained" if key in ("knn", "rankme") else "")


def draw_curves(axes: Axes, groups: list[Group]) -> None:
    """Draw online kNN (RankMe, without labels) of every run against the step."""
    records = [[run.metrics() for run in group.runs] for group in groups]
    key = "knn" if any("knn" in record for group in records for run in group for record in run) else "rankme"
    for group, runs, color in zip(groups, records, colors(groups), strict=True):
        for number, run in enumerate(runs):
            points = [(record["step"], record[key]) for record in run if key in record]
            if points:
                axes.plot(*zip(*points, strict=True), color=color, label=group.name if number == 0 else None)
    axes.set(xlabel="step", title="online kNN, %" if key == "knn" else "RankMe during training")
    axes.legend()


def colors(groups: list[Group]) -> list[str]:
    """Colour groups, over again after ten."""
    return [CLASSES[place % len(CLASSES)] for place in range(len(groups))]
