"""Data sets by name: torchvision's own, and those of the Hugging Face hub."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from jepa.config import InputError
from jepa.data.files import ENCODED, PATHS, Files, Listing, write_listing
from jepa.torchvision_guard import guard

__all__ = ["FOLDER", "TORCHVISION", "open_hub", "write_torchvision"]

FOLDER = Path("data")
"""Where torchvision's data sets are looked for and downloaded to."""
TORCHVISION: dict[str, tuple[str, dict[str, dict[str, Any]]]] = {
    "cifar10": ("CIFAR10", {"train": {"train": True}, "test": {"train": False}}),
    "cifar100": ("CIFAR100", {"train": {"train": True}, "test": {"train": False}}),
    "country211": ("Country211", {"train": {"split": "train"}, "test": {"split": "test"}}),
    "dtd": ("DTD", {"train": {"split": "train"}, "test": {"split": "test"}}),
    "eurosat": ("EuroSAT", {"train": {}}),
    "fashion-mnist": ("FashionMNIST", {"train": {"train": True}, "test": {"train": False}}),
    "fgvc-aircraft": ("FGVCAircraft", {"train": {"split": "trainval"}, "test": {"split": "test"}}),
    "flowers102": ("Flowers102", {"train": {"split": "train"}, "test": {"split": "test"}}),
    "food101": ("Food101", {"train": {"split": "train"}, "test": {"split": "test"}}),
    "imagenette": ("Imagenette", {"train": {"split": "train"}, "test": {"split": "val"}}),
    "kmnist": ("KMNIST", {"train": {"train": True}, "test": {"train": False}}),
    "mnist": ("MNIST", {"train": {"train": True}, "test": {"train": False}}),
    "stl10": ("STL10", {"train": {"split": "train"}, "test": {"split": "test"}}),
    "stl10-unlabeled": ("STL10", {"train": {"split": "train+unlabeled"}, "test": {"split": "test"}}),
    "svhn": ("SVHN", {"train": {"split": "train"}, "test": {"split": "test"}}),
    "svhn-extra": ("SVHN", {"train": {"split": "extra"}, "test": {"split": "test"}}),
}
"""Name: torchvision's class, and the arguments for each split."""
IN_MEMORY = frozenset({"CIFAR10", "CIFAR100", "FashionMNIST", "KMNIST", "MNIST", "STL10", "SVHN"})
"""Those that torchvision keeps as arrays; of the others it knows the files."""


def write_torchvision(name: str, into: Path) -> list[str]:
    """Write the listings of a torchvision data set into the folder `into`, downloading it first; return the splits.

    Raises `InputError` where it is not there and cannot be downloaded.
    """
    guard()
    from torchvision import datasets  # takes a second to import

    kind, splits = TORCHVISION[name]
    make: Callable[..., Any] = getattr(datasets, kind)
    loader = {} if kind in IN_MEMORY else {"loader": str}  # hand out the path instead of the image
    for split, arguments in splits.items():
        try:
            dataset = make(FOLDER, download=False, **arguments, **loader)
        except (RuntimeError, OSError):  # not there
            dataset = _download(name, lambda: make(FOLDER, download=True, **arguments, **loader))  # noqa: B023
        rows = _encoded(dataset) if kind in IN_MEMORY else _paths(dataset)
        labels = {int(label) for label in getattr(dataset, "labels", [0])} if kind == "STL10" else {0}
        words = [word if isinstance(word, str) else word[0] for word in getattr(dataset, "classes", [])]
        classes = words if min(labels) >= 0 else []
        if kind == "SVHN":
            classes = [str(digit) for digit in range(10)]
        schema = ENCODED if kind in IN_MEMORY else PATHS
        write_listing(into / f"{split}.arrow", schema, rows, {"classes": classes, "signature": name})
    return list(splits)


def _download(name: str, make: Callable[[], Any]) -> Any:
    FOLDER.mkdir(exist_ok=True)
    try:
        return make()
    except Exception as error:  # torchvision passes on whatever its network, archive or checksum says
        raise InputError(
            f"{name} is not in {FOLDER}/ and cannot be downloaded ({' '.join(str(error).split())}); put torchvision's "
            "files there, or give --data a path"
        ) from error


def _encoded(dataset: Any, step: int = 1000) -> Iterator[pa.RecordBatch]:
    """Yield the images of a set that is in memory, as PNG."""
    for start in range(0, len(dataset), step):
        rows = [dataset[row] for row in range(start, min(start + step, len(dataset)))]
        files = []
        for image, _ in rows:
            buffer = io.BytesIO()
            image.save(buffer, "PNG", compress_level=1)
            files.append({"bytes": buffer.getvalue(), "path": None})
        labels = pa.array([int(label) for _, label in rows], pa.int32())
        yield pa.record_batch([pa.array(files, ENCODED.field("image").type), labels], schema=ENCODED)


def _paths(dataset: Any, step: int = 10_000) -> Iterator[pa.RecordBatch]:
    """Yield the files of a set, which its loader hands out as paths."""
    for start in range(0, len(dataset), step):
        rows = [dataset[row] for row in range(start, min(start + step, len(dataset)))]
        paths = [Path(path).resolve() for path, _ in rows]
        sizes = np.array([path.stat().st_size for path in paths], dtype=np.int64)
        labels = np.array([label for _, label in rows], dtype=np.int32)
        yield pa.record_batch(
            [pa.array([bytes(path) for path in paths], pa.large_binary()), sizes, labels], schema=PATHS
        )


def open_hub(name: str) -> dict[str, Listing]:
    """Open a data set of the Hugging Face hub, `owner/name` or `owner/name:configuration`, through `datasets`.

    Raises `InputError` where `datasets` is not installed, or the data set cannot be had or holds no images.
    """
    if importlib.util.find_spec("datasets") is None:
        raise InputError(f"hf:{name} needs the package datasets: pip install 'image-jepa[hub]'")
    import datasets  # takes seconds to import

    path, _, configuration = name.partition(":")
    try:
        found = datasets.load_dataset(path, configuration or None)  # type: ignore[attr-defined]
    except Exception as error:  # the network, the hub and the builder raise what they like
        reason = " ".join(str(error).split())
        raise InputError(f"hf:{name} cannot be loaded: {reason[:300]}") from error
    return {str(split): _hub_listing(name, part) for split, part in found.items()}


def _hub_listing(name: str, part: Any) -> Listing:
    columns = {key for key, feature in part.features.items() if type(feature).__name__ == "Image"}
    if not columns:
        raise InputError(f"hf:{name} has no column of images; its columns are {', '.join(part.features)}")
    column = part.data.table[sorted(columns)[0]]
    label = next((key for key, feature in part.features.items() if type(feature).__name__ == "ClassLabel"), None)
    labels = torch.from_numpy(part.data.table[label].to_numpy().astype("int64")) if label is not None else None
    known = labels is not None and len(labels) > 0 and int(labels.min()) >= 0
    names, highest = (part.features[label].names, int(labels.max())) if labels is not None and known else ([], -1)
    classes = (*names, *map(str, range(len(names), highest + 1)))
    facts = {"classes": list(classes), "signature": part._fingerprint}
    return Listing(Files(column, Path(), column.nbytes), labels if known else None, classes, facts)
