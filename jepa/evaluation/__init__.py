"""Evaluation: features once, then measures of them. A new one is a file here and a line in `judge.py`."""

from jepa.evaluation.attention import attention, entropy, rollout
from jepa.evaluation.descent import descent, descent_table
from jepa.evaluation.dimension import Dimension, correlation_dimension
from jepa.evaluation.features import Features, FeatureStore, extract, pixels
from jepa.evaluation.foresight import foresees, foresight, foresight_figure, foresight_table
from jepa.evaluation.geometry import rankme, spectrum, spread
from jepa.evaluation.judge import HEADLINE, judge, online, table
from jepa.evaluation.probes import few_labels, knn, linear_probe

__all__ = [
    "HEADLINE",
    "Dimension",
    "FeatureStore",
    "Features",
    "attention",
    "correlation_dimension",
    "descent",
    "descent_table",
    "entropy",
    "extract",
    "few_labels",
    "foresees",
    "foresight",
    "foresight_figure",
    "foresight_table",
    "judge",
    "knn",
    "linear_probe",
    "online",
    "pixels",
    "rankme",
    "rollout",
    "spectrum",
    "spread",
    "table",
]
