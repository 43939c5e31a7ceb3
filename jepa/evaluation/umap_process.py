"""Lay out features in two dimensions by UMAP, in a process of its own.

UMAP is compiled for many seconds by numba, on one core. In a process of its own, this takes place while other figures
are drawn, and the threads of numba do not affect those of PyTorch. The file is also the program of this process, which
imports neither PyTorch nor the package.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import warnings
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

__all__ = ["UmapProcess"]

NUM_EPOCHS = 200  # the default of umap-learn for many points; for few, it is 500, which looks the same


class UmapProcess:
    """A process that lays out one or more sets of features.

    Each set consists of features (N, D) and of the positions and distances (N, K) of the K nearest neighbors of each,
    itself included. Raises `OSError` if it cannot be started.
    """

    def __init__(self, sets: Sequence[tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]]) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.remove = weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        self.errors = self.folder / "errors.txt"
        for i, arrays in enumerate(sets):
            np.savez(self.folder / f"{i}.npz", *arrays)
        with self.errors.open("w", encoding="utf-8") as errors:
            self.process = start(self.folder, errors)

    def result(self) -> list[NDArray[np.float32]]:
        """Wait for the process, and return the points (N, 2) of each set. Raises `OSError` if it has failed."""
        try:
            if code := self.process.wait():
                lines = self.errors.read_text(encoding="utf-8", errors="replace").split("\n")
                reason = next((f": {line}" for line in reversed(lines) if line.strip()), "")
                raise OSError(f"exit code {code}{reason}")
            files = sorted(self.folder.glob("*.npy"), key=lambda file: int(file.stem))
            return [np.load(file) for file in files]
        finally:
            self.remove()


def start(folder: Path, errors: IO[str]) -> subprocess.Popen[bytes]:
    """Start a process that lays out the sets in a folder."""
    return subprocess.Popen(
        [sys.executable, "-P", __file__, str(folder)],
        env=os.environ | {"NUMBA_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=errors,
    )


def main(folder: Path) -> None:
    """Lay out the sets in a folder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # umap-learn warns about missing TensorFlow, and that a seed disables threads
        from umap.umap_ import UMAP

        for file in folder.glob("*.npz"):
            with np.load(file) as arrays:
                x, neighbors, distances = (arrays[name] for name in arrays.files)
            # the neighbor search of umap-learn would take ten times as long as that of the caller
            knn = (neighbors, distances)
            model = UMAP(n_neighbors=neighbors.shape[1], n_epochs=NUM_EPOCHS, precomputed_knn=knn, random_state=0)
            np.save(file.with_suffix(".npy"), model.fit_transform(x))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
