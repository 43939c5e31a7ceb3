"""Every command and every piece of code in docs/use-your-model.md runs."""

import dataclasses
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from jepa.cli import main
from jepa.config import DataConfig, FixationConfig, PlainConvNetConfig, SaccadeConfig
from jepa.train import train
from tests.conftest import tiny_config, toy_images
from tests.test_import import ijepa_model, official_predictor, official_state

GUIDE = Path(__file__).resolve().parent.parent / "docs" / "use-your-model.md"


BLOCKS = re.findall(r"```(python|sh)\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
SHORT = ["--steps", "2", "--eval-every", "0"]  # added to trainings, which take minutes otherwise


def write_photos(folder: Path, count: int = 60, seed: int = 0) -> None:
    """Write images of two classes, in a training and a test split."""
    images, labels = toy_images(count, size=24, seed=seed)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / ("test" if i % 3 == 0 else "train") / ("left" if label == 0 else "right") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A folder with the images and runs that the guide names."""
    folder = tmp_path_factory.mktemp("guide")
    write_photos(folder / "photos")
    for name, size in (("a.jpg", (30, 40)), ("b.png", (50, 20))):
        pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(pixels).save(folder / name)
    config = tiny_config(str(folder / "photos"), steps=2, name="demo")
    data = DataConfig(source=str(folder / "photos"), image_size=28, canvas=28, channels=1)  # as in `jepa train demo`
    config = dataclasses.replace(config, data=data)
    train(config, folder / "runs" / "demo")
    parts = {
        "backbone": PlainConvNetConfig(width=4, stages=2, dim=16),
        "objective": SaccadeConfig(fixations=FixationConfig(view_fraction=0.75, shift=0.2, rotation=10.0)),
    }
    train(dataclasses.replace(config, **parts), folder / "runs" / "saccade-demo")
    target = official_state(ijepa_model(hidden_size=192, num_hidden_layers=12, intermediate_size=768))  # ViT-Ti
    predictor = official_predictor(192, (6, 6))
    torch.save(
        {"encoder": target, "target_encoder": target, "predictor": predictor}, folder / "IN1K-vit.h.14-300e.pth.tar"
    )
    return folder


@pytest.fixture(scope="module")
def names() -> dict[str, object]:
    """The variables of the Python code of the guide, which continues from block to block."""
    return {}


@pytest.mark.parametrize(("language", "text"), BLOCKS, ids=[" ".join(text.split()[:3]) for _, text in BLOCKS])
def test_the_guide(language, text, workplace, names, monkeypatch, capsys, short_report):
    """Run the code and the commands in the order of the guide: later ones use what earlier ones wrote."""
    monkeypatch.chdir(workplace)
    short_report("classes")
    if language == "python":
        exec(text, names)
        return
    for line in text.replace("\\\n", " ").splitlines():
        program, *arguments = shlex.split(line, comments=True)
        assert program == "jepa", line
        with pytest.raises(SystemExit) as stop:
            main([*arguments, *(SHORT if arguments[0] in ("train", "finetune") else [])])
        assert not stop.value.code, f"{line}\n{capsys.readouterr().err}"


def test_results_of_the_guide(workplace, names):
    assert names["features"].shape == (2, 32)
    assert names["expected"].shape == (1, 16)
    assert (workplace / "predictions.csv").read_text().startswith("path,split,label,prediction,probability")
    assert "<img" in (workplace / "nearest.html").read_text()
