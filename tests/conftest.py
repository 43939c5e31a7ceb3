import dataclasses
import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from jepa.config import (
    Config,
    ConvNetConfig,
    DataConfig,
    IJepaConfig,
    MaskConfig,
    OptimConfig,
    PlainConvNetConfig,
    ViTConfig,
)
from jepa.evaluation import umap_process
from jepa.report.captions import SECTIONS
from jepa.runs import Run


def write_parquet(path: Path, images: list[np.ndarray], labels: list[int] | None = None, names=("a", "b")) -> Path:
    """Write images in the layout of the Hugging Face hub."""
    files = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        files.append({"bytes": buffer.getvalue(), "path": None})
    columns = {"image": pa.array(files, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))}
    features = {"image": {"_type": "Image"}}
    if labels is not None:
        columns["label"] = pa.array(labels, pa.int64())
        features["label"] = {"names": list(names), "_type": "ClassLabel"}
    table = pa.table(columns).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


def toy_images(count: int, size: int = 16, seed: int = 0) -> tuple[list[np.ndarray], list[int]]:
    """Draw noisy images of two classes: bright on the left, or bright on the right."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count)
    images = rng.integers(0, 100, (count, size, size, 3), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        half = slice(0, size // 2) if label == 0 else slice(size // 2, size)
        image[:, half] += 100
    return list(images), labels.tolist()


os.environ["HF_HUB_OFFLINE"] = "1"  # read when the package is imported
os.environ["NUMBA_NUM_THREADS"] = "1"  # more would change the number of threads of PyTorch


class Ended:
    """A process that has ended well."""

    def wait(self) -> int:
        return 0


@pytest.fixture(autouse=True)
def quick_umap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lay out points by their first two features; numba compiles UMAP, which has its own tests, for half a minute."""

    def start(folder: Path, errors) -> Ended:
        for file in folder.glob("*.npz"):
            with np.load(file) as arrays:
                np.save(file.with_suffix(".npy"), arrays[arrays.files[0]][:, :2])
        return Ended()

    monkeypatch.setattr(umap_process, "start", start)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep indexes and decoded images out of the working directory."""
    monkeypatch.setattr("jepa.data.sources.base.CACHE", tmp_path / ".jepa-cache")
    return tmp_path / ".jepa-cache"


@pytest.fixture(autouse=True)
def fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `precision auto` the same on all CPUs."""
    monkeypatch.setattr("jepa.distributed.has_bf16_instructions", lambda: False)


@pytest.fixture
def short_report(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return a function that limits reports to one section."""

    def limit(name: str) -> None:
        monkeypatch.setattr("jepa.report.html.SECTIONS", {name: SECTIONS[name]})
        monkeypatch.setattr("jepa.evaluation_run.EvaluationRun.start_projections", lambda _: None)

    return limit


@pytest.fixture
def toy_source(tmp_path: Path) -> str:
    """A parquet folder of 80 training and 40 test images, 16 pixels, two classes."""
    for split, count, seed in (("train", 80, 0), ("test", 40, 1)):
        images, labels = toy_images(count, seed=seed)
        write_parquet(tmp_path / "toy" / f"{split}-00000-of-00001.parquet", images, labels)
    return str(tmp_path / "toy")


def tiny_config(source: str, **changes) -> Config:
    """A run of a few seconds: 16-pixel images, a ViT of two layers."""
    config = Config(
        name="tiny",
        steps=6,
        batch_size=8,
        eval_every=0,
        save_every=2,
        log_every=1,
        device="cpu",
        precision="fp32",
        data=DataConfig(source=source, image_size=16, holdout=0.1),
        backbone=ViTConfig(size="32x4x2", patch=4, stem="conv"),
        objective=IJepaConfig(predictor="16x1x2", variance=0.5, covariance=0.1, masks=MaskConfig()),
        optim=OptimConfig(warmup=2),
    )
    return dataclasses.replace(config, **changes)


def override(config: Config, **settings) -> Config:
    """Change settings of a config: override(config, steps=3, objective__variance=0.0)."""
    for name, value in settings.items():
        head, _, rest = name.partition("__")
        part = override(getattr(config, head), **{rest: value}) if rest else value
        config = dataclasses.replace(config, **{head: part})
    return config


@pytest.fixture
def tiny(toy_source: str) -> Config:
    return tiny_config(toy_source)


def same_tensors(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Say whether two checkpoints hold bitwise the same tensors."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def last(run: Run) -> dict[str, torch.Tensor]:
    return run.load()[0]


def reduced(config: Config, source: str) -> Config:
    """The same experiment with tiny networks, on tiny images."""
    if isinstance(config.backbone, ConvNetConfig):
        backbone = dataclasses.replace(config.backbone, name="convnext_atto", small_stem=True)
    elif isinstance(config.backbone, PlainConvNetConfig):
        backbone = dataclasses.replace(config.backbone, width=8, dim=32)
    else:
        backbone = dataclasses.replace(config.backbone, size="32x4x2", patch=4)
    data = dataclasses.replace(
        config.data, source=source, image_size=32, canvas=40, mean=None, std=None, channels=config.data.channels
    )
    objective = config.objective
    if isinstance(objective, IJepaConfig):
        objective = dataclasses.replace(objective, predictor="16x2x2")
    return dataclasses.replace(
        config, steps=2, batch_size=8, compile=False, device="cpu", data=data, backbone=backbone, objective=objective
    )
