"""Open a source of images: the built-in sample, or parquet files in the layout of the Hugging Face hub.

A new kind of source is a file here and a line in `open_dataset`.
"""

from __future__ import annotations

import glob
import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from jepa.config import DataConfig, InputError
from jepa.data.images import EncodedImages, Images, decode, decoding_pool

__all__ = ["open_dataset"]

SAMPLE = Path(__file__).with_name("sample")
SPLITS = {"train": "train", "test": "test", "validation": "validation", "valid": "validation", "val": "validation"}
LABELS = ("label", "labels", "fine_label")


def open_dataset(config: DataConfig, split: str = "train") -> Images | None:
    """Open one split, `train` or `test`, of the source that a config names.

    A source without a labelled `test` split gives its `validation` split for it, or None where it has neither. Raises
    `InputError` where the source is missing, holds no images, or cannot be read.
    """
    files = _parquet_files(config.source)
    found: dict[str, list[Path]] = {}
    for file in files:
        found.setdefault(_split_of(file), []).append(file)
    if split == "train" and "train" not in found:
        raise InputError(f"{config.source} has no training split: its files are {', '.join(sorted(found))} only")
    names = [name for name in (("test", "validation") if split == "test" else (split,)) if name in found]
    opened = None
    for name in names:
        opened = _read_parquet(found[name], config, f"{config.source} ({name})")
        if opened.labels is not None:
            break  # the labels of a test split may be hidden: then the validation split is the one to score on
    return opened


def _parquet_files(source: str) -> list[Path]:
    """List the parquet files that a source stands for."""
    if source == "sample":
        return sorted(SAMPLE.glob("*.parquet"))
    path = Path(source).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        files = sorted(path.rglob("*.parquet"))
        problem = f"the folder {source} has no .parquet file in it"
    else:
        files = sorted(Path(name) for name in glob.glob(str(path), recursive=True))  # noqa: PTH207  (absolute globs)
        problem = f"there is nothing at {source}"
    if not files:
        raise InputError(f"{problem}; --data takes 'sample', or a parquet file, folder or glob")
    return files


def _split_of(file: Path) -> str:
    """Read the split from a file's name, or its folder's: train-00000-of-00003.parquet, test/0000.parquet."""
    match = re.search(r"(?<![a-z])(train|test|validation|valid|val)(?![a-z])", file.stem.lower())
    return SPLITS.get(match.group(1) if match else file.parent.name.lower(), "train")


def _read_parquet(files: list[Path], config: DataConfig, name: str) -> Images:
    """Read image files and labels; decode them into memory where they fit."""
    tables = [_read_table(file) for file in files]
    schema = tables[0].schema
    column = _image_column(schema, files[0])
    label = next((candidate for candidate in LABELS if candidate in schema.names), None)
    encoded: list[bytes] = []
    labels: list[np.ndarray] = []
    for file, table in zip(files, tables, strict=True):
        if not table.schema.equals(schema):
            raise InputError(f"{file} has other columns than {files[0]}; give the files of one data set")
        for chunk in table[column].chunks:
            encoded.extend((chunk.field("bytes") if pa.types.is_struct(chunk.type) else chunk).to_pylist())
        if label is not None:
            labels.append(table[label].to_numpy())
    del tables
    if label is not None and any(part.dtype.kind not in "iu" for part in labels):
        raise InputError(f"the column '{label}' of {name} must hold a whole number in every row, the class")
    if not encoded:
        raise InputError(f"{name} holds no images")
    if None in encoded:
        raise InputError(f"{name} has rows without image bytes; save the images themselves, not their paths")
    known = torch.from_numpy(np.concatenate(labels).astype(np.int64)) if labels else None
    if known is not None and int(known.min()) < 0:
        known = None  # the hub marks the labels of a hidden test set with -1
    images = EncodedImages(
        name, known, _class_names(schema, label, known), False, encoded, config.channels, config.canvas, decoding_pool()
    )
    first = decode(encoded[0], config.channels, config.canvas, f"image 0 of {name}")
    return images.hold() if first.nbytes * len(encoded) <= config.memory_gb * 1e9 else images


def _read_table(file: Path) -> pa.Table:
    try:
        return pq.read_table(file)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{file} cannot be read as parquet: {reason}") from error


def _image_column(schema: pa.Schema, file: Path) -> str:
    """Find the column of images: the hub's struct(bytes, path), or plain bytes."""
    for field in schema:
        is_struct = pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0
        is_bytes = pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type)
        if is_struct or (field.name in ("image", "img") and is_bytes):
            return str(field.name)
    raise InputError(f"{file} has no column of images (struct(bytes, path)); its columns are {', '.join(schema.names)}")


def _class_names(schema: pa.Schema, label: str | None, labels: Tensor | None) -> tuple[str, ...]:
    """Take the class names from the hub's metadata, or number the classes."""
    if label is None or labels is None:
        return ()
    metadata = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    names = metadata.get("info", {}).get("features", {}).get(label, {}).get("names")
    return tuple(names) if names else tuple(str(number) for number in range(int(labels.max()) + 1))
