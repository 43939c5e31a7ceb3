"""I-JEPA masks: disjoint, unbiased in position, with little padding, and independent of the batch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jepa.config import InputError, MaskConfig
from jepa.config.recipes import RECIPES
from jepa.rng import Rng
from jepa.transforms.masks import Masks, MaskSampler

GRIDS = [(16, 16), (14, 14), (8, 8), (7, 7), (4, 4), (14, 10)]
STRATEGIES = ["multiblock", "block", "random", "rasterized"]


def sample_masks(config: MaskConfig, grid: tuple[int, int], count: int, seed: int = 0) -> Masks:
    return MaskSampler(config, grid).sample(Rng(seed, 0, torch.arange(count)))


def counts(indices: torch.Tensor, valid: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """Count the occurrences (B, N) of each token among the valid indices of each image."""
    flat = torch.zeros(len(indices), num_tokens, dtype=torch.long)
    return flat.scatter_add_(1, indices.flatten(1), valid.flatten(1).long())


def is_symmetric(frequency: torch.Tensor, grid: tuple[int, int]) -> bool:
    """Return whether frequencies (N,) differ by less than 0.02 from their vertical and horizontal mirror images.

    The standard error of a difference is 0.0035 with 40,000 samples, and the largest of about a hundred is tested.
    `benchmarks/masks.py` measures the differences with 200,000 samples.
    """
    image = frequency.view(grid)
    return bool(max((image - image.flip(axis)).abs().max() for axis in (0, 1)) < 0.02)


@pytest.mark.parametrize("grid", GRIDS)
def test_masks_are_disjoint_without_bias_and_with_little_padding(grid):
    sampler, num_tokens = MaskSampler(MaskConfig(), grid), grid[0] * grid[1]
    context_frequency, target_frequency = torch.zeros(num_tokens), torch.zeros(num_tokens)
    padding = torch.zeros(2)
    num_samples, batch_size = 40_000, 4_000
    for start in range(0, num_samples, batch_size):
        masks = sampler.sample(Rng(0, 0, torch.arange(start, start + batch_size)))
        context = counts(masks.context, masks.context_valid, num_tokens)
        targets = counts(masks.targets, masks.targets_valid, num_tokens)
        assert not (context.bool() & targets.bool()).any()
        assert context.max() == 1  # no duplicate tokens
        assert masks.context_valid.any(1).all()
        assert masks.targets_valid.flatten(1).any(1).all()
        context_frequency += context.sum(0) / num_samples
        target_frequency += (targets > 0).sum(0) / num_samples
        padding += torch.stack([(~masks.context_valid).float().mean(), (~masks.targets_valid).float().mean()])
    assert is_symmetric(context_frequency, grid)
    assert is_symmetric(target_frequency, grid)
    assert (padding / (num_samples / batch_size)).max() <= 0.15


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("grid", [(8, 8), (7, 5), (4, 4)])
def test_every_strategy_is_disjoint_and_symmetric(strategy, grid):
    config = MaskConfig(strategy=strategy, target_scale=(0.15, 0.2) if strategy == "multiblock" else (0.5, 0.6))
    masks = sample_masks(config, grid, 40_000)
    num_tokens = grid[0] * grid[1]
    context = counts(masks.context, masks.context_valid, num_tokens)
    targets = counts(masks.targets, masks.targets_valid, num_tokens)
    assert not (context.bool() & targets.bool()).any()
    assert is_symmetric(context.float().mean(0), grid)
    assert is_symmetric(targets.float().mean(0), grid)


def test_rasterized_targets_are_the_three_remaining_quadrants():
    masks = sample_masks(MaskConfig(strategy="rasterized"), (8, 8), 100)
    assert masks.targets.shape == (100, 3, 16)
    assert masks.context.shape == (100, 16)
    union = torch.cat([masks.context, masks.targets.flatten(1)], 1).sort().values
    assert torch.equal(union, torch.arange(64).expand(100, -1))


def test_targets_are_rectangles_before_subsampling():
    sampler = MaskSampler(MaskConfig(), (14, 14))
    _, targets = sampler._sample_regions(Rng(0, 0, torch.arange(500)))
    blocks = targets.flatten(0, 1).view(-1, 14, 14)
    blocks = blocks[blocks.flatten(1).any(1)]
    height, width = blocks.any(2).sum(1), blocks.any(1).sum(1)
    assert torch.equal(height * width, blocks.flatten(1).sum(1))
    area = (height * width) / 196
    assert area.min() > 0.12  # 0.15 to 0.2 before sides are rounded to tokens
    assert area.max() < 0.24
    aspect = height / width
    assert aspect.min() < 0.85  # both wide and tall blocks
    assert aspect.max() > 1.3


def test_masks_do_not_depend_on_the_batch():
    sampler = MaskSampler(MaskConfig(), (8, 8))
    whole = sampler.sample(Rng(3, 5, torch.arange(256)))
    for size in (1, 7, 128):
        smaller = sampler.sample(Rng(3, 5, torch.arange(size)))
        assert all(torch.equal(one[:size], other) for one, other in zip(whole, smaller, strict=True))


def test_each_image_has_its_own_masks_unless_they_are_shared():
    individual = sample_masks(MaskConfig(), (8, 8), 50)
    assert len(individual.targets.flatten(1).unique(dim=0)) == 50
    shared = sample_masks(MaskConfig(shared=True), (8, 8), 50)
    assert len(shared.targets.flatten(1).unique(dim=0)) == 1
    assert shared.context.shape == individual.context.shape
    again = MaskSampler(MaskConfig(shared=True), (8, 8)).sample(Rng(0, 0, torch.arange(30, 50)))
    assert torch.equal(again.context[0], shared.context[0])  # also on a different process


def test_context_limit_randomly_subsamples_tokens():
    masks = sample_masks(MaskConfig(context_limit=0.25), (8, 8), 20_000)
    assert masks.context.shape[1] == 16
    frequency = counts(masks.context, masks.context_valid, 64).float().mean(0)
    assert is_symmetric(frequency, (8, 8))


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(4, 15),
    columns=st.integers(4, 15),
    num_targets=st.integers(1, 8),
    max_scale=st.floats(0.05, 0.7),
    min_context=st.integers(1, 3),
    seed=st.integers(0, 2**31),
)
def test_any_grid_has_context_and_targets(rows, columns, num_targets, max_scale, min_context, seed):
    config = MaskConfig(targets=num_targets, target_scale=(max_scale / 2, max_scale), min_context=min_context)
    masks = sample_masks(config, (rows, columns), 64, seed)
    num_tokens = rows * columns
    context = counts(masks.context, masks.context_valid, num_tokens)
    targets = counts(masks.targets, masks.targets_valid, num_tokens)
    assert not (context.bool() & targets.bool()).any()
    assert masks.context_valid.sum(1).min() >= min(min_context, masks.context.shape[1])
    assert masks.targets_valid[:, 0].any(1).all()
    assert masks.context.max() < num_tokens


def test_targets_that_leave_no_context_are_rejected():
    with pytest.raises(InputError, match=r"leaves fewer than masks\.min_context"):
        MaskSampler(MaskConfig(target_scale=(0.9, 1.0)), (8, 8))
    for low in (0.8, 0.98):
        with pytest.raises(InputError, match=r"leaves fewer than masks\.min_context"):
            MaskSampler(MaskConfig(strategy="block", target_scale=(low, 1.0)), (8, 8))


@pytest.mark.parametrize("name", ["ijepa-vitb16-in1k", "ijepa-vitl16-in1k", "ijepa-vith14-in1k"])
def test_contexts_of_the_recipes_of_the_paper_have_its_share_of_the_tokens(name):
    config = RECIPES[name]()
    side = config.data.size[0] // config.backbone.patch
    masks = MaskSampler(config.objective.masks, (side, side)).sample(Rng(0, 0, torch.arange(2000)))
    share = float(masks.context_valid.sum(1).float().mean()) / side**2
    assert abs(share - 0.25) < 0.01  # Table 6
