"""Evaluation: features once, then measures of them. A new one is a file here and a line in `judge.py`."""

from jepa.evaluation.descent import descent, descent_table
from jepa.evaluation.features import Features, extract, pixels
from jepa.evaluation.foresight import foresees, foresight, foresight_figure, foresight_table
from jepa.evaluation.geometry import rankme, spread
from jepa.evaluation.judge import judge, online, table
from jepa.evaluation.probes import knn, linear_probe

__all__ = [
    "Features",
    "descent",
    "descent_table",
    "extract",
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
    "spread",
    "table",
]
