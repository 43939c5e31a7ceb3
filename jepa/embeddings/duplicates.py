"""Find near-duplicates in a source: candidates by their features, which are then compared by their pixels."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from jepa.embeddings.neighbors import Neighbors
from jepa.embeddings.page import check_output, html_card, html_grid, write_page
from jepa.embeddings.search import names_of, skipped_text
from jepa.embeddings.source import Image, SourceImages
from jepa.embeddings.store import FeatureShards, cached_features
from jepa.evaluation.knn import largest
from jepa.evaluation.near_duplicates import NUM_OTHERS, SIDE, is_exceptional, is_near_duplicate, layout
from jepa.files import atomic_write
from jepa.transforms.crop import as_float, resize

__all__ = ["CANDIDATES", "Pair", "duplicates_of", "find_pairs", "group_pairs"]

CANDIDATES = 3  # nearest images of each image that are compared with it
QUERIES = 8000  # features that are compared with all others at a time
COMPARED = 500  # pairs whose pixels are compared at a time
MAX_PRINTED_GROUPS, MAX_PRINTED_IMAGES = 10, 6  # in the terminal; the page and the table have more
MAX_SHOWN_GROUPS, MAX_SHOWN_IMAGES = 200, 24  # on the page


class Pair(NamedTuple):
    """Two images that are near-duplicates, in the order of the source."""

    first: Image
    second: Image
    similarity: float

    @property
    def is_leak(self) -> bool:
        """Whether the images are of different splits."""
        return self.first.split != self.second.split


def duplicates_of(
    model: Path,
    source: str,
    *,
    threshold: float,
    pixels: bool,
    split: str | None,
    max_broken: float | None,
    table: Path | None,
    html: Path | None,
) -> str:
    """Return the groups of near-duplicates of a source as text; write all pairs to `table`, and a page to `html`."""
    check_output("--csv", table, ".csv")
    check_output("--html", html, ".html")
    images = SourceImages.open(model, source, split, max_broken)
    shards = cached_features(images)
    pairs = find_pairs(shards, threshold, pixels)
    groups = group_pairs(pairs)
    about = describe(images, shards, pairs, groups, pixels)
    lines = [about, *leak_lines(pairs)]
    for group in groups[:MAX_PRINTED_GROUPS]:
        lines += ["", *group_lines(images, group)]
    if len(groups) > MAX_PRINTED_GROUPS:
        lines += ["", f"… {len(groups) - MAX_PRINTED_GROUPS:,} more groups (--csv lists all pairs, --html shows them)"]
    lines += skipped_text(shards)
    if table is not None:
        write_table(table, images, pairs)
        lines += ["", f"pairs: {table}"]
    if html is not None:
        write_duplicates_page(html, about, images, groups, leak_lines(pairs))
        lines += ["", f"page: {html}"]
    return "\n".join(lines)


def find_pairs(shards: FeatureShards, threshold: float, pixels: bool = True) -> list[Pair]:
    """Return all pairs of near-duplicates, the most similar first.

    Candidates are the three images nearest to each image, if the cosine of their centered features is at least
    `threshold`. With `pixels`, only those are kept whose layouts are more similar than those of different objects of
    one shape (`is_exceptional`), and that are the same up to compression, interpolation and brightness
    (`is_near_duplicate`). Of few images, whose features have no meaningful center, all pairs are compared, and the
    features are not centered.
    """
    is_few = pixels and len(shards) <= NUM_OTHERS
    rows, similarities = all_pairs(shards) if is_few else candidates(shards, threshold)
    if pixels and not is_few:
        chosen = exceptional_layouts(shards, rows)
        rows, similarities = rows[chosen], [similarities[number] for number in chosen.nonzero().flatten().tolist()]
    first, second = shards.locate(rows[:, 0].tolist()), shards.locate(rows[:, 1].tolist())
    pairs = [Pair(*values) for values in zip(first, second, similarities, strict=True)]
    if pixels:
        pairs = [pair for pair, is_same in zip(pairs, same_pixels(shards.images, pairs), strict=True) if is_same]
    return sorted(pairs, key=lambda pair: -pair.similarity)


def all_pairs(shards: FeatureShards) -> tuple[Tensor, list[float]]:
    """Return the rows (P, 2) of all pairs of few images, and the cosines of their features."""
    unit = F.normalize(torch.cat([block.x for block in shards.blocks()]), dim=1)
    rows = torch.combinations(torch.arange(len(unit)))
    return rows, (unit[rows[:, 0]] * unit[rows[:, 1]]).sum(1).clamp(max=1).tolist()


def candidates(shards: FeatureShards, threshold: float) -> tuple[Tensor, list[float]]:
    """Return the rows (P, 2) of candidates, each pair once, and their similarities."""
    neighbors = Neighbors(shards)
    found: dict[tuple[int, int], float] = {}
    start = 0
    with tqdm(desc="comparing features", total=len(shards), unit=" images", delay=2, leave=False, disable=None) as bar:
        for x in large_blocks(shards):
            values, rows = neighbors.nearest(x, min(CANDIDATES + 1, len(shards)))
            own = torch.arange(start, start + len(x))[:, None].expand_as(rows)
            chosen = (values >= threshold) & (rows != own) & (rows >= 0)  # faiss returns -1 if it finds no more
            both = torch.stack([own, rows], -1)[chosen].sort(1).values
            found |= zip(map(tuple, both.tolist()), values[chosen].clamp(max=1).tolist(), strict=True)
            start += len(x)
            bar.update(len(x))
    order = sorted(found)
    return torch.tensor(order, dtype=torch.long).reshape(-1, 2), [found[pair] for pair in order]


def large_blocks(shards: FeatureShards) -> Iterator[Tensor]:
    """Yield all features in blocks of at least 8,000, except the last."""
    held: list[Tensor] = []
    for block in shards.blocks():
        held.append(block.x)
        if sum(map(len, held)) >= QUERIES:
            yield torch.cat(held)
            held = []
    if held:
        yield torch.cat(held)


def exceptional_layouts(shards: FeatureShards, rows: Tensor) -> Tensor:
    """Return whether the layouts of each pair of rows (P, 2) are exceptionally similar, (P,); see `is_exceptional`.

    They have to be for both images.
    """
    unit = layouts_of(shards)
    others = torch.empty(len(unit))
    for chunk in rows.unique().split(COMPARED):
        others[chunk] = largest(unit[chunk] @ unit.T, NUM_OTHERS + 1)[0][:, -1]  # the first is the image itself
    return is_exceptional((unit[rows[:, 0]] * unit[rows[:, 1]]).sum(1), others[rows].amax(1))


def layouts_of(shards: FeatureShards) -> Tensor:
    """Return the layouts (N, 64) of all readable images, of length 1."""
    images = shards.images
    found = []
    with tqdm(desc="comparing layouts", total=len(shards), unit=" images", delay=2, leave=False, disable=None) as bar:
        for block in shards.blocks():
            for pixels in images.read_ahead(block.split, block.indices):
                small = resize(as_float(pixels), (SIDE, SIDE))
                found.append(F.normalize(layout(small), dim=1))
                bar.update(len(pixels))
    return torch.cat(found)


def same_pixels(images: SourceImages, pairs: Sequence[Pair]) -> list[bool]:
    """Return whether the pixels of each pair are the same, as far as `is_near_duplicate` tells."""
    result: list[bool] = []
    for start in tqdm(
        range(0, len(pairs), COMPARED), desc="comparing pixels", unit="batch", delay=2, leave=False, disable=None
    ):
        chunk = pairs[start : start + COMPARED]
        both = [images.read([pair.first for pair in chunk]), images.read([pair.second for pair in chunk])]
        result += is_near_duplicate(*(resize(as_float(pixels), (SIDE, SIDE)) for pixels in both)).tolist()
    return result


def group_pairs(pairs: Sequence[Pair]) -> list[list[Pair]]:
    """Return the pairs of each group of images that are connected by pairs, the group of most images first."""
    parent: dict[Image, Image] = {}

    def root(image: Image) -> Image:
        while (above := parent.setdefault(image, image)) != image:
            parent[image] = parent[above]
            image = parent[image]
        return image

    for pair in pairs:
        parent[root(pair.second)] = root(pair.first)
    groups: dict[Image, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(root(pair.first), []).append(pair)
    return sorted(groups.values(), key=lambda group: len(members(group)), reverse=True)


def members(group: Sequence[Pair]) -> dict[Image, float]:
    """Return the images of a group, each with the similarity to the one in the group that is most similar."""
    best: dict[Image, float] = {}
    for pair in group:
        for image in (pair.first, pair.second):
            best[image] = max(best.get(image, -1.0), pair.similarity)
    return best


def describe(
    images: SourceImages, shards: FeatureShards, pairs: Sequence[Pair], groups: Sequence[Sequence[Pair]], pixels: bool
) -> str:
    """Return how many near-duplicates there are, in a sentence."""
    count = sum(len(members(group)) for group in groups)
    how = "features and pixels" if pixels else "features alone"
    if not pairs:
        return f"no near-duplicates among {len(shards):,} images of {images.name} (by {how})"
    return (
        f"{len(groups):,} group{'s' * (len(groups) > 1)} of near-duplicates ({count:,} images, {len(pairs):,} "
        f"pair{'s' * (len(pairs) > 1)}) among {len(shards):,} images of {images.name} (by {how})"
    )


def leak_lines(pairs: Sequence[Pair]) -> list[str]:
    """Return the number of pairs of each two splits."""
    counts = Counter((pair.first.split, pair.second.split) for pair in pairs if pair.is_leak)
    return [
        f"leaks: {count:,} pair{'s' * (count > 1)} across {one} and {other}" for (one, other), count in counts.items()
    ]


def group_lines(images: SourceImages, group: Sequence[Pair]) -> list[str]:
    """Return a line for each image of a group: similarity, split, label and path."""
    found = members(group)
    lines = [f"{len(found)} images"]
    for image, value in list(found.items())[:MAX_PRINTED_IMAGES]:
        lines.append("  ".join([f"  {value:.3f}", *names_of(images, image)]))
    return lines + ([f"  … {len(found) - MAX_PRINTED_IMAGES} more"] if len(found) > MAX_PRINTED_IMAGES else [])


def write_table(file: Path, images: SourceImages, pairs: Sequence[Pair]) -> None:
    """Write all pairs to a CSV file."""
    names = ("path", "split", "label")
    with atomic_write(file) as temporary, temporary.open("w", encoding="utf-8", newline="") as opened:
        writer = csv.writer(opened, lineterminator="\n")
        writer.writerow([*(f"{name}_{number}" for number in (1, 2) for name in names), "similarity", "across_splits"])
        for pair in pairs:
            cells = [cell for image in pair[:2] for cell in (images.path(image), image.split, images.label(image))]
            writer.writerow([*cells, f"{pair.similarity:.4f}", str(pair.is_leak).lower()])


def write_duplicates_page(
    file: Path, about: str, images: SourceImages, groups: Sequence[Sequence[Pair]], leaks: Sequence[str]
) -> None:
    """Write a page with the thumbnails of the largest groups."""
    sections = [f'<p class="verdict">{escape("; ".join([about, *leaks]))}</p>']
    for group in groups[:MAX_SHOWN_GROUPS]:
        found = members(group)
        shown = list(found.items())[:MAX_SHOWN_IMAGES]
        cards = [html_card(images.pixels(image), [f"{value:.3f}", *names_of(images, image)]) for image, value in shown]
        more = f", {len(shown)} of them shown" if len(found) > len(shown) else ""
        sections.append(f"<h2>{len(found)} images{more}</h2>\n{html_grid(cards)}")
    if len(groups) > MAX_SHOWN_GROUPS:
        sections.append(f'<p class="missing">{len(groups) - MAX_SHOWN_GROUPS:,} smaller groups are not shown.</p>')
    write_page(file, f"Near-duplicates in {images.name}", sections)
