"""Put the evaluations together: the table of `jepa evaluate`, and the quick one during training."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from tqdm import tqdm

from jepa.backbones import Encoder
from jepa.data import Images
from jepa.evaluation.features import Features, extract, pixels
from jepa.evaluation.geometry import rankme, spread
from jepa.evaluation.probes import knn, linear_probe

__all__ = ["judge", "online", "table"]

ONLINE_BANK, UNLABELLED_BANK = 5000, 1000
TITLES = {
    "trained": "trained (target encoder)",
    "context": "trained (context encoder)",
    "untrained": "untrained, same encoder",
    "pixels": "raw pixels",
}


def judge(
    encoders: dict[str, Encoder],
    train: tuple[Images, Tensor],
    test: tuple[Images, Tensor],
    workers: int = 0,
) -> dict[str, Any]:
    """Score encoders and raw pixels, fitted on train and scored on test; percentages, rounded to 0.01.

    Each of `train` and `test` is images with the index of those to use; `workers` processes decode them.
    """
    rows: dict[str, Any] = {}
    with tqdm(total=len(encoders) + 1, unit="row", leave=False) as bar:
        for name, encoder in encoders.items():
            bar.set_description(f"judging {name}")
            fit, score = (
                extract(encoder, images, index, label="features", workers=workers) for images, index in (train, test)
            )
            rows[name] = _scores(fit, score) | {"rankme": rankme(score.x), "spread": spread(score.x)}
            bar.update()
        bar.set_description("judging raw pixels")
        rows["pixels"] = _scores(*(pixels(images, index) for images, index in (train, test)))
    return {
        name: {key: round(value, 5 if key in ("spread", "penalty") else 2) for key, value in row.items()}
        for name, row in rows.items()
    }


def _scores(train: Features, test: Features) -> dict[str, float]:
    if train.labels is None or test.labels is None:
        return {}
    scores = {"knn": knn(train.x, train.labels, test.x, test.labels)}
    scores["linear"], scores["penalty"] = linear_probe(train.x, train.labels, test.x, test.labels)
    if train.last4 is not None and test.last4 is not None:
        scores["linear_last4"], _ = linear_probe(train.last4, train.labels, test.last4, test.labels)
    return scores


def online(encoder: Encoder, images: Images, bank: Tensor, held_out: Tensor) -> dict[str, float]:
    """Judge an encoder quickly during training: kNN from training to held-out images, spread and RankMe."""
    size = ONLINE_BANK if images.labels is not None else UNLABELLED_BANK
    train = extract(encoder, images, bank[:: -(-len(bank) // size)], False, "online evaluation")
    test = extract(encoder, images, held_out, False, "online evaluation") if len(held_out) else train
    result = {"spread": spread(train.x), "rankme": rankme(train.x)}
    if train.labels is not None and test.labels is not None and len(held_out):
        result["knn"] = knn(train.x, train.labels, test.x, test.labels)
    return result


def table(result: dict[str, Any]) -> str:
    """Lay out the rows of `judge` as text."""
    columns = [("knn", "kNN"), ("linear", "linear"), ("linear_last4", "linear, last 4"), ("rankme", "RankMe")]
    columns = [(key, title) for key, title in columns if any(key in result.get(row, {}) for row in TITLES)]
    alone = {} if result.get("context") else {"trained": "trained"}  # without a teacher there is one encoder
    titles = TITLES | alone
    width = max(len(title) for title in titles.values())
    lines = [" " * width + "".join(f"{title:>16}" for _, title in columns)]
    for name, title in titles.items():
        if result.get(name):
            cells = [f"{result[name][key]:.1f}" if key in result[name] else "–" for key, _ in columns]
            lines.append(f"{title:<{width}}" + "".join(f"{cell:>16}" for cell in cells))
    return "\n".join(lines)
