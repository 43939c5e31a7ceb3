"""Ordinary sets of two to five classes and a few images are trained on and evaluated."""

import math

import numpy as np
import pytest

from jepa.evaluate import evaluate_run
from jepa.evaluation_run import EvaluationRun
from jepa.report.html import verdict, write_report
from jepa.report.text import as_text
from jepa.train import train
from tests.conftest import override, write_parquet


def write_classes(path, classes: int, size: int, seed: int) -> None:
    """Write noisy images whose brightness depends on the class; the last class has a single image."""
    generator = np.random.default_rng(seed)
    labels = [i % (classes - 1) if classes > 2 and i else classes - 1 - i % classes for i in range(size)]
    images = [generator.integers(0, 60, (16, 16, 3), dtype=np.uint8) + np.uint8(45 * label) for label in labels]
    write_parquet(path, images, labels, [f"class {i}" for i in range(classes)])


@pytest.mark.parametrize(
    ("classes", "size", "has_test_split"), [(2, 20, True), (3, 47, False), (4, 150, True), (5, 300, False)]
)
def test_small_sets_are_evaluated(classes, size, has_test_split, tiny, tmp_path, short_report):
    short_report("classes")
    write_classes(tmp_path / "small" / "train.parquet", classes, size, seed=0)
    if has_test_split:
        write_classes(tmp_path / "small" / "test.parquet", classes, size // 2, seed=1)
    config = override(tiny, steps=2, data__source=str(tmp_path / "small"), data__holdout=0.2)
    run = EvaluationRun.open(train(config, tmp_path / "run").path)
    result = evaluate_run(run)
    count = result["data"]["test"]
    assert count == (size // 2 if has_test_split else round(0.2 * size))
    for row in ("trained", "untrained", "pixels"):
        scores = result[row]
        assert 0 <= scores["linear"] <= 100
        assert 0 < scores["linear_error"] <= 50 / math.sqrt(count + 4)
        assert ("linear_1pc" in scores) == ("linear_1pc_error" in scores)
    assert result["pixels"]["linear"] > 80  # brightness is enough
    assert "1% of the labels: some class would have no image" in " ".join(as_text(result, run.folder.path).split())
    assert verdict(result) in write_report(run, result).read_text().replace("&#x27;", "'")
