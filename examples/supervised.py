"""Supervised training with the ConvNet of vicreg-cifar10, a reference for the speedrun that is not ranked.

python benchmarks/speedrun.py examples/supervised.py --minutes 10 --track movements --labels
"""

from __future__ import annotations

from dataclasses import replace

from jepa.config import RECIPES, Config, SupervisedConfig, recipe


def supervised_cifar10() -> Config:
    """Cross-entropy on random crops of CIFAR-10 that show as much of each image as the views of vicreg-cifar10."""
    config = recipe("vicreg-cifar10")
    objective = SupervisedConfig(classes=10, crop=replace(config.objective.supervised_crop(), flip=True))
    return replace(config, name="supervised-cifar10", objective=objective)


RECIPES["supervised-cifar10"] = supervised_cifar10
