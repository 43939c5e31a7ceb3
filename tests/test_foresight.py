import dataclasses
import json

import pytest
import torch

from jepa.config import ConvNetConfig, FixationConfig, SaccadeConfig, VICRegConfig
from jepa.evaluate import evaluate, report
from jepa.evaluation.foresight import Seen, foresight_table, rank, summarise
from jepa.train import train


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
    assert foresight_table(found) in report(result, run.path)
    assert (run.path / "saccades.png").stat().st_size > 5000
    assert json.loads((run.path / "evaluation.json").read_text())["saccades"] == found


def test_vicreg_is_judged_without_a_predictor(tiny, tmp_path):
    fixations = FixationConfig(field=0.6, shift=0.4, rotation=10)
    backbone = ConvNetConfig("resnet18", small_stem=True)
    config = dataclasses.replace(tiny, objective=VICRegConfig(expander=16, fixations=fixations), backbone=backbone)
    result = evaluate(train(config, tmp_path / "run").path)
    assert "saccades" not in result
    assert "context" not in result
    text = report(result, "RUN")
    assert "trained " in text
    assert "target encoder" not in text
