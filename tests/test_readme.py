"""The Python code of the README runs."""

import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from jepa.train import train
from tests.conftest import override

README = Path(__file__).resolve().parent.parent / "README.md"


def test_python_code_of_the_readme(tiny, tmp_path):
    for i, size in enumerate(((20, 30), (16, 16), (40, 25))):
        pixels = np.random.default_rng(i).integers(0, 255, (*size, 3), np.uint8)
        (tmp_path / "photos" / "folder").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "photos" / "folder" / f"{i}.png")
    (tmp_path / "photos" / "folder" / "broken.png").write_bytes(b"not an image")
    run = train(override(tiny, steps=1), tmp_path / "run")
    names = {"images": torch.zeros(2, 3, 16, 16, dtype=torch.uint8)}
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        code = re.sub(r'"runs/[a-z-]+"', repr(str(run.path)), block).replace('"photos"', repr(str(tmp_path / "photos")))
        exec(code, names)
        if "names" not in names:
            assert names["features"].shape == (2, 32)
    assert names["features"].x.shape == (3, 32)
    assert names["names"] == ["folder/0.png", "folder/1.png", "folder/2.png"]
