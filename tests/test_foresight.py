import dataclasses
import json
import math

import pytest
import torch
from torch import nn

import jepa
from jepa.config import ConvNetConfig, FixationConfig, SaccadeConfig, VICRegConfig
from jepa.evaluate import as_text, evaluate
from jepa.evaluation.foresight import Seen, foresight_table, rank, see, summarise
from jepa.rng import Rng
from jepa.runs import fresh_objective
from jepa.train import train
from tests.conftest import toy_images, write_parquet


def seen(predicted, after, before=None):
    length = torch.linspace(0, 1, after.shape[1]).expand(len(after), -1)
    return Seen(predicted, after, after.mean(1, keepdim=True) if before is None else before, length)


def test_rank_by_hand():
    after = torch.tensor([[[0.0], [1.0], [5.0]]])
    assert rank(torch.tensor([[[0.1], [4.0], [0.6]]]), after).tolist() == [1, 2, 3]


def test_an_oracle_finds_every_fixation_and_a_wrong_movement_none():
    after = torch.randn(32, 32, 8, generator=torch.Generator().manual_seed(0))
    found = summarise([seen(after, after)])
    assert found["same image"] == {"top1": 100.0, "mrr": 1.0}
    assert found["across"] == {"top1": 100.0, "mrr": 1.0}
    assert found["shuffled"]["top1"] == 0.0
    assert found["errors"]["prediction"] == [0.0] * 5
    assert all(error == pytest.approx(1, abs=0.15) for error in found["errors"]["no change"])


def test_collapsed_embeddings_find_nothing():
    found = summarise([seen(torch.ones(32, 32, 8), torch.ones(32, 32, 8))])
    for name in ("same image", "shuffled", "across"):
        assert found[name] == {"top1": 0.0, "mrr": 0.0312}
    assert all(math.isfinite(error) for errors in found["errors"].values() for error in errors)


class KnowsWhere(nn.Module):
    """Embeds an image of coordinates as where in it the view looks, and adds movements up without having learned."""

    def __init__(self, objective, mistake=None):
        super().__init__()
        self.objective, self.mistake = objective, mistake

    def embed(self, encoder, views):
        """Three points of a view, in pixels of the image, and which image it is."""
        at = 255 / 4 * views[:, :2].movedim(1, -1)
        middle = (at[:, 7, 7] + at[:, 8, 8]) / 2
        return torch.cat([middle, at[:, 8, 9] - at[:, 8, 8], at[:, 9, 8] - at[:, 8, 8], 1000 * views[:, 2, :1, 0]], 1)

    def predict(self, x, saccade):
        """Where the view's three points will be."""
        middle, right, down, image = x.split([2, 2, 2, 1], 1)
        if self.mistake == "backwards":
            saccade = saccade.inverse()

        def there(x, y, of):
            point = saccade(torch.tensor([x, y]).expand(len(of), 2))
            return middle + 16 * (point[:, :1] * right + point[:, 1:] * down)

        origin = there(0.0, 0.0, x)
        side = 1 / 16
        return torch.cat([origin, there(side, 0.0, x) - origin, there(0.0, side, x) - origin, image], 1)


@pytest.mark.parametrize("mistake", [None, "backwards"])
def test_whoever_knows_where_it_looks_and_what_a_movement_is_finds_every_fixation(tiny, mistake):
    fixations = FixationConfig(field=0.4, shift=0.3, rotation=20, zoom=1.5)
    objective = fresh_objective(
        dataclasses.replace(
            tiny,
            data=dataclasses.replace(tiny.data, mean=(0.5,) * 3, std=(0.25,) * 3),
            objective=SaccadeConfig(hidden=16, fixations=fixations),
        )
    )
    fake = KnowsWhere(objective, mistake)
    fake.config, fake.geometry = objective.config, objective.geometry
    fake.context = fake.target = objective.context
    y, x = torch.meshgrid(4 * torch.arange(40), 4 * torch.arange(60), indexing="ij")
    images = torch.stack([torch.stack([x, y, torch.full_like(x, 7 * i)]) for i in range(32)]).to(torch.uint8)
    found = summarise([see(fake, images, Rng(0, 0, torch.arange(32)))])
    if mistake:
        assert found["same image"]["top1"] < 20
    else:
        assert found["same image"]["top1"] > 99
        assert found["across"]["top1"] > 99
        assert max(found["errors"]["prediction"]) < 1e-3


def test_knowing_the_image_alone_is_chance_among_its_fixations():
    torch.manual_seed(0)
    image = torch.randn(32, 1, 8)
    after = image + 0.1 * torch.randn(32, 32, 8)
    found = summarise([seen(image.expand(-1, 32, -1), after)])
    assert found["same image"]["top1"] == pytest.approx(100 / 32, abs=1)
    assert found["across"]["top1"] > 95


@pytest.mark.parametrize("predictor", ["mlp", "16x1x2"])
def test_evaluate_shows_what_the_predictor_foresees(tiny, tmp_path, predictor):
    fixations = FixationConfig(field=0.6, shift=0.4, rotation=10)
    objective = SaccadeConfig(hidden=16, predictor=predictor, fixations=fixations)
    run = train(dataclasses.replace(tiny, objective=objective), tmp_path / "run")
    result = evaluate(run.path)
    found = result["saccades"]
    assert found["images"] == 32  # of 40
    assert 0 <= found["same image"]["top1"] <= 100
    lengths = found["lengths"]
    assert lengths == sorted(lengths)
    assert max(lengths) < 0.4 * 1.5 * 1.5
    assert foresight_table(found) in as_text(result, run.path)
    assert json.loads((run.path / "evaluation.json").read_text())["saccades"] == found


def test_an_eye_that_only_turns_has_one_length_of_jump(tiny, tmp_path):
    objective = SaccadeConfig(hidden=16, fixations=FixationConfig(field=0.6, shift=0, rotation=10))
    run = train(dataclasses.replace(tiny, objective=objective), tmp_path / "run")
    found = evaluate(run.path)["saccades"]
    assert found["lengths"] == [0.0]
    assert [len(errors) for errors in found["errors"].values()] == [1, 1, 1]


def test_too_few_images_to_move_the_eye_on_are_said(tiny, tmp_path):
    objective = SaccadeConfig(hidden=16, fixations=FixationConfig(field=0.6, shift=0.2, rotation=10))
    run = train(dataclasses.replace(tiny, objective=objective), tmp_path / "run")
    images, labels = toy_images(20)
    write_parquet(tmp_path / "few" / "train-0.parquet", images, labels)
    result = evaluate(run.path, str(tmp_path / "few"))
    assert "saccades" not in result
    assert "eye movements, which need 32 images to score on" in as_text(result, run.path)
    assert "Left out: kNN, which needs 20 images to fit on: there are 16; " in as_text(result, run.path)


def test_vicreg_is_judged_without_a_predictor(tiny, tmp_path):
    fixations = FixationConfig(field=0.6, shift=0.4, rotation=10)
    backbone = ConvNetConfig("resnet18", small_stem=True)
    config = dataclasses.replace(tiny, objective=VICRegConfig(expander=16, fixations=fixations), backbone=backbone)
    result = evaluate(train(config, tmp_path / "run").path)
    assert "saccades" not in result
    assert "context" not in result
    assert jepa.load(str(tmp_path / "run")).embed(torch.rand(2, 3, 16, 16)).shape == (2, 512)
    text = as_text(result, "RUN")
    assert "trained " in text
    assert "target encoder" not in text


def test_the_sample_is_followed_by_a_fairer_test_of_the_same_method(tiny, tmp_path):
    result = evaluate(train(dataclasses.replace(tiny, name="saccade-demo"), tmp_path / "run").path)
    result["data"]["source"] = "sample"
    assert as_text(result, "RUN").endswith("jepa train saccade-cifar10")
