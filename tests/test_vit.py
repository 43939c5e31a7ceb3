"""Vision Transformer: architecture, positions, masks, stems and initialization."""

import pytest
import torch

from jepa.backbones import sincos_positions
from jepa.backbones.vit import ViT, ViTTrunk
from jepa.config import InputError, ViTConfig
from jepa.config.backbones import VIT_SIZES


def build_vit(config: ViTConfig, size=(32, 32), channels: int = 3) -> ViT:
    torch.manual_seed(0)
    return ViT(config, channels, size).eval()


def to_transformers(model: ViT, reference: torch.nn.Module) -> None:
    """Copy the weights of `model` to `reference`, an IJepaModel from transformers."""
    state = {
        "embeddings.position_embeddings": model.positions(model.trained_grid, torch.device("cpu"))[None],
        "embeddings.patch_embeddings.projection.weight": model.stem[0].weight,
        "embeddings.patch_embeddings.projection.bias": model.stem[0].bias,
        "layernorm.weight": model.trunk.norm.weight,
        "layernorm.bias": model.trunk.norm.bias,
    }
    keys = reference.state_dict().keys()
    layer = next(name for name in keys if ".0." in name).split(".0.")[
        0
    ]  # 'encoder.layer' or 'layers', depending on the version
    names = {name.removeprefix(f"{layer}.0.") for name in keys if name.startswith(f"{layer}.0.")}
    for index, block in enumerate(model.trunk.blocks):
        for kind in ("weight", "bias"):
            q, k, v = getattr(block.attn.qkv, kind).chunk(3)
            tensors = {
                "attn_out": getattr(block.attn.proj, kind),
                "norm1": getattr(block.norm1, kind),
                "norm2": getattr(block.norm2, kind),
                "fc1": getattr(block.mlp.fc1, kind),
                "fc2": getattr(block.mlp.fc2, kind),
                **{"q": q, "k": k, "v": v},
            }
            for role, tensor in tensors.items():
                target = next(name for name in names if name.endswith(kind) and role_of(name) == role)
                state[f"{layer}.{index}.{target}"] = tensor
    result = reference.load_state_dict(state, strict=False)
    assert not result.unexpected_keys
    assert all("pooler" in name for name in result.missing_keys), result.missing_keys


def role_of(name: str) -> str:
    """Return the role of a parameter in a transformers block, for any version of transformers."""
    for patterns, role in (
        (("query", "q_proj"), "q"),
        (("key", "k_proj"), "k"),
        (("value", "v_proj"), "v"),
        (("layernorm_before", "norm1"), "norm1"),
        (("layernorm_after", "norm2"), "norm2"),
        (("intermediate", "fc1"), "fc1"),
        (("attention.output", "o_proj"), "attn_out"),
        (("output.dense", "fc2"), "fc2"),
    ):
        if any(pattern in name for pattern in patterns):
            return role
    raise AssertionError(f"unknown transformers parameter: {name}")


def test_output_matches_transformers():
    transformers = pytest.importorskip("transformers")
    model = build_vit(ViTConfig(size="96x3x3", patch=4))
    config = transformers.IJepaConfig(
        hidden_size=96,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=384,
        image_size=32,
        patch_size=4,
        layer_norm_eps=1e-6,
        hidden_act="gelu",
        attn_implementation="eager",
    )
    reference = transformers.IJepaModel(config, add_pooling_layer=False).eval()
    to_transformers(model, reference)
    images = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        output, expected = model(images).x, reference(images).last_hidden_state
    assert torch.allclose(output, expected, atol=1e-5)
    assert output.std() > 0.1


def test_positions_match_the_paper():
    grid = (3, 5)
    positions = sincos_positions(8, grid, grid).view(*grid, 8)
    y, x = 2, 4
    expected = [torch.tensor([v]).sin() for v in (x, x / 100)] + [torch.tensor([v]).cos() for v in (x, x / 100)]
    expected += [torch.tensor([v]).sin() for v in (y, y / 100)] + [torch.tensor([v]).cos() for v in (y, y / 100)]
    assert torch.allclose(positions[y, x], torch.cat(expected), atol=1e-6)


def test_padded_tokens_are_never_attended_to():
    trunk = ViTTrunk(32, 2, 2).eval()
    x = torch.randn(4, 7, 32)
    valid = torch.tensor([[True] * 5 + [False] * 2]).expand(4, -1)
    padded = trunk(x, valid)[:, :5]
    assert torch.allclose(padded, trunk(x[:, :5]), atol=1e-6)


def test_only_kept_tokens_are_processed():
    model = build_vit(ViTConfig(size="32x2x2", patch=4))
    images = torch.randn(2, 3, 32, 32)
    keep = torch.tensor([[3, 10, 20], [0, 5, 63]])
    kept = model(images, keep).x
    changed = images.clone()
    changed[:, :, 16:20, 0:4] += 1  # token 32, which is not kept in either image
    assert kept.shape == (2, 3, 32)
    assert torch.equal(kept, model(changed, keep).x)
    all_tokens = torch.arange(64).expand(2, -1)
    assert torch.allclose(model(images, all_tokens).x, model(images).x, atol=1e-6)


@pytest.mark.parametrize("stem", ["linear", "conv", "patch-conv", "whitening"])
def test_stems_keep_the_grid_and_convolutions_that_overlap_cross_patch_borders(stem):
    model = build_vit(ViTConfig(size="32x1x2", patch=4, stem=stem))
    image = torch.rand(1, 3, 16, 16, requires_grad=True)  # not 0, where the ReLU after the filters has no gradient
    tokens = model.stem(image)
    assert tokens.shape == (1, 32, 4, 4)
    tokens[0, :, 1, 1].sum().backward()
    receptive_field = image.grad[0].abs().sum(0) > 0
    inside = torch.zeros(16, 16, dtype=torch.bool)
    inside[4:8, 4:8] = True
    assert receptive_field[inside].all()
    assert bool((receptive_field & ~inside).any()) == (stem in ("conv", "whitening"))


def test_images_of_different_sizes_and_shapes():
    model = build_vit(ViTConfig(size="32x2x2", patch=4), size=(32, 32))
    for height, width in ((32, 32), (48, 32), (16, 24), (64, 64)):
        tokens = model(torch.randn(1, 3, height, width), layers=(-1,))
        assert tokens.grid == (height // 4, width // 4)
        assert tokens.x.shape == (1, height * width // 16, 32)
        assert torch.equal(tokens.layers[0], tokens.x)
    small, large = sincos_positions(32, (8, 8), (8, 8)), sincos_positions(32, (16, 16), (8, 8))
    middle = large.view(8, 2, 8, 2, 32).mean((1, 3)).flatten(0, 1)
    assert torch.nn.functional.cosine_similarity(middle, small).min() > 0.9  # positions cover the same range


@pytest.mark.parametrize("size", VIT_SIZES)
def test_named_sizes_have_the_published_number_of_parameters(size):
    published = {"tiny": 5.5, "small": 21.6, "base": 85.7, "large": 303, "huge": 631, "giant": 1011}  # in millions
    with torch.device("meta"):
        model = ViT(ViTConfig(size=size, patch=16), 3, (224, 224))
    count = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert abs(count / published[size] - 1) < 0.01


def test_initialization_matches_the_ijepa_code():
    trunk = ViTTrunk(192, 4, 3)
    for i, block in enumerate(trunk.blocks, 1):
        assert abs(block.attn.qkv.weight.std().item() - 0.02) < 1e-3
        assert abs(block.mlp.fc2.weight.std().item() - 0.02 / (2 * i) ** 0.5) < 1e-3
        assert not block.attn.qkv.bias.any()


def test_image_sizes_not_divisible_by_the_patch_size_are_rejected():
    model = build_vit(ViTConfig(size="32x1x2", patch=4), size=(16, 16))
    with pytest.raises(InputError, match="the image size 30x16 is not divisible by the patch size 4"):
        model(torch.zeros(1, 3, 30, 16))
