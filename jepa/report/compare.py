"""Comparison of evaluated runs, grouped over seeds, as a table and a figure: `jepa compare`."""

from __future__ import annotations

import json
import statistics
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from jepa.checkpoints import read_metadata
from jepa.config import Config, InputError, require
from jepa.config.hints import command
from jepa.config.serialization import flat, read_json
from jepa.report.figures import check_figure_path, save
from jepa.report.names import shorten_names
from jepa.report.style import GRAY, STYLE, literal, new_figure, series_style
from jepa.report.text import COLUMN_TITLES, format_score, text_table
from jepa.runs import Run

__all__ = ["Group", "compare", "comparison_table", "gather"]

DEFAULT_FIGURE = Path("runs/compare.png")
IMAGES = (
    "source",
    "train",
    "test",
)  # entries of evaluation.json that tell images apart
DRAWN_SCORES = ("knn", "linear")
MAX_NAMED_SETTINGS = 8  # maximum number of settings in the description of a group
MAX_NAME, MAX_DRAWN_NAME = 14, 22  # maximum length of the name of a group in the table and in the figure
WIDTH = 80  # columns of the text


@dataclass
class Group:
    """Runs whose configs differ only in the seed."""

    settings: dict[str, Any]  # flat config, without the seed
    runs: list[Run] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)  # contents of evaluation.json, one per run
    alias: str = ""  # A, B, …
    differing: dict[str, Any] = field(default_factory=dict)  # settings that other groups of the experiment do not share

    @property
    def name(self) -> str:
        """Name of the experiment."""
        return str(self.settings.get("name", Config.name))

    def score(self, row: str, key: str) -> tuple[float, float | None] | None:
        """Return the mean of a score over seeds and, if there are several, its standard deviation.

        Returns None if the score is missing for any run.
        """
        values = [result.get(row, {}).get(key) for result in self.results]
        if None in values:
            return None
        return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None


def compare(paths: Sequence[Path], figure_path: Path | None = None) -> str:
    """Return a table of evaluated runs, one row per group of runs that differ only in the seed, and draw a figure.

    A figure at `figure_path` is replaced. By default, the figure is runs/compare.png, or the next free name, such as
    runs/compare-2.png. Raises `InputError` if no runs are given, if one of them has not been evaluated, or if the
    extension of the figure is unsupported.
    """
    require(len(paths) > 0, "no run is given; pass one or more evaluated run folders")
    target = (figure_path or free_path(DEFAULT_FIGURE)).expanduser()
    check_figure_path(target)
    groups = gather(paths)
    replaced = " (replaced the existing file)" if target.exists() else ""
    with matplotlib.rc_context(STYLE):
        figure = draw(groups)
        target.parent.mkdir(parents=True, exist_ok=True)
        save(figure, target)
    blocks = [comparison_table(groups), legend(groups)]
    images = {tuple(result["data"][key] for key in IMAGES) for group in groups for result in group.results}
    if len(images) > 1:
        blocks.append("These runs were scored on different images, so their scores cannot be compared.")
    return "\n\n".join([*blocks, f"figure: {target}{replaced}"])


def free_path(path: Path) -> Path:
    """Return a path that does not exist: `path` itself, or the first free one of NAME-2, NAME-3 and so on."""
    candidates = (path.with_stem(f"{path.stem}-{number}") for number in count(2))
    return next(candidate for candidate in chain([path], candidates) if not candidate.exists())


def gather(paths: Sequence[Path]) -> list[Group]:
    """Open runs and group them by config. Duplicate paths count once.

    Configs are compared as JSON, so user code is not loaded. Raises `InputError` if a path is not a run, or if the run
    has not been evaluated.
    """
    groups: dict[str, Group] = {}
    for path in {path.resolve(): path for path in paths}.values():
        run = Run.open(path)
        settings = flat(read_json(run.path / "config.json"))
        # treat None like a setting that did not exist yet; the signatures of images differ from machine to machine
        ignored = ("seed", "labels_seen")
        settings = {name: value for name, value in settings.items() if value is not None and name not in ignored}
        file = run.path / "evaluation.json"
        if not file.is_file():
            raise InputError(f"{path} has not been evaluated; run '{command('evaluate', path)}' first")
        try:
            result = json.loads(file.read_text(encoding="utf-8"))
            settings["evaluated on"] = result["data"]["source"]
            settings["checkpoint"] = result.get("checkpoint", "last")
            if result["step"] != result["steps"]:
                settings["evaluated at step"] = result["step"]
            key = json.dumps([settings, result["data"], result["protocol"]], sort_keys=True)
            key = repr(json.loads(key, parse_int=float))  # 60 and 60.0 are equal
            check_scores(result)
            check_current(run, result)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{file} is damaged; run '{command('evaluate', path)}' to recreate it") from error
        group = groups.setdefault(key, Group(settings))
        group.runs.append(run)
        group.results.append(result)
    describe_groups(list(groups.values()))
    return list(groups.values())


def check_scores(result: dict[str, Any]) -> None:
    """Raise an error of any type unless the scores in evaluation.json are numbers."""
    for row in ("trained", "untrained"):
        for key in COLUMN_TITLES:
            if not isinstance(result[row].get(key, 0), int | float):
                raise TypeError(f"{row} {key} is no number")


def check_current(run: Run, result: dict[str, Any]) -> None:
    """Raise `InputError` if the scores are not those of the run's checkpoint, because it was trained further."""
    checkpoint = run.checkpoint(result.get("checkpoint", "last"))
    if not checkpoint.is_file():
        return
    metadata = read_metadata(checkpoint)
    step, seconds = metadata["step"], round(metadata.get("seconds", 0.0), 1)
    if (step, seconds) != (result["step"], result["train_seconds"]):
        raise InputError(
            f"the scores in {run.path / 'evaluation.json'} are of step {result['step']:,}, but not of its checkpoint, "
            f"which is of step {step:,}; run '{command('evaluate', run.path)}' again"
        )


def describe_groups(groups: list[Group]) -> None:
    """Set the aliases of groups, and the settings that differ between groups of the same experiment."""
    for i, group in enumerate(groups):
        group.alias = ascii_uppercase[i % 26] * (i // 26 + 1)
        related = [other.settings for other in groups if other.name == group.name]
        keys = sorted(
            {key for other in related for key in other} - {"data.mean", "data.std"}, key=lambda key: ("." in key, key)
        )
        differing = [key for key in keys if any(other.get(key) != group.settings.get(key) for other in related)]
        group.differing = {key: group.settings[key] for key in differing if key in group.settings}


def short_titles(groups: list[Group], limit: int) -> list[str]:
    """Return the aliases of groups with the names of their experiments, shortened to `limit` characters."""
    names = shorten_names([group.name for group in groups], limit)
    return [f"{group.alias} {name}" for group, name in zip(groups, names, strict=True)]


def comparison_table(groups: list[Group]) -> str:
    """Return the scores of groups as text: mean ± standard deviation over seeds, each above its untrained encoder.

    Columns that do not fit the width of the text continue in another table below.
    """
    keys = [key for key in COLUMN_TITLES if any(group.score("trained", key) for group in groups)]
    rows = [["", "seeds", *(COLUMN_TITLES[key] for key in keys)]]
    for group, short in zip(groups, short_titles(groups, MAX_NAME), strict=True):
        for row, title, seeds in (("trained", short, str(len(group.runs))), ("untrained", "  untrained", "")):
            rows.append([title, seeds, *(format_score(*(group.score(row, key) or (None,))) for key in keys)])
    titles, *columns = zip(*rows, strict=True)
    tables = [[titles]]
    for column in columns:
        if sum(2 + max(map(len, other)) for other in (*tables[-1], column)) - 2 > WIDTH:
            tables.append([titles])
        tables[-1].append(column)
    return "\n\n".join(text_table(list(zip(*table, strict=True))) for table in tables)


def legend(groups: list[Group]) -> str:
    """Return the experiment, the differing settings and the run folders of each group."""
    lines = []
    for group in groups:
        settings = [f"{key} {value}" for key, value in group.differing.items()]
        more = len(settings) - MAX_NAMED_SETTINGS
        named = settings[:MAX_NAMED_SETTINGS] + ([f"and {more} more"] if more > 0 else [])
        folders = ", ".join(str(run.path) for run in group.runs)
        description = f"{group.name}: {', '.join(named)}" if named else group.name
        indent = " " * (len(group.alias) + 2)
        for start, text in ((f"{group.alias}  ", description), (indent, folders)):
            wrapper = textwrap.TextWrapper(WIDTH, start, indent, break_long_words=False, break_on_hyphens=False)
            lines += wrapper.wrap(text)
    return "\n".join(lines)


def draw(groups: list[Group]) -> Figure:
    """Draw the scores of every run and, if there were online evaluations, the online scores by step."""
    keys = [key for key in DRAWN_SCORES if any(group.score("trained", key) for group in groups)] or ["rankme"]
    height = 1.0 + 0.3 * len(groups)
    has_curves = any("rankme" in record for group in groups for run in group.runs for record in run.metrics())
    curves_height = max(2.8, 0.6 + 0.18 * len(groups))  # the legend has one line for each group
    figure = new_figure(height + (curves_height if has_curves else 0))
    ratios = (height, curves_height) if has_curves else (height,)
    subfigures = figure.subfigures(len(ratios), 1, height_ratios=ratios, squeeze=False)[:, 0]
    for axes, key in zip(subfigures[0].subplots(1, len(keys), sharey=True, squeeze=False)[0], keys, strict=True):
        draw_scores(axes, groups, key)
    subfigures[0].supxlabel("filled: trained; hollow: untrained", fontsize=8)
    if has_curves:
        draw_curves(subfigures[1].subplots(), groups)
    return figure


def draw_scores(axes: Axes, groups: list[Group], key: str) -> None:
    """Draw one score of every run, with that of its untrained encoder as a hollow point."""
    for y, group in enumerate(groups):
        style = series_style(y) | {"linestyle": "", "markersize": 4.5}
        hollow = {"color": GRAY, "linestyle": "", "marker": "o", "markerfacecolor": "none", "markersize": 7}
        for row, row_style in (("trained", style), ("untrained", hollow)):
            values = [result[row][key] for result in group.results if key in result.get(row, {})]
            axes.plot(values, [y] * len(values), **row_style)
    axes.set_yticks(range(len(groups)), [literal(title) for title in short_titles(groups, MAX_DRAWN_NAME)])
    axes.set(ylim=(len(groups) - 0.5, -0.5), title=COLUMN_TITLES[key] + (", %" if key in DRAWN_SCORES else ""))
    axes.grid(axis="x", linewidth=0.4)
    if key in DRAWN_SCORES:
        axes.set_xlim(right=min(100.5, axes.get_xlim()[1]))


def draw_curves(axes: Axes, groups: list[Group]) -> None:
    """Draw the online kNN accuracy of every run by step, or RankMe without labels."""
    metrics = [[run.metrics() for run in group.runs] for group in groups]
    key = "knn" if any("knn" in record for runs in metrics for records in runs for record in records) else "rankme"
    handles: dict[str, Line2D] = {}
    for i, (title, runs) in enumerate(zip(short_titles(groups, MAX_DRAWN_NAME), metrics, strict=True)):
        for records in runs:
            points = [(record["step"], record[key]) for record in records if key in record]
            if points:
                (line,) = axes.plot(*zip(*points, strict=True), **series_style(i) | {"marker": ""})
                handles.setdefault(literal(title), line)
    axes.set(xlabel="step", title="online kNN, %" if key == "knn" else "RankMe during training")
    axes.legend(list(handles.values()), list(handles), loc="center left", bbox_to_anchor=(1.01, 0.5))
