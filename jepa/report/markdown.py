"""Scores as Markdown, for model cards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jepa.report.text import COLUMN_TITLES, format_score, scored_rows

__all__ = ["scores_as_markdown"]


def scores_as_markdown(result: dict[str, Any]) -> str:
    """Return the scores in evaluation.json as a table, and how they were computed.

    The folder of the images is left out.
    """
    titles, data = scored_rows(result), result["data"]
    keys = [key for key in COLUMN_TITLES if any(key in result[name] for name in titles)]
    rows = [["scores in percent", *(COLUMN_TITLES[key] for key in keys)], ["---"] * (len(keys) + 1)]
    for name, title in titles.items():
        scores = result[name]
        rows.append([title, *(format_score(scores.get(key), scores.get(f"{key}_error")) for key in keys)])
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
    source = data["source"] if data["source"].startswith("hf:") else Path(data["source"]).name
    about = (
        f"Step {result['step']:,}; `{source}`: fitted on {data['train']:,} images, scored on {data['test']:,} "
        f"({data['split']})."
    )
    protocol = "\n".join(f"- {name}: {text}" for name, text in result["protocol"].items())
    return f"{about}\n\n{table}\n\n{protocol}"
