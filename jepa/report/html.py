"""The report of an evaluated run: a self-contained, printable HTML page that needs no network access."""

from __future__ import annotations

import json
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

from tqdm import tqdm

from jepa.config import InputError
from jepa.config.serialization import to_dict
from jepa.evaluation_run import EvaluationRun
from jepa.files import printable
from jepa.logger import duration
from jepa.report.captions import INPUTS_TITLE, SECTIONS, caption_of, overview_caption
from jepa.report.figures import draw
from jepa.report.page import html_details, html_document, html_figure, html_image, html_list
from jepa.report.plot_attention import animate_attention
from jepa.report.plot_patches import animate_similarity
from jepa.report.provenance import changed_settings, describe_machine, describe_parameters
from jepa.report.score_tables import score_section
from jepa.report.text import head_sentence
from jepa.report.verdict import SAMPLE_NOTE, verdict
from jepa.terminal import say_stage

__all__ = ["verdict", "write_report"]

IMAGE_GRIDS = ("features", "similarity", "predictions", "neighbors")
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


def write_report(run: EvaluationRun, result: dict[str, Any]) -> Path:
    """Write report.html to the run folder from the result of `evaluate_run`, and return its path."""
    say_stage("report")
    run.start_projections()
    overview = draw("overview", run)
    first = html_figure(overview, "What the model sees", overview_caption(overview))
    sections = [heading(run, result), first, score_section(result), facts(run, result)]
    bodies = {}
    names = sorted(SECTIONS, key=lambda name: name == "umap")  # which takes longest, in another process
    for name in tqdm(names, desc="report", unit="figure", leave=False, delay=3, disable=None):
        title = SECTIONS[name][0]
        try:
            figure = draw(name, run)
            body = html_figure(figure, title, caption_of(name, run, figure), whole=name in IMAGE_GRIDS)
            if name in ANIMATIONS:
                animate, caption = ANIMATIONS[name]
                body += html_image(animate(run), "webp", f"animated {name}", caption)
        except InputError as error:
            if title == INPUTS_TITLE or name in ("predictions", "errors", "checkpoints"):  # of some runs only
                continue
            body = f'<p class="missing">Not available: {escape(str(error))}.</p>'
        bodies[name] = f"<h2>{title}</h2>\n{body}"
    sections += [bodies[name] for name in SECTIONS if name in bodies]
    sections.append(reproduction(run, result))
    text = html_document(f"{run.config.name}: evaluation", sections)
    path = run.output.path / "report.html"
    run.output.write_text(path.name, printable(text, keep="\n"))
    return path


def heading(run: EvaluationRun, result: dict[str, Any]) -> str:
    """Return the name of the run, the verdict and the warning, if there is one."""
    note = f" {SAMPLE_NOTE}" if result["data"]["source"] == "sample" else ""
    lines = [
        f"<h1>{escape(result['name'])}</h1>",
        f'<p class="verdict">{escape(verdict(result) + note)}</p>',
    ]
    if warning := result.get("warning"):
        lines.append(f'<p class="warning"><b>Warning:</b> {escape(warning)}</p>')
    return "\n".join(lines)


def facts(run: EvaluationRun, result: dict[str, Any]) -> str:
    """Return how the run was trained and evaluated, and what was left out."""
    data, config = result["data"], run.config
    trained = f"step {result['step']:,} of {result['steps']:,}, {duration(result['train_seconds'])}"
    found = {
        "model": f"objective {config.objective.kind}, backbone {config.backbone.kind}; {describe_parameters(run)}",
        "training": f"imported from {result['origin']}" if "origin" in result else trained,
        "scores": f"on {data['source']}: fitted on {data['train']:,} images, scored on {data['test']:,} images "
        f"({data['split']})",
        "evaluated": f"{datetime.now():%Y-%m-%d %H:%M}, in {duration(result['evaluation_seconds'])}, on "
        f"{describe_machine(run.device)}",
    }
    if "head" in result:
        found["head"] = head_sentence(result["head"])
    rows = "".join(f"<dt>{name}</dt><dd>{escape(text)}</dd>" for name, text in found.items())
    lines = [f'<dl class="facts">{rows}</dl>']
    if "left_out" in result:
        lines.append(f'<p class="missing">Omitted: {escape(result["left_out"])}.</p>')
    lines += [f'<p class="missing">Note: {escape(note)}.</p>' for note in result.get("notes", ())]
    if unreadable := result.get("unreadable"):
        example = f"{len(unreadable)} unreadable image{'s' * (len(unreadable) > 1)}, for example {unreadable[0]}"
        lines.append(f'<p class="missing">Skipped: {escape(example)}.</p>')
    return "\n".join(lines)


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
        f"{html_details('All settings (config.json)', f'<pre>{escape(config)}</pre>')}"
    )


def setting_text(value: Any) -> str:
    """Return the value of a setting as it is written on the command line, with numbers of at most four digits."""
    if isinstance(value, tuple | list):
        return " ".join(map(setting_text, value))
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)
