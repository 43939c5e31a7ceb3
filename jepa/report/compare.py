"""Comparison of evaluated runs, grouped over seeds, as a table and a figure: `jepa compare`."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from jepa.config import InputError, require
from jepa.config.serialization import flat, read_json
from jepa.report.figures import check_figure_path, save
from jepa.report.style import CLASS_COLORS, GRAY, STYLE, literal, new_figure
from jepa.report.text import COLUMN_TITLES, format_score, text_table
from jepa.runs import Run

__all__ = ["Group", "compare", "comparison_table", "gather"]

DRAWN_SCORES = ("knn", "linear")
MAX_NAMED_SETTINGS = 3  # maximum number of settings in the name of a group


@dataclass
class Group:
    """Runs whose configs differ only in the seed."""

    settings: dict[str, Any]  # flat config, without the seed
    runs: list[Run] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)  # contents of evaluation.json, one per run
    name: str = ""

    def score(self, row: str, key: str) -> tuple[float, float | None] | None:
        """Return the mean of a score over seeds and, if there are several, its standard deviation.

        Returns None if the score is missing for any run.
        """
        values = [result.get(row, {}).get(key) for result in self.results]
        if None in values:
            return None
        return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None


def compare(paths: Sequence[Path], figure_path: Path) -> str:
    """Return a table of evaluated runs, one row per group of runs that differ only in the seed, and draw a figure.

    Raises `InputError` if no runs are given, if one of them has not been evaluated, or if the extension of the figure
    is unsupported.
    """
    require(len(paths) > 0, "no run is given; pass one or more evaluated run folders")
    check_figure_path(figure_path)
    groups = gather(paths)
    with matplotlib.rc_context(STYLE):
        figure = draw(groups)
        figure_path.parent.mkdir(parents=True, exist_ok=True)
        save(figure, figure_path)
    return comparison_table(groups)


def gather(paths: Sequence[Path]) -> list[Group]:
    """Open runs and group them by config. Duplicate paths count once.

    Configs are compared as JSON, so user code is not loaded. Raises `InputError` if a path is not a run, or if the run
    has not been evaluated.
    """
    groups: dict[str, Group] = {}
    for path in {path.resolve(): path for path in paths}.values():
        run = Run.open(path)
        settings = flat(read_json(run.path / "config.json"))
        # treat None like a setting that did not exist yet
        settings = {name: value for name, value in settings.items() if value is not None and name != "seed"}
        file = run.path / "evaluation.json"
        if not file.is_file():
            raise InputError(f"{path} has not been evaluated; run 'jepa evaluate {path}' first")
        try:
            result = json.loads(file.read_text(encoding="utf-8"))
            settings["evaluated on"] = result["data"]["source"]
            key = json.dumps([settings, result["data"], result["protocol"]], sort_keys=True)
            result["trained"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{file} is damaged; run 'jepa evaluate {path}' to recreate it") from error
        group = groups.setdefault(key, Group(settings))
        group.runs.append(run)
        group.results.append(result)
    name_groups(list(groups.values()))
    return list(groups.values())


def name_groups(groups: list[Group]) -> None:
    """Name groups by experiment, and by the settings that differ between groups of the same experiment."""
    for group in groups:
        settings = group.settings
        related = [other.settings for other in groups if other.settings["name"] == settings["name"]]
        keys = sorted({key for other in related for key in other} - {"data.mean", "data.std"})
        differing = [key for key in keys if any(other.get(key) != settings.get(key) for other in related)]
        values = ", ".join(f"{key} {settings[key]}" for key in differing[:MAX_NAMED_SETTINGS] if key in settings)
        group.name = settings["name"] + (f" ({values})" if values else "")
    names = [group.name for group in groups]
    for group in groups:
        if names.count(group.name) > 1:
            group.name += f" [{group.runs[0].path.name}]"


def comparison_table(groups: list[Group]) -> str:
    """Return the scores of groups as text: mean ± standard deviation over seeds, each above its untrained encoder."""
    keys = [key for key in COLUMN_TITLES if any(group.score("trained", key) for group in groups)]
    rows = [["", "seeds", *(COLUMN_TITLES[key] for key in keys)]]
    for group in groups:
        for row, title, seeds in (("trained", group.name, str(len(group.runs))), ("untrained", "  untrained", "")):
            rows.append([title, seeds, *(format_score(*(group.score(row, key) or (None,))) for key in keys)])
    return text_table(rows)


def draw(groups: list[Group]) -> Figure:
    """Draw the scores of every run and, if there were online evaluations, the online scores by step."""
    keys = [key for key in DRAWN_SCORES if any(group.score("trained", key) for group in groups)] or ["rankme"]
    height = 1.0 + 0.42 * len(groups)
    has_curves = any("rankme" in record for group in groups for run in group.runs for record in run.metrics())
    figure = new_figure(height + (2.8 if has_curves else 0))
    ratios = (height, 2.8) if has_curves else (height,)
    subfigures = figure.subfigures(len(ratios), 1, height_ratios=ratios, squeeze=False)[:, 0]
    for axes, key in zip(subfigures[0].subplots(1, len(keys), sharey=True, squeeze=False)[0], keys, strict=True):
        draw_scores(axes, groups, key)
    if has_curves:
        draw_curves(subfigures[1].subplots(), groups)
    return figure


def draw_scores(axes: Axes, groups: list[Group], key: str) -> None:
    """Draw one score of every run, with that of its untrained encoder as a hollow point."""
    for y, (group, color) in enumerate(zip(groups, group_colors(groups), strict=True)):
        for row, edge, face, size in (("trained", color, color, 4), ("untrained", GRAY, "none", 7)):
            values = [result[row][key] for result in group.results if key in result.get(row, {})]
            axes.plot(values, [y] * len(values), "o", color=edge, markerfacecolor=face, markersize=size)
    axes.set_yticks(range(len(groups)), [literal(group.name) for group in groups])
    axes.set(ylim=(len(groups) - 0.5, -0.5), xlabel=COLUMN_TITLES[key] + (", %" if key in DRAWN_SCORES else ""))
    axes.grid(axis="x", linewidth=0.4)
    if key in DRAWN_SCORES:
        axes.set_xlim(right=min(100.5, axes.get_xlim()[1]))
    axes.set_title("filled: trained, hollow: untrained" if key in ("knn", "rankme") else "")


def draw_curves(axes: Axes, groups: list[Group]) -> None:
    """Draw the online kNN accuracy of every run by step, or RankMe without labels."""
    metrics = [[run.metrics() for run in group.runs] for group in groups]
    key = "knn" if any("knn" in record for runs in metrics for records in runs for record in records) else "rankme"
    handles: dict[str, Line2D] = {}
    for group, runs, color in zip(groups, metrics, group_colors(groups), strict=True):
        for records in runs:
            points = [(record["step"], record[key]) for record in records if key in record]
            if points:
                (line,) = axes.plot(*zip(*points, strict=True), color=color)
                handles.setdefault(literal(group.name), line)
    axes.set(xlabel="step", title="online kNN, %" if key == "knn" else "RankMe during training")
    axes.legend(list(handles.values()), list(handles))


def group_colors(groups: list[Group]) -> list[str]:
    """Return one color per group; colors repeat after ten."""
    return [CLASS_COLORS[i % len(CLASS_COLORS)] for i in range(len(groups))]
