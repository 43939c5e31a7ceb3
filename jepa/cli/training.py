"""Commands that train."""

from __future__ import annotations

from pathlib import Path

from jepa.config.arguments import parse_train_arguments
from jepa.config.auto import DataSummary

__all__ = ["train"]


def train(arguments: list[str]) -> int:
    """Train an experiment and save it to a run folder: jepa train [RECIPE] [--data SOURCE] [--steps N] [--resume]."""

    def summarize(source: str, device: str, runs: Path) -> tuple[DataSummary, str]:
        from jepa.data.inspect import summarize_source  # imports torch, which --help does without

        return summarize_source(source, device, runs)

    given = parse_train_arguments(arguments, summarize)

    from jepa.train import run_training

    return run_training(given, arguments)
