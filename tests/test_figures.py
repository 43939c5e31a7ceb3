import dataclasses
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image

from jepa.cli import main
from jepa.config import (
    ConvNetConfig,
    DataConfig,
    EnergyConfig,
    FixationConfig,
    InputError,
    SaccadeConfig,
    VICRegConfig,
)
from jepa.data import open_dataset
from jepa.evaluate import evaluate_run
from jepa.evaluation.features import Features
from jepa.evaluation.projection import Projections
from jepa.evaluation_run import EvaluationRun
from jepa.report.figures import FIGURES, draw, draw_metrics
from jepa.report.html import verdict, write_report
from jepa.report.plot_attention import animate_attention
from jepa.runs import Run
from jepa.train import train
from tests.conftest import override, tiny_config, toy_images, write_parquet

SACCADE = SaccadeConfig(hidden=16, fixations=FixationConfig(view_fraction=0.6, shift=0.4, rotation=10))
KINDS = {
    "vit": {},
    "energy": {"backbone": EnergyConfig(size="32x3x2", patch=4)},
    "saccade": {"objective": SACCADE, "backbone": ConvNetConfig("test_convnext", small_stem=True)},
}
PATCHES, PREDICTIONS = ("overview", "features", "similarity", "neighbors", "classes"), ("predictions", "errors")
EXPECTED = {
    "vit": {*PATCHES, *PREDICTIONS, "masks", "curves", "attention", "dimension", "umap", "spectrum"},
    "energy": {*PATCHES, *PREDICTIONS, "masks", "curves", "attention", "dimension", "umap", "spectrum"},
    "saccade": {*PATCHES, "predictions", "curves", "dimension", "umap", "spectrum", "saccades"},
}


@pytest.fixture
def many(tmp_path, monkeypatch):
    """Write enough photos for a correlation dimension. UMAP, which is tested separately, is replaced by PCA."""
    monkeypatch.setattr("jepa.evaluation.projection.MAX_POINTS", 10)
    for split, count in (("train", 80), ("test", 600)):
        sample = open_dataset(DataConfig(source="sample", image_size=28), split, tmp_path / "cache")
        photos = sample.read(torch.arange(count)).pixels.permute(0, 2, 3, 1)[:, 6:22, 6:22]
        labels = (sample.labels[:count] > 4).long().tolist()
        write_parquet(tmp_path / "many" / f"{split}.parquet", list(photos.numpy()), labels)
    return str(tmp_path / "many")


@pytest.mark.parametrize("kind", KINDS)
def test_the_report_has_every_figure_and_the_others_do_not_apply(kind, tiny, many, tmp_path, monkeypatch):
    config = override(tiny, data__source=many, **KINDS[kind])
    run = EvaluationRun.open(train(config, tmp_path / "run").path)
    drawn = {}

    def draw_and_keep(name, run):
        return drawn.setdefault(name, draw(name, run))

    monkeypatch.setattr("jepa.report.html.draw", draw_and_keep)
    result = evaluate_run(run)
    page = write_report(run, result).read_text()
    assert drawn.keys() == EXPECTED[kind]
    for name, figure in drawn.items():
        assert all(axes.has_data() or not axes.axison for axes in figure.axes), name
    for name in set(FIGURES) - EXPECTED[kind]:
        with pytest.raises(
            InputError, match=r"has no (masks|saccades|attention|predictions of patch features|kept checkpoints)"
        ):
            draw(name, run)
    animations = len({"attention", "similarity"} & EXPECTED[kind])
    assert page.count("<figure>") == len(EXPECTED[kind]) + animations
    assert page.count("data:image/webp") == animations
    assert not re.search(r'(src|href)="(?!data:)', page)  # self-contained
    assert verdict(result) in page
    assert ("has no attention to draw" in page) == (kind == "saccade")
    assert '"source"' in page.replace("&quot;", '"')


def test_the_animation_has_a_frame_for_every_patch(tiny, tmp_path):
    run = EvaluationRun.open(train(tiny, tmp_path / "run").path)
    with Image.open(io.BytesIO(animate_attention(run))) as animation:
        assert animation.n_frames == 16
        frames = []
        for i in range(animation.n_frames):
            animation.seek(i)
            frames.append(np.asarray(animation.convert("RGB")).tobytes())
    assert len(set(frames)) == 16


def test_a_patch_outside_the_grid_is_an_error(tiny, tmp_path, capsys):
    run = train(tiny, tmp_path / "run").path
    with pytest.raises(SystemExit) as stop:
        main(["plot", str(run), "attention", "--patch", "4", "0"])
    assert stop.value.code == 2
    assert "a row between 0 and 3" in capsys.readouterr().err


def test_plot_writes_the_figures_that_apply(tiny, tmp_path, capsys, monkeypatch):
    some = ("curves", "masks", "attention", "dimension", "umap", "spectrum", "checkpoints", "saccades")
    monkeypatch.setattr("jepa.report.figures.FIGURES", some)
    run = train(tiny, tmp_path / "run").path
    with pytest.raises(SystemExit) as stop:
        main(["plot", str(run)])
    assert stop.value.code == 0
    written = {path.stem for path in (run / "figures").iterdir()}
    assert written == {"masks", "curves", "attention", "umap", "spectrum"}  # 40 images are too few for a dimension
    with pytest.raises(SystemExit):
        main(["plot", str(run), "masks", "--out", str(tmp_path / "custom.svg")])
    assert (tmp_path / "custom.svg").read_text().startswith("<?xml")
    for arguments, message in (
        (["atention"], "did you mean 'attention'"),
        (["masks", "--out", "a.txt"], "use the extension .png"),
        (["--out", "a.png"], "requires the name of one figure"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["plot", str(run), *arguments])
        assert stop.value.code == 2
        assert message in capsys.readouterr().err


def test_curves_need_only_the_metrics(tmp_path, capsys):
    """The images are gone, and there is no checkpoint yet."""
    run = Run.create(tmp_path / "run", tiny_config(str(tmp_path / "gone")))
    with pytest.raises(InputError, match="has no logged losses"):
        draw_metrics("curves", run)
    for step in range(3):
        run.log({"step": step, "loss": 1 / (step + 1), "feature_std": 1.0})
    with pytest.raises(SystemExit) as stop:
        main(["plot", str(run.path), "curves"])
    assert stop.value.code == 0
    assert (run.path / "figures" / "curves.png").is_file()
    with pytest.raises(SystemExit) as stop:
        main(["plot", str(run.path)])
    assert stop.value.code == 2
    shown = capsys.readouterr()
    assert shown.out.count("curves.png") == 2
    assert "has no checkpoint" in shown.err


def test_a_run_without_labels_has_a_report(tiny, tmp_path):
    for split, count in (("train", 40), ("test", 30)):
        write_parquet(tmp_path / "bare" / f"{split}.parquet", toy_images(count)[0])
    config = override(tiny, data__source=str(tmp_path / "bare"))
    run = EvaluationRun.open(train(config, tmp_path / "run").path)
    page = write_report(run, evaluate_run(run)).read_text()
    assert "Without labels, this evaluation cannot show whether the encoder learned" in page
    assert "need labels" in page
    assert "RankMe" in page


@pytest.mark.parametrize(
    ("knn", "linear", "summary"),
    [
        (50, 50, "Training improved the features: kNN +10.0 ± 4.0 points and linear probe +10.0 ± 4.0 points"),
        (50, 39, "Training improved the features only in kNN accuracy: kNN +10.0 ± 4.0 points and linear probe -1.0 ±"),
        (47, 39, "Training did not clearly improve the features: kNN +7.0 ± 4.0 points and linear probe -1.0 ± 4.0"),
    ],
)
def test_the_verdict_compares_with_the_untrained_encoder(knn, linear, summary):
    result = {
        "trained": {"knn": knn, "linear": linear, "knn_error": 2.83, "linear_error": 2.83},
        "untrained": {"knn": 40.0, "linear": 40.0, "knn_error": 2.83, "linear_error": 2.83},
        "pixels": {"knn": 48.0, "linear": 60.0},
        "data": {"test": 300},
    }
    assert verdict(result).startswith(summary)
    pixels_are_better = "Raw pixels score higher than the trained encoder (kNN and linear probe)" in verdict(result)
    assert pixels_are_better == (knn < 48)
    for row in ("trained", "untrained"):  # with more images, smaller gains are clear
        result[row] |= {"knn_error": 0.5, "linear_error": 0.5}
    assert ("Training improved the features" in verdict(result)) == (knn > 40)
    result["untrained"] |= {"knn": 97.0, "linear": 99.0}
    assert "already scores above 95%" in verdict(result)


def test_gains_are_the_differences_of_the_scores_shown():
    result = {
        "trained": {"knn": 77.84, "linear": 60.06, "knn_error": 1.0, "linear_error": 1.1},
        "untrained": {"knn": 68.46, "linear": 60.04, "knn_error": 1.0, "linear_error": 1.1},
        "data": {"test": 2000},
    }
    assert "kNN +9.3 ± 1.4 points and linear probe +0.1 ± 1.6 points" in verdict(result)  # 77.8 - 68.5, 60.1 - 60.0
    result["trained"] |= {"knn": 60.0, "linear": 55.0}
    assert verdict(result).startswith("Training made the features worse: kNN -8.5")


def test_vicreg_has_fixations_and_their_features_without_errors(tiny, tmp_path):
    backbone = ConvNetConfig("test_convnext", small_stem=True)
    config = dataclasses.replace(
        tiny, objective=VICRegConfig(expander=16, fixations=SACCADE.fixations), backbone=backbone
    )
    assert len(draw("saccades", EvaluationRun.open(train(config, tmp_path / "run").path)).axes) == 12


def test_compare_names_what_is_missing(tiny, tmp_path, capsys):
    run = train(tiny, tmp_path / "run").path
    for arguments, message in (
        ([], "no run is given"),
        ([str(run)], "has not been evaluated"),
        ([str(tmp_path)], "not a run"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["compare", *arguments])
        assert stop.value.code == 2
        assert message in capsys.readouterr().err


def test_umap_separates_classes_and_is_deterministic(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(120) % 3
    x = torch.randn(120, 8, generator=generator) + 6 * torch.eye(8)[labels]
    features = Features(x, labels, torch.arange(120), "planted")
    threads = torch.get_num_threads()
    monkeypatch.undo()  # in a process of its own
    projection, again = Projections([features, features]).results
    assert torch.get_num_threads() == threads
    assert projection.method == "UMAP"
    assert torch.equal(projection.points, again.points)
    centers = torch.stack([projection.points[labels == label].mean(0) for label in range(3)])
    assert bool((torch.cdist(projection.points, centers).argmin(1) == labels).all())


def test_a_failure_of_umap_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.undo()
    x = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    planted = [Features(x, None, torch.arange(30), "planted")]
    with monkeypatch.context() as patch:
        patch.setattr("sys.executable", "/bin/false")
        with pytest.raises(InputError, match=r"UMAP has failed \(exit code 1\)"):
            Projections(planted).results  # noqa: B018
    with monkeypatch.context() as patch:
        patch.setattr("jepa.evaluation.umap_process.__file__", str(tmp_path / "program.py"))
        (tmp_path / "program.py").write_text("raise MemoryError('too little')")
        with pytest.raises(InputError, match=r"UMAP has failed \(exit code 1: MemoryError: too little\)"):
            Projections(planted).results  # noqa: B018

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("numpy.savez", full)
    projections = Projections(planted)
    with pytest.raises(InputError, match=r"UMAP has failed .*No space left on device"):
        projections.results  # noqa: B018


def test_pca_is_used_for_few_images(monkeypatch):
    monkeypatch.setattr("jepa.evaluation.projection.NUM_NEIGHBORS", 500)
    x = torch.randn(500, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 5, 1, 3, 1, 1])
    (projection,) = Projections([Features(x, None, torch.arange(500), "planted")]).results
    assert projection.method == "PCA"
    assert torch.allclose(projection.points.std(0), torch.tensor([5.0, 3.0]), rtol=0.1)
    (one_dimension,) = Projections([Features(torch.zeros(30, 1), None, torch.arange(30), "planted")]).results
    assert one_dimension.points.shape == (30, 2)
