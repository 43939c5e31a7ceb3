import dataclasses
import json
import math

import pytest
import torch
from torch import nn

import jepa
from jepa.config import ConvNetConfig, FixationConfig, SaccadeConfig, VICRegConfig
from jepa.evaluate import evaluate
from jepa.evaluation.saccade_retrieval import Embeddings, embed_fixations, rank, summarize
from jepa.report.text import as_text, saccade_retrieval_table
from jepa.rng import Rng
from jepa.runs import fresh_objective
from jepa.train import train
from tests.conftest import override, toy_images, write_parquet


def embeddings(predicted, after, before=None):
    length = torch.linspace(0, 1, after.shape[1]).expand(len(after), -1)
    return Embeddings(predicted, after, after.mean(1, keepdim=True) if before is None else before, length)


def test_rank_by_hand():
    after = torch.tensor([[[0.0], [1.0], [5.0]]])
    assert rank(torch.tensor([[[0.1], [4.0], [0.6]]]), after).tolist() == [1, 2, 3]


def test_a_perfect_predictor_retrieves_every_view_and_none_with_a_wrong_saccade():
    after = torch.randn(32, 32, 8, generator=torch.Generator().manual_seed(0))
    scores = summarize([embeddings(after, after)])
    assert scores["same image"] == {"top1": 100.0, "mrr": 1.0}
    assert scores["across"] == {"top1": 100.0, "mrr": 1.0}
    assert scores["shuffled"]["top1"] == 0.0
    assert scores["errors"]["prediction"] == [0.0] * 5
    assert all(error == pytest.approx(1, abs=0.15) for error in scores["errors"]["no change"])


def test_collapsed_embeddings_retrieve_nothing():
    scores = summarize([embeddings(torch.ones(32, 32, 8), torch.ones(32, 32, 8))])
    for name in ("same image", "shuffled", "across"):
        assert scores[name] == {"top1": 0.0, "mrr": 0.0312}
    assert all(math.isfinite(error) for errors in scores["errors"].values() for error in errors)


class PositionOracle(nn.Module):
    """Embeds a view of a coordinate image as its position in the image, and predicts positions by geometry."""

    def __init__(self, objective, mistake=None):
        super().__init__()
        self.objective, self.mistake = objective, mistake

    def embed(self, encoder, views):
        """Return three points of a view, in image pixels, and the index of the image."""
        at = 255 / 4 * views[:, :2].movedim(1, -1)
        middle = (at[:, 7, 7] + at[:, 8, 8]) / 2
        return torch.cat([middle, at[:, 8, 9] - at[:, 8, 8], at[:, 9, 8] - at[:, 8, 8], 1000 * views[:, 2, :1, 0]], 1)

    def predict(self, x, saccade):
        """Return the three points of the view after the saccade."""
        middle, right, down, image = x.split([2, 2, 2, 1], 1)
        if self.mistake == "backwards":
            saccade = saccade.inverse()

        def point_after(x, y):
            point = saccade(torch.tensor([x, y]).expand(len(middle), 2))
            return middle + 16 * (point[:, :1] * right + point[:, 1:] * down)

        origin, pixel = point_after(0.0, 0.0), 1 / 16
        return torch.cat([origin, point_after(pixel, 0.0) - origin, point_after(0.0, pixel) - origin, image], 1)


@pytest.mark.parametrize("mistake", [None, "backwards"])
def test_a_predictor_that_knows_the_geometry_retrieves_every_view(tiny, mistake):
    fixations = FixationConfig(view_fraction=0.4, shift=0.3, rotation=20, zoom=1.5)
    config = override(
        tiny,
        data__mean=(0.5,) * 3,
        data__std=(0.25,) * 3,
        objective=SaccadeConfig(hidden=16, fixations=fixations),
    )
    objective = fresh_objective(config)
    oracle = PositionOracle(objective, mistake)
    oracle.config, oracle.geometry = objective.config, objective.geometry
    oracle.context = oracle.target = objective.context
    y, x = torch.meshgrid(4 * torch.arange(40), 4 * torch.arange(60), indexing="ij")
    images = torch.stack([torch.stack([x, y, torch.full_like(x, 7 * i)]) for i in range(32)]).to(torch.uint8)
    scores = summarize([embed_fixations(oracle, images, Rng(0, 0, torch.arange(32)))])
    if mistake:
        assert scores["same image"]["top1"] < 20
    else:
        assert scores["same image"]["top1"] > 99
        assert scores["across"]["top1"] > 99
        assert max(scores["errors"]["prediction"]) < 1e-3


def test_knowing_only_the_image_is_at_chance_within_it():
    torch.manual_seed(0)
    image = torch.randn(32, 1, 8)
    after = image + 0.1 * torch.randn(32, 32, 8)
    scores = summarize([embeddings(image.expand(-1, 32, -1), after)])
    assert scores["same image"]["top1"] == pytest.approx(100 / 32, abs=1)
    assert scores["across"]["top1"] > 95


@pytest.mark.parametrize("predictor", ["mlp", "16x1x2"])
def test_evaluate_reports_saccade_retrieval(tiny, tmp_path, predictor):
    fixations = FixationConfig(view_fraction=0.6, shift=0.4, rotation=10)
    objective = SaccadeConfig(hidden=16, predictor=predictor, fixations=fixations)
    run = train(dataclasses.replace(tiny, objective=objective), tmp_path / "run")
    result = evaluate(run.path)
    scores = result["saccades"]
    assert scores["images"] == 32  # of 40
    assert 0 <= scores["same image"]["top1"] <= 100
    lengths = scores["lengths"]
    assert lengths == sorted(lengths)
    assert max(lengths) < 0.4 * 1.5 * 1.5
    assert saccade_retrieval_table(scores) in as_text(result, run.path)
    assert json.loads((run.path / "evaluation.json").read_text())["saccades"] == scores


def test_saccades_without_shift_have_one_length(tiny, tmp_path):
    objective = SaccadeConfig(hidden=16, fixations=FixationConfig(view_fraction=0.6, shift=0, rotation=10))
    run = train(dataclasses.replace(tiny, objective=objective), tmp_path / "run")
    scores = evaluate(run.path)["saccades"]
    assert scores["lengths"] == [0.0]
    assert [len(errors) for errors in scores["errors"].values()] == [1, 1, 1]


def test_too_few_images_for_retrieval_are_reported(tiny, tmp_path):
    objective = SaccadeConfig(hidden=16, fixations=FixationConfig(view_fraction=0.6, shift=0.2, rotation=10))
    run = train(dataclasses.replace(tiny, objective=objective), tmp_path / "run")
    images, labels = toy_images(20)
    write_parquet(tmp_path / "few" / "train-0.parquet", images, labels)
    result = evaluate(run.path, str(tmp_path / "few"))
    assert "saccades" not in result
    assert "saccade retrieval, which needs at least 32 test images" in " ".join(as_text(result, run.path).split())
    assert "Omitted: kNN, which needs at least 20 labeled training images, but there are 16; " in " ".join(
        as_text(result, run.path).split()
    )


def test_vicreg_is_evaluated_without_a_predictor(tiny, tmp_path):
    fixations = FixationConfig(view_fraction=0.6, shift=0.4, rotation=10)
    backbone = ConvNetConfig("test_resnet", small_stem=True)
    config = dataclasses.replace(tiny, objective=VICRegConfig(expander=16, fixations=fixations), backbone=backbone)
    result = evaluate(train(config, tmp_path / "run").path)
    assert list(result["saccades"]) == ["movement_r2", "averaged_fixations"]
    assert "context" not in result
    assert jepa.load(str(tmp_path / "run")).embed(torch.rand(2, 3, 16, 16)).shape == (2, 96)
    text = as_text(result, "RUN")
    assert "trained " in text
    assert "target encoder" not in text


def test_the_sample_recommends_a_harder_recipe_of_the_same_method(tiny, tmp_path):
    result = evaluate(train(dataclasses.replace(tiny, name="saccade-demo"), tmp_path / "run").path)
    result["data"]["source"] = "sample"
    assert as_text(result, "RUN").endswith("jepa train saccade-cifar10")
