"""Continued training from given weights, and fine-tuning with labels."""

import dataclasses
import json
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.stats import beta

from jepa.backbones import build_encoder, layer_scales
from jepa.cli import main
from jepa.config import (
    ConvNetConfig,
    CropConfig,
    DataConfig,
    EnergyConfig,
    IJepaConfig,
    InputError,
    LeJepaConfig,
    MAEConfig,
    OptimConfig,
    PlainConvNetConfig,
    SaccadeConfig,
    SupervisedConfig,
    TimmViTConfig,
    ViTConfig,
)
from jepa.config.arguments import parse_finetune_arguments, parse_train_arguments
from jepa.config.serialization import from_dict, to_dict
from jepa.data import Batch, open_dataset, split_holdout
from jepa.evaluate import evaluate, supervised_config
from jepa.evaluation.features import Features, extract
from jepa.evaluation.linear_probe import linear_probe
from jepa.evaluation.trained_head import head_accuracy
from jepa.evaluation_run import EvaluationRun
from jepa.initialization import load_pretrained
from jepa.interop import read_config_of, read_pretrained
from jepa.interop.export import export
from jepa.interop.import_run import import_run
from jepa.objectives.supervised import Supervised, draw_labeled
from jepa.optim import build_optimizer, set_schedule
from jepa.report.plot_curves import curves
from jepa.rng import Rng
from jepa.runs import Run, fresh_objective, load_objective
from jepa.train import train
from tests.conftest import override, same_tensors, toy_images, write_parquet
from tests.test_resume import interrupted_after


@pytest.fixture
def run(tiny, tmp_path) -> Run:
    return train(override(tiny, steps=2), tmp_path / "runs" / "first")


def supervised(config, **settings):
    objective = SupervisedConfig(classes=2, crop=CropConfig(kind="full"), **settings)
    return override(config, objective=objective, data__mean=(0.5,) * 3, data__std=(0.2,) * 3)


def call(capsys, *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    output = capsys.readouterr()
    return int(caught.value.code or 0), output.out, output.err


def test_everything_is_loaded_into_the_same_objective(run, tiny):
    config = run.config
    objective = fresh_objective(dataclasses.replace(config, seed=5))
    text = load_pretrained(objective, read_pretrained(run.path))
    assert text == f"all weights come from the run {run.path}"
    assert same_tensors(objective.state_dict(), load_objective(run)[0].state_dict())


@pytest.mark.parametrize(
    ("other", "fresh"),
    [
        (IJepaConfig(predictor="24x1x2"), "predictor"),
        (LeJepaConfig(), "projector"),
        (MAEConfig(decoder="16x1x2"), "decoder"),
        (SaccadeConfig(), "predictor"),
        (SupervisedConfig(classes=2), "head"),
    ],
)
def test_each_encoder_of_another_objective_gets_the_target_encoder(run, other, fresh):
    objective = fresh_objective(dataclasses.replace(run.config, objective=other, seed=5))
    before = {name: tensor.clone() for name, tensor in objective.state_dict().items()}
    text = load_pretrained(objective, read_pretrained(run.path))
    trained = load_objective(run)[0]
    assert not same_tensors(trained.target.state_dict(), trained.context.state_dict())
    for encoder in objective.encoders().values():
        assert same_tensors(encoder.backbone.state_dict(), trained.target.backbone.state_dict())
    assert f"come from the encoder 'target' of the run {run.path}; new: " in text
    assert fresh in text
    inner = tuple(f"{name}." for name in objective.encoders())
    for name, tensor in objective.state_dict().items():
        assert name.startswith(inner) or torch.equal(tensor, before[name])


def test_fitted_layers_come_from_the_weights(tiny, tmp_path):
    settings = {"backbone__stem": "whitening", "steps": 1}
    first = train(override(tiny, **settings), tmp_path / "a")
    second = train(
        override(first.config, init=str(first.path), data__cache_gb=1.0, seed=1, optim__lr=0.0), tmp_path / "b"
    )
    filters = [load_objective(run)[0].target.backbone.stem[0].filters for run in (first, second)]
    assert torch.equal(*filters)


def test_the_architecture_comes_from_the_model(run, capsys, tmp_path):
    flags = ["demo", "--init", str(run.path), "--steps", "7"]
    config = parse_train_arguments(flags, None, read_config_of).config
    assert (config.backbone, config.steps, config.init) == (run.config.backbone, 7, str(run.path))
    for name in ("image_size", "channels", "mean", "std"):
        assert getattr(config.data, name) == getattr(run.config.data, name)
    assert config.data.source == "sample"
    for flag in (["--backbone.size", "64x2x2"], ["--backbone.patch", "8"], ["--backbone", "energy"]):
        with pytest.raises(InputError, match=r"but the model .* has .*; leave out the flag"):
            parse_train_arguments([*flags, *flag], None, read_config_of)
    with pytest.raises(InputError, match="there is no run folder nowhere"):
        parse_train_arguments(["demo", "--init", "nowhere"], None, read_config_of)
    with pytest.raises(InputError, match="init must be the path"):
        override(run.config, init=" ")


def test_a_run_that_starts_from_another_resumes_without_it(run, capsys, tmp_path, toy_source):
    again = tmp_path / "runs" / "second"
    arguments = ["train", "--config", run.path / "config.json", "--init", run.path, "--run", again, "--seed", 3]
    code, _, err = call(capsys, *arguments, "--steps", 2)
    assert code == 0, err
    assert f"note: all weights come from the run {run.path}" in err
    whole = train(override(run.config, init=str(run.path), seed=3, steps=4), tmp_path / "whole")
    part = train(override(run.config, init=str(run.path), seed=3, steps=4, save_every=2), tmp_path / "part")
    assert same_tensors(whole.load()[0], part.load()[0])
    run.path.rename(tmp_path / "moved")
    code, _, err = call(capsys, "train", "--run", again, "--resume", "--steps", 3)
    assert code == 0, err
    assert Run.open(again).load()[1]["step"] == 3


def test_weights_of_another_architecture_are_refused(run, tmp_path):
    for backbone in (ViTConfig(size="32x3x2", patch=4, stem="conv"), PlainConvNetConfig(width=4, stages=1, dim=12)):
        objective = fresh_objective(
            dataclasses.replace(run.config, backbone=backbone, objective=SupervisedConfig(classes=2))
        )
        with pytest.raises(InputError, match=r"the encoder 'target' of the run .* (has the unexpected|lacks) key"):
            load_pretrained(objective, read_pretrained(run.path))


def test_labels_are_drawn_for_each_class():
    labels = torch.tensor([0] * 50 + [1] * 10 + [2] * 3 + [-1] * 20)
    indices = torch.arange(1, 83)  # the first image is held out
    drawn = draw_labeled(labels, indices, 0.1, seed=0)
    assert torch.bincount(labels[drawn]).tolist() == [5, 1, 1]
    assert torch.equal(drawn, drawn.sort().values)
    assert 0 not in drawn
    assert torch.equal(drawn, draw_labeled(labels, indices, 0.1, seed=0))
    assert not torch.equal(drawn, draw_labeled(labels, indices, 0.1, seed=1))
    assert torch.equal(draw_labeled(labels, indices, 1.0, seed=0), torch.arange(1, 63))


def test_mixup_is_linear_in_its_weights(tiny):
    config = supervised(tiny, mixup=0.4, label_smoothing=0.1)
    objective = fresh_objective(config).eval()
    assert isinstance(objective, Supervised)
    images = torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8)
    labels = torch.tensor([0, 1, 1, 0, 1, 0])
    positions = torch.arange(6)
    inputs = objective.sample(Batch(images, labels, positions), Rng(0, 3, positions))
    weight = torch.as_tensor(beta.ppf(Rng(0, 3, positions).uniform("mixup").numpy(), 0.4, 0.4), dtype=torch.float32)
    assert torch.allclose(inputs.weight, weight, atol=1e-6)
    views = images / 255
    expected = weight[:, None, None, None] * views + (1 - weight[:, None, None, None]) * views.flip(0)
    assert torch.allclose(inputs.images, expected, atol=1e-6)
    logits = objective.head(objective.encoder.backbone.pool(objective.encoder(inputs.images).x))
    losses = [F.cross_entropy(logits, x, reduction="none", label_smoothing=0.1) for x in (labels, labels.flip(0))]
    loss = (weight * losses[0] + (1 - weight) * losses[1]).mean()
    assert objective(inputs)["loss"].item() == pytest.approx(loss.item(), abs=1e-6)


def test_the_distribution_of_mixup():
    weights = np.concatenate([Rng(0, step, torch.arange(500)).uniform("mixup").numpy() for step in range(20)])
    from scipy.special import betaincinv

    mixed = betaincinv(0.2, 0.2, weights)
    assert mixed.mean() == pytest.approx(0.5, abs=0.02)
    assert mixed.var() == pytest.approx(0.25 / 1.4, abs=0.01)  # of Beta(a, a): 1 / (4 (2a + 1))


def test_the_head_starts_as_the_linear_probe(run, tmp_path):
    config = override(
        run.config,
        objective=SupervisedConfig(crop=CropConfig(kind="full"), head="probe"),
        init=str(run.path),
        steps=1,
        data__holdout=0.2,
        optim=OptimConfig(lr=0, lr_start=0, lr_end=0, warmup=0, weight_decay=0, weight_decay_end=0),
    )
    tuned = train(config, tmp_path / "tuned")
    assert tuned.config.objective.classes == 2
    assert tuned.config.objective.names == ("a", "b")
    result = evaluate(tuned.path)
    assert result["head"]["images"] == 40
    objective, _, _ = load_objective(tuned)
    pretrained = read_pretrained(run.path).objective
    assert same_tensors(objective.encoder.backbone.state_dict(), pretrained.target.backbone.state_dict())
    from jepa.data import open_dataset, split_holdout

    data = open_dataset(config.data, "train", tmp_path / "cache"), open_dataset(config.data, "test", tmp_path / "cache")
    train_indices = split_holdout(len(data[0]), 0.2)[0]
    features = [extract(objective.encoder, d, i) for d, i in zip(data, (train_indices, torch.arange(40)), strict=True)]
    assert result["head"]["accuracy"] == pytest.approx(linear_probe(*features)[0], abs=0.01)


@pytest.mark.parametrize(("steps", "count"), [(1, "(29|30|31)"), (5, "(39|40|41)"), (8, "(49|50|51)")])
def test_the_head_is_fitted_to_as_many_images_as_training_sees(run, steps, count, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("jepa.initialization.MIN_PROBE_IMAGES", 30)
    monkeypatch.setattr("jepa.initialization.MAX_PROBE_IMAGES", 50)
    config = override(run.config, objective=SupervisedConfig(head="probe"), init=str(run.path), steps=steps)
    train(config, tmp_path / "part")
    assert re.search(rf"starts as a linear probe of {count} of 72 images", capsys.readouterr().err)


def test_a_frozen_encoder_does_not_change(run, tmp_path):
    config = override(
        run.config,
        objective=SupervisedConfig(freeze=True),
        backbone=run.config.backbone,
        init=str(run.path),
        steps=3,
        optim__weight_decay=0.5,
    )
    tuned = train(config, tmp_path / "frozen")
    objective, _, _ = load_objective(tuned)
    assert same_tensors(
        objective.encoder.backbone.state_dict(), read_pretrained(run.path).objective.target.backbone.state_dict()
    )
    fresh = fresh_objective(tuned.config)
    assert not torch.equal(objective.head.weight, fresh.head.weight)


def test_a_frozen_convnet_keeps_its_statistics(tiny, tmp_path):
    parts = {"backbone": PlainConvNetConfig(width=4, stages=1, dim=8), "objective": SupervisedConfig(freeze=True)}
    config = dataclasses.replace(tiny, steps=2, batch_size=2, **parts)
    objective, untrained, _ = load_objective(train(config, tmp_path / "run"))
    assert same_tensors(objective.encoder.state_dict(), untrained.state_dict())


@pytest.mark.parametrize(
    ("backbone", "scales"),
    [
        (
            ViTConfig(size="32x2x2", patch=4),
            {"stem.0.weight": 3, "trunk.blocks.0": 2, "trunk.blocks.1": 1, "trunk.norm": 1},
        ),
        (EnergyConfig(size="32x3x2", patch=4), {"stem.0.weight": 2, "trunk.attention.key": 1, "trunk.norm": 1}),
        (PlainConvNetConfig(width=4, stages=1, dim=8), {"blocks.0": 3, "blocks.1": 2, "blocks.2": 1}),
        (TimmViTConfig(name="vit_tiny_patch16_224"), {"model.pos_embed": 13, "model.blocks.0": 12, "model.norm": 0}),
        (ConvNetConfig(name="resnet18"), {"model.conv1": 9, "model.layer1.0": 8, "model.layer4.1": 1}),
    ],
)
def test_learning_rates_decay_from_layer_to_layer(backbone, scales):
    data = DataConfig(image_size=32, mean=(0.5,) * 3, std=(0.2,) * 3)
    encoder = build_encoder(backbone, data)
    found = layer_scales(encoder, 0.5)
    for start, power in scales.items():
        values = {found[p] for name, p in encoder.backbone.named_parameters() if name.startswith(start)}
        (value,) = values
        if power:
            assert value == pytest.approx(0.5**power), start


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_scales_multiply_the_learning_rate(kind):
    first, last = torch.nn.Linear(4, 4), torch.nn.Linear(4, 2)
    model = torch.nn.Sequential(first, last)
    config = OptimConfig(kind=kind, lr=0.1, warmup=0, lr_end=0.1, weight_decay=0, weight_decay_end=0)
    optimizer = build_optimizer(model, config, dict.fromkeys(first.parameters(), 0.25))
    assert set_schedule(optimizer, 0, 10, config) == 0.1
    rates = {parameter: group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    assert {rates[p] for p in first.parameters()} == {0.025}
    assert {rates[p] for p in last.parameters()} == {0.1}
    decays = {parameter: group["decays"] for group in optimizer.param_groups for parameter in group["params"]}
    assert [decays[p] for p in model.parameters()] == [True, False, True, False]
    with pytest.raises(InputError, match="layer_decay must be in"):
        OptimConfig(layer_decay=0)


def test_finetuning_from_the_command_line(run, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ["--labels", "50%", "--steps", "4", "--batch-size", "8", "--optim.layer-decay", "0.5"]
    code, _, err = call(capsys, "finetune", run.path, *flags)
    assert code == 0, err
    tuned = Run.open("runs/tiny-finetuned")
    assert tuned.config.objective.labels == 0.5
    assert tuned.config.data.source == run.config.data.source
    assert "the head starts as a linear probe of 36 images" in err
    result = evaluate("runs/tiny-finetuned")
    assert 0 <= result["head"]["accuracy"] <= 100


def test_resuming_a_fine_tuning_is_bitwise(run, tmp_path, monkeypatch):
    flags = ["--labels", "0.5", "--batch-size", "8", "--optim.layer-decay", "0.5", "--steps", "4", "--save-every", "2"]
    given, words = parse_finetune_arguments([str(run.path), *flags], None, read_config_of)
    assert words[:3] == ["finetune", "--init", str(run.path)]
    whole = train(given.config, tmp_path / "whole")
    interrupted_after(given.config, tmp_path / "part", "last", 2, monkeypatch)
    part = train(given.config, tmp_path / "part", resume=True)
    assert same_tensors(whole.load()[0], part.load()[0])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "RUN is missing"),
        (["--labels", "10%"], "RUN is missing"),
        (["RUN", "--labels", "ten"], "--labels must be a fraction such as 0.1, or a percentage such as 10%, got 'ten'"),
        (["RUN", "--labels", "0"], r"objective\.labels must be a fraction in \(0, 1\], got 0\.0"),
        (["RUN", "--labels", "200%"], r"must be a fraction in \(0, 1\], got 2\.0"),
        (["RUN", "--labels"], "--labels must be a fraction"),
        (["RUN", "--objective.head", "x"], "must be one of random, probe"),
        (["RUN", "--backbone", "energy"], "leave out the flag"),
    ],
)
def test_wrong_arguments_of_finetune(run, arguments, sentence):
    words = [str(run.path) if word == "RUN" else word for word in arguments]
    with pytest.raises(InputError, match=sentence):
        parse_finetune_arguments(words, None, read_config_of)


def test_images_without_labels_are_refused(run, tmp_path):
    from PIL import Image

    for i in range(20):
        (tmp_path / "flat").mkdir(exist_ok=True)
        Image.new("RGB", (16, 16), (i, i, i)).save(tmp_path / "flat" / f"{i}.png")
    config = override(run.config, objective=SupervisedConfig(), data__source=str(tmp_path / "flat"))
    with pytest.raises(InputError, match="requires labels of at least two classes, but the images have 0"):
        train(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_heads_are_compared_by_the_names_of_classes(tiny):
    config = supervised(tiny, names=("cat", "dog"))
    objective = fresh_objective(config)
    assert isinstance(objective, Supervised)
    with torch.no_grad():
        objective.head.weight.zero_()
        objective.head.bias.copy_(torch.tensor([0.0, 1.0]))  # always "dog"
    test = Features(torch.zeros(5, 32), torch.tensor([0, 0, 1, 2, -1]), torch.arange(5), "x")
    score = head_accuracy(objective, test, ("dog", "cat", "bird"))
    assert score is not None
    assert (score["accuracy"], score["images"]) == (pytest.approx(100 * 2 / 3), 3)
    assert head_accuracy(objective, test, ("bird", "fish", "cow")) is None


def test_supervised_configs_are_read_from_json():
    config = SupervisedConfig(classes=2, names=("a", "b"), mixup=0.2)
    assert (
        from_dict(SupervisedConfig, {k: v for k, v in json.loads(json.dumps(to_dict(config))).items() if k != "kind"})
        == config
    )
    with pytest.raises(InputError, match=r"as many as objective\.classes"):
        SupervisedConfig(classes=3, names=("a", "b"))
    with pytest.raises(InputError, match="mixup must be 0, or between"):
        SupervisedConfig(mixup=-1)
    with pytest.raises(InputError, match="label_smoothing must be in"):
        SupervisedConfig(label_smoothing=1)


@pytest.fixture
def unsplit(tmp_path) -> str:
    """A source of 60 images without a test split."""
    images, labels = toy_images(60, seed=3)
    write_parquet(tmp_path / "unsplit" / "train-00000-of-00001.parquet", images, labels)
    return str(tmp_path / "unsplit")


def test_images_whose_labels_earlier_runs_have_seen_are_not_scored(run, unsplit, tmp_path, toy_source):
    """Fine-tuned, then trained without labels, then exported and imported: the encoder has still seen the labels."""
    tuned = override(run.config, objective=SupervisedConfig(), init=str(run.path), data__source=unsplit, steps=1)
    first = train(override(tuned, data__holdout=0.1), tmp_path / "first")
    seen = first.config.labels_seen
    assert [part.holdout for part in seen] == [0.1]
    later = train(override(run.config, init=str(first.path), data__source=unsplit, steps=1), tmp_path / "later")
    elsewhere = train(override(later.config, init=str(later.path), data__source=toy_source), tmp_path / "elsewhere")
    export(read_pretrained(first.path), "safetensors", tmp_path / "exported")
    imported, _ = import_run(str(tmp_path / "exported"), tmp_path / "imported", unsplit)
    for other in (first, later, elsewhere, imported):
        assert other.config.labels_seen == seen
        scored = EvaluationRun.open(other.path, unsplit).test.indices
        assert torch.equal(scored, split_holdout(60, 0.1)[1]), other.path
    assert len(EvaluationRun.open(run.path, unsplit).test.indices) == 12  # it has seen no labels
    twice = train(override(tuned, init=str(first.path), data__holdout=0.4), tmp_path / "twice")
    assert {part.holdout for part in twice.config.labels_seen} == {0.1, 0.4}
    assert len(EvaluationRun.open(twice.path).test.indices) == 6
    resumed = train(override(tuned, init=str(first.path), data__holdout=0.4, steps=2), twice.path, resume=True)
    assert resumed.config.labels_seen == twice.config.labels_seen


def test_a_run_with_other_labels_starts_from_the_encoder_alone(run, unsplit, tmp_path):
    config = override(run.config, objective=SupervisedConfig(), steps=1)
    first = train(config, tmp_path / "first")
    images, labels = toy_images(40)
    for order in (("a", "b"), ("b", "a")):
        source = write_parquet(tmp_path / order[0] / "train-0.parquet", images, labels, order).parent
        again = override(config, init=str(first.path), data__source=str(source), optim__lr=0, optim__lr_start=0)
        second = train(override(again, optim__lr_end=0, seed=7), tmp_path / f"from-{order[0]}")
        heads = [load_objective(part)[0].head.weight for part in (first, second)]
        assert torch.equal(*heads) is (order == ("a", "b"))


def test_classes_of_other_images_are_refused_or_replaced(run, tmp_path, capsys):
    first = train(override(run.config, objective=SupervisedConfig(), steps=1, save_every=1), tmp_path / "first")
    images, labels = toy_images(40)
    swapped = write_parquet(tmp_path / "swapped" / "train-0.parquet", images, labels, ("b", "a")).parent
    with pytest.raises(InputError, match=r"has the classes 'a', 'b', but the images have 'b', 'a'; choose images"):
        train(override(first.config, data__source=str(swapped), steps=2), first.path, resume=True)
    with pytest.raises(InputError, match=r"objective\.classes is 3, but the images have 2 classes"):
        train(override(run.config, objective=SupervisedConfig(3)), tmp_path / "three")
    arguments = ["train", "--config", first.path / "config.json", "--data", swapped, "--run", tmp_path / "other"]
    code, _, err = call(capsys, *arguments)
    assert code == 0, err
    assert Run.open(tmp_path / "other").config.objective.names == ("b", "a")


def test_a_batch_may_be_larger_than_the_number_of_labeled_images(run, tmp_path):
    config = override(run.config, objective=SupervisedConfig(labels=0.05, head="probe", mixup=0.5), steps=3)
    tuned = train(override(config, init=str(run.path), batch_size=16), tmp_path / "few")
    assert tuned.metrics()[-1]["step"] == 3
    with pytest.raises(InputError, match="batch_size must be at most the number of training images"):
        train(override(run.config, batch_size=100), tmp_path / "many")


def test_figures_do_not_call_the_weights_at_the_start_untrained(run, tmp_path):
    config = override(run.config, init=str(run.path), steps=4, keep_every=2, eval_every=2)
    later = train(config, tmp_path / "later")
    scores = EvaluationRun.open(later.path).checkpoint_scores
    assert scores is not None
    assert [part["step"] for part in scores] == [2, 4]
    texts = {text.get_text() for axes in curves(later).axes for text in axes.texts}
    assert "at the start" in texts
    assert "untrained" not in texts


def test_the_supervised_counterpart_of_a_fine_tuning_starts_from_scratch(run):
    tuned = override(run.config, objective=SupervisedConfig(labels=0.1, freeze=True, head="probe"), init="x")
    config = supervised_config(override(tuned, optim__layer_decay=0.5), 2)
    objective = config.objective
    assert isinstance(objective, SupervisedConfig)
    assert (objective.labels, objective.freeze, objective.head, config.init) == (1, False, "random", None)
    assert config.optim.layer_decay == 1


@pytest.mark.parametrize("value", [-1, 1e-3, 101, float("inf")])
def test_limits_of_mixup(value):
    with pytest.raises(InputError, match=r"objective\.mixup must be 0, or between 0\.01 and 100, got"):
        SupervisedConfig(mixup=value)


def write_pictures(folder, count: int, suffix: str = "") -> str:
    """Write images of two classes in folders, without splits."""
    images, labels = toy_images(count, seed=5)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        (folder / "ab"[label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / "ab"[label] / f"{i:02d}{suffix}.png")
    return str(folder)


@pytest.mark.parametrize("later", ["itself", "resumed", "without labels", "imported"])
def test_images_that_have_changed_since_their_labels_were_seen_are_not_scored(run, later, tmp_path, monkeypatch):
    """One more image changes which are held out, so images that were trained on would be scored."""
    source = write_pictures(tmp_path / "pictures", 40)
    config = override(run.config, objective=SupervisedConfig(), init=str(run.path), data__source=source, steps=1)
    chosen = train(config, tmp_path / "first")
    Image.new("RGB", (16, 16), (9, 99, 9)).save(tmp_path / "pictures" / "a" / "new.png")
    if later == "resumed":
        chosen = train(override(config, steps=2), chosen.path, resume=True)
    if later == "without labels":
        chosen = train(override(run.config, init=str(chosen.path), data__source=source, steps=1), tmp_path / "later")
    if later == "imported":
        export(read_pretrained(chosen.path), "safetensors", tmp_path / "exported")
        chosen, _ = import_run(str(tmp_path / "exported"), tmp_path / "imported")
    monkeypatch.chdir(tmp_path)
    for name in (source, "pictures", "./pictures/../pictures"):
        with pytest.raises(InputError, match="have changed since the weights were trained with their labels"):
            EvaluationRun.open(chosen.path, name)
    elsewhere = write_pictures(tmp_path / "copies", 40)
    assert EvaluationRun.open(chosen.path, elsewhere).may_have_seen_labels
    assert "copies of these are scored too high" in " ".join(evaluate(chosen.path, elsewhere)["notes"])


def test_the_labels_of_a_table_are_part_of_its_images(run, tmp_path):
    write_pictures(tmp_path / "pictures", 20)
    files = sorted((tmp_path / "pictures").rglob("*.png"))
    table = tmp_path / "table.csv"
    signatures = []
    for names in (("a", "b"), ("b", "a"), ("a", "c")):
        table.write_text("path,label\n" + "".join(f"{f},{names[i % 2]}\n" for i, f in enumerate(files)))
        dataset = open_dataset(DataConfig(source=str(table)), "train", tmp_path / "cache")
        assert dataset is not None
        signatures.append(dataset.signature)
    assert len(set(signatures)) == 3
