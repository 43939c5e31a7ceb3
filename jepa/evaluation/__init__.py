"""Evaluation: features once, then measures of them. A new one is a file here and a line in `judge.py`."""

from jepa.evaluation.attention import attention, entropy, rollout
from jepa.evaluation.descent import descent, descent_table
from jepa.evaluation.dimension import Dimension, correlation_dimension
from jepa.evaluation.features import Features, FeatureStore, extract, pixels
from jepa.evaluation.foresight import FORESEEN, foresees, foresight, foresight_table
from jepa.evaluation.geometry import rankme, spectrum, spread
from jepa.evaluation.judge import (
    CLOUD,
    COLUMNS,
    HEADLINE,
    PIXEL_ROWS,
    cell,
    judge,
    labelled,
    online,
    score,
    table,
    titles_of,
)
from jepa.evaluation.patches import PatchDictionary, principal_features
from jepa.evaluation.probes import few_labels, knn, linear_probe
from jepa.evaluation.projection import Projection, principal_axes, project

__all__ = [
    "CLOUD",
    "COLUMNS",
    "FORESEEN",
    "HEADLINE",
    "PIXEL_ROWS",
    "Dimension",
    "FeatureStore",
    "Features",
    "PatchDictionary",
    "Projection",
    "attention",
    "cell",
    "correlation_dimension",
    "descent",
    "descent_table",
    "entropy",
    "extract",
    "few_labels",
    "foresees",
    "foresight",
    "foresight_table",
    "judge",
    "knn",
    "labelled",
    "linear_probe",
    "online",
    "pixels",
    "principal_axes",
    "principal_features",
    "project",
    "rankme",
    "rollout",
    "score",
    "spectrum",
    "spread",
    "table",
    "titles_of",
]
