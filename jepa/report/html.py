"""The report of an evaluated run: a self-contained, printable HTML page that needs no network access."""

from __future__ import annotations

import json
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from tqdm import tqdm

from jepa.config import InputError
from jepa.config.serialization import to_dict
from jepa.evaluation_run import EvaluationRun
from jepa.files import printable
from jepa.logger import duration
from jepa.report.figures import draw
from jepa.report.page import html_cell, html_document, html_figure, html_image, html_list, html_table
from jepa.report.plot_attention import animate_attention
from jepa.report.plot_patches import animate_similarity
from jepa.report.provenance import changed_settings, describe_machine, describe_parameters
from jepa.report.text import COLUMN_TITLES, RETRIEVAL_TITLES, format_score, prediction_text, scored_rows
from jepa.report.verdict import SAMPLE_NOTE, verdict
from jepa.terminal import say_stage

__all__ = ["verdict", "write_report"]

INPUTS_TITLE = "The model's inputs"
IMAGE_GRIDS = ("features", "similarity", "predictions", "neighbors")
VIEWS_CAPTION = (
    "The predictor is given the features of a view and a movement, and predicts the features of the view after it. A "
    "linear decoder, fitted to features of views of training images, turns features into pixels. The decoded truth "
    "shows how much of the pixels the features contain at all. R² is 1 if all pixels are right and 0 if each is the "
    "average. On the right is the one of 32 views of the same image whose features are closest to the predicted ones."
)
PIXELS_CAPTION = (
    "The model is given the visible patches and predicts the pixels of the others. R² is 1 if all of their pixels are "
    "right, and 0 if each is {reference}."
)
NORMALIZED_CAPTION = (
    " The model predicts pixels relative to the mean and standard deviation of their patch, which it does not know: "
    "the picture takes them from the image, so the average color of a patch is never wrong. What the model adds is the "
    "difference between the third picture and the fourth."
)
CONVOLUTIONS_CAPTION = (
    " A small convolutional network, fitted likewise, decodes all hidden patches of an image together."
)
OVERVIEW_CAPTION = (
    "Test images as the trained model sees them: patches with similar features have similar colors; attention of the "
    "central patch (red: more than uniform attention, blue: less); and, for a model that predicts hidden patches, the "
    "context that it is given and its prediction as pixels."
)
SECTIONS = {
    "features": (
        "Features of patches",
        "The first three principal axes of the features of all patches as red, green and blue, on common axes for all "
        "images of a row. Parts of objects that have the same color in different images are alike to the model. An "
        "untrained model mostly shows positions and brightness. Colors of different rows cannot be compared.",
    ),
    "similarity": (
        "Similarity of patches",
        "Cosine similarity of the outlined patch to all patches of its image and of the images with the most similar "
        "patch (red: similar, blue: dissimilar). The average feature of all patches is subtracted first.",
    ),
    "predictions": (
        "What the model predicts",
        "The predictor is given the context and predicts the features of hidden patches. A linear decoder, fitted to "
        "features of training images, turns features into pixels. The decoded truth shows how much of the pixels the "
        "features contain at all, and is what to compare the prediction with. R² is 1 if all pixels are right and 0 "
        "if each is the average. Where several contents are possible, the prediction is their blurred average. The "
        "nearest patches need no decoder: their features are the closest to the predicted ones among test images.",
    ),
    "errors": (
        "Errors of the predictions",
        "Squared errors of the predicted features, divided by the variance of the features: predicting the average "
        "feature would have an error of 1. Below are the images with the smallest and the largest errors.",
    ),
    "neighbors": (
        "Nearest training images",
        "Test images, those that their 20 nearest neighbors classify wrongly first (class → class of the neighbors), "
        "or, without labels, the most isolated ones first; and their nearest training images by the features of the "
        "model and by pixels. Blue frames: the same class; red frames: another one. This is not a random sample.",
    ),
    "classes": (
        "Classes",
        "Above, the accuracy of each class, by decreasing accuracy of the linear probe on trained features; lines are "
        "standard errors for the number of test images of the class. Below, the classes that this probe predicts for "
        "the images of each class: the matrix of all classes, or, of more than 50 classes, the most frequent errors.",
    ),
    "curves": (
        "Training curves",
        "The losses and the online evaluation during training. A falling loss does not imply that the model learns: "
        "collapsed targets are easy to predict. Online kNN is the accuracy on held-out training images. "
        "The band is its standard error for this number of images: changes within it may be due to chance. RankMe is "
        "the effective rank of the features.",
    ),
    "checkpoints": (
        "Checkpoints",
        "The linear probe of each kept checkpoint (step 0 is the untrained encoder) against measures that need no "
        "labels. A ring marks the checkpoint that a measure would choose: that with the highest value, for α-ReQ that "
        "nearest to 1 (dotted). ρ is Spearman's rank correlation: 1 if the measure ranks checkpoints as the probe "
        "does. CLID adds cluster learnability and intrinsic dimension, standardized over these checkpoints.",
    ),
    "umap": (
        "Feature space",
        "",  # see projection_caption
    ),
    "attention": (
        "Attention",
        "Attention of the outlined patch to all patches, averaged over heads, divided by uniform attention: red "
        "patches get more, blue patches less, and gray ones as much as if the model attended to all patches equally. "
        "Rollout combines all layers (for an Energy Transformer, all steps). Normalized entropy is 1 if a patch "
        "attends to all patches equally, and 0 if it attends to a single patch.",
    ),
    "dimension": (
        "Correlation dimension",
        "C(r) is the fraction of image pairs closer than r; its scaling region is shaded. Boundaries and curvature "
        "lower the local slope as r grows, so a line in r² is fitted to the filled points. Its intercept at r = 0 is "
        "the dimension.",
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
        "model has a predictor, the lower plots show its squared error divided by the variance of the embeddings, and "
        "how often its prediction is closest to the correct one of several views of the same image. The last plots "
        "show R² of the movement, regressed from the features of both views, and the accuracy of kNN for averages of "
        "the features of several fixations, with its standard error.",
    ),
}
LABEL_FREE_TITLES = {
    "rankme": "RankMe",
    "lidar": "LiDAR",
    "alpha_req": "α-ReQ",
    "cluster_learnability": "cluster learnability",
    "intrinsic_dimension": "intrinsic dimension",
}
REGRESSION_TITLES = {"linear": "linear regression", "mlp": "MLP"}
ANIMATIONS = {
    "attention": (
        animate_attention,
        "The outlined patch moves over the images. Below is its attention in the last layer, averaged over heads, in "
        "the same colors.",
    ),
    "similarity": (
        animate_similarity,
        "The outlined patch moves over the images. Below is its similarity to all patches of the same image.",
    ),
}
PROJECTIONS = {
    "UMAP": "The projection is UMAP with a fixed seed; distances between clusters mean little.",
    "PCA": "The projection is PCA: the two principal axes of the features. UMAP needs more images.",
}


def write_report(run: EvaluationRun, result: dict[str, Any]) -> Path:
    """Write report.html to the run folder from the result of `evaluate_run`, and return its path."""
    say_stage("report")
    first = html_figure(draw("overview", run), "What the model sees", OVERVIEW_CAPTION)
    sections = [heading(run, result), first, score_section(result)]
    for name in tqdm(SECTIONS, desc="report", unit="figure", leave=False, delay=3, disable=None):
        title, caption = SECTIONS[name]
        try:
            figure = draw(name, run)
            if name == "umap":
                caption = projection_caption(figure)
            elif name == "neighbors":
                caption += f" {run.near_duplicates}."
            elif name == "predictions":
                caption = predictions_caption(run)
            body = html_figure(figure, title, caption, whole=name in IMAGE_GRIDS)
            if name in ANIMATIONS:
                animate, caption = ANIMATIONS[name]
                body += html_image(animate(run), "webp", f"animated {name}", caption)
        except InputError as error:
            if title == INPUTS_TITLE or name in ("predictions", "errors", "checkpoints"):  # of some runs only
                continue
            body = f'<p class="missing">Not available: {escape(str(error))}.</p>'
        sections.append(f"<h2>{title}</h2>\n{body}")
    sections.append(reproduction(run, result))
    text = html_document(f"{run.config.name}: evaluation", sections)
    path = run.output.path / "report.html"
    run.output.write_text(path.name, printable(text, keep="\n"))
    return path


def heading(run: EvaluationRun, result: dict[str, Any]) -> str:
    """Return the name of the run, the verdict, and how the run was trained and evaluated."""
    data, config = result["data"], run.config
    note = f" {SAMPLE_NOTE}" if data["source"] == "sample" else ""
    lines = [
        f"<h1>{escape(result['name'])}</h1>",
        f'<p class="verdict">{escape(verdict(result) + note)}</p>',
    ]
    if warning := result.get("warning"):
        lines.append(f'<p class="warning"><b>Warning:</b> {escape(warning)}</p>')
    facts = {
        "model": f"objective {config.objective.kind}, backbone {config.backbone.kind}; {describe_parameters(run)}",
        "training": f"step {result['step']:,} of {result['steps']:,}, {duration(result['train_seconds'])}",
        "scores": f"on {data['source']}: fitted on {data['train']:,} images, scored on {data['test']:,} images "
        f"({data['split']})",
        "evaluated": f"{datetime.now():%Y-%m-%d %H:%M}, in {duration(result['evaluation_seconds'])}, on "
        f"{describe_machine(run.device)}",
    }
    rows = "".join(f"<dt>{name}</dt><dd>{escape(text)}</dd>" for name, text in facts.items())
    lines.append(f'<dl class="facts">{rows}</dl>')
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
    measures = {key: title for key, title in LABEL_FREE_TITLES.items() if any(key in result[name] for name in titles)}
    if measures:
        rows = [
            [title, *(html_cell(format_score(result[name].get(key))) for key in measures)]
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
    if predictions := result.get("predictions"):
        tables.append(f"<p>{escape(prediction_text(predictions))}</p>")
    tables += saccade_tables(result.get("saccades", {}), titles)
    caption = "<figcaption>The best score of each column is in bold.</figcaption>"
    return "\n".join(["<h2>Scores</h2>", *tables, caption, html_list(result["protocol"], "notes", ": ")])


def predictions_caption(run: EvaluationRun) -> str:
    """Return the caption of the figure 'predictions'."""
    if run.view_predictions:
        return VIEWS_CAPTION
    if pixels := run.pixel_predictions:
        caption = PIXELS_CAPTION.format(reference=pixels.scores()["reference"])
        return caption + NORMALIZED_CAPTION * pixels.normalized
    caption = SECTIONS["predictions"][1]
    return caption + CONVOLUTIONS_CAPTION if run.patch_predictions and run.patch_predictions.convolutional else caption


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


def projection_caption(figure: Figure) -> str:
    """Return the caption of the figure 'umap', whose titles begin with the methods that were used."""
    methods = dict.fromkeys(axes.get_title("left").partition(":")[0] for axes in figure.axes)
    start = "Up to 5,000 test images; images with similar features are close to each other."
    return " ".join([start, *(PROJECTIONS[method] for method in methods)])


def reproduction(run: EvaluationRun, result: dict[str, Any]) -> str:
    """Return instructions to reproduce the run, with its settings."""
    code = f" --code {run.config.code.file}" if run.config.code else ""
    commands = f"jepa train --config config.json --run runs/again{code}\njepa evaluate runs/again{code}"
    changed = {name: setting_text(value) for name, value in changed_settings(run.config).items()}
    config = json.dumps(to_dict(run.config), indent=2)
    return (
        "<h2>Settings</h2>\n<p>Settings that differ from the defaults:</p>\n"
        f"{html_list(changed, 'settings')}\n"
        f"<p>To reproduce the run, use <code>config.json</code> of the run folder and image-jepa "
        f"{escape(result['version'])}:</p>\n<pre>{escape(commands)}</pre>\n"
        f"<details><summary>All settings (config.json)</summary><pre>{escape(config)}</pre></details>"
    )


def setting_text(value: Any) -> str:
    """Return the value of a setting as it is written on the command line, with numbers of at most four digits."""
    if isinstance(value, tuple | list):
        return " ".join(map(setting_text, value))
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)
