"""Energy Transformer: gradient, descent, masks, and memory of the backward pass."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jepa.backbones.energy_step import LeanStep, plain_step
from jepa.backbones.energy_transformer import EnergyTransformer, EnergyTrunk
from jepa.config import Config, DataConfig, EnergyConfig, InputError, with_backbone
from jepa.config.recipes import RECIPES

CASES = [
    EnergyConfig(memory=memory, self_interaction=self_interaction, beta=beta)
    for memory in ("relu", "softmax")
    for self_interaction in (False, True)
    for beta in (None, 0.7)
]


def name(config: EnergyConfig) -> str:
    without = "with" if config.self_interaction else "without"
    return f"{config.memory}, {without} self-interaction, beta {config.beta}"


def build_trunk(
    config: EnergyConfig, *, dim: int = 16, num_steps: int = 3, num_heads: int = 2, seed: int = 0
) -> EnergyTrunk:
    """Build a float64 trunk and perturb all parameters, including γ, δ, α and β."""
    torch.manual_seed(seed)
    trunk = EnergyTrunk(config, dim, num_steps, num_heads).double()
    with torch.no_grad():
        for parameter in trunk.parameters():
            parameter += 0.3 * torch.randn_like(parameter) * parameter.std(correction=0).clamp(min=0.3)
    return trunk


@st.composite
def trunks_and_inputs(draw) -> tuple[EnergyTrunk, torch.Tensor, torch.Tensor | None]:
    """Draw a trunk, tokens, and a mask of valid tokens or None."""
    num_heads, head_dim = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    config = dataclasses.replace(draw(st.sampled_from(CASES)), memories=draw(st.integers(1, 5)))
    dim, seed = num_heads * head_dim, draw(st.integers(0, 10_000))
    trunk = build_trunk(config, dim=dim, num_steps=2, num_heads=num_heads, seed=seed)
    batch_size, num_tokens = draw(st.integers(1, 3)), draw(st.integers(1, 9))
    x = torch.randn(batch_size, num_tokens, dim, dtype=torch.float64)
    if not draw(st.booleans()):
        return trunk, x, None
    return trunk, x, torch.rand(batch_size, num_tokens) < draw(st.floats(0, 1))


# The gradient


@given(trunks_and_inputs())
@settings(deadline=None, max_examples=150)
def test_gradient_matches_autograd_of_the_energy(trunk_and_input):
    trunk, x, valid = trunk_and_input

    def energy(g):
        return sum(term.sum() for term in trunk.energy(g, mask))

    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        trunk.to(dtype)
        mask = trunk.build_mask(x.to(dtype), valid)
        g = trunk.norm(x.to(dtype)).detach()
        expected = torch.func.grad(energy)(g)
        scale = expected.norm() + 0.01 * g.norm()  # the second term allows for rounding errors if terms cancel
        assert (trunk.gradient(g, mask) - expected).norm() <= tolerance * scale


def slow_energy(trunk: EnergyTrunk, g: np.ndarray, valid: np.ndarray) -> tuple[float, float]:
    """Compute both energies of one image (N, D) with loops over heads, tokens and memories."""
    weights = {key: value.detach().numpy() for key, value in trunk.named_parameters()}
    num_heads, head_dim = trunk.options.num_heads, g.shape[1] // trunk.options.num_heads
    attention = 0.0
    for h in range(num_heads):
        head = slice(h * head_dim, (h + 1) * head_dim)
        beta = float(trunk.attention.beta()[h])
        for c in range(len(g)):
            terms = []
            for b in range(len(g)):
                if valid[b] and valid[c] and (b != c or trunk.self_interaction):
                    key, query = weights["attention.key"][head] @ g[b], weights["attention.query"][head] @ g[c]
                    terms.append(math.exp(beta * float(key @ query)))
            if terms:
                attention -= math.log(sum(terms)) / beta
    hopfield = 0.0
    for b in range(len(g)):
        if valid[b]:
            overlaps = [float(memory @ g[b]) for memory in weights["memory.weight"]]
            if trunk.options.softmax_memory:
                beta = float(trunk.memory.beta())
                hopfield -= math.log(sum(math.exp(beta * overlap) for overlap in overlaps)) / beta
            else:
                hopfield -= 0.5 * sum(max(overlap, 0.0) ** 2 for overlap in overlaps)
    return attention, hopfield


@pytest.mark.parametrize("config", CASES, ids=name)
def test_energies_match_the_equations(config):
    trunk = build_trunk(config, dim=8, num_heads=2)
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    valid = torch.tensor([[True] * 5, [True, False, True, True, False], [False, False, False, True, False]])
    with torch.no_grad():
        energies = torch.stack(trunk.energy(trunk.norm(x), trunk.build_mask(x, valid)), -1).numpy()
        g = ((x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()).numpy()
        g = float(trunk.norm.gamma()) * g + trunk.norm.delta.numpy()
    expected = [slow_energy(trunk, *image) for image in zip(g, valid.numpy(), strict=True)]
    assert np.allclose(energies, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("config", CASES[::2], ids=name)
@pytest.mark.parametrize("padded", [False, True])
def test_steps_have_correct_first_and_second_derivatives(config, padded):
    config = dataclasses.replace(config, learn_alpha=True, learn_beta=True, memories=2)
    trunk = build_trunk(config, dim=4, num_steps=2, num_heads=2)
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    valid = torch.tensor([[True, False, True], [True, False, False]]) if padded else None

    def step(x, *parameters):
        with torch.nn.utils.stateless._reparametrize_module(trunk, dict(zip(names, parameters, strict=True))):
            *_, last = trunk.descend(x, trunk.build_mask(x, valid))
            return last

    names = [key for key, _ in trunk.named_parameters()]
    inputs = (x, *trunk.parameters())
    assert torch.autograd.gradcheck(step, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(step, inputs, fast_mode=True)


@pytest.mark.parametrize("config", CASES[::2], ids=name)
def test_the_memory_efficient_backward_pass_matches_autograd(config):
    trunk = build_trunk(dataclasses.replace(config, learn_alpha=True, learn_beta=True), dim=12, num_heads=3)
    x = torch.randn(4, 7, 12, dtype=torch.float64, requires_grad=True)
    valid = torch.rand(4, 7) < 0.7
    vectors = {"gamma": trunk.norm.expanded_gamma(), "delta": trunk.norm.delta, "alpha": trunk.alpha()}
    weights, mask = trunk.step_weights(x), trunk.build_mask(x, valid)
    lean = LeanStep.apply(x, *vectors.values(), *weights, *mask, trunk.options)
    plain, *_ = plain_step(x, **vectors, weights=weights, mask=mask, options=trunk.options)
    assert torch.equal(lean, plain)
    inputs = [x, *trunk.parameters()]
    gradients = torch.autograd.grad(lean.square().sum(), inputs, retain_graph=True)
    expected = torch.autograd.grad(plain.square().sum(), inputs)
    for gradient, expected_gradient in zip(gradients, expected, strict=True):
        assert torch.allclose(gradient, expected_gradient, rtol=1e-10, atol=1e-12)


def test_a_step_saves_seven_numbers_per_feature_and_no_pairs_of_tokens():
    trunk = EnergyTrunk(EnergyConfig(), 32, 6, 4)
    saved: dict[int, int] = {}

    def record(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    batch_size, num_tokens = 3, 100
    num_weights = sum(parameter.numel() for parameter in trunk.parameters())
    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        trunk(torch.randn(batch_size, num_tokens, 32))
    assert sum(saved.values()) < (7 * 6 + 2) * batch_size * num_tokens * 32 + num_tokens**2 + 3 * num_weights


def test_torch_func_transforms_work():
    trunk = build_trunk(CASES[0])
    x = torch.randn(4, 5, 16, dtype=torch.float64, requires_grad=True)
    gradients = torch.func.vmap(torch.func.grad(lambda x: trunk(x[None]).square().sum()))(x)
    assert torch.allclose(gradients, torch.autograd.grad(trunk(x).square().sum(), x)[0])


def test_bf16_is_close_to_fp32():
    trunk = EnergyTrunk(EnergyConfig(), 64, 4, 4)
    x = torch.randn(2, 9, 64)
    valid = torch.rand(2, 9) < 0.8
    results = []
    for enabled in (False, True):
        trunk.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            result = trunk(x, valid)
        assert result.dtype == torch.float32
        result.square().mean().backward()
        results.append([result.detach(), *(parameter.grad.clone() for parameter in trunk.parameters())])
    for exact, rounded in zip(*results, strict=True):
        assert (exact - rounded).norm() < 0.03 * exact.norm() + 1e-6


@pytest.mark.parametrize("config", [CASES[0], CASES[6]], ids=name)
def test_a_compiled_trunk_has_the_same_gradients(config):
    trunk = EnergyTrunk(config, 16, 3, 2)
    x, valid = torch.randn(2, 6, 16), torch.rand(2, 6) < 0.8
    results = []
    for model in (trunk, torch.compile(trunk, backend="aot_eager", fullgraph=True)):
        trunk.zero_grad()
        model(x, valid).square().sum().backward()
        results.append([parameter.grad.clone() for parameter in trunk.parameters()])
    for eager, compiled in zip(*results, strict=True):
        assert torch.allclose(eager, compiled, rtol=1e-4, atol=1e-5)


# The descent


def directional_derivative(trunk: EnergyTrunk, x: torch.Tensor, gamma: torch.Tensor) -> float:
    """Return the derivative of E(g(x)) along the update -∂E/∂g, for one γ per feature."""
    x = x.clone().requires_grad_()
    g = torch.nn.functional.layer_norm(x, (x.shape[-1],), gamma, trunk.norm.delta, 1e-5)
    mask = trunk.build_mask(x)
    gradient = torch.autograd.grad(sum(term.sum() for term in trunk.energy(g, mask)), x)[0]
    return float((gradient * -trunk.gradient(g, mask)).detach().sum())


@pytest.mark.parametrize("config", CASES[::2], ids=name)
def test_small_steps_decrease_the_energy_with_one_gamma_but_not_with_one_per_feature(config):
    with_ordinary_norm = []
    for seed in range(200):
        trunk = build_trunk(config, seed=seed).requires_grad_(False)
        x = torch.randn(1, 5, 16, dtype=torch.float64) * 10 ** torch.empty(1).uniform_(-1, 1)
        assert directional_derivative(trunk, x, trunk.norm.expanded_gamma()) <= 0
        with_ordinary_norm.append(directional_derivative(trunk, x, torch.randn(16, dtype=torch.float64)))
    assert max(with_ordinary_norm) > 0


@pytest.mark.parametrize("config", CASES[::2], ids=name)
def test_each_of_fifty_steps_decreases_the_energy(config):
    with torch.no_grad():
        for seed in range(40):
            torch.manual_seed(seed)
            trunk = EnergyTrunk(dataclasses.replace(config, alpha=0.1 if seed % 2 else 0.03), 32, 50, 4).double()
            energy = trunk.energies(torch.randn(5, 16, 32, dtype=torch.float64)).total
            assert (energy[1:] < energy[:-1]).all()


def test_noise_is_added_in_training_mode_only():
    trunk = EnergyTrunk(EnergyConfig(noise=0.1), 16, 3, 2)
    x = torch.randn(1, 4, 16)
    assert not torch.equal(trunk(x), trunk(x))
    trunk.eval()
    without_noise = EnergyTrunk(EnergyConfig(), 16, 3, 2)
    without_noise.load_state_dict(trunk.state_dict())
    assert torch.equal(trunk(x), without_noise(x))


# Masks


@pytest.mark.parametrize("config", CASES, ids=name)
def test_padding_has_no_effect(config):
    """Outputs at valid tokens equal those without padding, regardless of its positions and values."""
    trunk = build_trunk(config).eval()
    x, positions = torch.randn(2, 5, 16, dtype=torch.float64), torch.tensor([0, 2, 3, 6, 8])
    padded = 100 * torch.randn(2, 9, 16, dtype=torch.float64)
    padded[:, positions] = x
    valid = torch.zeros(2, 9, dtype=torch.bool)
    valid[:, positions] = True
    assert torch.allclose(trunk(padded, valid)[:, positions], trunk(x), atol=1e-10)
    *_, last = trunk.descend(padded, trunk.build_mask(padded, valid))
    assert torch.equal(last[~valid], padded[~valid])
    energies, expected = trunk.energies(padded, valid), trunk.energies(x)
    assert all(torch.allclose(*pair) for pair in zip(energies, expected, strict=True))
    assert torch.allclose(trunk.attentions(padded, valid)[..., positions, :][..., positions], trunk.attentions(x))


def test_tokens_are_equivariant_to_permutations():
    trunk = build_trunk(CASES[0])
    x, order = torch.randn(2, 7, 16, dtype=torch.float64), torch.randperm(7)
    assert torch.allclose(trunk(x)[:, order], trunk(x[:, order]))


def test_a_single_token_has_no_attention_energy():
    trunk = build_trunk(CASES[0])
    x = torch.randn(2, 1, 16, dtype=torch.float64)
    energies = trunk.energies(x)
    assert (energies.attention == 0).all()
    assert (energies.hopfield < 0).all()
    assert (trunk.attentions(x) == 0).all()


# The backbone


def backbone(**changes) -> EnergyTransformer:
    torch.manual_seed(0)
    return EnergyTransformer(EnergyConfig(size="32x3x4", patch=4, **changes), 3, (16, 16)).eval()


@pytest.mark.parametrize("self_interaction", [False, True])
def test_energy_and_attention_of_images(self_interaction):
    model = backbone(self_interaction=self_interaction)
    images = torch.randn(2, 3, 16, 16)
    energies, attention = model.energy(images), model.attention(images)
    assert energies.total.shape == (4, 2)
    assert (energies.total[1:] < energies.total[:-1]).all()
    assert attention.shape == (3, 2, 4, 16, 16)
    assert torch.allclose(attention.sum(-1), torch.ones(3, 2, 4, 16), atol=1e-5)
    assert (attention.diagonal(dim1=-2, dim2=-1).sum() > 0) == self_interaction


@pytest.mark.parametrize("positions", ["sincos", "learned"])
def test_layers_are_the_normalized_steps_for_different_image_sizes(positions):
    model = backbone(positions=positions)
    images = torch.randn(2, 3, 16, 24)
    tokens = model(images, layers=(0, -1))
    assert tokens.grid == (4, 6)
    assert torch.equal(tokens.layers[1], model(images).x)
    shorter = backbone(positions=positions)
    shorter.trunk.num_steps = 1
    assert torch.allclose(tokens.layers[0], shorter(images).x, atol=1e-6)
    assert model.positions((4, 4), images.device).shape == (16, 32)


def test_learned_positions_are_interpolated_to_a_different_grid():
    model = backbone(positions="learned")
    with torch.no_grad():
        model.learned.copy_(torch.arange(4.0).repeat(4)[:, None].expand(-1, 32))  # column index
    interpolated = model.positions((8, 8), torch.device("cpu")).view(8, 8, 32)
    assert torch.allclose(interpolated[:, 2:6], ((torch.arange(2, 6) + 0.5) / 2 - 0.5)[None, :, None], atol=0.1)
    assert (interpolated[:, 1:] > interpolated[:, :-1]).all()


def test_initialization_of_the_paper():
    model = backbone(init="paper", positions="learned")
    assert model.trunk.attention.query.std().item() == pytest.approx(0.002, rel=0.1)
    assert model.trunk.memory.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert model.learned.std().item() == pytest.approx(0.002, rel=0.2)
    assert backbone().trunk.attention.query.std().item() == pytest.approx(32**-0.5, rel=0.1)


def test_number_of_parameters_of_the_paper():
    """The block has about 3.5 M parameters, compared with 85 M for ViT-B."""
    with torch.device("meta"):
        trunk = EnergyTrunk(EnergyConfig(), 768, 12, 12)
    assert sum(parameter.numel() for parameter in trunk.parameters()) == 6 * 768**2 + 768 + 1


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_runs_with_an_energy_backbone(recipe):
    config = RECIPES[recipe]()
    changed = with_backbone(config, "energy")
    assert isinstance(changed.backbone, EnergyConfig)
    if config.backbone.maskable:  # ConvNets have no size, patch or stem
        assert changed.backbone.dimensions == config.backbone.dimensions[:3]
        assert (changed.backbone.patch, changed.backbone.stem) == (config.backbone.patch, config.backbone.stem)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": "96x6x5"}, "backbone.size is '96x6x5', but 96 is not divisible by 5 heads"),
        (
            {"size": "96x0x4"},
            "backbone.size must be DIMxDEPTH or DIMxDEPTHxHEADS with positive integers",
        ),
        ({"alpha": 0.0}, "backbone.alpha must be between 1e-06 and 1e+06, got 0.0"),
        ({"alpha": math.inf}, "backbone.alpha must be between 1e-06 and 1e+06, got inf"),
        ({"beta": -1.0}, "backbone.beta must be between 1e-06 and 1e+06, or none, got -1.0"),
        ({"beta": 0.0}, "backbone.beta must be between 1e-06 and 1e+06, or none, got 0.0"),
        ({"memories": 0}, "backbone.memories must be an integer of at least 1, got 0"),
        ({"noise": -0.1}, "backbone.noise must be at least 0, got -0.1"),
        ({"patch": 12, "stem": "conv"}, "backbone.patch is 12, but backbone.stem 'conv' requires a power of 2"),
        ({"patch": 5}, "the image size 32x32 is not divisible by backbone.patch, which is 5"),
    ],
)
def test_messages_about_invalid_settings_are_one_sentence(settings, message):
    with pytest.raises(InputError) as caught:
        Config(data=DataConfig(image_size=32), backbone=EnergyConfig(**({"patch": 8} | settings)))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
