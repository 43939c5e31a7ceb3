"""Images of any kind in memory or on disk, as batches for an encoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from jepa.config import InputError
from jepa.data.decode import Unreadable, decode, decode_opened

__all__ = ["Images", "read_batches"]

Images = str | Path | Image.Image | np.ndarray | Tensor | Sequence[Any]
"""A path, a PIL image, a NumPy array (H, W, C) or (B, H, W, C), a tensor (C, H, W) or (B, C, H, W), or a list."""
LUMA = (0.299, 0.587, 0.114)
ACCEPTED = (
    "a path, a PIL image, a uint8 NumPy array (H, W, C) or (B, H, W, C), a tensor (C, H, W) or (B, C, H, W), or a list "
    "of single images"
)


def read_batches(images: Images, channels: int, canvas: tuple[int, int], batch_size: int) -> Iterator[Tensor]:
    """Yield batches of images (B, C, H, W), all uint8 or all floats.

    Paths, PIL images and uint8 values are cropped and resized to the canvas (height, width) in the same way, so an
    image gives the same batch in each of these forms. Floats are returned as they are. Raises `InputError` if an image
    cannot be read, or is none.
    """
    singles = _singles(images)
    while pixels := [_pixels(image, channels, canvas) for image in islice(singles, batch_size)]:
        start = 0
        for end in range(1, len(pixels) + 1):  # images of a group may differ in size and type
            if end == len(pixels) or (pixels[end].shape, pixels[end].dtype) != (
                pixels[start].shape,
                pixels[start].dtype,
            ):
                yield torch.stack(pixels[start:end])
                start = end


def _singles(images: Images) -> Iterator[Any]:
    """Yield single images."""
    if isinstance(images, Tensor | np.ndarray) and images.ndim == 4:
        yield from images
    elif isinstance(images, list | tuple):
        for image in images:
            if isinstance(image, list | tuple) or (isinstance(image, Tensor | np.ndarray) and image.ndim == 4):
                raise InputError(
                    "images must be a list of single images, got a list of lists or batches; give one batch"
                )
            yield image
    else:
        yield images


def _pixels(image: Any, channels: int, canvas: tuple[int, int]) -> Tensor:
    """Return one image (C, H, W) as uint8 at the size of the canvas, or a float tensor unchanged."""
    if isinstance(image, Tensor):
        if image.ndim != 3:
            raise InputError(f"a tensor of images must be (C, H, W) or (B, C, H, W), got {tuple(image.shape)}")
        if 0 in image.shape:
            raise InputError(f"a tensor of images must have at least one pixel, got {tuple(image.shape)} for one image")
        if image.is_floating_point() and image.shape[0] in (1, 3):
            return _with_channels(image.float(), channels)
        if image.dtype != torch.uint8 or image.shape[0] not in (1, 3):
            return image  # the encoder checks it
        if image.shape[0] == channels and tuple(image.shape[1:]) == canvas:
            return image
        image = image.permute(1, 2, 0).cpu().numpy()
    try:  # the arrays are copied, because that of a gray image may be read-only
        if isinstance(image, str | Path):
            return torch.tensor(decode(_read(Path(image).expanduser()), channels, canvas))
        if isinstance(image, np.ndarray):
            image = _from_array(image)
        if isinstance(image, Image.Image):
            return torch.tensor(decode_opened(image, channels, canvas))
    except Unreadable as reason:
        name = image if isinstance(image, str | Path) else "an image"
        raise InputError(f"{name} cannot be read: {reason}") from reason
    raise InputError(f"images must be {ACCEPTED}, got {type(image).__name__}")


def _with_channels(image: Tensor, channels: int) -> Tensor:
    """Return a float image (1 or 3, H, W) as gray or as color, with the weights of Pillow (ITU-R 601)."""
    if len(image) == channels:
        return image
    gray = image.new_tensor(LUMA) if len(image) == 3 else image.new_ones(1)
    return torch.einsum("c,chw->hw", gray, image).expand(channels, -1, -1)


def _read(path: Path) -> bytes:
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the paths of images, or use 'jepa embed' for whole folders")
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"the image {path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # a path with a NUL character
        raise InputError(f"the image {str(path)!r} cannot be read: {error}") from error


def _from_array(array: np.ndarray) -> Image.Image:
    """Return an array (H, W) or (H, W, C) as a PIL image: gray, gray with alpha, RGB or RGBA."""
    if array.dtype != np.uint8:
        raise InputError(
            f"NumPy arrays of images must be uint8, got {array.dtype}; convert them, or give floats in [0, 1] as a "
            "tensor (C, H, W) or (B, C, H, W)"
        )
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 2, 3, 4)) or 0 in array.shape:
        raise InputError(
            f"NumPy arrays of images must be (H, W), (H, W, C) or (B, H, W, C) with 1 to 4 channels, got "
            f"{tuple(array.shape)} for one image; use array.transpose(1, 2, 0) for channels-first images"
        )
    array = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    return Image.fromarray(np.ascontiguousarray(array))
