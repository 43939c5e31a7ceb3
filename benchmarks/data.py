"""Benchmark data loading: decoding compared with torchvision, indexing, memory, and time spent waiting for data.

    python benchmarks/data.py decode            # from 2,000 JPEGs of 1 to 12 megapixels to batches of 96 and 224 pixels
    python benchmarks/data.py index             # first and second startup on a folder of 200,000 small files
    python benchmarks/data.py memory            # process memory after each of ten epochs
    python benchmarks/data.py wait --data PATH/TO/cifar10

`decode` alternates between this package and torchvision (ImageFolder, RandomResizedCrop, DataLoader) with the same
files and the same number of workers, and prints the median over several rounds. Both produce float batches of random
resized crops; this package decodes to a canvas in the workers and crops in the training process.
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

from jepa.config import CropConfig, DataConfig
from jepa.config.recipes import recipe
from jepa.data import Loader, open_dataset
from jepa.distributed import keep_freed_memory
from jepa.rng import Rng
from jepa.runs import Run
from jepa.torchvision_guard import guard
from jepa.train import train
from jepa.transforms.crop import crop

BATCH_SIZE = 50  # number of images per batch
CROP_SCALE = (0.35, 1.0)  # range of crop areas, as fractions of the image
CPU = torch.device("cpu")


def write_photos(folder: Path, count: int, seed: int = 0) -> float:
    """Write JPEGs of 1 to 12 megapixels that resemble photos; return their mean size in megapixels."""
    rng = np.random.default_rng(seed)
    photos = [draw_photo(rng) for _ in range(8)]  # each takes seconds, so all files are crops of a few photos
    (folder / "class").mkdir(parents=True, exist_ok=True)
    total = 0.0
    for number in range(count):
        megapixels = rng.uniform(1, 12)
        width, height = round(math.sqrt(megapixels * 1e6 * 4 / 3)), round(math.sqrt(megapixels * 1e6 * 3 / 4))
        if rng.random() < 0.3:
            width, height = height, width
        photo = photos[number % len(photos)]
        photo = photo if height > width else photo.transpose(1, 0, 2)
        top, left = rng.integers(0, photo.shape[0] - height + 1), rng.integers(0, photo.shape[1] - width + 1)
        image = Image.fromarray(photo[top : top + height, left : left + width])
        image.save(folder / "class" / f"{number:05}.jpg", quality=90)
        total += width * height / 1e6
    return total / count


def draw_photo(rng: np.random.Generator) -> np.ndarray:
    """Draw an image of 3000 x 4000 pixels with the 1/f spectrum of photos, correlated channels and noise."""
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(4000), np.fft.rfftfreq(3000), indexing="ij")) + 1 / 4000
    noise = np.fft.rfft2(rng.standard_normal((3, 4000, 3000), dtype=np.float32))
    light, *color = np.fft.irfft2(noise / frequency**1.25, s=(4000, 3000))
    red, blue = (0.25 * channel / channel.std() for channel in color)
    light = light / light.std()
    image = 128 + 45 * np.stack([light + red, light, light + blue]) + rng.normal(0, 1.5, (3, *light.shape))
    return image.clip(0, 255).astype(np.uint8).transpose(1, 2, 0)


def jepa_batches(folder: Path, size: int, workers: int, count: int) -> Iterator[torch.Tensor]:
    """Yield batches of random resized crops made by this package, without a cache."""
    canvas = math.ceil(size / math.sqrt(CROP_SCALE[0]) / 8) * 8
    dataset = open_dataset(DataConfig(source=str(folder), image_size=size, canvas=canvas, cache_gb=0.0))
    assert dataset is not None
    indices = torch.arange(len(dataset))
    loader = Loader(dataset=dataset, indices=indices, batch_size=BATCH_SIZE, seed=0, device=CPU, workers=workers)
    for step, (batch,) in enumerate(loader.steps(range(count // BATCH_SIZE))):
        yield crop(batch.images, CropConfig(scale=CROP_SCALE), (size, size), Rng(0, step, batch.positions))
    assert not dataset.unreadable


def torchvision_batches(folder: Path, size: int, workers: int, count: int) -> Iterator[torch.Tensor]:
    """Yield batches of random resized crops made by torchvision and torch."""
    guard()
    from torchvision import datasets, transforms

    steps = [transforms.RandomResizedCrop(size, CROP_SCALE), transforms.ToTensor()]
    images = datasets.ImageFolder(str(folder), transforms.Compose(steps))
    loader = torch.utils.data.DataLoader(images, BATCH_SIZE, shuffle=True, num_workers=workers, drop_last=True)
    for batch, _ in loader:
        yield batch


LOADERS = {
    "jepa": jepa_batches,
    "torchvision": torchvision_batches,
    "torchvision, jepa's allocator": torchvision_batches,
}


def measure_in_process(folder: Path, loader: str, size: int, workers: int, count: int) -> float:
    """Measure `images_per_second` in a new process."""
    arguments = f"{str(folder)!r}, {loader!r}, size={size}, workers={workers}, count={count}"
    code = f"import data; print(data.images_per_second({arguments}))"
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parent)
    return float(result.stdout)


def images_per_second(folder: str, loader: str, size: int, workers: int, count: int) -> float:
    """Return the throughput of a loader from the first call to the last batch, in a process set up as for training."""
    if loader != "torchvision":
        keep_freed_memory()
    guard()
    from torchvision import datasets, transforms  # noqa: F401  (excludes the import time of seconds)

    start, count_done = time.perf_counter(), 0
    for batch in LOADERS[loader](Path(folder), size, workers, count):
        assert batch.shape[1:] == (3, size, size)
        count_done += len(batch)
    return count_done / (time.perf_counter() - start)


def decode(arguments: argparse.Namespace) -> None:
    """Compare the throughput from JPEG files to batches."""
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        folder = Path(scratch) / "photos"
        megapixels = write_photos(folder, arguments.images)
        files = list(folder.rglob("*.jpg"))
        megabytes = sum(file.stat().st_size for file in files) / len(files) / 1e6
        print(f"{len(files):,} JPEGs of {megapixels:.1f} megapixels and {megabytes:.2f} MB on average, ", end="")
        print(f"{arguments.workers} workers\n")
        print("| pixels | " + " | ".join(f"{loader}, images/s" for loader in LOADERS) + " | jepa / torchvision |")
        print("|---|---|---|---|---|")
        for size in (96, 224):
            rounds = [
                [measure_in_process(folder, loader, size, arguments.workers, arguments.images) for loader in LOADERS]
                for _ in range(arguments.rounds)
            ]
            medians = " | ".join(f"{statistics.median(speeds):.0f}" for speeds in zip(*rounds, strict=True))
            ratios = [speeds[0] / speeds[1] for speeds in rounds]
            ratios_text = ", ".join(f"{ratio:.2f}" for ratio in ratios)
            print(f"| {size} | {medians} | {statistics.median(ratios):.2f} ({ratios_text}) |", flush=True)


INDEX_CODE = """
import sys, time
from pathlib import Path
from jepa.data import open_source, step_order
from jepa.data.sources import folder  # imported here to exclude the import time

def peak_megabytes():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024

before, start = peak_megabytes(), time.perf_counter()
index = open_source(sys.argv[1], Path(sys.argv[2])).open("train")
seconds = time.perf_counter() - start
step_order(0, 128, len(index.files), 0)
megabytes = (peak_megabytes() - before) / len(index.files) * 1e6
print(f"{len(index.files):,} | {seconds:.2f} | {megabytes:.0f} MB per million images")
"""


def index(arguments: argparse.Namespace) -> None:
    """Measure the first and second startup on a folder of many files, each in a new process."""
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        folder = Path(scratch) / "many"
        pixel = Path(scratch) / "pixel.png"
        Image.new("L", (8, 8)).save(pixel)
        content = pixel.read_bytes()
        for number in range(arguments.images):
            if number % 1000 == 0:
                (folder / f"class-{number // 1000:03}").mkdir(parents=True)
            (folder / f"class-{number // 1000:03}" / f"image-of-a-thing-{number:07}.png").write_bytes(content)
        time.sleep(3)  # an index written within two seconds of a change is rebuilt
        print("| startup | images | seconds | memory |\n|---|---|---|---|")
        for name in ("first", "second"):
            command = [sys.executable, "-c", INDEX_CODE, str(folder), str(Path(scratch) / "cache")]
            result = subprocess.run(command, check=True, capture_output=True, text=True)
            print(f"| {name} | {result.stdout.strip()} |", flush=True)


def memory(arguments: argparse.Namespace) -> None:
    """Print the process memory after each of ten epochs of small images, with and without a cache."""
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        folder = Path(scratch) / "few"
        folder.mkdir()
        rng = np.random.default_rng(0)
        for number in range(arguments.images):
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{number}.png")
        for name, cache_gb in (("without a cache", 0.0), ("with a cache", 8.0)):
            config = DataConfig(source=str(folder), image_size=32, canvas=32, cache_gb=cache_gb)
            dataset = open_dataset(config, cache=Path(scratch) / "cache")
            assert dataset is not None
            loader = Loader(
                dataset=dataset,
                indices=torch.arange(len(dataset)),
                batch_size=BATCH_SIZE,
                seed=0,
                device=CPU,
                workers=arguments.workers,
            )
            steps_per_epoch, megabytes = len(dataset) // BATCH_SIZE, []
            for step, _ in enumerate(loader.steps(range(10 * steps_per_epoch)), 1):
                if step % steps_per_epoch == 0:
                    pages = int(Path("/proc/self/statm").read_text().split()[1])
                    megabytes.append(pages * resource.getpagesize() / 1e6)
            print(f"{name}: {', '.join(f'{value:.0f}' for value in megabytes)} MB after each of ten epochs")


def wait(arguments: argparse.Namespace) -> None:
    """Train `ijepa-cifar10` for a few steps, and print the fraction of time spent waiting for data."""
    config = recipe("ijepa-cifar10")
    data = dataclasses.replace(config.data, source=arguments.data)
    config = dataclasses.replace(config, data=data, steps=arguments.steps, eval_every=0, save_every=arguments.steps)
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        for name in ("first", "second"):
            run: Run = train(config, Path(scratch) / name)
            records = [record for record in run.metrics() if "data_wait" in record]
            fraction = statistics.median(record["data_wait"] for record in records)
            speed = statistics.median(record["images_per_s"] for record in records)
            milliseconds = config.batch_size / speed * 1e3
            print(f"{name} startup: {fraction:.2%} of a {milliseconds:.0f} ms step is spent waiting for data")


def main() -> None:
    """Run the selected benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark", choices=["decode", "index", "memory", "wait"])
    parser.add_argument("--images", type=int, default=None, help="number of files (default: 2,000; 200,000 for index)")
    parser.add_argument("--workers", type=int, default=2, help="number of decoding processes")
    parser.add_argument("--rounds", type=int, default=3, help="number of rounds of decode")
    parser.add_argument("--steps", type=int, default=200, help="number of training steps of wait")
    parser.add_argument("--data", default="cifar10", help="data source of wait")
    parser.add_argument("--scratch", default=None, help="folder for temporary files")
    arguments = parser.parse_args()
    arguments.images = arguments.images or {"index": 200_000}.get(arguments.benchmark, 2000)
    {"decode": decode, "index": index, "memory": memory, "wait": wait}[arguments.benchmark](arguments)


if __name__ == "__main__":
    main()
