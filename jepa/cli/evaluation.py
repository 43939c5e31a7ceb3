"""Commands that evaluate runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from jepa.cli.arguments import Code, RunFolder, call_command, show

__all__ = ["compare", "evaluate", "plot"]


def evaluate(arguments: list[str]) -> int:
    """Evaluate a run, print its scores and write a report: jepa evaluate RUN [--data SOURCE] [--full] [--json]."""

    def command(
        run: RunFolder,
        data: str | None = None,
        checkpoint: str = "last",
        out: Path | None = None,
        full: bool = False,
        json: bool = False,
        *,
        code: Code,
    ) -> int:
        """Score the frozen encoders of a run, the untrained encoder and raw pixels.

        Writes evaluation.json and report.html, one self-contained page.

        Args:
            run: The run folder.
            data: Evaluate on this source instead of the one that the run was trained on.
            checkpoint: last, best (the one with the highest online kNN, which was chosen with labels), or step-N, which
                --keep-every has kept.
            out: Folder to write to instead of the run folder, which then need not be writable.
            full: Also score PCA of pixels, k-means of patches, and a supervised network of the same architecture and
                number of steps, which takes about as long as the run; and decode the predictions of an
                I-JEPA by convolutions.
            json: Print only evaluation.json to standard output.
            code: Code of the experiment.
        """
        from jepa.evaluate import evaluate_run
        from jepa.evaluation_run import EvaluationRun
        from jepa.report.html import write_report
        from jepa.report.text import as_text

        code.load()
        opened = EvaluationRun.open(run, data, out=out, checkpoint=checkpoint)
        result = evaluate_run(opened, full)
        page = write_report(opened, result)
        text = f"{as_text(result, opened.output.path)}\n\nReport: {page}"
        show((opened.output.path / "evaluation.json").read_text(encoding="utf-8").rstrip() if json else text)
        return 0

    return call_command(command, evaluate, arguments)


def plot(arguments: list[str]) -> int:
    """Draw figures of a run: jepa plot RUN [FIGURE] [--out FILE] [--patch ROW COLUMN]."""

    def command(
        run: RunFolder,
        figure: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="FIGURE")] = None,
        out: Path | None = None,
        patch: tuple[int, int] | None = None,
        foreground: bool = False,
        data: str | None = None,
        *,
        code: Code,
    ) -> int:
        """Draw one figure of a run, or all applicable ones, into its `figures` folder.

        Args:
            run: The run folder.
            figure: overview, features, similarity, predictions, errors, neighbors, classes, curves, umap, attention,
                dimension, spectrum, checkpoints, masks or saccades; all by default.
            out: File to write the figure to instead: .png, .pdf or .svg.
            patch: Row and column, from 0, of the patch whose attention or similarity is drawn; the central one by
                default.
            foreground: Color only the patches of objects in the figure 'features', as far as its first axis shows them.
            data: Use the images of this source instead of the one that the run was trained on.
            code: Code of the experiment.
        """
        from jepa.report.figures import draw_into

        code.load()
        for path in draw_into(run, figure, out, patch, data, foreground=foreground):
            show(str(path))
        return 0

    return call_command(command, plot, arguments)


def compare(arguments: list[str]) -> int:
    """Compare evaluated runs, grouped by seed: jepa compare RUN RUN ... [--figure FILE]."""

    def command(
        runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN [RUN ...]")],
        figure: Path | None = None,
    ) -> int:
        """Print and draw the scores of runs that 'jepa evaluate' has evaluated.

        Runs that differ only in the seed share a row: mean and standard deviation.

        Args:
            runs: The run folders.
            figure: File to write the figure to: .png, .pdf or .svg. An existing file is replaced. By default,
                runs/compare.png or the next free name: runs/compare-2.png.
        """
        from jepa.report.compare import compare as compare_runs

        show(compare_runs(runs, figure))
        return 0

    return call_command(command, compare, arguments)
