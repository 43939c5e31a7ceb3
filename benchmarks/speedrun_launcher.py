"""Train one entry of the speedrun in a process that may read only what the rules allow.

    python -P benchmarks/speedrun_launcher.py SPEC      # started by benchmarks/speedrun.py; SPEC is a JSON file

Before anything else is imported, an audit hook is installed. It ends the process when Python code connects to the
network, starts a program that does, or opens a file for reading that is neither listed in SPEC nor part of Python, its
packages or the system. This finds mistakes (a method that opens the labeled images) and pretrained weights
(downloads, and weights that were saved in an earlier process). It is not a sandbox against code that is written to
cheat: readers in C++ or Rust, such as those of pyarrow and safetensors, raise no audit events, and neither do the
children of a program. For this reason, each entry is also read by people.
"""

from __future__ import annotations

import json
import os
import re
import site
import socket
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jepa.config import Config

__all__ = ["VIOLATION_CODE", "Guard", "check_entry", "color_settings", "fit_patches", "main"]

VIOLATION_CODE = 2  # exit code of an entry that broke a rule
SYSTEM_FOLDERS = ("/usr", "/lib", "/lib64", "/etc", "/proc", "/sys", "/dev", "/System", "/Library")
NETWORK_EVENTS = ("socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "socket.gethostbyname")
PROGRAM_EVENTS = ("subprocess.Popen", "os.exec", "os.posix_spawn", "os.spawn", "os.system")
DOWNLOADERS = {
    *("curl", "wget", "aria2c", "git", "rsync", "scp", "sftp", "ftp", "ssh", "aws", "gsutil", "gcloud", "rclone"),
    *("hf", "huggingface-cli", "kaggle", "gdown"),
}
"""Programs that use the network. Others may be started, because torch.compile needs a compiler, for example."""
COLOR_WORDS = {
    *("color", "colors", "colour", "brightness", "contrast", "saturation", "hue", "jitter", "gray", "grayscale"),
    *("solarize", "posterize", "equalize", "autocontrast", "invert", "blur", "noise", "mixup", "cutmix", "erasing"),
}
"""Words in the names of settings that change pixel values instead of moving the view."""


class Guard:
    """An audit hook that ends the process when an entry breaks a rule.

    `readable` are the files and folders that the entry may read besides Python and the system. Those in `forbidden` may
    not be read even if they are within the folders of Python or the system. The sentence that says which rule was
    broken is written to the file `report`.
    """

    def __init__(self, readable: Iterable[str | Path], forbidden: Iterable[str | Path], report: str | Path) -> None:
        self.readable = resolve(readable)
        self.forbidden = resolve(forbidden)
        self.environment = resolve([*python_folders(), *SYSTEM_FOLDERS])
        self.report = os.fspath(report)
        self.created: set[Path] = set()  # files that the process itself has created

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Check an event, and end the process if it breaks a rule; an exception could be caught by the entry."""
        violation = self.violation(event, arguments)
        if violation is not None:
            file = os.open(self.report, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.write(file, f"{violation}\n".encode(errors="backslashreplace"))
            os._exit(VIOLATION_CODE)

    def violation(self, event: str, arguments: tuple[Any, ...]) -> str | None:
        """Return a sentence that says which rule an event breaks, or None."""
        if event == "open":
            return self.opened(*arguments)
        if event in NETWORK_EVENTS:
            if isinstance(arguments[0], socket.socket) and arguments[0].family == getattr(socket, "AF_UNIX", None):
                return None  # between processes of the machine
            return network_message(event)
        if event in PROGRAM_EVENTS:
            found = sorted(DOWNLOADERS & set(program_words(arguments[:2])))
            return network_message(f"it started {found[0]}") if found else None
        return None

    def opened(self, path: Any, mode: str | None, flags: int | None) -> str | None:
        """Return a sentence if a file that is opened must not be read, or None."""
        if isinstance(path, int):  # a descriptor that is already open
            return None
        flags = flags or 0
        try:
            file = Path(os.fsdecode(path)).resolve()
            exists, is_folder = file.exists(), file.is_dir()
        except (OSError, RuntimeError, TypeError, ValueError):  # no valid path; opening it raises the same error
            return None
        writes = flags & (os.O_WRONLY | os.O_RDWR)
        if writes and (not exists or flags & os.O_TRUNC):
            self.created.add(file)
        if flags & os.O_WRONLY or not exists or is_folder or file in self.created or within(file, self.readable):
            return None
        if within(file, self.environment) and not within(file, self.forbidden):
            return None
        return (
            f"the entry must be trained on the unlabeled images alone, but its training opened {file}; labels, test "
            "images, pretrained weights and any file other than the entry's own are forbidden, so remove that access"
        )


def network_message(use: str) -> str:
    """Return the sentence about a use of the network."""
    return (
        f"the entry must be trained without a network, but its training used it ({use}); pretrained weights and other "
        "downloads are forbidden, so remove them"
    )


def program_words(value: Any) -> Iterator[str]:
    """Yield the words, without folders, of the path and the arguments with which a program is started."""
    if isinstance(value, str | bytes):
        yield from (Path(word).name for word in re.split(r"[\s;|&()\"']+", os.fsdecode(value)))
    elif isinstance(value, tuple | list):
        for part in value:
            yield from program_words(part)


def resolve(paths: Iterable[str | Path]) -> tuple[Path, ...]:
    """Return the paths without symbolic links."""
    return tuple(dict.fromkeys(Path(path).resolve() for path in paths))


def within(file: Path, folders: Iterable[Path]) -> bool:
    """Return whether a resolved path is one of `folders` or inside one of them."""
    return any(file.is_relative_to(folder) for folder in folders)


def python_folders() -> list[str | Path]:
    """Return the folders of Python and its packages, and the metadata of packages that are installed elsewhere."""
    metadata = [path for folder in sys.path if folder for path in Path(folder).glob("*.egg-info")]
    packages = [*site.getsitepackages(), site.getusersitepackages()]
    return [sys.prefix, sys.base_prefix, sys.exec_prefix, *packages, *metadata]


def color_settings(config: Config) -> dict[str, Any]:
    """Return the settings of an objective of the package that change pixel values, with their values."""
    from jepa.config.serialization import flat

    if not type(config.objective).__module__.startswith("jepa."):
        return {}  # whoever wrote the objective declares the track
    settings = flat(config.objective, "objective.")
    return {
        name: value
        for name, value in settings.items()
        if COLOR_WORDS & set(re.split(r"[._]", name))
        and value not in ("none", "off")
        and any(value if isinstance(value, tuple | list) else [value])
    }


def check_entry(config: Config, images: str, track: str, labels: bool) -> None:
    """Raise `InputError` if the config of an entry breaks a rule.

    `images` is the file that it must be trained on, and `labels` says whether it is a reference that uses labels.
    """
    from jepa.config import require

    kind = config.objective.kind
    require(
        config.data.source == images,
        f"the entry must be trained on the images that the speedrun passes to it, got {config.data.source}; remove "
        "--data from its flags",
    )
    require(
        labels or not config.objective.uses_labels,
        f"the objective of an entry must not use labels, but '{kind}' does; use another one, or add --labels to record "
        "it as a reference that is not ranked",
    )
    require(
        config.objective.uses_labels or not labels,
        f"--labels is for objectives that use labels, and '{kind}' does not; remove --labels",
    )
    colors = color_settings(config) if track == "movements" else {}
    name = next(iter(colors), "")
    require(
        not colors,
        f"the track 'movements' allows only crops, shifts, turns, zooms and flips, but {name} is {colors.get(name)}; "
        "switch it off, or use --track any",
    )


def train_entry(arguments: list[str], images: str, track: str, labels: bool) -> int:
    """Train with the arguments of `jepa train` if their config follows the rules; return the exit code."""
    from jepa.config.arguments import parse_train_arguments
    from jepa.data.inspect import summarize_source
    from jepa.train import train

    parsed = parse_train_arguments(arguments, summarize_source)
    check_entry(parsed.config, images, track, labels)
    train(parsed.config, parsed.path)
    return 0


def fit_patches(images: str, seed: int, target: Path) -> int:
    """Fit a patch dictionary to the images, save it with its cost to the file `target`, and return the exit code."""
    import torch

    from jepa.config import DataConfig
    from jepa.data import open_dataset
    from jepa.evaluation import pixel_baselines
    from jepa.evaluation.pixel_baselines import PatchDictionary

    start = time.perf_counter()
    dataset = open_dataset(DataConfig(source=images), cache=target.parent / ".jepa-cache")
    assert dataset is not None
    dictionary = PatchDictionary(dataset, torch.arange(len(dataset)), seed)
    patch_dim, rounds = len(dictionary.mean), pixel_baselines.KMEANS_ROUNDS
    products = pixel_baselines.NUM_DICTIONARY_PATCHES * patch_dim * (len(dictionary.centroids) * rounds + patch_dim)
    cost = {
        "seconds": time.perf_counter() - start,
        "images": min(len(dataset), pixel_baselines.MAX_DICTIONARY_IMAGES),
        "flops": 2 * products,  # distances to the centroids, and whitening
    }
    torch.save({"dictionary": dictionary, "cost": cost}, target)
    return 0


def main() -> None:
    """Install the guard, then train the entry that the JSON file describes."""
    spec = json.loads(Path(sys.argv[1]).read_text())
    sys.addaudithook(Guard([*spec["readable"], __file__], spec["forbidden"], spec["report"]))
    from jepa.config.errors import exit_with

    if "train" in spec:
        exit_with(lambda: train_entry(spec["train"], spec["images"], spec["track"], spec["labels"]))
    exit_with(lambda: fit_patches(spec["images"], spec["seed"], Path(spec["target"])))


if __name__ == "__main__":
    main()
