"""Commands that encode whole sources of images with a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from jepa.cli.arguments import Code, RunFolder, call_command, description, show
from jepa.config import require

__all__ = ["duplicates", "embed", "search"]

MAX_COUNT = 1000  # images found for each query

Source = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")]


def embed(arguments: list[str]) -> int:
    """Write the features of all images of a source to a file: jepa embed RUN SOURCE [--out FILE] [--split NAME]."""

    def command(
        run: RunFolder,
        source: Source,
        out: Path = Path("features.parquet"),
        split: str | None = None,
        thumbnails: bool = False,
        max_broken: float | None = None,
        *,
        code: Code,
    ) -> int:
        """Write one vector for each image: the average of its tokens, as 'jepa evaluate' scores it.

        If it is interrupted, the same command continues, and the file is the same to the last byte.

        Args:
            run: The run folder, or one of its checkpoints.
            source: Any value of --data: a folder of images, a table of paths, parquet files, hf:OWNER/NAME, cifar10, ….
            out: NAME.parquet; NAME.npy, with the table NAME.csv; or NAME.tsv with NAME-metadata.tsv, for TensorBoard's
                projector.
            split: Only the images of this split, such as train or test; all splits by default.
            thumbnails: Also store a small copy of each image in the .parquet file, for tools that show images.
            max_broken: Stop if more than this fraction of the images is unreadable; by default, that of the training.
            code: Code of the experiment.
        """
        from jepa.embeddings.embed import embed_source

        check_fraction(max_broken)
        code.load()
        show(embed_source(run, source, out, split=split, max_broken=max_broken, thumbnails=thumbnails))
        return 0

    return call_command(command, embed, arguments)


def search(arguments: list[str]) -> int:
    """Find the images nearest to given ones: jepa search RUN SOURCE QUERY [QUERY ...] [--count N] [--html FILE]."""

    def command(
        run: RunFolder,
        source: Source,
        queries: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="QUERY [QUERY ...]")],
        count: int = 8,
        html: Path | None = None,
        split: str | None = None,
        max_broken: float | None = None,
        *,
        code: Code,
    ) -> int:
        """Print the images of a source that are nearest to each query, by the cosine of centered features.

        The features of the source are stored beside the run for the next search. All images are compared, or, of a
        million and more, those that faiss finds if it is installed.

        Args:
            run: The run folder, or one of its checkpoints.
            source: Any value of --data: a folder of images, a table of paths, parquet files, hf:OWNER/NAME, cifar10, ….
            queries: Image files, and .txt files with the path of an image in each line.
            count: Number of images for each query.
            html: File to write a page with thumbnails to. An existing file is replaced.
            split: Only search the images of this split; all splits by default.
            max_broken: Stop if more than this fraction of the images is unreadable; by default, that of the training.
            code: Code of the experiment.
        """
        from jepa.embeddings.search import search_source

        require(bool(queries), f"QUERY is missing; usage: {description(search)[1]}")
        require(1 <= count <= MAX_COUNT, f"--count must be between 1 and {MAX_COUNT:,}, got {count}")
        check_fraction(max_broken)
        code.load()
        text = search_source(run, source, queries, count=count, split=split, max_broken=max_broken, html=html)
        show(text)
        return 0

    return call_command(command, search, arguments)


def duplicates(arguments: list[str]) -> int:
    """Find near-duplicates, also across splits: jepa duplicates RUN SOURCE [--csv FILE] [--html FILE]."""

    def command(
        run: RunFolder,
        source: Source,
        threshold: float = 0.7,
        pixels: bool = True,
        csv: Path | None = None,
        html: Path | None = None,
        split: str | None = None,
        max_broken: float | None = None,
        *,
        code: Code,
    ) -> int:
        """Print groups of images that are almost the same, largest first, and the number of pairs across splits.

        Each image is compared with the three that have the most similar features. The features are stored beside the
        run, as for 'jepa search'.

        Args:
            run: The run folder, or one of its checkpoints.
            source: Any value of --data: a folder of images, a table of paths, parquet files, hf:OWNER/NAME, cifar10, ….
            threshold: Least similarity of features, the cosine after centering, at which images are compared.
            pixels: Keep only images whose pixels are the same up to compression, resizing and brightness; --no-pixels
                keeps all with similar features, also crops and mirror images, and many that are only alike.
            csv: File to write all pairs to. An existing file is replaced.
            html: File to write a page with thumbnails to. An existing file is replaced.
            split: Only the images of this split; all splits by default.
            max_broken: Stop if more than this fraction of the images is unreadable; by default, that of the training.
            code: Code of the experiment.
        """
        from jepa.embeddings.duplicates import duplicates_of

        require(-1 <= threshold <= 1, f"--threshold must be between -1 and 1, got {threshold}")
        check_fraction(max_broken)
        code.load()
        text = duplicates_of(
            run, source, threshold=threshold, pixels=pixels, split=split, max_broken=max_broken, table=csv, html=html
        )
        show(text)
        return 0

    return call_command(command, duplicates, arguments)


def check_fraction(max_broken: float | None) -> None:
    """Raise `InputError` unless the value is a fraction, or not given."""
    require(max_broken is None or 0 <= max_broken <= 1, f"--max-broken must be between 0 and 1, got {max_broken}")
