"""Search a source for the images nearest to given ones."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

import torch

from jepa.config import InputError
from jepa.data import ImageDataset
from jepa.embeddings.neighbors import Neighbors
from jepa.embeddings.page import check_output, html_card, html_grid, write_page
from jepa.embeddings.source import Image, SourceImages
from jepa.embeddings.store import FeatureShards, cached_features

__all__ = ["names_of", "search_source", "skipped_text"]


class Found(NamedTuple):
    """The images nearest to a query, the nearest first."""

    query: Path
    images: list[Image]
    similarities: list[float]


def search_source(
    model: Path,
    source: str,
    queries: Sequence[Path],
    *,
    count: int,
    split: str | None,
    max_broken: float | None,
    html: Path | None,
) -> str:
    """Return the `count` images of a source nearest to each query as text, and write them to the page `html`.

    Queries are image files and .txt files of their paths. Raises `InputError` if any of them cannot be read.
    """
    check_output("--html", html, ".html")
    files = read_queries(queries)
    images = SourceImages.open(model, source, split, max_broken)
    x, dataset = images.encode_files(files)
    shards = cached_features(images)
    neighbors = Neighbors(shards)
    count = min(count, len(shards))
    similarities, rows = neighbors.nearest(x, count)
    found = [
        Found(file, shards.locate(positions), values)
        for file, positions, values in zip(files, rows.tolist(), similarities.tolist(), strict=True)
    ]
    about = f"nearest {count} of {len(shards):,} images of {images.name}, {neighbors.how}"
    lines = [about, *(line for one in found for line in ["", str(one.query), *to_lines(images, one)])]
    lines += skipped_text(shards)
    if html is not None:
        write_search_page(html, about, images, found, dataset)
        lines += ["", f"page: {html}"]
    return "\n".join(lines)


def skipped_text(shards: FeatureShards) -> list[str]:
    """Return the number of unreadable images and an example in words, on lines of their own, if there are any."""
    unreadable = shards.unreadable()
    count = f"{len(unreadable):,} unreadable image{'s' * (len(unreadable) > 1)}"
    return ["", f"skipped: {count}, for example {unreadable[0]}"] if unreadable else []


def read_queries(queries: Sequence[Path]) -> list[Path]:
    """Return image files, with each .txt file replaced by the paths in it, which are relative to its folder.

    Raises `InputError` if a .txt file cannot be read or has no paths.
    """
    files: list[Path] = []
    for query in queries:
        if query.suffix.lower() != ".txt":
            files.append(query)
            continue
        try:
            text = query.read_text(encoding="utf-8", errors="surrogateescape")
        except OSError as error:
            raise InputError(f"the list of queries {query} cannot be read: {error.strerror}") from error
        paths = [line.strip() for line in text.splitlines() if line.strip()]
        if not paths:
            raise InputError(f"the list of queries {query} is empty; write the path of an image in each line")
        files += [query.parent / Path(path).expanduser() for path in paths]
    return files


def to_lines(images: SourceImages, found: Found) -> list[str]:
    """Return a line for each image: rank, similarity, split and label if there are several, and path."""
    columns = [
        [f"{rank:>{len(str(len(found.images)))}}" for rank in range(1, len(found.images) + 1)],
        [f"{value:6.3f}" for value in found.similarities],
    ]
    if len(images.splits) > 1:
        columns.append(padded([image.split for image in found.images]))
    if images.has_classes:
        columns.append(padded([images.label(image) or "-" for image in found.images]))
    columns.append([images.path(image) for image in found.images])
    return ["  " + "  ".join(cells) for cells in zip(*columns, strict=True)]


def padded(texts: list[str]) -> list[str]:
    """Return texts of one width."""
    return [text.ljust(max(map(len, texts))) for text in texts]


def write_search_page(
    file: Path, about: str, images: SourceImages, found: Sequence[Found], queries: ImageDataset
) -> None:
    """Write a page with the thumbnails of each query and its nearest images."""
    sections = [f'<p class="verdict">{escape(about)}</p>']
    for number, one in enumerate(found):
        pixels = queries.read(torch.tensor([number])).pixels[0]
        cards = [html_card(pixels, ["query", one.query.name], is_query=True)]
        for image, value in zip(one.images, one.similarities, strict=True):
            cards.append(html_card(images.pixels(image), [f"{value:.3f}", *names_of(images, image)]))
        sections.append(f"<h2>{escape(str(one.query))}</h2>\n{html_grid(cards)}")
    write_page(file, f"Search in {images.name}", sections)


def names_of(images: SourceImages, image: Image) -> list[str]:
    """Return the label, the split and the path of an image, as far as they tell images apart."""
    label = images.label(image)
    return [*([label] if label else []), *([image.split] if len(images.splits) > 1 else []), images.path(image)]
