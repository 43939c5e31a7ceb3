"""One self-contained page of a judged run: `report.html`, which needs no network and prints."""

from __future__ import annotations

import base64
import io
import json
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from tqdm import tqdm

from jepa.config import InputError
from jepa.config_json import to_dict
from jepa.evaluation import COLUMNS, FORESEEN, cell, titles_of
from jepa.figures import draw, film, save
from jepa.subject import Subject

__all__ = ["verdict", "write_report"]

FILM = "The outlined patch sweeps over the images; below, the mean attention of the last layer."
FEW, CEILING = 500, 95.0  # scored images; percent that leaves nothing to learn
CLEAR = 2.0  # points over the untrained encoder that no choice of seed explains away
STYLE = """
:root { color: #222; background: #fff; font: 16px/1.5 system-ui, sans-serif }
body { max-width: 48rem; margin: 2rem auto; padding: 0 1rem }
h1 { line-height: 1.2; margin-bottom: 0.2rem } h2 { margin: 2.2rem 0 0.4rem; font-size: 1.2rem }
.facts, figcaption, .missing { color: #555; font-size: 0.9rem }
.verdict { font-size: 1.1rem; border-left: 4px solid #0072b2; padding: 0.2rem 0 0.2rem 0.8rem; margin: 1.2rem 0 }
.wide { overflow-x: auto }
table { border-collapse: collapse; width: 100%; margin-bottom: 1rem }
table { font-size: 0.9rem; font-variant-numeric: tabular-nums }
th, td { padding: 0.25rem 0.45rem; text-align: right; border-bottom: 1px solid #ddd }
td { white-space: nowrap } thead th { vertical-align: bottom }
th:first-child, td:first-child { text-align: left; padding-left: 0; position: sticky; left: 0; background: #fff }
.best { font-weight: 700 }
figure { margin: 0.5rem 0 } figure img { width: 100%; min-width: 34rem; height: auto; display: block }
figure img.film { width: auto; min-width: 0; max-width: 100% }
pre { background: #f5f5f5; padding: 0.7rem; overflow-x: auto; font-size: 0.8rem }
@media screen and (max-width: 36rem) {
  .wide:has(table)::before, .wide:has(.figure)::before { content: "scrolls sideways →"; color: #777; font-size: 12px }
}
@media print {
  :root { font-size: 11pt } body { max-width: none; margin: 0 }
  figure, table, h2, .verdict { break-inside: avoid } h2 { break-after: avoid }
  figure img { min-width: 0 } pre { white-space: pre-wrap; overflow-wrap: anywhere } .wide { overflow: visible }
  table { font-size: 8pt } th, td { padding: 0.2rem 0.25rem }
}
"""
SECTIONS = {
    "curves": (
        "Training",
        "What the run logged. A falling loss proves nothing: a target that collapses is easy to predict. Online kNN is "
        "measured on training images that were held out; RankMe counts the directions that the features use.",
    ),
    "umap": (
        "The images in feature space",
        "Up to 5,000 of the scored images, close where their features are; UMAP with a fixed seed (the principal axes "
        "where umap-learn is not installed). Distances between far groups mean little.",
    ),
    "attention": (
        "Where a patch looks",
        "Attention of the outlined patch, averaged over heads, each map from 0 to its largest weight; rollout follows "
        "it through all layers (steps, of an Energy Transformer). Entropy: 1 looks at all patches alike, 0 at one.",
    ),
    "dimension": (
        "Correlation dimension",
        "Left: the share of pairs closer than r, the scaling region shaded. Right: its local slope, which edges and "
        "curvature flatten as r grows, fitted by a line in r² (filled points) and read at r = 0.",
    ),
    "spectrum": (
        "Spectrum",
        "The variance of the features along their principal axes. Features that collapse leave most axes empty.",
    ),
    "masks": (
        "What the model is asked",
        "From the context alone, predict the representation of each target. Every image has masks of its own.",
    ),
    "saccades": (
        "What the model is asked",
        "Two fixations of an image and the movement between them: shift in sides of a view, turn, zoom. Below, the "
        "error of the view that is foreseen, over the variance of all views.",
    ),
}


def write_report(subject: Subject, result: dict[str, Any]) -> Path:
    """Write `report.html` of an opened run and the result of its evaluation."""
    sections = [scores(result)]
    for name in tqdm(SECTIONS, desc="report", unit="figure", leave=False, delay=3):
        title, caption = SECTIONS[name]
        try:
            body = picture(embed(draw(name, subject)), title, caption)
            if name == "attention":
                swept = base64.b64encode(film(subject)).decode()
                body += picture(swept, "attention, patch by patch", FILM, "film")
        except InputError as reason:
            if name in ("masks", "saccades"):  # one of the two belongs to every objective
                continue
            body = f'<p class="missing">Missing: {escape(str(reason))}.</p>'
        sections.append(f"<h2>{title}</h2>\n{body}")
    sections.append(origin(subject, result))
    name = escape(subject.config.name)
    text = (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{name}: what was learned</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{STYLE}</style>\n</head>\n'
        f"<body>\n{heading(subject, result)}\n" + "\n".join(sections) + "\n</body>\n</html>\n"
    )
    path = subject.run.path / "report.html"
    subject.run.write_text(path.name, text)
    return path


def verdict(result: dict[str, Any]) -> str:
    """Say in a sentence whether a run learned anything, by its scores beside those of the untrained encoder."""
    trained, untrained = result["trained"], result["untrained"]
    judged = {"kNN": "knn", "linear probe": "linear"}
    gains = {name: trained[key] - untrained[key] for name, key in judged.items() if key in trained}
    if not gains:
        return (
            "Without labels nothing here proves that it learned; what can be said is that the features use "
            f"{trained['rankme']:.1f} directions (RankMe), the untrained ones {untrained['rankme']:.1f}."
        )
    images = result["data"]["test"]
    doubt = f" {images} images decide little." if images < FEW else ""
    if all(untrained[judged[name]] > CEILING for name in gains):
        return f"The untrained encoder tells these classes apart already, so they cannot show what it learned.{doubt}"
    pixels = result.get("pixels", {})
    better = [name for name in gains if pixels.get(judged[name], 0) > trained[judged[name]]]
    doubt = (f" Raw pixels are better ({' and '.join(better)})." if better else "") + doubt
    told = " and ".join(f"{name} {gain:+.1f} points" for name, gain in gains.items())
    if all(gain >= CLEAR for gain in gains.values()):
        return f"It learned: {told} beside the same encoder untrained.{doubt}"
    if any(gain >= CLEAR for gain in gains.values()):
        return f"It learned in part: {told} beside the same encoder untrained.{doubt}"
    return f"It did not learn what tells these classes apart: {told} beside the same encoder untrained.{doubt}"


def heading(subject: Subject, result: dict[str, Any]) -> str:
    """Name the run and say the most important."""
    data = result["data"]
    config = subject.config
    facts = (
        f"objective {config.objective.kind}, backbone {config.backbone.kind}, step {result['step']:,} of "
        f"{result['steps']:,}, trained in {result['train_seconds'] / 60:.0f} min on {data['source']}; fitted on "
        f"{data['train']:,} and scored on {data['test']:,} images ({data['split']})"
    )
    lines = [f"<h1>{escape(result['name'])}</h1>", f'<p class="facts">{escape(facts)}</p>']
    lines.append(f'<p class="verdict">{escape(verdict(result))}</p>')
    if "left_out" in result:
        lines.append(f'<p class="missing">Left out: {escape(result["left_out"])}.</p>')
    if listed := result.get("unreadable"):
        lines.append(f'<p class="missing">{len(listed)} images cannot be read, the first {escape(listed[0])}.</p>')
    return "\n".join(lines)


def scores(result: dict[str, Any]) -> str:
    """Lay out the scores, the best of a column strong, and kNN by the number of neighbours."""
    rows = {name: title for name, title in titles_of(result).items() if result.get(name)}
    columns = {key: title for key, title in COLUMNS.items() if any(key in result[row] for row in rows)}
    best = {key: max(result[row].get(key, 0) for row in rows) for key in columns if key not in ("rankme", "dimension")}
    body = []
    for row, title in rows.items():
        strong = {key for key in best if result[row].get(key) == best[key]}
        cells = (f"<td{' class=best' * (key in strong)}>{cell(result[row], key)}</td>" for key in columns)
        body.append([title, *cells])
    parts = ["<h2>Scores</h2>", html_table(["percent", *columns.values()], body)]
    by = {row: result[row]["knn_by_neighbours"] for row in rows if "knn_by_neighbours" in result[row]}
    if by:
        counts = list(next(iter(by.values())))
        body = [[rows[row], *(f"<td>{values.get(k, 0):.1f}</td>" for k in counts)] for row, values in by.items()]
        parts.append(html_table(["kNN, by neighbours", *counts], body))
    if seen := result.get("saccades"):
        body = [
            [title, f"<td>{seen[key]['top1']:.1f}</td>", f"<td>{seen[key]['mrr']:.2f}</td>"]
            for key, title in FORESEEN.items()
        ]
        parts.append(html_table([f"the view after a movement, among {seen['fixations']}", "top-1, %", "MRR"], body))
    notes = "; ".join(f"{name}: {what}" for name, what in result["protocol"].items())
    return "\n".join([*parts, f"<figcaption>Strong: the best of a column. {escape(notes)}.</figcaption>"])


def html_table(head: list[str], rows: list[list[str]]) -> str:
    """Lay out a table; the first cell of a row is text, the others are cells already."""
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "\n".join(f"<tr><td>{escape(first)}</td>{''.join(cells)}</tr>" for first, *cells in rows)
    return f'<div class="wide"><table>\n<thead><tr>{top}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'


def embed(figure: Figure) -> str:
    """Turn a figure into the text of a PNG."""
    buffer = io.BytesIO()
    save(figure, buffer)
    return base64.b64encode(buffer.getvalue()).decode()


def picture(data: str, title: str, caption: str, kind: str = "figure") -> str:
    """Show an embedded PNG with its caption."""
    shown = f'<img class="{kind}" alt="{escape(title)}" src="data:image/png;base64,{data}">'
    return f'<figure><div class="wide">{shown}</div><figcaption>{escape(caption)}</figcaption></figure>\n'


def origin(subject: Subject, result: dict[str, Any]) -> str:
    """Say how to do it again, with every setting."""
    again = "jepa train --config config.json --run runs/again\njepa evaluate runs/again"
    config = json.dumps(to_dict(subject.config), indent=2)
    return (
        "<h2>Do it again</h2>\n<p>Save the settings below as <code>config.json</code> (the run folder has them), with "
        f"image-jepa {escape(result['version'])}:</p>\n<pre>{escape(again)}</pre>\n<pre>{escape(config)}</pre>"
    )
