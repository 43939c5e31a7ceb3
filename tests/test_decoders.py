"""Decoders of predictions: convolutions over the grid, and the pixels of masked autoencoders, on planted data."""

import dataclasses

import pytest
import torch

from jepa.config import MAEConfig, MaskConfig
from jepa.evaluate import evaluate_run
from jepa.evaluation.convolutional_decoder import ConvolutionalDecoder, hidden_tokens
from jepa.evaluation.decoding import RidgeDecoder, r2_score
from jepa.evaluation.patch_predictions import to_patches
from jepa.evaluation.pixel_predictions import predict_pixels
from jepa.evaluation_run import EvaluationRun
from jepa.report.captions import predictions_caption
from jepa.report.figures import draw
from jepa.report.text import prediction_text
from jepa.rng import Rng
from jepa.runs import fresh_objective
from jepa.train import train
from jepa.transforms.masks import MaskSampler
from tests.conftest import override, toy_images, write_parquet

GRID, NUM_FITTED = (4, 4), 600
MASKS = MaskSampler(MaskConfig(), GRID)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def images() -> torch.Tensor:
    return torch.rand(NUM_FITTED + 100, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def fit(tokens: torch.Tensor, patches: torch.Tensor) -> ConvolutionalDecoder:
    tokens, patches = tokens[:NUM_FITTED], patches[:NUM_FITTED]
    return ConvolutionalDecoder.fit(
        tokens, patches, MASKS, RidgeDecoder.fit(tokens.flatten(0, 1), patches.flatten(0, 1))
    )


def score(decoder: ConvolutionalDecoder, tokens: torch.Tensor, patches: torch.Tensor, hidden: torch.Tensor) -> float:
    """Return R² of the hidden patches of the images that the decoder was not fitted to."""
    decoded = decoder.decode(tokens[NUM_FITTED:], hidden)
    return r2_score(decoded[hidden], patches[NUM_FITTED:][hidden], decoder.ridge.output_mean)


def masked() -> torch.Tensor:
    return hidden_tokens(MASKS.sample(Rng(0, 0, torch.arange(100))), MASKS.num_tokens)


def test_hidden_tokens_are_those_of_the_target_blocks():
    masks = MASKS.sample(Rng(0, 0, torch.arange(5)))
    for row, targets, valid in zip(hidden_tokens(masks, 16), masks.targets, masks.targets_valid, strict=True):
        assert set(row.nonzero().flatten().tolist()) == set(targets[valid].tolist())


def test_tokens_that_hold_their_pixels_are_decoded_exactly_and_noise_is_not():
    patches = to_patches(images(), GRID)
    tokens = patches @ randn(4, 12, seed=1) + 3
    assert score(fit(tokens, patches), tokens, patches, masked()) > 0.999
    noise = randn(*tokens.shape, seed=2)
    assert score(fit(noise, patches), noise, patches, masked()) <= 0


def test_convolutions_decode_what_neighboring_tokens_hold():
    """Each token holds the pixels of the patch to its right, which ridge regression from one token cannot know."""
    patches = to_patches(images(), GRID)
    tokens = patches.roll(-1, 1) @ randn(4, 12, seed=1)
    hidden = torch.zeros(100, 16, dtype=torch.bool)
    hidden[:, 5:7] = True  # neighbors in a row
    decoder = fit(tokens, patches)
    decoded = decoder.decode(tokens[NUM_FITTED:], hidden)[:, 6]
    assert r2_score(decoded, patches[NUM_FITTED:, 6], decoder.ridge.output_mean) > 0.5


def test_noise_is_not_decoded_by_means_of_the_actual_tokens_around_it():
    """The actual tokens of the visible patches hold the pixels of the hidden ones, as those of a target encoder may."""
    patches = to_patches(images(), GRID)
    tokens = patches.roll(-1, 1) @ randn(4, 12, seed=1)
    hidden = torch.zeros(100, 16, dtype=torch.bool)
    hidden[:, [1, 5, 9, 13]] = True  # one column, whose pixels are in the tokens of the visible column to its left
    decoder = fit(tokens, patches)
    predicted = tokens.clone()
    predicted[NUM_FITTED:][hidden] = tokens.std() * randn(400, 12, seed=3)
    assert score(decoder, predicted, patches, hidden) <= 0
    other = torch.where(hidden[..., None], predicted[NUM_FITTED:], randn(100, 16, 12, seed=4))
    decoded = [decoder.decode(x, hidden)[hidden] for x in (predicted[NUM_FITTED:], other)]
    assert torch.equal(*decoded)


def test_the_decoder_is_the_same_every_time_and_leaves_the_global_generator_alone():
    patches = to_patches(images()[:200], GRID)
    tokens = patches @ randn(4, 12, seed=1)
    state = torch.random.get_rng_state()
    first, second = fit(tokens, patches), fit(tokens, patches)
    assert all(torch.equal(*pair) for pair in zip(first.parameters(), second.parameters(), strict=True))
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(("channels", "size"), [(3, (16, 16)), (1, (16, 24))])
def test_a_full_evaluation_decodes_by_convolutions(tiny, tmp_path, channels, size):
    config = override(tiny, data__channels=channels, data__image_size=size)
    run = EvaluationRun.open(train(config, tmp_path / "run").path)
    before = run.patch_predictions.scores()
    run.add_convolutional_decoder()
    scores = run.patch_predictions.scores()
    assert before.items() < scores.items()  # the scores of the ridge decoder are the same
    assert scores["r2_actual_convolutional"] > 0
    assert "by convolutions" in prediction_text(scores)
    assert "convolutional" in predictions_caption(run)
    assert len(draw("predictions", run).axes) == 6 * 8


# Masked autoencoder


def mae(config, **settings):
    return override(config, objective=MAEConfig(decoder="16x1x2", **settings), backbone__stem="patch-conv")


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(("channels", "size"), [(3, (16, 16)), (1, (16, 24))])
def test_targets_of_a_masked_autoencoder_are_turned_into_their_images(tiny, normalize, channels, size):
    statistics = {"data__mean": (0.4,) * channels, "data__std": (0.2,) * channels}
    config = override(tiny, data__channels=channels, data__image_size=size, **statistics)
    objective = fresh_objective(mae(config, normalize_pixels=normalize))
    pixels = torch.rand(5, channels, *size, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(objective.from_targets(objective.targets(pixels), pixels), pixels, atol=1e-5)


@pytest.mark.parametrize("normalize", [True, False])
def test_pixels_of_a_masked_autoencoder(tiny, tmp_path, normalize):
    run = EvaluationRun.open(train(mae(tiny, normalize_pixels=normalize), tmp_path / "run").path)
    found = run.pixel_predictions
    assert found.predicted.shape == found.images.shape == (40, 3, 16, 16)
    assert found.hidden.sum(1).tolist() == [12] * 40
    assert torch.equal(found.context, ~found.hidden)
    for predicted, r2 in ((found.images, 1), (found.reference, 0)):
        assert dataclasses.replace(found, predicted=predicted).scores()["r2_predicted"] == r2
    inputs = run.objective.mask(found.images, Rng(0, 0, torch.arange(40)))
    with torch.no_grad():
        loss = float(run.objective.eval()(inputs)["loss"])
    zero = torch.zeros_like(run.objective.targets(found.images))
    scale = run.objective.from_targets(zero + 1, found.images) - run.objective.from_targets(zero, found.images)
    errors = to_patches((found.predicted - found.images) / scale, found.grid)  # in units of the loss
    assert float(errors[found.hidden].square().mean()) == pytest.approx(loss, rel=1e-3)
    result = evaluate_run(run)
    assert result["predictions"]["r2_predicted"] == found.scores()["r2_predicted"]
    assert ("mean of each patch" in prediction_text(result["predictions"])) == normalize
    assert len(draw("predictions", run).axes) == 6 * (5 if normalize else 4)
    assert any(axes.get_title("left") == "prediction" for axes in draw("overview", run).axes)


def test_a_diverged_masked_autoencoder_has_no_predictions(tiny, tmp_path):
    run = EvaluationRun.open(train(mae(tiny), tmp_path / "run").path)
    with torch.no_grad():
        run.objective.decoder.project.bias.fill_(torch.nan)
    assert predict_pixels(run.objective, run.test) is None


def test_few_images(tiny, tmp_path):
    for split, count in (("train", 20), ("test", 3)):
        write_parquet(tmp_path / "few" / f"{split}.parquet", *toy_images(count))
    few = override(tiny, data__source=str(tmp_path / "few"), data__holdout=0.0)
    for name, config in (("tokens", few), ("pixels", mae(few))):
        run = EvaluationRun.open(train(config, tmp_path / name).path)
        run.add_convolutional_decoder()
        found = run.patch_predictions or run.pixel_predictions
        assert found.scores()["images"] == 3
        draw("predictions", run)
