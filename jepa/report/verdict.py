"""Verdict on a run: whether training improved the features."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["SAMPLE_NOTE", "verdict"]

MAX_UNTRAINED_SCORE = 95.0  # accuracy in percent above which the untrained encoder leaves too little room to improve
MIN_STANDARD_ERRORS = 2  # smaller gains over the untrained encoder may be due to chance
SAMPLE_NOTE = (
    "Raw pixels are a strong baseline for the small, centered images of the sample; CIFAR-10 is a better test."
)


def verdict(result: dict[str, Any]) -> str:
    """Return a verdict on whether training improved the features.

    It is based on accuracies relative to the untrained encoder; differences of at least two standard errors count.
    """
    trained, untrained, pixels = result["trained"], result["untrained"], result.get("pixels", {})
    accuracies = {title: key for title, key in (("kNN", "knn"), ("linear probe", "linear")) if key in trained}
    if not accuracies:
        return (
            "Without labels, this evaluation cannot show whether the encoder learned useful features. The "
            f"effective rank (RankMe) is {trained['rankme']:.1f}, compared with {untrained['rankme']:.1f} for the "
            "untrained encoder."
        )
    if all(untrained[key] > MAX_UNTRAINED_SCORE for key in accuracies.values()):
        return (
            f"The untrained encoder already scores above {MAX_UNTRAINED_SCORE:.0f}%, so these classes cannot show "
            "whether training improved the features."
        )
    caution = ""
    better = [title for title, key in accuracies.items() if pixels.get(key, 0) > trained[key]]
    if better:
        caution = f" Raw pixels score higher than the trained encoder ({' and '.join(better)})."
    # differences of the scores as they are shown, and their standard errors
    gains = {title: round(trained[key], 1) - round(untrained[key], 1) + 0.0 for title, key in accuracies.items()}
    errors = {
        title: math.hypot(trained[f"{key}_error"], untrained[f"{key}_error"]) for title, key in accuracies.items()
    }
    comparison = " and ".join(f"{title} {gain:+.1f} ± {errors[title]:.1f} points" for title, gain in gains.items())
    clear = [title for title, gain in gains.items() if gain >= MIN_STANDARD_ERRORS * errors[title]]
    worse = [title for title, gain in gains.items() if gain <= -MIN_STANDARD_ERRORS * errors[title]]
    if len(clear) == len(gains):
        summary = "Training improved the features"
    elif clear:
        summary = f"Training improved the features only in {clear[0]} accuracy"
    elif worse:
        summary = "Training made the features worse"
    else:
        summary = "Training did not clearly improve the features"
    return f"{summary}: {comparison}, compared with the untrained encoder.{caution}"
