"""Command that classifies images with a fine-tuned run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from jepa.cli.arguments import Code, RunFolder, call_command, show

__all__ = ["classify"]


def classify(arguments: list[str]) -> int:
    """Classify images with a fine-tuned run: jepa classify RUN SOURCE [--out FILE] [--top N]."""

    def command(
        run: RunFolder,
        source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")],
        out: Path = Path("predictions.csv"),
        checkpoint: str = "last",
        split: str | None = None,
        top: int = 1,
        *,
        code: Code,
    ) -> int:
        """Write the predicted class of every image to a CSV file, and print the accuracy if there are labels.

        The columns are path, split, label, prediction, probability and error, the reason why an image cannot be read.

        Args:
            run: A run of 'jepa finetune', or another one that was trained with labels.
            source: Any value of --data. Its classes are compared with those of the run by name.
            out: The file to write. An existing file is replaced.
            checkpoint: last, best or step-N.
            split: Only this split, such as test; all splits by default.
            top: Number of classes to write for each image, the most probable first.
            code: Code of the experiment.
        """
        from jepa.classify import classify as classify_images

        code.load()
        results = classify_images(run, source, out, checkpoint=checkpoint, split=split, top=top)
        show("\n".join([*map(str, results), f"Predictions: {out}"]))
        return 0

    return call_command(command, classify, arguments)
