"""The report page: short names, panels, attention over images, settings and other facts about the run."""

import dataclasses
import io
import re
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image

from jepa.config import Config, EnergyConfig, IJepaConfig, InputError, MaskConfig, SupervisedConfig, ViTConfig
from jepa.evaluation_run import EvaluationRun
from jepa.report.captions import overview_caption, projection_caption
from jepa.report.figures import draw, draw_metrics, save
from jepa.report.html import write_report
from jepa.report.names import shorten_names
from jepa.report.page import html_figure
from jepa.report.panels import cut_into_panels
from jepa.report.plot_attention import overlay
from jepa.report.provenance import changed_settings, describe_machine
from jepa.report.style import STYLE, new_figure, series_style
from jepa.runs import Run, fresh_objective
from jepa.train import train
from tests.conftest import override


@given(st.lists(st.text("ab… 1", min_size=0, max_size=24), unique=True), st.integers(8, 20))
def test_different_names_stay_different(names, limit):
    short = shorten_names(names, limit)
    assert len(set(short)) == len(names)
    assert all(len(new) <= limit for new in short)
    assert all(new == old for old, new in zip(names, short, strict=True) if len(old) <= limit)


def test_shortened_names_keep_what_differs():
    assert shorten_names(["a" * 30, "b" * 5], 9) == ["aaaa…aaaa", "bbbbb"]
    assert shorten_names(["warbler, adult plumage", "warbler, adult molting"], 12) == ["warble…umage", "warble…lting"]
    ends = [f"{first}{'x' * 30}" for first in ("adult male", "adult mare")]  # differ outside of the first half
    assert shorten_names(ends, 12) == ["adult mal…xx", "adult mar…xx"]
    middle = [f"{'x' * 20}{letter}{'x' * 20}" for letter in "abc"]
    assert shorten_names(middle, 12) == ["…xxxaxxxxxx…", "…xxxbxxxxxx…", "…xxxcxxxxxx…"]
    apart = [f"{'x' * 20}{first}{'x' * 20}{second}{'x' * 20}" for first in "ab" for second in "ab"]
    assert shorten_names(apart, 12) == ["…axxxx…xxxa…", "…axxxx…xxxb…", "…bxxxx…xxxa…", "…bxxxx…xxxb…"]
    three = [name.replace("x" * 20, "x" * 20 + third) for name in apart for third in "cd"]
    assert len(set(shorten_names(three, 12))) == 8
    assert shorten_names(["a" * 30, "aaaa…aaaa"], 9) == ["aaa…aaaaa", "aaaa…aaaa"]
    assert shorten_names(["same", "same"], 12) == ["same", "same"]


def test_forty_series_are_all_different():
    styles = [series_style(i) for i in range(40)]
    assert len({(style["color"], style["linestyle"]) for style in styles}) == 40
    assert len({(style["color"], style["marker"]) for style in styles}) == 40


def test_panels_side_by_side_are_the_figure():
    with matplotlib.rc_context(STYLE):
        figure = new_figure(3.03)
        top, bottom = figure.subfigures(2, 1)
        for axes in top.subplots(1, 3):
            axes.plot([0, 1], label="a line")
            axes.set_title("title")
        left, right = bottom.subfigures(1, 2)
        left.subplots(1, 2)
        left.suptitle("one panel")
        right.subplots().plot([1, 0])
    buffer = io.BytesIO()
    save(figure, buffer)
    whole = np.asarray(Image.open(buffer).convert("RGB"))
    rows = cut_into_panels(figure)
    assert [len(row) for row in rows] == [3, 2]
    joined = np.concatenate([np.concatenate([np.asarray(panel) for panel in row], 1) for row in rows])
    assert np.array_equal(joined, whole)
    for panel in (panel for row in rows for panel in row):  # cut between the axes, not through them
        array = np.asarray(panel)
        assert (array[:, [0, -1]] == 255).all()
        assert array.min() < 100


def test_a_figure_fills_the_page_and_its_panels_wrap():
    figure = Figure((7.2, 2), dpi=150, layout="constrained")
    for axes in figure.subplots(1, 2):
        axes.plot([0, 1])
    page = html_figure(figure, "two <panels>", "a & b")
    widths = [float(width) for width in re.findall(r"<img style=\"--width:([\d.]+)\"", page)]
    assert len(widths) == 2
    assert sum(widths) == pytest.approx(46, abs=0.1)
    assert "two &lt;panels&gt;" in page
    assert "a &amp; b" in page


def test_uniform_attention_leaves_the_image_gray():
    image = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    uniform = overlay(image, torch.full((16,), 1 / 16), (4, 4))
    assert torch.allclose(uniform, uniform[..., :1].expand(-1, -1, 3), atol=1e-4)
    assert torch.equal(uniform, overlay((image * 255).round() / 255, torch.full((16,), 1 / 16), (4, 4))) is False
    weights = torch.full((16,), 0.5 / 15)
    weights[5] = 0.5
    colored = overlay(image, weights, (4, 4))
    red_minus_blue = colored[..., 0] - colored[..., 2]
    inside = torch.zeros(8, 8, dtype=torch.bool)
    inside[2:4, 2:4] = True
    assert bool((red_minus_blue[inside] > 0.3).all())  # more than uniform
    assert bool((red_minus_blue[~inside] < -0.05).all())  # less
    assert torch.equal(overlay(image, weights * 100, (4, 4)), overlay(image, (weights * 100).clamp(max=8), (4, 4)))


def test_only_settings_that_differ_from_the_defaults_are_listed():
    assert changed_settings(Config()) == {}
    config = override(Config(), steps=7, objective__masks=MaskConfig(context_limit=0.125), optim__lr=2e-3)
    assert changed_settings(config) == {"steps": 7, "objective.masks.context_limit": 0.125, "optim.lr": 2e-3}
    energy = dataclasses.replace(Config(), backbone=EnergyConfig(patch=EnergyConfig().patch * 2))
    assert changed_settings(energy) == {"backbone": "energy", "backbone.patch": EnergyConfig().patch * 2}
    labels = changed_settings(dataclasses.replace(Config(), objective=SupervisedConfig(classes=7)))
    assert labels == {"objective": "supervised", "objective.classes": 7}
    assert isinstance(Config().objective, IJepaConfig)
    assert isinstance(Config().backbone, ViTConfig)


def test_the_machine_is_described_on_one_line():
    text = describe_machine(torch.device("cpu"))
    assert re.search(r"\d+( of \d+)? cores?, PyTorch 2", text)
    assert text.isprintable()


def curves_of(tmp_path, records):
    run = Run(tmp_path)
    for record in records:
        run.log(record)
    return draw_metrics("curves", run)


def test_the_standard_error_of_the_online_accuracy_is_a_band(tmp_path):
    scores = [{"step": step, "knn": 50.0 + step, "knn_error": 3.5, "rankme": 9.0} for step in (0, 5, 10)]
    figure = curves_of(tmp_path, [*scores, {"step": 5, "loss": 1.0}])
    _, knn_axes, rankme_axes = figure.axes
    (band,) = knn_axes.collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == (46.5, 63.5)
    assert len(rankme_axes.collections) == 0


def test_every_term_of_a_loss_is_drawn_and_named(tmp_path):
    terms = {f"regularization_of_the_projection_{i}": 1.0 + i for i in range(13)}
    figure = curves_of(tmp_path, [{"step": step, "loss": 1.0, "feature_std": 1.0, **terms} for step in range(12)])
    axes = figure.axes[0]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert len(labels) == len(set(labels)) == 14
    assert len({(line.get_color(), line.get_linestyle()) for line in axes.lines}) == 14
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in axes.get_legend().get_texts()]
    assert min(box.y0 for box in boxes) >= 0
    assert min(box.x0 for box in boxes) >= 0
    assert axes.get_window_extent().height > 150  # one inch: the legend does not squeeze the plot


@pytest.mark.parametrize("spread", [2, 30, 1e4, 1e8])
def test_the_axis_of_the_losses_has_labels(spread, tmp_path):
    figure = curves_of(tmp_path, [{"step": step, "loss": 3.0, "term": 3.0 / spread} for step in range(3)])
    figure.draw_without_rendering()
    axis = figure.axes[0].yaxis
    low, high = axis.get_view_interval()
    labels = [label.get_text() for label in axis.get_ticklabels() if low <= label.get_position()[1] <= high]
    assert 1 <= sum(map(bool, labels)) <= 9


def test_the_caption_names_the_projections_that_were_drawn():
    figure = Figure()
    left, right = figure.subplots(1, 2)
    left.set_title("PCA: trained", loc="left")
    right.set_title("PCA: untrained encoder", loc="left")
    assert "The projection is PCA" in projection_caption(figure)
    assert "is UMAP" not in projection_caption(figure)
    right.set_title("UMAP: untrained encoder", loc="left")
    assert "is UMAP" in projection_caption(figure)


def test_the_page_states_warnings_settings_and_how_the_run_was_made(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("jepa.report.html.SECTIONS", {})
    monkeypatch.setattr("jepa.report.html.draw", lambda *_: Figure())
    config = override(tiny, data__mean=(0.5,) * 3, data__std=(0.2,) * 3)
    objective = fresh_objective(config)
    run = SimpleNamespace(
        start_projections=lambda: None,
        config=config,
        folder=(folder := Run.create(tmp_path / "run", config)),
        output=folder,
        objective=objective,
        encoders={"trained": objective.main_encoder},
        device=torch.device("cpu"),
    )
    scores = {"knn": 50.0, "knn_error": 1.0, "rankme": 9.0}
    result = {"name": "tiny", "step": 6, "steps": 6, "train_seconds": 1.0, "evaluation_seconds": 130.0} | {
        "trained": scores,
        "untrained": scores | {"knn": 40.0},
        "data": {"source": "toy", "train": 80, "test": 40, "split": "train to test"},
        "protocol": {"pooling": "mean over tokens"},
        "version": "0.1.0",
    }
    page = write_report(run, result).read_text()
    assert "Warning" not in page
    assert "strong baseline" not in page
    assert re.search(r"<dt>evaluated</dt><dd>20\d\d-\d\d-\d\d \d\d:\d\d, in 2.2 min, on .*PyTorch 2", page)
    assert "M parameters in the encoder" in page
    assert "<li><b>pooling</b>: mean over tokens</li>" in page
    listed, folded = page.rsplit("<details>", 1)
    assert "<b>optim.warmup</b> 2" in listed
    assert "optim.betas" not in listed
    assert "betas" in folded
    result |= {"warning": "the features <have> collapsed", "data": result["data"] | {"source": "sample"}}
    page = write_report(run, result).read_text()
    assert "<b>Warning:</b> the features &lt;have&gt; collapsed" in page
    assert page.index("Warning") > page.index("verdict")
    assert "Raw pixels are a strong baseline" in page


def test_the_caption_of_the_overview_names_its_columns(tiny, tmp_path):
    run = EvaluationRun.open(train(tiny, tmp_path / "run").path)
    caption = overview_caption(draw("overview", run))
    assert all(word in caption for word in ("similar colors", "attention", "context"))


def test_curves_without_losses_are_an_error(tmp_path):
    with pytest.raises(InputError, match="no logged losses"):
        curves_of(tmp_path, [{"step": 0, "rankme": 1.0}])
