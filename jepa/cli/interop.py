"""Commands that exchange models with other libraries."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from jepa.cli.arguments import call_command, show
from jepa.config.hints import command as command_line

__all__ = ["import_"]


def import_(arguments: list[str]) -> int:
    """Import weights of other libraries as a run folder: jepa import FILE --out RUN [--data SOURCE] [--num-heads N]."""

    def command(
        file: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FILE")],
        out: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None,
        data: Annotated[str | None, tyro.conf.arg(metavar="SOURCE")] = None,
        num_heads: Annotated[int | None, tyro.conf.arg(metavar="N")] = None,
    ) -> int:
        """Write a run folder that evaluate, plot, export and --init accept.

        Args:
            file: A checkpoint of the official I-JEPA code (.pth.tar), a folder of transformers (IJepaModel) or of timm
                (a Vision Transformer or a ConvNet), or hf:OWNER/NAME.
            out: The run folder to write; runs/NAME of the file by default.
            data: Source that evaluations use unless they name another.
            num_heads: Number of attention heads of a checkpoint of the official code, if its size is not a published
                one.
        """
        from jepa.interop.import_run import import_run

        name = Path(file.removeprefix("hf:")).name.split(".")[0] or "imported"
        run, config = import_run(file, out or Path("runs") / name, data, num_heads)
        height, width = config.data.size
        backbone = " ".join(filter(None, (config.backbone.kind, getattr(config.backbone, "name", ""))))
        show(f"imported {backbone} for {height}x{width}-pixel images, objective {config.objective.kind}, to {run.path}")
        rest = [] if data else ["--data", "SOURCE"]
        show(f"evaluate it with: {command_line('evaluate', run.path, *rest)}")
        return 0

    return call_command(command, import_, arguments)
