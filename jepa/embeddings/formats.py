"""Files of features: parquet, NumPy with a table, and the text files of TensorBoard's projector."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jepa.config import require

__all__ = ["Rows", "check_suffix", "companions", "read_metadata", "write_features"]

METADATA_KEY = b"image-jepa"  # of the metadata of a parquet file
ACCEPTED = (".parquet", ".npy", ".tsv")


class Rows(NamedTuple):
    """Some rows of a file of features."""

    paths: list[str]
    splits: list[str]
    labels: list[str | None] | None  # None if the source has no classes
    x: np.ndarray  # (B, D) float32
    thumbnails: list[bytes] | None = None  # encoded images

    @property
    def names(self) -> dict[str, Sequence[str | None]]:
        """All columns of text by name."""
        return {"path": self.paths, "split": self.splits} | ({} if self.labels is None else {"label": self.labels})


def check_suffix(out: Path, has_thumbnails: bool) -> None:
    """Raise `InputError` if there is no such format, or if it has no place for thumbnails."""
    require(
        out.suffix in ACCEPTED, f"--out must be a file name that ends in {', '.join(ACCEPTED)}, got {out.name or out}"
    )
    require(
        not has_thumbnails or out.suffix == ".parquet",
        f"--thumbnails are stored in .parquet files only, got --out {out.name}; give another name, or leave them out",
    )


def companions(out: Path) -> list[Path]:
    """Return the files that are written beside `out`, which itself is written last."""
    if out.suffix == ".npy":
        return [out.with_suffix(".csv"), out.with_suffix(".json")]
    return [out.with_name(f"{out.stem}-metadata.tsv"), out.with_suffix(".json")] if out.suffix == ".tsv" else []


def read_metadata(out: Path) -> dict[str, Any] | None:
    """Return the metadata of a file written by `write_features`, or None if it is incomplete or something else."""
    found: Any = None
    with suppress(OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        if out.suffix == ".parquet":
            found = json.loads(pq.read_schema(out).metadata[METADATA_KEY])
        elif all(file.is_file() for file in companions(out)):
            found = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
    return found if isinstance(found, dict) and isinstance(found.get("key"), dict) else None


def write_features(out: Path, rows: Iterable[Rows], count: int, metadata: dict[str, Any]) -> None:
    """Write features to the file `out`, in the format of its suffix, and to the files beside it.

    `count` is the number of all rows, which are held in memory one part at a time. The same rows and metadata give the
    same bytes.
    """
    write = {".parquet": _write_parquet, ".npy": _write_numpy, ".tsv": _write_projector}[out.suffix]
    write(out, rows, count, metadata)
    if out.suffix != ".parquet":
        out.with_suffix(".json").write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")


def _write_parquet(out: Path, rows: Iterable[Rows], count: int, metadata: dict[str, Any]) -> None:
    """Write one row group for each part. The columns are path, split, label, vector and image (a thumbnail)."""
    writer: Any = None
    try:
        for part in rows:
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(part.x.reshape(-1)), part.x.shape[1])
            columns = {name: pa.array(texts, pa.string()) for name, texts in part.names.items()} | {"vector": vectors}
            if part.thumbnails is not None:  # as on the Hugging Face hub, so that other tools show images
                column = [{"bytes": image, "path": None} for image in part.thumbnails]
                columns["image"] = pa.array(column, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
            table = pa.table(columns).replace_schema_metadata({METADATA_KEY: json.dumps(metadata)})
            if writer is None:
                texts = [name for name in ("split", "label") if name in columns]
                writer = pq.ParquetWriter(out, table.schema, compression="zstd", use_dictionary=texts)
            writer.write_table(table, row_group_size=max(len(table), 1))
    finally:
        if writer is not None:
            writer.close()


def _write_numpy(out: Path, rows: Iterable[Rows], count: int, metadata: dict[str, Any]) -> None:
    """Write the matrix (N, D), and a table of paths, splits and labels with the same rows."""
    header = {"descr": "<f4", "fortran_order": False, "shape": (count, metadata["dim"])}
    with out.open("wb") as file, out.with_suffix(".csv").open("w", encoding="utf-8", newline="") as table:
        np.lib.format.write_array_header_1_0(file, header)
        writer = csv.writer(table, lineterminator="\n")
        for number, part in enumerate(rows):
            if number == 0:
                writer.writerow(part.names)
            file.write(part.x.astype("<f4").tobytes())
            writer.writerows(zip(*part.names.values(), strict=True))


def _write_projector(out: Path, rows: Iterable[Rows], count: int, metadata: dict[str, Any]) -> None:
    """Write vectors without a header, and metadata with one, which the projector expects of several columns."""
    names = companions(out)[0]
    with out.open("w", encoding="utf-8") as file, names.open("w", encoding="utf-8") as table:
        for number, part in enumerate(rows):
            if number == 0:
                table.write("\t".join(part.names) + "\n")
            np.savetxt(file, part.x, fmt="%.9g", delimiter="\t")  # nine digits are those of a float32
            for line in zip(*part.names.values(), strict=True):  # tabs and newlines in names are escaped
                table.write("\t".join(text or "" for text in line) + "\n")
