"""Config of encoders that were imported without the method that trained them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jepa.config.base import ObjectiveConfig
from jepa.config.errors import InputError

__all__ = ["ImportedConfig"]


@dataclass(frozen=True)
class ImportedConfig(ObjectiveConfig):
    """An encoder from another library: it can be evaluated, exported and trained further, but has no objective."""

    kind: ClassVar[str] = "imported"

    def check_training(self) -> None:
        """Raise `InputError`, because there is no objective."""
        raise InputError(
            "an imported encoder has no objective of its own; train it further with 'jepa train RECIPE --init RUN'"
        )
