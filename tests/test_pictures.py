"""Pictures of what a model sees and predicts, and measures without labels, on planted data."""

import dataclasses
import math

import pytest
import torch
from PIL import Image

from jepa.backbones import Tokens
from jepa.config import FixationConfig, InputError, MAEConfig, SaccadeConfig
from jepa.data import open_dataset
from jepa.evaluation.decoding import RidgeDecoder, r2_score
from jepa.evaluation.features import Subset, read_evenly
from jepa.evaluation.knn import nearest
from jepa.evaluation.label_free import alpha_req, lidar, view_features
from jepa.evaluation.patch_predictions import PatchPredictions, from_patches, predict_patches, to_patches
from jepa.evaluation.patch_tokens import patch_colors, patch_similarity, patch_tokens
from jepa.evaluation_run import EvaluationRun
from jepa.objectives.ijepa import IJepaInputs
from jepa.report.plot_neighbors import neighbors, vote
from jepa.rng import Rng
from jepa.runs import fresh_objective, load_objective
from jepa.train import train
from tests.conftest import override, toy_images, write_parquet


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def two_textures(count: int = 6, side: int = 8) -> tuple[Tokens, torch.Tensor]:
    """Return tokens of images whose center has another texture than the rest, and where it is (B, N)."""
    inside = torch.zeros(count, side, side, dtype=torch.bool)
    for i in range(count):
        inside[i, 2 : 5 + i % 3, 2:6] = True
    directions = randn(2, 16, seed=1)
    tokens = directions[inside.flatten(1).long()] + 0.05 * randn(count, side * side, 16)
    return Tokens(tokens, (side, side)), inside.flatten(1)


def test_two_textures_have_two_colors():
    tokens, inside = two_textures()
    colors, shown = patch_colors(tokens)
    assert bool(shown.all())
    assert colors.shape == (6, 64, 3)
    assert 0 <= float(colors.min()) < float(colors.max()) <= 1
    first = colors[..., 0]  # the axis on which they differ; the others are noise
    assert abs(float(first[inside].mean() - first[~inside].mean())) > 0.8
    assert float(first[inside].std()) < 0.1
    assert float(first[~inside].std()) < 0.1


def test_positions_do_not_hide_what_is_in_the_images():
    """Tokens that consist of their position, but for a texture at a random place of each image."""
    inside = torch.rand(40, 64, generator=torch.Generator().manual_seed(0)) < 0.3
    texture, positions = randn(16, seed=1), 10 * randn(64, 16, seed=2)
    tokens = Tokens(positions + inside[..., None] * texture + 0.05 * randn(40, 64, 16, seed=3), (8, 8))
    first = patch_colors(tokens)[0][..., 0]
    assert abs(float(first[inside].mean() - first[~inside].mean())) > 0.4
    image, patch = inside.nonzero()[0].tolist()
    cosines = patch_similarity(tokens.x, image, patch)
    assert float(cosines[inside].mean()) > 0.5 > 0 > float(cosines[~inside].mean())


def test_colors_do_not_depend_on_the_sign_of_eigenvectors():
    tokens, _ = two_textures()
    order = torch.randperm(16, generator=torch.Generator().manual_seed(3))
    assert torch.allclose(
        patch_colors(Tokens(tokens.x[..., order], tokens.grid))[0], patch_colors(tokens)[0], atol=1e-3
    )


def test_the_foreground_is_the_texture_that_is_not_at_the_border():
    tokens, inside = two_textures()
    for x in (tokens.x, -tokens.x):
        assert torch.equal(patch_colors(Tokens(x, tokens.grid), foreground=True)[1], inside)


def test_equal_tokens_have_a_color():
    tokens = Tokens(torch.ones(2, 16, 8), (4, 4))
    for foreground in (False, True):
        colors, _ = patch_colors(tokens, foreground)
        assert bool(colors.isfinite().all())


def test_tokens_that_are_not_finite_are_refused(tiny):
    encoder = fresh_objective(override(tiny, data__mean=(0.5,) * 3, data__std=(0.2,) * 3)).main_encoder
    with torch.no_grad():
        next(encoder.backbone.stem.parameters()).fill_(torch.inf)
    with pytest.raises(InputError, match="NaN or infinite"):
        patch_tokens(encoder, torch.rand(2, 3, 16, 16))


def test_a_patch_is_similar_to_those_of_its_texture():
    tokens, inside = two_textures()
    similarity = patch_similarity(tokens.x, 0, 3 * 8 + 3)
    assert similarity[0, 3 * 8 + 3] == pytest.approx(1)
    assert float(similarity[inside].min()) > 0.9
    assert float(similarity[~inside].max()) < 0


def test_tokens_at_twice_the_resolution(tiny):
    objective = fresh_objective(override(tiny, data__mean=(0.5,) * 3, data__std=(0.2,) * 3))
    images = torch.rand(3, 3, 20, 24)
    for scale, side in ((1, 4), (2, 8)):
        tokens = patch_tokens(objective.main_encoder, images, scale)
        assert tokens.grid == (side, side)
        assert tokens.x.shape == (3, side**2, 32)


# Decoder


def test_a_decoder_of_tokens_that_hold_their_pixels_is_exact():
    pixels = randn(2000, 48).abs()
    tokens = pixels @ randn(48, 64, seed=1) + 3
    decoder = RidgeDecoder.fit(tokens[:1500], pixels[:1500])
    assert r2_score(decoder.decode(tokens[1500:]), pixels[1500:], decoder.output_mean) > 0.9999


def test_a_decoder_of_noise_knows_nothing():
    pixels, tokens = randn(2000, 48), randn(2000, 64, seed=1)
    decoder = RidgeDecoder.fit(tokens[:1500], pixels[:1500])
    assert r2_score(decoder.decode(tokens[1500:]), pixels[1500:], decoder.output_mean) == 0


def test_the_decoder_is_ridge_regression():
    from sklearn.linear_model import Ridge

    x, y = randn(300, 10) * torch.arange(1, 11), randn(300, 4, seed=1)
    (decoder,) = RidgeDecoder._candidates(x, y, (0.1,))
    centered = (x - x.mean(0)).double()
    expected = Ridge(alpha=0.1 * float((centered.T @ centered).trace() / 10)).fit(x.numpy(), y.numpy())
    assert torch.allclose(decoder.decode(x), torch.from_numpy(expected.predict(x.numpy())).float(), atol=1e-4)


def test_patches_are_put_together_again():
    images = torch.rand(2, 3, 12, 8)
    patches = to_patches(images, (3, 4))
    assert patches.shape == (2, 12, 3 * 4 * 2)
    assert torch.equal(patches[1, 5].view(3, 4, 2), images[1, :, 4:8, 2:4])  # in raster order
    assert torch.equal(from_patches(patches, (3, 4), images.shape), images)


# Predictions


def planted_predictions(predicted: str) -> PatchPredictions:
    """Return predictions for tokens that hold their pixels linearly: right, or the average token of each position."""
    images, grid = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(0)), (4, 4)
    tokens = to_patches(images, grid) @ randn(4, 12, seed=1) + randn(16, 12, seed=2)
    hidden = torch.zeros(64, 16, dtype=torch.bool)
    hidden[:, 5:11] = True
    decoder = RidgeDecoder.fit((tokens - randn(16, 12, seed=2)).flatten(0, 1), to_patches(images, grid).flatten(0, 1))
    guess = tokens if predicted == "right" else tokens.mean(0).expand_as(tokens)
    context = torch.zeros_like(hidden)
    context[:, 0] = True
    return PatchPredictions(images, context, hidden, guess * hidden[..., None], tokens, decoder, grid)


def test_right_predictions_are_found_and_those_of_the_position_are_not():
    right, position = (planted_predictions(kind) for kind in ("right", "position"))
    assert right.scores()["top1"] == 100
    assert right.scores()["error"] == pytest.approx(0, abs=1e-4)
    assert right.scores()["r2_predicted"] == right.scores()["r2_actual"]
    assert position.scores()["top1"] == pytest.approx(100 / 32, abs=2)
    assert 0.1 < position.scores()["error"] < 1
    assert bool(right.errors[~right.hidden].isnan().all())


def test_few_images_are_fewer_candidates():
    found = planted_predictions("position")
    few = {name: getattr(found, name)[:5] for name in ("images", "context", "hidden", "predicted", "actual")}
    scores = dataclasses.replace(found, **few).scores()
    assert scores["candidates"] == 5
    assert scores["top1"] == pytest.approx(100 / 5, abs=15)


def test_distances_to_the_context():
    found = planted_predictions("right")
    assert found.distance_to_context[0].view(4, 4)[0].tolist() == [0, 1, 2, 3]
    assert float(found.distance_to_context[0, 15]) == pytest.approx(math.hypot(3, 3))


def test_the_nearest_patches_are_those_of_the_same_pixels():
    found = planted_predictions("right")
    found.images[1], found.actual[1] = found.images[0], found.actual[0]  # an exact copy among the others
    nearest_pixels = to_patches(found.nearest_patches(0)[None], found.grid)[0]
    assert torch.equal(nearest_pixels[found.hidden[0]], to_patches(found.images[:1], found.grid)[0][found.hidden[0]])


def test_the_error_of_the_predictions_is_the_loss_of_the_training(tiny, tmp_path):
    """On the same masks, with one target block, which no other one overlaps."""
    config = override(
        tiny, objective__loss="l2", objective__masks__targets=1, objective__masks__target_scale=(0.2, 0.4)
    )
    run = train(config, tmp_path / "run")
    objective, _, _ = load_objective(run)
    datasets = [open_dataset(run.config.data, split, tmp_path / "cache") for split in ("train", "test")]
    train_subset, test_subset = (Subset(dataset, torch.arange(len(dataset))) for dataset in datasets)
    found = predict_patches(objective, train_subset, test_subset)
    assert found.predicted.shape == (40, 16, 32)
    assert not bool((found.context & found.hidden).any())
    inputs = IJepaInputs(found.images, objective.masks.sample(Rng(0, 0, torch.arange(40))))
    with torch.no_grad():
        loss = float(objective.eval()(inputs)["prediction"])
    errors = (found.predicted - found.actual).square().mean(-1).masked_fill(~found.hidden, torch.nan)
    assert float(errors.nanmean(1).mean()) == pytest.approx(loss, rel=1e-4)
    assert found.decoded(found.actual).shape == found.images.shape


def test_other_objectives_predict_no_patches(tiny):
    config = override(tiny, objective=MAEConfig(decoder="16x1x2"), data__mean=(0.5,) * 3, data__std=(0.2,) * 3)
    assert predict_patches(fresh_objective(config), None, None) is None


def test_predictions_of_views(tiny, tmp_path):
    """A perfect predictor finds every view, and its decoded views are those of the actual embeddings."""
    fixations = FixationConfig(view_fraction=0.6, shift=0.3, rotation=10)
    config = override(tiny, objective=SaccadeConfig(hidden=16, fixations=fixations), data__canvas=32)
    run = EvaluationRun.open(train(config, tmp_path / "run").path)
    found = run.view_predictions
    assert found.after.shape == (40, 32, 3, 16, 16)
    assert found.scores()["candidates"] == 32
    assert found.decoded(found.predicted[:, 0]).shape == (40, 3, 16, 16)
    perfect = dataclasses.replace(found, predicted=found.actual).scores()
    assert perfect["top1"] == 100
    assert perfect["r2_predicted"] == perfect["r2_actual"] > 0
    assert found.scores()["top1"] < 50
    retrieval = run.saccade_retrieval["same image"]["top1"]
    assert found.scores()["top1"] == pytest.approx(retrieval, abs=10)  # other images and fixations


# Neighbors and measures


def test_neighbors_of_planted_duplicates_are_the_duplicates():
    bank = randn(500, 20) + 5
    similarity, found = nearest(bank, bank[[7, 300]], 3)
    assert found[:, 0].tolist() == [7, 300]
    assert torch.allclose(similarity[:, 0], torch.ones(2), atol=1e-5)
    assert bool((similarity[:, 1] < 0.95).all())


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_the_exponent_of_a_power_law(alpha):
    x = randn(20_000, 60) * torch.arange(1, 61).float() ** (-alpha / 2)
    x = x @ torch.linalg.qr(randn(60, 60, seed=1))[0]
    assert alpha_req(x) == pytest.approx(alpha, abs=0.05)
    assert alpha_req(torch.ones(10, 60)) is None


def test_lidar_is_that_of_the_paper():
    """Equations 1 to 4 of the paper, evaluated directly."""
    x = (randn(40, 1, 8) * torch.arange(1, 9) + 0.5 * randn(40, 6, 8, seed=1)).double()
    means = x.mean(1)
    between = sum(torch.outer(mean, mean) for mean in means - means.mean(0)) / 40
    within = sum(torch.outer(view, view) for view in (x - means[:, None]).flatten(0, 1)) / 240 + 1e-4 * torch.eye(8)
    values, axes = torch.linalg.eigh(within)
    root = axes @ torch.diag(values.rsqrt()) @ axes.T
    eigenvalues = torch.linalg.eigvalsh(root @ between @ root)
    p = eigenvalues / eigenvalues.sum() + 1e-8
    assert lidar(x.float()) == pytest.approx(float(torch.exp(-(p * p.log()).sum())), rel=1e-4)


def test_lidar_does_not_count_axes_on_which_views_differ():
    images, views = randn(200, 1, 16), randn(200, 6, 16, seed=1)
    keep = torch.arange(16) < 4
    x = torch.where(keep, images + 0.01 * views, views)  # images differ on four axes, views on the others
    assert lidar(x) == pytest.approx(4, rel=0.1)


def test_lidar_of_very_large_features():
    """Their covariance has rounding errors above the constant of the paper."""
    x = 1e7 * (randn(20, 1, 300) + 0.1 * randn(20, 4, 300, seed=1))
    assert 1 <= lidar(x) <= 300


@pytest.mark.parametrize("labels", [[0, 1, 2, 3], [0, -1, -1, -1], [-1, -1, -1, -1]])
def test_neighbors_are_drawn_whatever_is_labeled(tiny, tmp_path, labels):
    """Classes of test images without training images, partly labeled ones, and none."""
    for split, known, seed in (("train", labels[:2], 0), ("test", labels, 1)):
        chosen = [known[i % len(known)] for i in range(30)]
        write_parquet(tmp_path / "data" / f"{split}.parquet", toy_images(30, seed=seed)[0], chosen, "abcd")
    run = EvaluationRun.open(train(override(tiny, data__source=str(tmp_path / "data")), tmp_path / "run").path)
    figure = neighbors(run)
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert all(set(title.split(" → ")) <= set("abcd") for title in titles)
    assert bool(titles) == (labels[0] == 0)
    if labels[3] == 3:  # classes that are unknown to the neighbors are mistakes, and come first
        assert all(title[0] in "cd" or title[0] != title[-1] for title in titles)


def test_the_vote_of_neighbors_ignores_unlabeled_ones():
    labels = torch.tensor([[-1, -1, -1, 2], [0, 1, 1, -1], [-1, -1, -1, -1]])
    assert vote(labels).tolist() == [2, 1, -1]
    assert vote(labels[2:]).tolist() == [-1]


def test_images_are_read_evenly_without_unreadable_ones(tiny, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(6):
        Image.new("RGB", (20, 20), (40 * i, 0, 0)).save(folder / f"{i}.png")
    (folder / "1.png").write_text("torn")
    config = override(tiny, data__source=str(folder)).data
    subset = Subset(open_dataset(config, "train", tmp_path / "cache"), torch.arange(6))
    batches = [pixels for pixels, _ in read_evenly(subset, 6, batch_size=2)]
    assert [len(batch) for batch in batches] == [1, 2, 2]
    only_torn = Subset(subset.dataset, torch.tensor([1]))
    with pytest.raises(InputError, match=r"none of the 1 images of .* can be read"):
        list(read_evenly(only_torn, 6))


def test_view_features_are_views_of_the_same_images(tiny, tmp_path):
    run = train(tiny, tmp_path / "run")
    objective, _, _ = load_objective(run)
    dataset = open_dataset(run.config.data, "test", tmp_path / "cache")
    x = view_features(objective.main_encoder, Subset(dataset, torch.arange(30)))
    assert x.shape == (30, 6, 32)
    assert len(x[0].unique(dim=0)) == 6
