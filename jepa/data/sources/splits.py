"""Names of splits, for folders, parquet files, columns of tables and datasets of the Hub.

A name is compared by its words: case, spaces, separators and the Hub's prefix `partial-` do not matter, and two names
of one split are one split. `find_splits` decides which of the folders that contain images are splits:

| folders                                             | meaning                                                      |
|-----------------------------------------------------|--------------------------------------------------------------|
| all are named as splits                             | splits; images beside them are counted, and not used         |
| train, another split, and other folders             | splits; the other folders are counted, and not used          |
| train without folders in it, and two other folders  | classes, such as bus, car and train                          |
| any other mixture of splits and other folders       | refused                                                      |
| one that looks like a split: train_images, trainval | refused                                                      |
| one other folder, and no image beside it            | the same question for its folders, as archives unpack        |
| other folders                                       | no splits: everything is for training                        |

Beside class folders, a folder `unlabeled` or `unsup` contains unlabeled images. Not every other folder is a class: see
`without_masks`, `is_container` and `are_numbered`.

A class may contain the word: `train_station` and `test_tube` are refused only beside splits, or if two names differ
only in the split, such as `seg_train` and `seg_test`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Sequence

from jepa.config import InputError

__all__ = [
    "SPLIT_NAMES",
    "are_numbered",
    "find_splits",
    "is_container",
    "is_unlabeled",
    "looks_like_split",
    "mentioned_splits",
    "resemble_splits",
    "split_of",
    "without_masks",
]

SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "devel", "development"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
"""The split that each word means; the words are those of the `datasets` package, and dev's longer forms."""
FILLERS = (
    *("set", "sets", "data", "dataset", "split", "part", "folder", "image", "images", "img", "imgs", "photo", "photos"),
    *("pic", "pics", "picture", "pictures", "mask", "masks", "label", "labels", "annotation", "annotations"),
    *("crop", "crops", "cropped", "resized", "original", "aug", "augmented", "clean", "new", "old", "all", "full"),
    *("small", "mini", "final", "hidden", "private", "public", "extra", "partial", "jpg", "jpeg", "png"),
)
"""Words that beside the word of a split leave no doubt that a split is meant: train_images, test-set, hidden test."""
UNLABELED = frozenset({"unsup", "unsupervised", "unlabeled", "unlabelled"})
"""Names of folders of unlabeled images beside class folders. Beside splits, they are refused."""
IMAGES = frozenset({"image", "images", "img", "imgs"})
MASKS = frozenset(
    {"mask", "masks", "segmentation", "segmentations", "label", "labels", "annotation", "annotations", "truth", "gt"}
)
"""Words of folders of masks, which are no images beside a folder `images`."""
NUMBERED = frozenset({"archive", "batch", "chunk", "fold", "shard", "subset", "volume"})
"""Words beside the fillers of folders that divide the images by number: fold1, images_001."""
OTHER_SPLITS = UNLABELED | {"holdout", "heldout"}
"""Splits of other datasets, which have no counterpart here."""
ABBREVIATIONS = frozenset({"tr", "trn", "va", "vl", "te", "tst", "ts"})
"""Abbreviations of splits, which are also those of languages; several of them without other names are refused."""
PART = "|".join(sorted((*SPLIT_NAMES, *FILLERS), key=len, reverse=True))
SWAPPED = {"".join(sorted(word)) for word in ("train", "training", "test", "validation")}  # letters of trian and tset
MIN_SIMILARITY = {"training": 0.93, "validation": 0.85, "evaluation": 0.95}
"""Similarity of misspelled words; shorter words have neighbors that are words: rain, text, chest, setting, vale."""
RENAME = "rename folders to train, validation or test, or start a name with a dot to leave the folder out"


def split_of(name: str) -> str | None:
    """Return the split that a name means, as in ' Training', 'partial-train' and 'dev', or None."""
    words = _words(name)
    if words[:1] == ["partial"]:
        words = words[1:]
    return SPLIT_NAMES.get(words[0]) if len(words) == 1 else None


def mentioned_splits(name: str) -> set[str]:
    """Return the splits whose words are in a name, as in 'mnist-train-00000-of-00002' or 'trainval'."""
    words = [part for word in _words(name) for part in (_parts(word) or [word])]
    return {SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES}


def is_unlabeled(name: str) -> bool:
    """Return whether a folder beside class folders contains unlabeled images, by its name."""
    return "".join(_words(name)) in UNLABELED


def looks_like_split(name: str) -> bool:
    """Return whether a name is probably meant as a split but is not one of the names of a split.

    As in train_images, train2, test-a, trainval, unsup and trian; but not train_station.
    """
    words = _words(name)
    if split_of(name) is not None or not words:
        return False
    if OTHER_SPLITS & {*words, "".join(words)} or any(_is_misspelled(word) for word in words):
        return True
    certain = [len(word) == 1 or word.isdigit() or word in FILLERS or bool(_parts(word)) for word in words]
    return all(certain) and bool(mentioned_splits(name))


def without_masks(folders: Sequence[str]) -> list[str]:
    """Return the folders without those of masks, if each folder contains either images or masks by its name."""
    words = {name: {part for word in _words(name) for part in (_parts(word) or [word])} for name in folders}
    masks = [name for name in folders if words[name] & MASKS]
    images = [name for name in folders if words[name] & IMAGES and words[name] <= {*FILLERS, *SPLIT_NAMES}]
    images = [name for name in images if name not in masks]
    return images if images and len(images) + len(masks) == len(folders) else list(folders)


def resemble_splits(names: Collection[str]) -> bool:
    """Return whether all names are abbreviations of splits, as in tr and te, or begin with train or test."""
    if len(names) > 1 and {name.strip().casefold() for name in names} <= ABBREVIATIONS:
        return True
    return all(map(_first_split, names)) and len(set[str]().union(*map(_first_split, names))) > 1


def is_container(name: str) -> bool:
    """Return whether the only folder of a split is not a class, by its name: images, all, test."""
    words = _words(name)
    return bool(words) and all(_parts(word) for word in words)


def are_numbered(folders: Collection[str]) -> bool:
    """Return whether folders only divide the images by number, and are not classes: fold1 and fold2, images_001."""
    patterns = {tuple(word for word in _words(name) if not word.isdigit()) for name in folders}
    words = next(iter(patterns), ())
    is_one = len(folders) > 1 and len(patterns) == 1 and bool(words)
    return is_one and all(word in NUMBERED or _parts(word) for word in words)


def find_splits(folders: Collection[str], nested: Collection[str], where: str) -> dict[str, list[str]]:
    """Return the folders of each split; see the table above. The result is empty if there are no splits.

    `folders` are the names of the folders that contain images, and `nested` are those with subfolders that do.
    Raises `InputError` if a folder looks like a split but is not clearly one; `where` is the folder above.
    """
    splits: dict[str, list[str]] = {}
    for name in sorted(folders):
        if (split := split_of(name)) is not None:
            splits.setdefault(split, []).append(name)
    named = [name for names in splits.values() for name in names]
    others = [name for name in sorted(folders) if name not in named]
    is_class = named == splits.get("train") and len(named) == 1 and len(others) >= 2 and named[0] not in nested
    suspects = [name for name in others if looks_like_split(name) and (named or not is_unlabeled(name))]
    if not suspects and named and not is_class:
        suspects = [name for name in others if mentioned_splits(name)]
    suspects = suspects or _twins([*others, *named]) or (others if resemble_splits(others) else [])
    if not suspects and others and not named and all(mentioned_splits(name) for name in others):
        suspects = [name for name in others if mentioned_splits(name) != {"train"}]
    if suspects:
        raise InputError(
            f"{where} contains folders that look like splits but are not named as splits: {_list(suspects)}; pass one "
            f"of them to --data, or {RENAME}"
        )
    if is_class:
        return {}
    if others and named and ("train" not in splits or len(splits) == 1):
        raise InputError(
            f"{where} contains splits ({_list(named)}) beside folders that are not ({_list(others)}); pass one of them "
            f"to --data, or {RENAME}"
        )
    return splits


def _words(name: str) -> list[str]:
    """Return the words and numbers of a name in lower case: trainImages-2 has three."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return re.findall(r"[^\W\d_]+|\d+", spaced.casefold())


def _parts(word: str) -> list[str]:
    """Return the words of a split and fillers that a word consists of, such as train and val; empty if it does not."""
    parts = re.findall(PART, word)
    return parts if "".join(parts) == word else []


def _first_split(name: str) -> set[str]:
    """Return the split that a name begins with, as in Trainingsdaten and Testdaten."""
    return {split for split in ("train", "test") if name.casefold().startswith(split)}


def _is_misspelled(word: str) -> bool:
    if word in SPLIT_NAMES:
        return False
    similar = (difflib.SequenceMatcher(None, word, right).ratio() >= least for right, least in MIN_SIMILARITY.items())
    return "".join(sorted(word)) in SWAPPED or (word[:1] in "tve" and any(similar))  # raining and straining are words


def _twins(names: Sequence[str]) -> list[str]:
    """Return the names that differ from another one only in the split, such as seg_train and seg_test."""
    splits: dict[str, set[str]] = {}
    for name in names:
        if split_of(name) is None:
            splits.setdefault(_without_split(name), set()).update(mentioned_splits(name))
    return [name for name in names if split_of(name) is None and len(splits[_without_split(name)]) > 1]


def _without_split(name: str) -> str:
    return " ".join("*" if word in SPLIT_NAMES else word for word in _words(name))


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
