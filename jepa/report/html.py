"""The report of an evaluated run: a self-contained, printable HTML page that needs no network access."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from tqdm import tqdm

from jepa.config import InputError
from jepa.config.serialization import to_dict
from jepa.evaluate import EvaluationRun
from jepa.files import printable
from jepa.report.figures import draw, save
from jepa.report.plot_attention import animate_attention
from jepa.report.text import COLUMN_TITLES, RETRIEVAL_TITLES, format_score, scored_rows
from jepa.report.verdict import verdict

__all__ = ["verdict", "write_report"]

STYLE = """
:root { color: #222; background: #fff; font: 16px/1.5 system-ui, sans-serif }
body { max-width: 48rem; margin: 2rem auto; padding: 0 1rem }
h1 { line-height: 1.2; margin-bottom: 0.2rem } h2 { margin: 2.2rem 0 0.4rem; font-size: 1.2rem }
.metadata, figcaption, .missing { color: #555; font-size: 0.9rem }
.verdict { font-size: 1.1rem; border-left: 4px solid #0072b2; padding: 0.2rem 0 0.2rem 0.8rem; margin: 1.2rem 0 }
.wide { overflow-x: auto }
table { border-collapse: collapse; width: 100%; margin-bottom: 1rem }
table { font-size: 0.9rem; font-variant-numeric: tabular-nums }
th, td { padding: 0.25rem 0.45rem; text-align: right; border-bottom: 1px solid #ddd }
td { white-space: nowrap; vertical-align: top }
.error { display: block; font-size: 0.75rem; font-weight: normal; color: #777; line-height: 1 }
thead th { vertical-align: bottom }
th:first-child, td:first-child { text-align: left; padding-left: 0; position: sticky; left: 0; background: #fff }
.best { font-weight: 700 }
figure { margin: 0.5rem 0 } figure img { width: 100%; min-width: 34rem; height: auto; display: block }
figure img.animation { width: auto; min-width: 0; max-width: 100% }
pre { background: #f5f5f5; padding: 0.7rem; overflow-x: auto; font-size: 0.8rem }
@media screen and (max-width: 36rem) {
  .wide:has(table)::before, .wide:has(.figure)::before { content: "scroll sideways →"; color: #777; font-size: 12px }
}
@media print {
  :root { font-size: 11pt } body { max-width: none; margin: 0 }
  figure, table, h2, .verdict { break-inside: avoid } h2 { break-after: avoid }
  figure img { min-width: 0 } pre { white-space: pre-wrap; overflow-wrap: anywhere } .wide { overflow: visible }
  table { font-size: 8pt } th, td { padding: 0.2rem 0.25rem }
}
"""
INPUTS_TITLE = "The model's inputs"
SECTIONS = {
    "curves": (
        "Training curves",
        "The losses and the online evaluation during training. A falling loss does not imply that the model learns: "
        "collapsed targets are easy to predict. Online kNN is the accuracy on held-out training images. "
        "RankMe is the effective rank of the features.",
    ),
    "umap": (
        "Feature space",
        "Up to 5,000 test images; images with similar features are close to each other. The projection is UMAP with a "
        "fixed seed, or PCA if umap-learn is not installed. In UMAP, distances between clusters mean little.",
    ),
    "attention": (
        "Attention",
        "Attention of the outlined patch to all patches, averaged over heads. Each map is scaled from 0 to its "
        "maximum. Rollout combines all layers (for an Energy Transformer, all steps). Normalized entropy "
        "is 1 if a patch attends to all patches equally, and 0 if it attends to a single patch.",
    ),
    "dimension": (
        "Correlation dimension",
        "Left: the fraction of image pairs closer than r; the scaling region is shaded. Right: the local slope. "
        "Boundaries and curvature lower the slope as r grows, so a line in r² is fitted to the filled points. Its "
        "intercept at r = 0 is the dimension.",
    ),
    "spectrum": (
        "Spectrum",
        "The explained variance of the features along their principal axes. In collapsed features, most axes have "
        "almost no variance.",
    ),
    "masks": (
        INPUTS_TITLE,
        "The model predicts the representations of the target blocks from the context, or the pixels of the masked "
        "patches from the visible ones.",
    ),
    "saccades": (
        INPUTS_TITLE,
        "Two fixations of each image and the saccade between them: shift in view sides, rotation and zoom. If the "
        "model has a predictor, the lower plot shows its squared error divided by the variance of the embeddings.",
    ),
}
ANIMATION_CAPTION = (
    "The outlined patch moves over the images. Below is its attention in the last layer, averaged over heads."
)


def write_report(run: EvaluationRun, result: dict[str, Any]) -> Path:
    """Write report.html to the run folder from the result of `evaluate_run`, and return its path."""
    sections = [heading(run, result), score_section(result)]
    for name in tqdm(SECTIONS, desc="report", unit="figure", leave=False, delay=3, disable=None):
        title, caption = SECTIONS[name]
        try:
            body = html_image(png(draw(name, run)), title, caption)
            if name == "attention":
                body += html_image(animate_attention(run), "animated attention", ANIMATION_CAPTION, "animation")
        except InputError as error:
            if title == INPUTS_TITLE:  # at most one of these figures applies to a run
                continue
            body = f'<p class="missing">Not available: {escape(str(error))}.</p>'
        sections.append(f"<h2>{title}</h2>\n{body}")
    sections.append(reproduction(run, result))
    text = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{escape(run.config.name)}: evaluation</title>\n"
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{STYLE}</style>\n</head>\n'
        "<body>\n" + "\n".join(sections) + "\n</body>\n</html>\n"
    )
    path = run.output.path / "report.html"
    run.output.write_text(path.name, printable(text, keep="\n"))
    return path


def heading(run: EvaluationRun, result: dict[str, Any]) -> str:
    """Return the name of the run, its metadata and the verdict."""
    data, config = result["data"], run.config
    metadata = (
        f"objective {config.objective.kind}, backbone {config.backbone.kind}; step {result['step']:,} of "
        f"{result['steps']:,}, trained in {result['train_seconds'] / 60:.0f} min; evaluated on {data['source']}: "
        f"fitted on {data['train']:,} images, scored on {data['test']:,} images ({data['split']})"
    )
    lines = [f"<h1>{escape(result['name'])}</h1>", f'<p class="metadata">{escape(metadata)}</p>']
    lines.append(f'<p class="verdict">{escape(verdict(result))}</p>')
    if "left_out" in result:
        lines.append(f'<p class="missing">Omitted: {escape(result["left_out"])}.</p>')
    lines += [f'<p class="missing">Note: {escape(note)}.</p>' for note in result.get("notes", ())]
    if unreadable := result.get("unreadable"):
        example = f"{len(unreadable)} unreadable image{'s' * (len(unreadable) > 1)}, for example {unreadable[0]}"
        lines.append(f'<p class="missing">Skipped: {escape(example)}.</p>')
    return "\n".join(lines)


def score_section(result: dict[str, Any]) -> str:
    """Return the score tables: all scores, kNN by number of neighbors, and saccade retrieval."""
    titles = scored_rows(result)
    keys = [key for key in COLUMN_TITLES if any(key in result[name] for name in titles)]
    best = {key: max(result[name].get(key, 0) for name in titles) for key in keys if key not in ("rankme", "dimension")}
    rows = []
    for name, title in titles.items():
        scores, cells = result[name], []
        for key in keys:
            is_best = key in best and scores.get(key) == best[key]
            cells.append(html_cell(format_score(scores.get(key)), is_best, scores.get(f"{key}_error")))
        rows.append([title, *cells])
    tables = [html_table(["scores in percent", *(COLUMN_TITLES[key] for key in keys)], rows)]
    by_neighbors = {name: result[name]["knn_by_neighbours"] for name in titles if "knn_by_neighbours" in result[name]}
    if by_neighbors:
        counts = list(next(iter(by_neighbors.values())))
        rows = [
            [titles[name], *(html_cell(format_score(knn.get(k))) for k in counts)] for name, knn in by_neighbors.items()
        ]
        tables.append(html_table(["kNN by number of neighbors", *counts], rows))
    if retrieval := result.get("saccades"):
        rows = [
            [title, html_cell(f"{retrieval[name]['top1']:.1f}"), html_cell(f"{retrieval[name]['mrr']:.2f}")]
            for name, title in RETRIEVAL_TITLES.items()
        ]
        head = f"retrieval of the view after a saccade, among {retrieval['fixations']} views"
        tables.append(html_table([head, "top-1, %", "MRR"], rows))
    protocol = "; ".join(f"{name}: {description}" for name, description in result["protocol"].items())
    caption = f"The best score of each column is in bold. {protocol[0].upper()}{protocol[1:]}."
    return "\n".join(["<h2>Scores</h2>", *tables, f"<figcaption>{escape(caption)}</figcaption>"])


def html_cell(text: str, bold: bool = False, error: float | None = None) -> str:
    """Return a table cell, with an error in small print."""
    small = "" if error is None else f'<span class="error">± {error:.1f}</span>'
    return f"<td{' class=best' * bold}>{escape(text)}{small}</td>"


def html_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table. The first item of each row is a title; the other items are HTML cells."""
    head = "".join(f"<th>{escape(title)}</th>" for title in header)
    body = "\n".join(f"<tr><td>{escape(title)}</td>{''.join(cells)}</tr>" for title, *cells in rows)
    return f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'


def png(figure: Figure) -> bytes:
    """Return a figure as PNG bytes."""
    buffer = io.BytesIO()
    save(figure, buffer)
    return buffer.getvalue()


def html_image(data: bytes, title: str, caption: str, css_class: str = "figure") -> str:
    """Return an embedded PNG with its caption."""
    source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    image = f'<img class="{css_class}" alt="{escape(title)}" src="{source}">'
    return f'<figure><div class="wide">{image}</div><figcaption>{escape(caption)}</figcaption></figure>\n'


def reproduction(run: EvaluationRun, result: dict[str, Any]) -> str:
    """Return instructions to reproduce the run, with all settings."""
    code = f" --code {run.config.code.file}" if run.config.code else ""
    commands = f"jepa train --config config.json --run runs/again{code}\njepa evaluate runs/again{code}"
    config = json.dumps(to_dict(run.config), indent=2)
    return (
        "<h2>Reproduce this run</h2>\n<p>Save these settings as <code>config.json</code> (the run folder has a copy), "
        f"and use image-jepa {escape(result['version'])}:</p>\n<pre>{escape(commands)}</pre>\n"
        f"<pre>{escape(config)}</pre>"
    )
