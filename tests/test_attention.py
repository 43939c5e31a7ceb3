import pytest
import torch

from jepa.backbones import build_encoder
from jepa.config import ConvNetConfig, DataConfig, EnergyConfig, ViTConfig
from jepa.evaluation.attention import attention, entropy, rollout

DATA = DataConfig(source="sample", image_size=16, channels=1, mean=(0.5,), std=(0.5,))
IMAGES = torch.randint(0, 256, (3, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("backbone", [ViTConfig(size="32x3x4", patch=4), EnergyConfig(size="32x3x4", patch=4)])
def test_the_weights_of_every_query_sum_to_one(backbone):
    weights = attention(build_encoder(backbone, DATA), IMAGES)
    assert weights.shape == (3, 3, 4, 16, 16)
    assert torch.allclose(weights.sum(-1), torch.ones(()), atol=1e-6)


def test_the_weights_are_those_that_the_forward_pass_used():
    encoder = build_encoder(ViTConfig(size="32x3x4", patch=4), DATA).eval()
    used = []
    for block in encoder.backbone.trunk.blocks:
        block.attn.attn_drop.register_forward_pre_hook(lambda _, inputs: used.append(inputs[0]))
    with torch.no_grad():
        encoder.embed(IMAGES)
    expected = torch.stack(used)  # stacked before the next pass appends to `used`
    assert torch.allclose(attention(encoder, IMAGES), expected, atol=1e-6)


def test_a_convnet_has_no_attention():
    data = DataConfig(source="sample", image_size=32, channels=1, mean=(0.5,), std=(0.5,))
    assert attention(build_encoder(ConvNetConfig(name="convnext_atto"), data), IMAGES) is None


def test_entropy_is_zero_for_one_token_and_one_for_uniform_attention():
    single, uniform = torch.eye(16).expand(1, 1, 1, 16, 16), torch.full((1, 1, 1, 16, 16), 1 / 16)
    assert torch.allclose(entropy(torch.cat([single, uniform], 2)), torch.tensor([[0.0, 1.0]]), atol=1e-5)


def test_rollout_of_known_weights():
    swap = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).expand(2, 1, 1, 2, 2)
    # S is the swap: the product of two layers is (I + S)² / 4 = (I + S) / 2
    assert torch.allclose(rollout(swap)[0], torch.full((2, 2), 0.5))
    weights = torch.rand(3, 2, 4, 5, 5).softmax(-1)
    assert torch.allclose(rollout(weights).sum(-1), torch.ones(()), atol=1e-6)
