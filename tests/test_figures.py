import dataclasses
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image

from jepa.cli import main
from jepa.compare import gather, table
from jepa.config import ConvNetConfig, EnergyConfig, FixationConfig, InputError, SaccadeConfig, VICRegConfig
from jepa.evaluate import judge_subject
from jepa.evaluation import project
from jepa.evaluation.features import Features
from jepa.figures import FIGURES, draw, film
from jepa.report import verdict, write_report
from jepa.subject import Subject
from jepa.train import train
from tests.conftest import toy_images, write_parquet

SACCADE = SaccadeConfig(hidden=16, fixations=FixationConfig(field=0.6, shift=0.4, rotation=10))
KINDS = {
    "vit": {},
    "energy": {"backbone": EnergyConfig(size="32x3x2", patch=4)},
    "saccade": {"objective": SACCADE, "backbone": ConvNetConfig("test_convnext", small_stem=True)},
}
HAS = {
    "vit": {"masks", "curves", "attention", "dimension", "umap", "spectrum"},
    "energy": {"masks", "curves", "attention", "dimension", "umap", "spectrum"},
    "saccade": {"curves", "dimension", "umap", "spectrum", "saccades"},
}


@pytest.fixture
def many(tmp_path, monkeypatch):
    """Enough test images for a correlation dimension; UMAP has a test of its own."""
    monkeypatch.setattr("jepa.evaluation.projection.SHOWN", 10)
    for split, count, seed in (("train", 80, 0), ("test", 300, 1)):
        images, labels = toy_images(count, seed=seed)
        write_parquet(tmp_path / "many" / f"{split}.parquet", images, labels)
    return str(tmp_path / "many")


@pytest.fixture(params=KINDS)
def subject(request, tiny, many, tmp_path):
    config = dataclasses.replace(tiny, data=dataclasses.replace(tiny.data, source=many), **KINDS[request.param])
    opened = Subject.open(train(config, tmp_path / "run").path)
    return request.param, opened


def test_every_figure_draws_or_says_why_not_and_the_page_holds_them_all(subject):
    kind, opened = subject
    for name in FIGURES:
        if name in HAS[kind]:
            figure = draw(name, opened)
            assert all(axes.has_data() or not axes.axison for axes in figure.axes), name
        else:
            with pytest.raises(InputError, match=r"masks nothing|moves no eye|has no attention"):
                draw(name, opened)
    result = judge_subject(opened)
    page = write_report(opened, result).read_text()
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert len(pictures) == len(HAS[kind]) + ("attention" in HAS[kind])  # the film
    assert not re.search(r'(src|href)="(?!data:)', page)  # needs nothing else
    assert verdict(result) in page
    assert ("has no attention to show" in page) == (kind == "saccade")
    assert '"source"' in page.replace("&quot;", '"')


def test_the_film_sweeps_over_every_patch(tiny, tmp_path):
    with Image.open(io.BytesIO(film(Subject.open(train(tiny, tmp_path / "run").path)))) as found:
        assert found.n_frames == 16
        frames = []
        for number in range(found.n_frames):
            found.seek(number)
            frames.append(np.asarray(found.convert("RGB")).tobytes())
    assert len(set(frames)) == 16


def test_a_patch_outside_of_the_grid_is_refused(tiny, tmp_path, capsys):
    run = train(tiny, tmp_path / "run").path
    with pytest.raises(SystemExit) as stop:
        main(["plot", str(run), "attention", "--patch", "4", "0"])
    assert stop.value.code == 2
    assert "a row of 0 to 3" in capsys.readouterr().err


def test_plot_writes_what_there_is(tiny, tmp_path, capsys):
    run = train(tiny, tmp_path / "run").path
    with pytest.raises(SystemExit) as stop:
        main(["plot", str(run)])
    assert stop.value.code == 0
    written = {path.stem for path in (run / "figures").iterdir()}
    assert written == {"masks", "curves", "attention", "umap", "spectrum"}  # 40 images are too few for a dimension
    with pytest.raises(SystemExit):
        main(["plot", str(run), "masks", "--out", str(tmp_path / "own.svg")])
    assert (tmp_path / "own.svg").read_text().startswith("<?xml")
    for arguments, told in (
        (["atention"], "did you mean 'attention'"),
        (["masks", "--out", "a.txt"], "ends in .png"),
        (["--out", "a.png"], "takes one figure"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["plot", str(run), *arguments])
        assert stop.value.code == 2
        assert told in capsys.readouterr().err


def test_a_run_without_labels_has_a_page(tiny, tmp_path):
    for split, count in (("train", 40), ("test", 30)):
        write_parquet(tmp_path / "bare" / f"{split}.parquet", toy_images(count)[0])
    config = dataclasses.replace(tiny, data=dataclasses.replace(tiny.data, source=str(tmp_path / "bare")))
    opened = Subject.open(train(config, tmp_path / "run").path)
    page = write_report(opened, judge_subject(opened)).read_text()
    assert "Without labels nothing here proves that it learned" in page
    assert "need labels" in page
    assert "RankMe" in page


@pytest.mark.parametrize(
    ("knn", "linear", "told"), [(50, 50, "It learned:"), (50, 39, "in part"), (41, 39, "did not learn")]
)
def test_the_verdict_asks_for_more_than_the_untrained_encoder_has(knn, linear, told):
    found = {
        "trained": {"knn": knn, "linear": linear},
        "untrained": {"knn": 40.0, "linear": 40.0},
        "pixels": {"knn": 45.0, "linear": 60.0},
        "data": {"test": 300},
    }
    assert told in verdict(found)
    assert ("Raw pixels are better (kNN and linear probe)" in verdict(found)) == (knn < 45)
    assert "300 images decide little" in verdict(found)
    found["untrained"] = {"knn": 97.0, "linear": 99.0}
    assert "tells these classes apart already" in verdict(found)


def test_vicreg_shows_the_fixations_without_a_prediction(tiny, tmp_path):
    backbone = ConvNetConfig("resnet18", small_stem=True)
    config = dataclasses.replace(
        tiny, objective=VICRegConfig(expander=16, fixations=SACCADE.fixations), backbone=backbone
    )
    assert len(draw("saccades", Subject.open(train(config, tmp_path / "run").path)).axes) == 10


def test_compare_groups_seeds_and_names_what_differs(tiny, tmp_path, capsys):
    runs = []
    for name, changes in (("a", {"seed": 0}), ("b", {"seed": 1}), ("c", {"steps": 3})):
        run = train(dataclasses.replace(tiny, **changes), tmp_path / name)
        judge_subject(Subject.open(run.path))
        runs.append(str(run.path))
    figure = tmp_path / "figures" / "compare.png"
    with pytest.raises(SystemExit) as stop:
        main(["compare", *runs, "--figure", str(figure)])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    groups = gather([tmp_path / name for name in "abc"])
    assert [group.name for group in groups] == ["tiny (steps 6)", "tiny (steps 3)"]
    assert len(gather([tmp_path / "a", tmp_path / "b" / ".." / "a"])[0].runs) == 1  # a run counts once
    assert table(groups) in out
    values = [result["trained"]["knn"] for result in groups[0].results]
    assert f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}" in out
    assert figure.stat().st_size > 5000


def test_compare_says_what_it_needs(tiny, tmp_path, capsys):
    run = train(tiny, tmp_path / "run").path
    for arguments, told in (
        ([], "no run is given"),
        ([str(run)], "was not judged yet"),
        ([str(tmp_path)], "not a run"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["compare", *arguments])
        assert stop.value.code == 2
        assert told in capsys.readouterr().err


def test_umap_places_classes_apart_and_the_same_again():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(120) % 3
    x = torch.randn(120, 8, generator=generator) + 6 * torch.eye(8)[labels]
    features = Features(x, labels, torch.arange(120), "planted")
    found = project(features)
    assert found.method == "UMAP"
    assert torch.equal(found.places, project(features).places)
    centres = torch.stack([found.places[labels == label].mean(0) for label in range(3)])
    assert bool((torch.cdist(found.places, centres).argmin(1) == labels).all())


def test_principal_axes_stand_in_for_umap(monkeypatch):
    monkeypatch.setattr("jepa.evaluation.projection.find_spec", lambda _: None)
    x = torch.randn(500, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 5, 1, 3, 1, 1])
    found = project(Features(x, None, torch.arange(500), "planted"))
    assert found.method == "PCA"
    assert torch.allclose(found.places.std(0), torch.tensor([5.0, 3.0]), rtol=0.1)
    flat = project(Features(torch.zeros(30, 1), None, torch.arange(30), "planted"))
    assert flat.places.shape == (30, 2)
