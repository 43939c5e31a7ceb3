"""Scores as text: the output of `jepa evaluate`, and the titles shared by all tables and figures."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jepa.files import printable
from jepa.report.verdict import SAMPLE_NOTE, verdict
from jepa.terminal import as_printed

__all__ = [
    "COLUMN_TITLES",
    "MEASURE_TITLES",
    "RETRIEVAL_TITLES",
    "as_text",
    "checkpoint_text",
    "energy_trace_table",
    "fixations_text",
    "format_score",
    "prediction_text",
    "row_titles",
    "saccade_retrieval_table",
    "score_table",
    "scored_rows",
    "text_table",
]

WIDTH = 80  # of the text, in characters
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
MEASURE_TITLES = {"rankme": "RankMe", "lidar": "LiDAR", "alpha_req": "α-ReQ", "clid": "CLID"}
SHORT_TITLES = {"pca": "PCA", "linear_10pc": "10%", "linear_1pc": "1%", "dimension": "dim."}
"""Titles of rows and columns in text, where they differ from the name of the row or from COLUMN_TITLES."""
MEANINGS = {
    "linear_last4": "linear probe on the last four layers",
    "linear_10pc": "linear probe with 10% of the labels",
    "linear_1pc": "linear probe with 1% of the labels",
    "rankme": "effective rank of the features",
    "dimension": "correlation dimension of the features",
}
LEAST_IMPORTANT = ("linear_last4", "dimension", "rankme", "linear_10pc", "linear_1pc", "linear")
"""Columns that are left out, in this order, of a table that would be too wide."""
MAX_ROW_TITLE = 10  # characters; 'supervised' has as many
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
MAX_ENERGY_ROWS = 16
HARDER_RECIPES = {"saccade-demo": "saccade-cifar10", "energy-demo": "energy-cifar10"}  # counterparts of demos
SPACE = "\x1f"  # stands for one at which lines are not broken


def as_text(result: dict[str, Any], path: str | Path) -> str:
    """Return the contents of evaluation.json of the run folder `path` as text of at most 80 columns.

    Only paths and commands may be longer.
    """
    data = result["data"]
    blocks = [
        wrap(
            f"{unbroken(data['source'])}: fitted on {data['train']:,} images, scored on {data['test']:,} images "
            f"({data['split']}); scores in percent"
        ),
        score_table(result),
    ]
    if as_printed("±") in blocks[-1]:
        blocks.append(wrap(f"±: {result['protocol']['±']}."))
    if energy := result.get("energy"):
        about = wrap(
            f"Energy before the first step and after each step, averaged over {energy['images']} images; it "
            f"decreases at every step for {energy['falling']:g}% of them:"
        )
        blocks.append(f"{about}\n{energy_trace_table(energy)}")
    saccades = result.get("saccades", {})
    if "same image" in saccades:
        about = wrap(
            f"Retrieval of the view after a saccade among {saccades['fixations']} views, for "
            f"{saccades['images']} images:"
        )
        blocks.append(f"{about}\n{saccade_retrieval_table(saccades)}")
    if text := fixations_text(saccades):
        blocks.append(wrap(text))
    if predictions := result.get("predictions"):
        blocks.append(wrap(prediction_text(predictions)))
    if checkpoints := result.get("checkpoints"):
        blocks.append(wrap(checkpoint_text(checkpoints)))
    return "\n\n".join([*blocks, _notes(result, path), _conclusion(result)])


def prediction_text(predictions: dict[str, Any]) -> str:
    """Describe the scores of `PatchPredictions`, `PixelPredictions` or `ViewPredictions` in a sentence."""
    r2 = {name: f"{value:.2f}" for name, value in predictions.items() if name.startswith("r2")}
    start = f"Prediction of {predictions['of']} in {predictions['images']:,} images"
    if "reference" in predictions:
        return f"{start}: R² of pixels {r2['r2_predicted']}, relative to {predictions['reference']}."
    count, convolutional = predictions["candidates"], ""
    if "r2_actual_convolutional" in r2:
        convolutional = f" (by convolutions {r2['r2_predicted_convolutional']} and {r2['r2_actual_convolutional']})"
    return (
        f"{start}: R² of pixels decoded from the predicted features {r2['r2_predicted']}, from the actual ones "
        f"{r2['r2_actual']}{convolutional}; the actual feature is the nearest of {count} for "
        f"{predictions['top1']:.1f}% (chance {100 / count:.1f}%)."
    )


def checkpoint_text(checkpoints: dict[str, Any]) -> str:
    """Describe which of the kept checkpoints each measure without labels would have chosen, in a sentence."""
    found = dict(checkpoints["choices"])
    best = found.pop("linear", None)
    parts = []
    for name, choice in found.items():
        accuracy = "" if best is None else f" ({choice['linear']:.1f}%)"
        parts.append(f"{MEASURE_TITLES[name]} step {choice['step']:,}{accuracy}")
    start = f"Of {len(checkpoints['scores'])} checkpoints"
    if best is not None:
        start += f", the linear probe is best at step {best['step']:,} ({best['linear']:.1f}% on up to 5,000 images)"
    return f"{start}; without labels, {', '.join(parts)} would be chosen."


def fixations_text(saccades: dict[str, Any]) -> str:
    """Describe the R² of movements and the accuracies of averaged fixations in a sentence each, if there are any."""
    sentences = []
    if r2 := saccades.get("movement_r2"):
        means = [f"{part['linear']['mean']:.2f} and {part['mlp']['mean']:.2f} ({name})" for name, part in r2.items()]
        sentences.append(f"R² of the movement from features, linear and MLP: {', '.join(means)}.")
    if accuracies := saccades.get("averaged_fixations"):
        means = [
            f"{part['1']:.1f} to {format_score(part['16'], part['16_error'])} ({name})"
            for name, part in accuracies.items()
        ]
        sentences.append(f"kNN of the average of 1 to 16 fixations: {', '.join(means)}.")
    return " ".join(sentences)


def _notes(result: dict[str, Any], path: str | Path) -> str:
    """Return what was left out, and where and how long the run was trained and evaluated."""
    lines = [f"Warning: {result['warning']}."] if "warning" in result else []
    lines += [head_sentence(result["head"])] if "head" in result else []
    lines += [f"Omitted: {result['left_out']}."] if "left_out" in result else []
    lines += [f"Note: {note}." for note in result.get("notes", ())]
    if unreadable := result.get("unreadable"):
        lines.append(
            f"Skipped: {len(unreadable)} unreadable image{'s' * (len(unreadable) > 1)} (listed in evaluation.json), "
            f"for example {unreadable[0]}."
        )
    trained = f"Step {result['step']:,} of {result['steps']:,}, trained in {result['train_seconds']:.0f} s"
    if "origin" in result:
        trained = f"Imported from {unbroken(result['origin'])}"
    lines.append(f"{trained}, scored in {result['evaluation_seconds']:.0f} s. All files are in {unbroken(path)}.")
    return "\n".join(map(wrap, lines))


def head_sentence(head: dict[str, Any]) -> str:
    """Return the accuracy of a head that was trained with labels, as a sentence."""
    return (
        f"The linear layer that was trained with the encoder classifies {head['accuracy']:.1f} ± {head['error']:.1f}% "
        f"of {head['images']:,} test images correctly."
    )


def _conclusion(result: dict[str, Any]) -> str:
    """Return the verdict and, for the sample, why raw pixels are strong."""
    lines = [wrap(verdict(result))]
    if result["data"]["source"] == "sample":
        lines += [
            wrap(SAMPLE_NOTE),
            f"    jepa train {HARDER_RECIPES.get(result['name'], 'ijepa-cifar10')}",
        ]
    return "\n".join(lines)


def wrap(text: str) -> str:
    """Break text into lines of at most 80 characters at spaces, but not at those of `unbroken` names."""
    text = as_printed(printable(text, keep=SPACE))
    lines = textwrap.wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines).replace(SPACE, " ")


def unbroken(name: str | Path) -> str:
    """Return a name or a path in which `wrap` does not break lines."""
    return str(name).replace(" ", SPACE)


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
    """Return the scores of `jepa.evaluation.scores.score_encoders` as text: a table, and what its titles mean.

    Columns that do not fit in 80 characters are left out; the text says which.
    """
    titles = scored_rows(result)
    keys = [key for key in COLUMN_TITLES if any(key in result[name] for name in titles)]
    left_out: list[str] = []
    table = _fitting_table(result, titles, keys)
    for key in LEAST_IMPORTANT:
        if table is None and key in keys:
            keys.remove(key)
            left_out.append(_title(key))
            table = _fitting_table(result, titles, keys)
    assert table is not None
    rows = {name: title for name, title in titles.items() if title not in (name, ROW_TITLES["untrained"])}
    lines = [_legend(rows), _legend({key: MEANINGS[key] for key in keys if key in MEANINGS})]
    if left_out:
        lines.append(wrap(f"Left out to fit: {', '.join(map(unbroken, left_out))} (see report.html)."))
    return "\n".join([table, "", *filter(None, lines)]).rstrip()


def _legend(meanings: dict[str, str]) -> str:
    """Return a sentence with the meaning of each short title."""
    return wrap("; ".join(unbroken(f"{_title(name)} = {meaning}") for name, meaning in meanings.items()))


def _title(name: str) -> str:
    """Return the short title of a row or a column."""
    return SHORT_TITLES.get(name, COLUMN_TITLES.get(name, name))[:MAX_ROW_TITLE]


def _fitting_table(result: dict[str, Any], titles: dict[str, str], keys: list[str]) -> str | None:
    """Return the table of these columns, or None if it is too wide."""
    rows = [["", *map(_title, keys)]]
    for name in titles:
        scores = result[name]
        rows.append([_title(name), *(format_score(scores.get(key), scores.get(f"{key}_error")) for key in keys)])
    for gap in (2, 1):
        table = text_table(rows, gap)
        if len(table.partition("\n")[0]) <= WIDTH:
            return table
    return None


def format_score(value: float | None, error: float | None = None) -> str:
    """Return a score with its error, if any, or a dash if the score is missing."""
    if value is None:
        return "–"
    return f"{value:.1f}" + (f"±{error:.1f}" if error is not None else "")


def energy_trace_table(trace: dict[str, Any]) -> str:
    """Return the energies of `jepa.evaluation.energy.energy_trace` as text, one row per step; some of many steps."""
    names, last = ("total", "attention", "hopfield"), len(trace["total"]) - 1
    count = min(last, MAX_ENERGY_ROWS - 1)
    steps = [round(index * last / max(count, 1)) for index in range(count + 1)]
    rows = [["step", *names]]
    rows += [[str(step), *(_compact(trace[name][step], 0, 1e12) for name in names)] for step in steps]
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
        [title, *(_compact(error, 2, 1e4) for error in retrieval["errors"][name])]
        for name, title in ERROR_TITLES.items()
    ]
    return f"{text_table(scores)}\n\n{text_table(errors)}"


def _compact(number: float, decimals: int, limit: float) -> str:
    """Return a number with commas and decimals, or in scientific notation from `limit` on."""
    return f"{number:,.{decimals}f}" if abs(number) < limit or not math.isfinite(number) else f"{number:.1e}"


def text_table(rows: Sequence[Sequence[str]], gap: int = 2) -> str:
    """Align rows of equal length in columns `gap` spaces apart, the first to the left and the rest to the right."""
    rows = [[as_printed(cell) for cell in cells] for cells in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        (" " * gap).join(
            [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))]
        )
        for first, *cells in rows
    )
