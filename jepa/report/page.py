"""Parts of the report page: its style sheet, tables, lists and figures."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

from matplotlib.figure import Figure
from PIL import Image

from jepa.report.panels import cut_into_panels, draw_whole
from jepa.report.style import WIDTH

__all__ = ["html_cell", "html_details", "html_document", "html_figure", "html_image", "html_list", "html_table"]

PAGE_WIDTH = 46  # width of the text in rem, which a figure of `WIDTH` inches fills
MIN_GROWING_WIDTH = 10  # in rem; narrower panels, such as single images, are not enlarged on a narrow screen
STYLE = """
:root { color: #222; background: #fff; font: 16px/1.5 system-ui, sans-serif }
body { max-width: 46rem; margin: 2rem auto; padding: 0 1rem; overflow-wrap: break-word }
h1 { line-height: 1.2; margin-bottom: 0.2rem } h2 { margin: 2.2rem 0 0.4rem; font-size: 1.2rem }
figcaption, .missing, .notes { color: #555; font-size: 0.9rem }
.verdict { font-size: 1.1rem; border-left: 4px solid #0072b2; padding: 0.2rem 0 0.2rem 0.8rem; margin: 1.2rem 0 }
.warning { border-left: 4px solid #d55e00; background: #fdf1ea; padding: 0.5rem 0.8rem; margin: 1.2rem 0 }
.facts { display: grid; grid-template-columns: max-content 1fr; gap: 0.1rem 1rem; font-size: 0.9rem }
.facts dt { color: #777 } .facts dd { margin: 0; min-width: 0 }
.settings { columns: 20rem; padding: 0; list-style: none; font-size: 0.85rem }
.settings b { font-weight: normal; color: #777 }
.notes { padding-left: 1.1rem } .notes b { color: #333 }
.wide { overflow-x: auto }
table { border-collapse: collapse; width: 100%; margin-bottom: 1rem }
table { font-size: 0.9rem; font-variant-numeric: tabular-nums }
th, td { padding: 0.25rem 0.45rem; text-align: right; border-bottom: 1px solid #ddd }
td { white-space: nowrap; vertical-align: top }
.error { display: block; font-size: 0.75rem; font-weight: normal; color: #777; line-height: 1 }
thead th { vertical-align: bottom }
th:first-child, td:first-child { text-align: left; padding-left: 0; position: sticky; left: 0; background: #fff }
.best { font-weight: 700 }
figure { margin: 0.5rem 0 } figure > img { width: 100%; height: auto; display: block }
.panels { display: flex; flex-wrap: wrap; align-items: flex-start; max-width: calc(var(--width) * 1rem) }
.panels img { flex: var(--width) 1 calc(var(--width) * 0.8rem); min-width: 0; height: auto }
.panels img { max-width: min(100%, calc(var(--width) * 1.3rem)) }
pre { background: #f5f5f5; padding: 0.7rem; font-size: 0.8rem; white-space: pre-wrap; overflow-wrap: anywhere }
summary { cursor: pointer }
@media screen and (max-width: 40rem) {
  .wide:has(table)::before { content: "scroll sideways →"; color: #777; font-size: 12px }
  table { font-size: 0.8rem } td:first-child { white-space: normal; min-width: 6.5rem } .panels .small { flex-grow: 0 }
  .facts { display: block } .facts dd { margin-bottom: 0.4rem }
}
@media screen and (prefers-color-scheme: dark) {
  :root { color: #ddd; background: #181a1c; color-scheme: dark }
  figcaption, .missing, .notes { color: #aaa } .notes b { color: #ccc }
  .facts dt, .settings b, .error, .wide:has(table)::before { color: #999 }
  .verdict { border-color: #56b4e9 } .warning { border-color: #e8894a; background: #38261b }
  th, td { border-color: #3a3d40 } th:first-child, td:first-child { background: #181a1c } pre { background: #24272a }
  .card, figure > img { box-sizing: border-box; background: #fff; padding: 0.6rem; border-radius: 0.5rem }
  figcaption { margin-top: 0.4rem }
  .card, figure > img { filter: brightness(0.92) }
}
@media print {
  :root { font-size: 11pt } body { max-width: none; margin: 0 }
  figure, table, h2, .verdict { break-inside: avoid } h2 { break-after: avoid }
  .wide { overflow: visible } details:has(> pre), summary { display: none }
  details::details-content { content-visibility: visible; height: auto }
  table { font-size: 8pt } th, td { padding: 0.2rem 0.25rem }
}
"""


def html_document(title: str, sections: Sequence[str], style: str = "") -> str:
    """Return the page; `style` is added to its style sheet."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{escape(title)}</title>\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{STYLE}{style}</style>\n</head>\n"
        "<body>\n" + "\n".join(sections) + "\n</body>\n</html>\n"
    )


def html_cell(text: str, bold: bool = False, error: float | None = None) -> str:
    """Return a table cell, with an error in small print."""
    small = "" if error is None else f'<span class="error">± {error:.1f}</span>'
    return f"<td{' class=best' * bold}>{escape(text)}{small}</td>"


def html_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table. The first item of each row is a title; the other items are HTML cells."""
    head = "".join(f"<th>{escape(title)}</th>" for title in header)
    body = "\n".join(f"<tr><td>{escape(title)}</td>{''.join(cells)}</tr>" for title, *cells in rows)
    return f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'


def html_details(summary: str, body: str) -> str:
    """Return HTML that folds out below a line of text. It is printed, too, except for a `<pre>`."""
    return f"<details><summary>{escape(summary)}</summary>\n{body}\n</details>"


def html_list(items: dict[str, str], css_class: str, separator: str = " ") -> str:
    """Return a list of names and their descriptions."""
    lines = (f"<li><b>{escape(name)}</b>{separator}{escape(text)}</li>" for name, text in items.items())
    return f'<ul class="{css_class}">\n' + "\n".join(lines) + "\n</ul>"


def html_figure(figure: Figure, title: str, caption: str, whole: bool = False) -> str:
    """Return a figure with its caption.

    Its panels are images of their own, which wrap on a narrow screen, unless it is `whole`, as grids of images are,
    whose rows belong together.
    """
    rows = []
    for panels in [[draw_whole(figure)]] if whole else cut_into_panels(figure):
        widths = [PAGE_WIDTH * panel.width / (WIDTH * figure.dpi) for panel in panels]
        images = "".join(html_panel(panel, width, title) for panel, width in zip(panels, widths, strict=True))
        rows.append(f'<div class="panels" style="--width:{sum(widths):.2f}">{images}</div>')
    return f"<figure><div class='card'>{''.join(rows)}</div><figcaption>{escape(caption)}</figcaption></figure>\n"


def html_panel(panel: Image.Image, width: float, title: str) -> str:
    """Return a panel as an embedded PNG, `width` rem wide on a wide screen."""
    buffer = io.BytesIO()
    panel.save(buffer, "PNG", optimize=True)
    small = ' class="small"' * (width < MIN_GROWING_WIDTH)
    source = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return f'<img{small} style="--width:{width:.2f}" alt="{escape(title)}" src="{source}">'


def html_image(data: bytes, kind: str, title: str, caption: str) -> str:
    """Return an embedded image of a kind such as webp, as wide as the page, with its caption."""
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return f'<figure><img alt="{escape(title)}" src="{source}"><figcaption>{escape(caption)}</figcaption></figure>\n'
