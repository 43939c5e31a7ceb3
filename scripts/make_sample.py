"""Write the built-in sample, 10,000 + 2,000 images of Fashion-MNIST, from the Debian package of the dataset.

    apt-get install dataset-fashion-mnist
    python scripts/make_sample.py

The first images of each split are written to `jepa/data/sample/{train,test}-00000-of-00001.parquet` in the layout of
the Hugging Face hub, as lossless WebP: the pixels are exact, and the source `sample` is a set of parquet files.
"""

import gzip
import io
import json
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

SOURCE = Path("/usr/share/datasets/fashion-mnist")
TARGET = Path(__file__).resolve().parent.parent / "jepa" / "data" / "sample"
CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
SPLITS = (("train", "train", 10_000), ("test", "t10k", 2_000))  # name, prefix of the files, number of images


def read_idx(path: Path) -> np.ndarray:
    """Read a gzipped IDX file of unsigned bytes."""
    raw = gzip.decompress(path.read_bytes())
    ndim = raw[3]
    shape = struct.unpack(f">{ndim}I", raw[4 : 4 + 4 * ndim])
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * ndim).reshape(shape)


def encode(image: np.ndarray) -> bytes:
    """Encode a gray image as lossless WebP."""
    buffer = io.BytesIO()
    Image.fromarray(image).convert("RGB").save(buffer, "WEBP", lossless=True, quality=100, method=6)
    return buffer.getvalue()


def main() -> None:
    """Write both splits."""
    TARGET.mkdir(parents=True, exist_ok=True)
    features = {"image": {"_type": "Image"}, "label": {"names": list(CLASSES), "_type": "ClassLabel"}}
    for split, prefix, count in SPLITS:
        images = read_idx(SOURCE / f"{prefix}-images-idx3-ubyte.gz")[:count]
        labels = read_idx(SOURCE / f"{prefix}-labels-idx1-ubyte.gz")[:count]
        files = [{"bytes": encode(image), "path": None} for image in images]
        image_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        table = pa.table({"image": pa.array(files, image_type), "label": pa.array(labels.astype(np.int64))})
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        path = TARGET / f"{split}-00000-of-00001.parquet"
        pq.write_table(table, path, compression="zstd")
        print(f"{path.name}: {count} images, {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
