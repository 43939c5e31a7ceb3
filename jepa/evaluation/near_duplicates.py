"""Test images that have an almost identical training image, found by comparing pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from jepa.data import evenly_spaced
from jepa.evaluation.features import BATCH_SIZE, Subset, small_images
from jepa.evaluation.knn import nearest
from jepa.transforms.crop import as_float, resize

__all__ = ["NUM_OTHERS", "NearDuplicates", "find_near_duplicates", "is_exceptional", "is_near_duplicate", "layout"]

MAX_TRAIN, MAX_TEST = 50_000, 10_000  # maximum numbers of images that are compared
LAYOUT_SIDE = 8  # side of the thumbnails by which the nearest training image is found
MIN_LAYOUT_SIMILARITY = 0.95  # cosine of thumbnails
NUM_OTHERS, MAX_RATIO = 10, 0.1  # trousers of Fashion-MNIST have ratios from 0.1 on, recompressed copies up to 0.03
EQUAL_LAYOUTS = 1 - 1e-6  # cosine, up to rounding
SIDE = 32  # side of the images in which details are compared
DETAIL_WINDOW, SHIFT_WINDOW = 5, 4  # in pixels of these images
MIN_DETAIL = 0.008  # standard deviation of details, of pixels in [0, 1]; flat images and gradients have less
MIN_CORRELATION = 0.9  # of details; different photos of one car of CIFAR-10 reach 0.89
MAX_SHIFT = 0.15  # maximum difference of the average of a window, such as that of a small object
MAX_EXAMPLES = 20  # number of pairs listed in evaluation.json


@dataclass(frozen=True)
class NearDuplicates:
    """Test images with an almost identical training image."""

    pairs: Tensor  # (P, 2): positions of the test image and of the training image in their splits
    test: int  # number of test images compared
    train: int  # number of training images compared
    train_is_complete: bool  # whether all training images were compared

    def __str__(self) -> str:
        """Return the number of test images with a near-duplicate, as part of a sentence."""
        bank = "the training images" if self.train_is_complete else f"{self.train:,} of the training images"
        verb = "has" if len(self.pairs) == 1 else "have"
        return f"{len(self.pairs):,} of {self.test:,} test images {verb} a near-duplicate among {bank}"

    def to_json(self, train: Subset, test: Subset) -> dict[str, Any]:
        """Return the numbers of images, and the names of up to 20 pairs."""
        names = [
            [test.dataset.files.name(query), train.dataset.files.name(copy)]
            for query, copy in self.pairs[:MAX_EXAMPLES].tolist()
        ]
        return {"count": len(self.pairs), "test": self.test, "train": self.train, "examples": names}


def find_near_duplicates(train: Subset, test: Subset) -> NearDuplicates:
    """Compare up to 10,000 test images with up to 50,000 training images, evenly spaced.

    The nearest training image of each is found by gray thumbnails of 8x8 pixels, whose similarity has to be exceptional
    (`is_exceptional`); then both are compared in detail (`is_near_duplicate`). Unreadable images are skipped.
    """
    train_part, test_part = (
        Subset(subset.dataset, subset.indices[evenly_spaced(len(subset.indices), limit)])
        for subset, limit in ((train, MAX_TRAIN), (test, MAX_TEST))
    )
    (bank, bank_layouts), (queries, query_layouts) = layouts(train_part), layouts(test_part)
    similarity, positions = nearest(bank_layouts, query_layouts, min(NUM_OTHERS, len(bank)))
    chosen = is_exceptional(similarity[:, 0], similarity[:, -1])
    candidates = torch.stack([queries, bank[positions[:, 0]]], 1)[chosen]
    same = [
        is_near_duplicate(square_images(test, pairs[:, 0]), square_images(train, pairs[:, 1]))
        for pairs in candidates.split(BATCH_SIZE)
        if len(pairs)
    ]
    pairs = candidates[torch.cat(same)] if same else candidates
    return NearDuplicates(pairs, len(queries), len(bank), len(train_part.indices) == len(train.indices))


def layouts(subset: Subset) -> tuple[Tensor, Tensor]:
    """Return the indices (N,) of readable images and their gray thumbnails (N, 64), of average 0."""
    used, thumbnails = [], []
    for indices, images in small_images(*subset):
        thumbnails.append(layout(images))
        used.append(indices)
    return torch.cat(used), torch.cat(thumbnails)


def layout(images: Tensor) -> Tensor:
    """Return gray thumbnails (B, 64) of images (B, C, H, W), of average 0."""
    thumbnail = F.adaptive_avg_pool2d(images.mean(1), LAYOUT_SIDE).flatten(1)
    return thumbnail - thumbnail.mean(1, keepdim=True)


def is_exceptional(similarity: Tensor, others: Tensor) -> Tensor:
    """Return whether two layouts of this cosine (P,) are more alike than those of objects of one simple shape.

    They are equal, or ten times as near (1 - cosine) as the tenth nearest, of cosine `others` (P,). So more than ten
    copies of an image are found only where their layouts are equal.
    """
    is_alone = 1 - similarity < MAX_RATIO * (1 - others)
    return (similarity > MIN_LAYOUT_SIMILARITY) & (is_alone | (similarity > EQUAL_LAYOUTS))


def square_images(subset: Subset, indices: Tensor) -> Tensor:
    """Return images (B, C, 32, 32) in [0, 1]."""
    return resize(as_float(subset.dataset.read(indices).pixels), (SIDE, SIDE))


def is_near_duplicate(first: Tensor, second: Tensor) -> Tensor:
    """Return whether two images (B, C, 32, 32) are the same up to compression, interpolation and brightness, (B,).

    Their details have to be there, and to be correlated. The averages of small windows have to be similar, apart from a
    difference in brightness.
    """
    one, other = detail(first), detail(second)
    has_details = torch.minimum(one.std(1), other.std(1)) > MIN_DETAIL
    difference = first - second
    difference = F.avg_pool2d(difference - difference.mean((1, 2, 3), keepdim=True), SHIFT_WINDOW, 1)
    is_same = F.cosine_similarity(one, other) > MIN_CORRELATION
    return has_details & is_same & (difference.abs().amax((1, 2, 3)) < MAX_SHIFT)


def detail(images: Tensor) -> Tensor:
    """Return the differences of gray pixels to their surroundings, of average 0, (B, P): 0 for linear gradients."""
    gray, border = images.mean(1, keepdim=True), DETAIL_WINDOW // 2
    inner = gray[..., border:-border, border:-border] - F.avg_pool2d(gray, DETAIL_WINDOW, 1)
    return inner.flatten(1) - inner.flatten(1).mean(1, keepdim=True)
