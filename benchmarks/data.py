"""Speed of data: from files to batches of random crops, beside torchvision; an index; CIFAR-10's share of a step.

    python benchmarks/data.py decode            # 2,000 JPEGs of 1 to 12 megapixels, to 96 and 224 pixels
    python benchmarks/data.py index                   # a folder of 200,000 small files: first and second start
    python benchmarks/data.py memory                  # ten epochs over an index: does memory grow?
    python benchmarks/data.py wait --data PATH/TO/cifar10

`decode` reads the same files with the same worker processes, this project and torchvision's ImageFolder, its
RandomResizedCrop and torch's DataLoader in turn, several times each, and gives the median. Both end in float batches
of the same random-resized crops; ours are decoded to a canvas by the workers and cropped in this process.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from jepa.allocator import keep_freed_memory
from jepa.config import CropConfig, DataConfig
from jepa.data import Loader, open_dataset
from jepa.recipes import recipe
from jepa.rng import Rng
from jepa.runs import Run
from jepa.torchvision_guard import guard
from jepa.train import train
from jepa.views import crop

BATCH = 50
SCALE = (0.35, 1.0)


def write_photos(folder: Path, count: int, seed: int = 0) -> float:
    """Write JPEGs of 1 to 12 megapixels with the spectrum of photos (1/f) and some grain; return megapixels a file."""
    rng = np.random.default_rng(seed)
    base = []
    for _ in range(8):  # synthesising 12 megapixels takes seconds: cut the files out of a few
        frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(4000), np.fft.rfftfreq(3000), indexing="ij")) + 1 / 4000
        noise = np.fft.rfft2(rng.standard_normal((3, 4000, 3000), dtype=np.float32))
        light, *colour = np.fft.irfft2(noise / frequency**1.25, s=(4000, 3000))
        red, blue = (0.25 * each / each.std() for each in colour)  # the channels of a photo hardly differ
        light = light / light.std()
        image = 128 + 45 * np.stack([light + red, light, light + blue]) + rng.normal(0, 1.5, (3, *light.shape))
        base.append(image.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))
    total = 0.0
    for number in range(count):
        megapixels = rng.uniform(1, 12)
        width, height = round(math.sqrt(megapixels * 1e6 * 4 / 3)), round(math.sqrt(megapixels * 1e6 * 3 / 4))
        if rng.random() < 0.3:
            width, height = height, width
        picture = base[number % len(base)]
        picture = picture if height > width else picture.transpose(1, 0, 2)
        top, left = rng.integers(0, picture.shape[0] - height + 1), rng.integers(0, picture.shape[1] - width + 1)
        target = folder / "class" / f"{number:05}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture[top : top + height, left : left + width]).save(target, quality=90)
        total += width * height / 1e6
    return total / count


def ours(folder: Path, size: int, workers: int, count: int) -> Iterator[torch.Tensor]:
    """Batches of random crops as this project makes them, nothing kept."""
    canvas = math.ceil(size / math.sqrt(SCALE[0]) / 8) * 8
    images = open_dataset(DataConfig(source=str(folder), image_size=size, canvas=canvas, cache_gb=0.0))
    assert images is not None
    loader = Loader(images, torch.arange(len(images)), BATCH, 0, torch.device("cpu"), workers=workers)
    for step, parts in enumerate(loader.steps(range(count // BATCH))):
        yield crop(parts[0].images, CropConfig(scale=SCALE), (size, size), Rng(0, step, parts[0].rows))
    assert not images.unreadable


def theirs(folder: Path, size: int, workers: int, count: int) -> Iterator[torch.Tensor]:
    """The same from torchvision."""
    guard()
    from torchvision import datasets, transforms

    steps = [transforms.RandomResizedCrop(size, SCALE), transforms.ToTensor()]
    images = datasets.ImageFolder(str(folder), transforms.Compose(steps))
    loader = torch.utils.data.DataLoader(images, BATCH, shuffle=True, num_workers=workers, drop_last=True)
    for batch, _ in loader:
        yield batch


MAKERS = {"ours": ours, "torchvision": theirs, "torchvision, our allocator": theirs}


def one(folder: Path, maker: str, size: int, workers: int, count: int) -> float:
    """Images a second from the first call to the last batch, in a process of its own."""
    code = f"import data; print(data.rate({str(folder)!r}, {maker!r}, {size}, {workers}, {count}))"
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parent)
    return float(result.stdout)


def rate(folder: str, maker: str, size: int, workers: int, count: int) -> float:
    """Make the batches in a process like the one that trains, which with us keeps freed memory."""
    if maker != "torchvision":
        keep_freed_memory()
    guard()
    from torchvision import datasets, transforms  # noqa: F401  (seconds that are not the data's)

    began, done = time.perf_counter(), 0
    for batch in MAKERS[maker](Path(folder), size, workers, count):
        assert batch.shape[1:] == (3, size, size)
        done += len(batch)
    return done / (time.perf_counter() - began)


def decode(arguments: argparse.Namespace) -> None:
    """Compare decode-to-batch rates."""
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        folder = Path(scratch) / "photos"
        megapixels = write_photos(folder, arguments.images)
        files = list(folder.rglob("*.jpg"))
        size = sum(file.stat().st_size for file in files) / len(files) / 1e6
        print(
            f"{len(files):,} JPEGs, {megapixels:.1f} megapixels and {size:.2f} MB each, {arguments.workers} workers\n"
        )
        print("| pixels | " + " | ".join(f"{maker}, images/s" for maker in MAKERS) + " | ours to torchvision |")
        print("|---|---|---|---|---|")
        for side in (96, 224):
            rows = [
                [one(folder, maker, side, arguments.workers, arguments.images) for maker in MAKERS]
                for _ in range(arguments.rounds)
            ]
            medians = " | ".join(f"{statistics.median(column):.0f}" for column in zip(*rows, strict=True))
            ratios = [row[0] / row[1] for row in rows]
            each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
            print(f"| {side} | {medians} | {statistics.median(ratios):.2f} ({each}) |", flush=True)


INDEX = """
import sys, time
from pathlib import Path
from jepa.data import step_order
from jepa.data.sources import open_listing

def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024

before, began = peak(), time.perf_counter()
listing = open_listing(sys.argv[1], Path(sys.argv[2]))["train"]
seconds = time.perf_counter() - began
step_order(0, 128, len(listing.files), 0)
size = (peak() - before) / len(listing.files) * 1e6
print(f"{len(listing.files):,} | {seconds:.2f} | {size:.0f} MB a million")
"""


def index(arguments: argparse.Namespace) -> None:
    """Time the first and the second start on a folder of many files, each in a process of its own."""
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        folder = Path(scratch) / "many"
        pixel = Path(scratch) / "pixel.png"
        Image.new("L", (8, 8)).save(pixel)
        data = pixel.read_bytes()
        for number in range(arguments.images):
            if number % 1000 == 0:
                (folder / f"class-{number // 1000:03}").mkdir(parents=True)
            (folder / f"class-{number // 1000:03}" / f"image-of-a-thing-{number:07}.png").write_bytes(data)
        time.sleep(3)  # an index made within two seconds of a change is not trusted
        print("| start | images | seconds | memory |\n|---|---|---|---|")
        for name in ("first", "second"):
            command = [sys.executable, "-c", INDEX, str(folder), str(Path(scratch) / "cache")]
            result = subprocess.run(command, check=True, capture_output=True, text=True)
            print(f"| {name} | {result.stdout.strip()} |", flush=True)


def memory(arguments: argparse.Namespace) -> None:
    """Go through ten epochs of small images, decoded each time and from the cache, and print the memory after each."""
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        folder = Path(scratch) / "few"
        folder.mkdir()
        rng = np.random.default_rng(0)
        for number in range(arguments.images):
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{number}.png")
        for cache_gb in (0.0, 8.0):
            config = DataConfig(source=str(folder), image_size=32, canvas=32, cache_gb=cache_gb)
            images = open_dataset(config, cache=Path(scratch) / "cache")
            assert images is not None
            cpu, rows = torch.device("cpu"), torch.arange(len(images))
            loader = Loader(images, rows, BATCH, 0, cpu, workers=arguments.workers)
            epoch, after = len(images) // BATCH, []
            for step, _ in enumerate(loader.steps(range(10 * epoch)), 1):
                if step % epoch == 0:
                    pages = int(Path("/proc/self/statm").read_text().split()[1])
                    after.append(pages * resource.getpagesize() / 1e6)
            name = "decoded every time" if cache_gb == 0 else "from the cache"
            print(f"{name}: {', '.join(f'{megabytes:.0f}' for megabytes in after)} MB after each of ten epochs")


def wait(arguments: argparse.Namespace) -> None:
    """Train `ijepa-cifar10` for some steps and print the share of the time that the loop waits for data."""
    config = recipe("ijepa-cifar10")
    data = dataclasses.replace(config.data, source=arguments.data)
    config = dataclasses.replace(config, data=data, steps=arguments.steps, eval_every=0, save_every=arguments.steps)
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        for name in ("first", "second"):
            run: Run = train(config, Path(scratch) / name)
            records = [record for record in run.metrics() if "data_wait" in record]
            share = statistics.median(record["data_wait"] for record in records)
            speed = statistics.median(record["images_per_s"] for record in records)
            print(f"{name} start: {100 * share:.2f} % of a step of {config.batch_size / speed * 1e3:.0f} ms")


def main() -> None:
    """Run one of the benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["decode", "index", "memory", "wait"])
    parser.add_argument("--images", type=int, default=None, help="files to make: 2,000, 200,000 or 2,000")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--scratch", default=None, help="folder for the files, which are removed at the end")
    arguments = parser.parse_args()
    arguments.images = arguments.images or {"index": 200_000}.get(arguments.what, 2000)
    {"decode": decode, "index": index, "memory": memory, "wait": wait}[arguments.what](arguments)


if __name__ == "__main__":
    main()
