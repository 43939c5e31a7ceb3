"""Objectives, the methods that train an encoder."""

from jepa.config import OBJECTIVES, Config
from jepa.objectives.base import Objective

__all__ = ["Objective", "build_objective"]


def build_objective(config: Config) -> Objective:
    """Build the objective of a config, initialized with torch's global generator."""
    objective: Objective = OBJECTIVES.implementation(config.objective)(config)
    return objective
