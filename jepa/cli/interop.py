"""Commands that exchange models with other libraries."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from jepa.cli.arguments import Code, RunFolder, call_command, show
from jepa.config.hints import command as command_line

if TYPE_CHECKING:
    from jepa.interop.export import Exported

__all__ = ["export", "import_"]

FormatName = Literal["transformers", "timm", "safetensors", "onnx", "torch-export"]


def export(arguments: list[str]) -> int:
    """Export a model for other libraries: jepa export RUN --format FORMAT --out PATH [--predictor]."""

    def command(
        run: RunFolder,
        format: FormatName,
        out: Annotated[Path, tyro.conf.arg(metavar="PATH")],
        predictor: bool = False,
        license: Annotated[str | None, tyro.conf.arg(metavar="ID")] = None,
        *,
        code: Code,
    ) -> int:
        """Write the main encoder into a folder, and compare its outputs with the run's.

        Args:
            run: A run folder, one of its checkpoints, or anything else that 'jepa import' reads.
            format: transformers (AutoModel, with its image processor) and timm hold Vision Transformers with a linear
                stem, and timm its own models; safetensors (for jepa.load), onnx and torch-export hold every model.
            out: The folder to write, which must not exist.
            predictor: Also export the predictor and the context encoder that it follows.
            license: License of the data, or of the model, for the model card, such as cc-by-4.0.
            code: Code of the experiment.
        """
        from jepa.interop.export import export as write
        from jepa.interop.load import read_pretrained

        code.load()
        pretrained = read_pretrained(str(run))
        exported = write(
            pretrained,
            format,
            out,
            predictor=predictor,
            license=license,
            evaluation=_evaluation(run, pretrained.metadata.get("step")),
            command=_export_command(run, format, out, predictor, license),
        )
        show(_summary(exported, out, pretrained.origin))
        return 0

    return call_command(command, export, arguments)


def _evaluation(run: Path, step: int | None) -> str:
    """Return the scores of a run folder at this step as Markdown, or why there are none."""
    from jepa.interop.weights import read_json_object
    from jepa.report.markdown import scores_as_markdown

    folder = run.parent.parent if run.parent.name == "checkpoints" else run
    file = folder / "evaluation.json"
    if not file.is_file():
        return "Not evaluated."
    result = read_json_object(file)
    if result.get("step") != step:
        return f"Not evaluated at this step; the last evaluation of the run is that of step {result.get('step')}."
    return scores_as_markdown(result)


def _export_command(run: Path, format: str, out: Path, predictor: bool, license: str | None) -> str:
    """Return the command of an export, without the folders of absolute paths, which are nobody else's business."""
    paths = [path.name if path.is_absolute() else path for path in (run, out)]
    words = ["jepa", "export", paths[0], "--format", format, "--out", paths[1], *(["--predictor"] * predictor)]
    return shlex.join(map(str, [*words, *(["--license", license] if license else [])]))


def _summary(exported: Exported, out: Path, origin: str) -> str:
    """Return the files of an export, and its differences, as text."""
    width = max(len(item.name) for item in exported.differences)
    sizes = {file.relative_to(exported.path): file.stat().st_size / 1e6 for file in exported.files}
    return "\n".join(
        [
            f"exported the encoder '{exported.encoder}' of {origin} to {out}:",
            *(f"    {file} ({size:,.3f} MB)" for file, size in sizes.items()),
            "Largest difference from image-jepa, and the largest value:",
            *(f"    {item.name:<{width}}  {item}" for item in exported.differences),
        ]
    )


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
