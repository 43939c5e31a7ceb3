"""The score tables of a report."""

from __future__ import annotations

from html import escape
from typing import Any

from jepa.report.page import html_cell, html_details, html_list, html_table
from jepa.report.text import COLUMN_TITLES, RETRIEVAL_TITLES, format_score, prediction_text, scored_rows

__all__ = ["score_section"]

LABEL_FREE_TITLES = {
    "rankme": "RankMe",
    "lidar": "LiDAR",
    "alpha_req": "α-ReQ",
    "cluster_learnability": "cluster learnability",
    "intrinsic_dimension": "intrinsic dimension",
}
REGRESSION_TITLES = {"linear": "linear regression", "mlp": "MLP"}
POOLED_TITLES = {"": "averaged", "pca": "averaged, 128", "2x2": "2x2", "2x2_pca": "2x2, 128"}
POOLED_CAPTION = (
    "The same probes at equal pooling and width. 2x2: features averaged over each quadrant of the image and "
    "concatenated, reduced to 512 principal axes if there are more; 128: the first 128 principal axes. Raw pixels and "
    "their principal axes are not pooled."
)


def score_section(result: dict[str, Any]) -> str:
    """Return the score tables: the main ones, and further ones that fold out."""
    titles = scored_rows(result)
    tables = [main_table(result, titles)]
    if predictions := result.get("predictions"):
        tables.append(f"<p>{escape(prediction_text(predictions))}</p>")
    tables += saccade_tables(result.get("saccades", {}), titles)
    caption = "<figcaption>The best score of each column is in bold.</figcaption>"
    notes = html_list(result["protocol"], "notes", ": ")
    more = html_details("More scores, and how they are computed", "\n".join([*further_tables(result, titles), notes]))
    return "\n".join(["<h2>Scores</h2>", tables[0], caption, *tables[1:], more])


def main_table(result: dict[str, Any], titles: dict[str, str]) -> str:
    """Return the table of all scores; `titles` are those of its rows, by their names in `result`."""
    keys = [key for key in COLUMN_TITLES if any(key in result[name] for name in titles)]
    best = {key: max(result[name].get(key, 0) for name in titles) for key in keys if key not in ("rankme", "dimension")}
    rows = []
    for name, title in titles.items():
        scores, cells = result[name], []
        for key in keys:
            is_best = key in best and scores.get(key) == best[key]
            cells.append(html_cell(format_score(scores.get(key)), is_best, scores.get(f"{key}_error")))
        rows.append([title, *cells])
    return html_table(["scores in percent", *(COLUMN_TITLES[key] for key in keys)], rows)


def further_tables(result: dict[str, Any], titles: dict[str, str]) -> list[str]:
    """Return the tables at equal pooling and width, of measures without labels, and of kNN by number of neighbors."""
    tables = [
        pooled_table(result, titles, name)
        for name in ("linear", "knn")
        if any(f"{name}_pca" in result[row] for row in titles)
    ]
    if tables:
        tables.append(f"<figcaption>{escape(POOLED_CAPTION)}</figcaption>")
    measures = {key: title for key, title in LABEL_FREE_TITLES.items() if any(key in result[name] for name in titles)}
    if measures:
        rows = [
            [title, *(html_cell(f"{result[name][key]:.2f}" if key in result[name] else "–") for key in measures)]
            for name, title in titles.items()
            if any(key in result[name] for key in measures)
        ]
        tables.append(html_table(["measures without labels", *measures.values()], rows))
    by_neighbors = {name: result[name]["knn_by_neighbours"] for name in titles if "knn_by_neighbours" in result[name]}
    if by_neighbors:
        counts = list(next(iter(by_neighbors.values())))
        rows = [
            [titles[name], *(html_cell(format_score(knn.get(k))) for k in counts)] for name, knn in by_neighbors.items()
        ]
        tables.append(html_table(["kNN by number of neighbors", *counts], rows))
    return tables


def pooled_table(result: dict[str, Any], titles: dict[str, str], name: str) -> str:
    """Return the table of one classifier, `linear` or `knn`, at equal pooling and width."""
    rows = []
    for row, title in titles.items():
        scores, cells = result[row], []
        for view in POOLED_TITLES:
            key = f"{name}_{view}" if view else (f"{name}_mean" if f"{name}_mean" in scores else name)
            cells.append(html_cell(format_score(scores.get(key)), error=scores.get(f"{key}_error")))
        rows.append([title, *cells])
    return html_table([f"{COLUMN_TITLES[name]}, pooling and width", *POOLED_TITLES.values()], rows)


def saccade_tables(saccades: dict[str, Any], titles: dict[str, str]) -> list[str]:
    """Return the tables of saccade retrieval, R² of movements, and averaged fixations, those that there are."""
    tables = []
    if "same image" in saccades:
        rows = [
            [title, html_cell(f"{saccades[name]['top1']:.1f}"), html_cell(f"{saccades[name]['mrr']:.2f}")]
            for name, title in RETRIEVAL_TITLES.items()
        ]
        head = f"retrieval of the view after a saccade, among {saccades['fixations']} views"
        tables.append(html_table([head, "top-1, %", "MRR"], rows))
    if r2 := saccades.get("movement_r2"):
        components = list(next(iter(r2.values()))["linear"])
        rows = [
            [f"{titles[name]}, {REGRESSION_TITLES[kind]}", *(html_cell(f"{scores[key]:.2f}") for key in components)]
            for name, regressions in r2.items()
            for kind, scores in regressions.items()
        ]
        tables.append(html_table(["R² of the movement, from the features of two views", *components], rows))
    if accuracies := saccades.get("averaged_fixations"):
        counts = [key for key in next(iter(accuracies.values())) if not key.endswith("_error")]
        rows = [
            [titles[name], *(html_cell(format_score(scores[key]), error=scores[f"{key}_error"]) for key in counts)]
            for name, scores in accuracies.items()
        ]
        tables.append(html_table(["kNN of averaged fixations, by their number", *counts], rows))
    return tables
