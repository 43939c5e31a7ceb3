"""Objectives: a batch in, a dict of losses out. A new one is a file here and a line in `OBJECTIVES`."""

from jepa.config import Config, IJepaConfig
from jepa.objectives.base import Objective
from jepa.objectives.ijepa import IJepa

__all__ = ["OBJECTIVES", "IJepa", "Objective", "build_objective"]

OBJECTIVES = {IJepaConfig: IJepa}


def build_objective(config: Config) -> Objective:
    """Build the objective of a config, with fresh weights from torch's global generator."""
    return OBJECTIVES[type(config.objective)](config)
