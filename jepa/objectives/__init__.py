"""Objectives: a batch in, a dict of losses out. A new one is a file here and a line in `OBJECTIVES`."""

from collections.abc import Callable

from jepa.config import Config, IJepaConfig, SaccadeConfig, SupervisedConfig, VICRegConfig
from jepa.objectives.base import Objective
from jepa.objectives.ijepa import IJepa
from jepa.objectives.saccade import Saccade
from jepa.objectives.supervised import Supervised
from jepa.objectives.vicreg import VICReg

__all__ = ["OBJECTIVES", "IJepa", "Objective", "Saccade", "Supervised", "VICReg", "build_objective"]

OBJECTIVES: dict[type, Callable[[Config], Objective]] = {
    IJepaConfig: IJepa,
    SaccadeConfig: Saccade,
    VICRegConfig: VICReg,
    SupervisedConfig: Supervised,
}


def build_objective(config: Config) -> Objective:
    """Build the objective of a config, with fresh weights from torch's global generator."""
    return OBJECTIVES[type(config.objective)](config)
