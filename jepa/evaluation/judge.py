"""Put the evaluations together: the table of `jepa evaluate`, and the quick one during training."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from tqdm import tqdm

from jepa.backbones import Encoder
from jepa.data import Images
from jepa.evaluation.dimension import correlation_dimension
from jepa.evaluation.features import Features, FeatureStore, extract, pixels
from jepa.evaluation.geometry import rankme, spread
from jepa.evaluation.probes import few_labels, knn, linear_probe

__all__ = ["CLOUD", "COLUMNS", "PIXEL_ROWS", "cell", "judge", "labelled", "online", "score", "table", "titles_of"]

ONLINE_BANK, UNLABELLED_BANK = 5000, 1000
PIXEL_ROWS = 50_000  # training images whose raw pixels are fitted, 600 MB
CLOUD = 10_000  # points of a correlation dimension
NEIGHBOURS = (1, 2, 5, 10, 20, 50, 100, 200)
HEADLINE = 20  # neighbours
TITLES = {
    "trained": "trained (target encoder)",
    "context": "trained (context encoder)",
    "untrained": "untrained, same encoder",
    "pixels": "raw pixels",
    "pca": "PCA of pixels",
    "patches": "k-means of patches",
    "supervised": "the same, trained with labels",
}
COLUMNS = {
    "knn": "kNN",
    "linear": "linear",
    "linear_last4": "last 4",
    "linear_10pc": "10 % labels",
    "linear_1pc": "1 % labels",
    "rankme": "RankMe",
    "dimension": "dimension",
}


def judge(
    encoders: dict[str, Encoder],
    train: tuple[Images, Tensor],
    test: tuple[Images, Tensor],
    store: FeatureStore,
    workers: int = 0,
) -> dict[str, Any]:
    """Score encoders and raw pixels, fitted on train and scored on test; percentages, rounded to 0.01.

    Each of `train` and `test` is images with the index of those to use; features are kept in `store`; `workers`
    processes decode the images. What needs more images than there are is left out of a row.
    """
    rows: dict[str, Any] = {}
    for name, encoder in encoders.items():
        fitted, scored = (
            store.extract(name, encoder, images, index, f"{name}: features of {images.name}", workers)
            for images, index in (train, test)
        )
        shape = {"rankme": round(rankme(scored.x), 2), "spread": round(spread(scored.x), 5)}
        rows[name] = score(name, fitted, scored) | shape
    scored = pixels(*test)
    index = train[1][:: -(-len(train[1]) // PIXEL_ROWS)]
    fitted = pixels(train[0], index) if labelled(train[0], test[0]) else scored
    rows["pixels"] = score("raw pixels", fitted, scored)
    return rows


def labelled(train: Images, test: Images) -> bool:
    """Say whether there are classes to fit to and labels to score by."""
    return train.labels is not None and test.labels is not None and len(train.labels.unique()) > 1


def score(name: str, train: Features, test: Features) -> dict[str, Any]:
    """Score features by what needs labels, where both have them, and by their dimension: a row of the table.

    `name` is shown on the progress bar. What there are too few images for is left out.
    """
    row = _scores(name, train, test)
    with tqdm(total=1, desc=f"{name}: correlation dimension", delay=3, leave=False):
        found = correlation_dimension(test.x[:: -(-len(test.x) // CLOUD)])
    if found:
        row |= {"dimension": found.value, "dimension_error": found.error}
    return {key: _rounded(key, value) for key, value in row.items()}


def _scores(name: str, train: Features, test: Features) -> dict[str, Any]:
    """Score what needs labels, where both have them, a bar over the stages."""
    if train.labels is None or test.labels is None or len(train.labels.unique()) < 2:
        return {}
    scores: dict[str, Any] = {}
    with tqdm(total=5, unit="score", delay=3, leave=False) as bar:

        def stage(what: str) -> None:
            bar.set_description(f"{name}: {what}", refresh=False)
            bar.update()

        stage("nearest neighbours")
        if counts := [k for k in NEIGHBOURS if k <= len(train.x)]:
            scores["knn_by_neighbours"] = knn(train, test, counts)
        if HEADLINE in counts:
            scores["knn"] = scores["knn_by_neighbours"][HEADLINE]
        stage("linear probe")
        scores["linear"], scores["penalty"] = linear_probe(train, test)
        stage("linear probe of the last four layers")
        if train.last4 is not None:
            scores["linear_last4"], _ = linear_probe(train, test, last4=True)
        for key, share in (("linear_10pc", 0.1), ("linear_1pc", 0.01)):
            stage(f"linear probe with {share:.0%} of the labels")
            if (found := few_labels(train, test, share)) is not None:
                scores[key] = found
    return scores


def _rounded(key: str, value: Any) -> Any:
    if isinstance(value, dict):
        return {str(each): round(part, 2) for each, part in value.items()}
    return round(value, 5 if key == "penalty" else 2)


def online(encoder: Encoder, images: Images, bank: Tensor, held_out: Tensor) -> dict[str, float]:
    """Judge an encoder quickly during training: kNN from training to held-out images, spread and RankMe."""
    size = ONLINE_BANK if images.labels is not None else UNLABELLED_BANK
    train = extract(encoder, images, bank[:: -(-len(bank) // size)], False, "online evaluation")
    test = extract(encoder, images, held_out, False, "online evaluation") if len(held_out) else train
    result = {"spread": spread(train.x), "rankme": rankme(train.x)}
    labelled = train.labels is not None and len(train.labels.unique()) > 1
    if labelled and len(held_out) and len(train.x) >= HEADLINE:
        result["knn"] = knn(train, test, (HEADLINE,))[HEADLINE]
    return result


def titles_of(result: dict[str, Any]) -> dict[str, str]:
    """Name the rows of a result; without a teacher there is one encoder."""
    return TITLES if result.get("context") else TITLES | {"trained": "trained"}


def table(result: dict[str, Any]) -> str:
    """Lay out the rows of `judge` as text."""
    columns = [(key, title) for key, title in COLUMNS.items() if any(key in result.get(row, {}) for row in TITLES)]
    titles = titles_of(result)
    width = max(len(title) for title in titles.values())
    lines = [" " * width + "".join(f"{title:>13}" for _, title in columns)]
    for name, title in titles.items():
        if result.get(name):
            cells = [cell(result[name], key) for key, _ in columns]
            lines.append(f"{title:<{width}}" + "".join(f"{text:>13}" for text in cells))
    return "\n".join(lines)


def cell(row: dict[str, Any], key: str) -> str:
    """Write one figure of a row, with its error where it has one."""
    if key not in row:
        return "–"
    error = f"{key}_error"
    return f"{row[key]:.1f}" + (f" ± {row[error]:.1f}" if error in row else "")
