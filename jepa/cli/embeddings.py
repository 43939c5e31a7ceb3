"""Commands that encode whole sources of images with a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from jepa.cli.arguments import Code, RunFolder, call_command, show
from jepa.config import require

__all__ = ["embed"]

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


def check_fraction(max_broken: float | None) -> None:
    """Raise `InputError` unless the value is a fraction, or not given."""
    require(max_broken is None or 0 <= max_broken <= 1, f"--max-broken must be between 0 and 1, got {max_broken}")
