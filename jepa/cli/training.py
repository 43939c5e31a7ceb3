"""Commands that train."""

from __future__ import annotations

from pathlib import Path

from jepa.config import Config
from jepa.config.arguments import parse_finetune_arguments, parse_train_arguments
from jepa.config.auto import DataSummary

__all__ = ["finetune", "train"]


def train(arguments: list[str]) -> int:
    """Train an experiment and save it to a run folder: jepa train [RECIPE] [--data SOURCE] [--steps N] [--resume]."""
    given = parse_train_arguments(arguments, summarize, read_init)

    from jepa.train import run_training

    return run_training(given, arguments)


def finetune(arguments: list[str]) -> int:
    """Fine-tune a trained encoder with labels: jepa finetune RUN [--data SOURCE] [--labels 10%] [--steps N]."""
    given, equivalent = parse_finetune_arguments(arguments, summarize, read_init)

    from jepa.train import run_training

    return run_training(given, equivalent)


def summarize(source: str, device: str, runs: Path) -> tuple[DataSummary, str]:
    """Inspect the images of a source."""
    from jepa.data.inspect import summarize_source  # imports torch, which --help does without

    return summarize_source(source, device, runs)


def read_init(path: str) -> Config:
    """Read the config of a trained model."""
    from jepa.interop import read_config_of

    return read_config_of(path)
