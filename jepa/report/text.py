"""Scores as text: the output of `jepa evaluate`, and the titles shared by all tables and figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = [
    "COLUMN_TITLES",
    "RETRIEVAL_TITLES",
    "as_text",
    "energy_trace_table",
    "format_score",
    "row_titles",
    "saccade_retrieval_table",
    "score_table",
    "scored_rows",
    "text_table",
]

ROW_TITLES = {
    "untrained": "untrained encoder",
    "pixels": "raw pixels",
    "pca": "PCA of pixels",
    "patches": "k-means of patches",
    "supervised": "supervised (same architecture)",
}
COLUMN_TITLES = {
    "knn": "kNN",
    "linear": "linear",
    "linear_last4": "last 4",
    "linear_10pc": "10% labels",
    "linear_1pc": "1% labels",
    "rankme": "RankMe",
    "dimension": "dimension",
}
RETRIEVAL_TITLES = {
    "same image": "same image, correct saccade",
    "shuffled": "same image, wrong saccade",
    "across": "different images, correct saccade",
}
ERROR_TITLES = {
    "prediction": "error with the correct saccade",
    "shuffled": "error with a wrong saccade",
    "no change": "error of predicting no change",
}
HARDER_RECIPES = {"saccade-demo": "saccade-cifar10", "energy-demo": "energy-cifar10"}  # counterparts of demos


def as_text(result: dict[str, Any], path: str | Path) -> str:
    """Return the contents of evaluation.json of the run folder `path` as text."""
    data = result["data"]
    lines = [
        f"{data['source']}: fitted on {data['train']:,} images, scored on {data['test']:,} images ({data['split']}); "
        "scores in percent",
        "",
        score_table(result),
        "",
        f"±: {result['protocol']['±']}.",
        "",
    ]
    if energy := result.get("energy"):
        lines += [
            f"Energy before the first step and after each step, averaged over {energy['images']} images; it "
            f"decreases at every step for {energy['falling']:g}% of them:",
            energy_trace_table(energy),
            "",
        ]
    if retrieval := result.get("saccades"):
        lines += [
            f"Retrieval of the view after a saccade among {retrieval['fixations']} views, for "
            f"{retrieval['images']} images:",
            saccade_retrieval_table(retrieval),
            "",
        ]
    if "left_out" in result:
        lines.append(f"Omitted: {result['left_out']}.")
    lines += [f"Note: {note}." for note in result.get("notes", ())]
    if unreadable := result.get("unreadable"):
        lines.append(
            f"Skipped: {len(unreadable)} unreadable image{'s' * (len(unreadable) > 1)} (listed in evaluation.json), "
            f"for example {unreadable[0]}."
        )
    lines.append(
        f"Step {result['step']:,} of {result['steps']:,}, trained in {result['train_seconds']:.0f} s, evaluated in "
        f"{result['evaluation_seconds']:.0f} s. All files are in {path}."
    )
    if data["source"] == "sample":
        lines.append(
            "Raw pixels are a strong baseline for these small, centered images; CIFAR-10 is a better test:\n"
            f"    jepa train {HARDER_RECIPES.get(result['name'], 'ijepa-cifar10')}"
        )
    return "\n".join(lines)


def row_titles(encoders: Sequence[str]) -> dict[str, str]:
    """Return the titles of the rows of scores. `encoders` are the names in the objective, the main one first."""
    trained = "trained" if len(encoders) == 1 else f"trained ({encoders[0]} encoder)"
    additional = {name: f"trained ({name} encoder)" for name in encoders[1:]}
    return {"trained": trained} | additional | ROW_TITLES


def scored_rows(result: dict[str, Any]) -> dict[str, str]:
    """Return the titles of the rows with scores in evaluation.json."""
    # version 0.1.0 did not store the names of the encoders
    encoders = result.get("encoders") or (["target", "context"] if "context" in result else ["encoder"])
    return {name: title for name, title in row_titles(encoders).items() if result.get(name)}


def score_table(result: dict[str, Any]) -> str:
    """Return the scores of `jepa.evaluation.scores.score_encoders` as text."""
    titles = scored_rows(result)
    keys = [key for key in COLUMN_TITLES if any(key in result[name] for name in titles)]
    rows = [["", *(COLUMN_TITLES[key] for key in keys)]]
    for name, title in titles.items():
        scores = result[name]
        rows.append([title, *(format_score(scores.get(key), scores.get(f"{key}_error")) for key in keys)])
    return text_table(rows)


def format_score(value: float | None, error: float | None = None) -> str:
    """Return a score with its error, if any, or a dash if the score is missing."""
    if value is None:
        return "–"
    return f"{value:.1f}" + (f"±{error:.1f}" if error is not None else "")


def energy_trace_table(trace: dict[str, Any]) -> str:
    """Return the energies of `jepa.evaluation.energy.energy_trace` as text, one column per step."""
    rows = [["step", *(str(step) for step in range(len(trace["total"])))]]
    rows += [[name, *(f"{energy:,.0f}" for energy in trace[name])] for name in ("total", "attention", "hopfield")]
    return text_table(rows)


def saccade_retrieval_table(retrieval: dict[str, Any]) -> str:
    """Return the scores of `jepa.evaluation.saccade_retrieval.saccade_retrieval` as text."""
    count = retrieval["fixations"]
    chance = {"top1": 100 / count, "mrr": sum(1 / rank for rank in range(1, count + 1)) / count}
    ranks = [(title, retrieval[name]) for name, title in RETRIEVAL_TITLES.items()]
    scores = [["", "top-1, %", "MRR"]]
    scores += [[title, f"{row['top1']:.1f}", f"{row['mrr']:.2f}"] for title, row in [*ranks, ("chance", chance)]]
    errors = [["saccade length, in view sides", *(f"{length:.2f}" for length in retrieval["lengths"])]]
    errors += [
        [title, *(f"{error:.2f}" for error in retrieval["errors"][name])] for name, title in ERROR_TITLES.items()
    ]
    return f"{text_table(scores)}\n\n{text_table(errors)}"


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Align rows of equal length in columns, the first to the left and the rest to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))])
        for first, *cells in rows
    )
