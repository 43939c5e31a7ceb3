"""The Energy Transformer: its gradient, its descent, what is masked, and how little it keeps."""

import dataclasses
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jepa.backbones import EnergyTransformer, EnergyTrunk
from jepa.backbones.energy_step import LeanStep, plain_step
from jepa.config import Config, ConvNetConfig, DataConfig, EnergyConfig, InputError, with_backbone
from jepa.recipes import RECIPES

CASES = [
    EnergyConfig(memory=memory, self_interaction=own, beta=beta)
    for memory in ("relu", "softmax")
    for own in (False, True)
    for beta in (None, 0.7)
]


def name(config: EnergyConfig) -> str:
    own = "with" if config.self_interaction else "without"
    return f"{config.memory}, {own} self-interaction, beta {config.beta}"


def make(config: EnergyConfig, dim: int = 16, steps: int = 3, heads: int = 2, seed: int = 0) -> EnergyTrunk:
    """Build a trunk in float64 whose γ, δ, α and β are no longer what they start from."""
    torch.manual_seed(seed)
    trunk = EnergyTrunk(config, dim, steps, heads).double()
    with torch.no_grad():
        for parameter in trunk.parameters():
            parameter += 0.3 * torch.randn_like(parameter) * parameter.std(correction=0).clamp(min=0.3)
    return trunk


@st.composite
def situations(draw) -> tuple[EnergyTrunk, torch.Tensor, torch.Tensor | None]:
    """Draw a trunk, tokens and which of them are valid."""
    heads, width = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    config = dataclasses.replace(draw(st.sampled_from(CASES)), memories=draw(st.integers(1, 5)))
    trunk = make(config, heads * width, 2, heads, seed=draw(st.integers(0, 10_000)))
    images, tokens = draw(st.integers(1, 3)), draw(st.integers(1, 9))
    x = torch.randn(images, tokens, heads * width, dtype=torch.float64)
    if not draw(st.booleans()):
        return trunk, x, None
    return trunk, x, torch.rand(images, tokens) < draw(st.floats(0, 1))


# The gradient


@given(situations())
@settings(deadline=None, max_examples=150)
def test_the_gradient_is_that_of_the_energy(situation):
    trunk, x, valid = situation

    def energy(g):
        return sum(part.sum() for part in trunk.energy(g, pairs))

    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        trunk.to(dtype)
        pairs = trunk.pairs(x.to(dtype), valid)
        g = trunk.norm(x.to(dtype)).detach()
        wanted = torch.func.grad(energy)(g)
        scale = wanted.norm() + 0.01 * g.norm()  # terms may cancel, and leave what their rounding is
        assert (trunk.gradient(g, pairs) - wanted).norm() <= tolerance * scale


def slow_energy(trunk: EnergyTrunk, g: np.ndarray, valid: np.ndarray) -> tuple[float, float]:
    """Evaluate the equations for one image (N, D), one sum after the other."""
    weights = {key: value.detach().numpy() for key, value in trunk.named_parameters()}
    heads, width = trunk.form.heads, g.shape[1] // trunk.form.heads
    attention = 0.0
    for h in range(heads):
        rows = slice(h * width, (h + 1) * width)
        beta = float(trunk.attention.beta()[h])
        for c in range(len(g)):
            terms = []
            for b in range(len(g)):
                if valid[b] and valid[c] and (b != c or trunk.self_interaction):
                    key, query = weights["attention.key"][rows] @ g[b], weights["attention.query"][rows] @ g[c]
                    terms.append(math.exp(beta * float(key @ query)))
            if terms:
                attention -= math.log(sum(terms)) / beta
    hopfield = 0.0
    for b in range(len(g)):
        if valid[b]:
            overlaps = [float(memory @ g[b]) for memory in weights["memory.weight"]]
            if trunk.form.softmax:
                beta = float(trunk.memory.beta())
                hopfield -= math.log(sum(math.exp(beta * overlap) for overlap in overlaps)) / beta
            else:
                hopfield -= 0.5 * sum(max(overlap, 0.0) ** 2 for overlap in overlaps)
    return attention, hopfield


@pytest.mark.parametrize("config", CASES, ids=name)
def test_the_energies_are_the_equations(config):
    trunk = make(config, dim=8, heads=2)
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    valid = torch.tensor([[True] * 5, [True, False, True, True, False], [False, False, False, True, False]])
    with torch.no_grad():
        found = torch.stack(trunk.energy(trunk.norm(x), trunk.pairs(x, valid)), -1).numpy()
        g = ((x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()).numpy()
        g = float(trunk.norm.gamma()) * g + trunk.norm.delta.numpy()
    wanted = [slow_energy(trunk, image, marks) for image, marks in zip(g, valid.numpy(), strict=True)]
    assert np.allclose(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("config", CASES[::2], ids=name)
@pytest.mark.parametrize("padded", [False, True])
def test_a_step_can_be_differentiated_and_again(config, padded):
    trunk = make(dataclasses.replace(config, learn_alpha=True, learn_beta=True, memories=2), dim=4, steps=2, heads=2)
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    valid = torch.tensor([[True, False, True], [True, False, False]]) if padded else None

    def step(x, *parameters):
        with torch.nn.utils.stateless._reparametrize_module(trunk, dict(zip(names, parameters, strict=True))):
            *_, last = trunk.descend(x, trunk.pairs(x, valid))
            return last

    names = [key for key, _ in trunk.named_parameters()]
    inputs = (x, *trunk.parameters())
    assert torch.autograd.gradcheck(step, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(step, inputs, fast_mode=True)


@pytest.mark.parametrize("config", CASES[::2], ids=name)
def test_what_is_worked_out_again_is_what_was(config):
    """The backward pass of its own gives what automatic differentiation of the same step gives."""
    trunk = make(dataclasses.replace(config, learn_alpha=True, learn_beta=True), dim=12, heads=3)
    x = torch.randn(4, 7, 12, dtype=torch.float64, requires_grad=True)
    valid = torch.rand(4, 7) < 0.7
    arguments = (x, trunk.norm.gammas(), trunk.norm.delta, trunk.alpha())
    weights, pairs = trunk.weights(x), trunk.pairs(x, valid)
    lean = LeanStep.apply(*arguments, *weights, *pairs, trunk.form)
    plain, *_ = plain_step(*arguments, weights, pairs, trunk.form)
    assert torch.equal(lean, plain)
    inputs = [x, *trunk.parameters()]
    for mine, wanted in zip(
        torch.autograd.grad(lean.square().sum(), inputs, retain_graph=True),
        torch.autograd.grad(plain.square().sum(), inputs),
        strict=True,
    ):
        assert torch.allclose(mine, wanted, rtol=1e-10, atol=1e-12)


def test_a_step_keeps_seven_numbers_a_feature_and_none_of_every_pair():
    trunk = EnergyTrunk(EnergyConfig(), 32, 6, 4)
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    images, tokens = 3, 100
    weights = sum(parameter.numel() for parameter in trunk.parameters())
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        trunk(torch.randn(images, tokens, 32))
    assert sum(kept.values()) < (7 * 6 + 2) * images * tokens * 32 + tokens**2 + 3 * weights


def test_torch_func_sees_through_a_step():
    trunk = make(CASES[0])
    x = torch.randn(4, 5, 16, dtype=torch.float64, requires_grad=True)
    each = torch.func.vmap(torch.func.grad(lambda x: trunk(x[None]).square().sum()))(x)
    assert torch.allclose(each, torch.autograd.grad(trunk(x).square().sum(), x)[0])


def test_bf16_is_near_fp32():
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


@pytest.mark.parametrize("config", CASES[::2], ids=name)
def test_a_compiled_trunk_is_the_same(config):
    trunk = EnergyTrunk(config, 16, 3, 2)
    x, valid = torch.randn(2, 6, 16), torch.rand(2, 6) < 0.8
    results = []
    for run in (trunk, torch.compile(trunk, backend="aot_eager", fullgraph=True)):
        trunk.zero_grad()
        run(x, valid).square().sum().backward()
        results.append([parameter.grad.clone() for parameter in trunk.parameters()])
    for eager, compiled in zip(*results, strict=True):
        assert torch.allclose(eager, compiled, rtol=1e-4, atol=1e-5)


# The descent


def slope(trunk: EnergyTrunk, x: torch.Tensor, gammas: torch.Tensor) -> float:
    """The derivative of E(g(x)) along the update -∂E/∂g, with any γ for every feature."""
    x = x.clone().requires_grad_()
    g = torch.nn.functional.layer_norm(x, (x.shape[-1],), gammas, trunk.norm.delta, 1e-5)
    pairs = trunk.pairs(x)
    uphill = torch.autograd.grad(sum(part.sum() for part in trunk.energy(g, pairs)), x)[0]
    return float((uphill * -trunk.gradient(g, pairs)).detach().sum())


@pytest.mark.parametrize("config", CASES[::2], ids=name)
def test_every_step_points_down_and_would_not_with_a_gamma_for_every_feature(config):
    ordinary = []
    for seed in range(200):
        trunk = make(config, seed=seed).requires_grad_(False)
        x = torch.randn(1, 5, 16, dtype=torch.float64) * 10 ** torch.empty(1).uniform_(-1, 1)
        assert slope(trunk, x, trunk.norm.gammas()) <= 0
        ordinary.append(slope(trunk, x, torch.randn(16, dtype=torch.float64)))
    assert max(ordinary) > 0


@pytest.mark.parametrize("config", CASES[::2], ids=name)
def test_fifty_steps_fall_from_the_first_to_the_last(config):
    with torch.no_grad():
        for seed in range(200):
            torch.manual_seed(seed)
            trunk = EnergyTrunk(dataclasses.replace(config, alpha=0.1 if seed % 2 else 0.03), 32, 50, 4).double()
            energy = trunk.energies(torch.randn(1, 16, 32, dtype=torch.float64)).total
            assert (energy[1:] < energy[:-1]).all()


def test_noise_is_added_in_training_alone():
    trunk = EnergyTrunk(EnergyConfig(noise=0.1), 16, 3, 2)
    x = torch.randn(1, 4, 16)
    assert not torch.equal(trunk(x), trunk(x))
    trunk.eval()
    quiet = EnergyTrunk(EnergyConfig(), 16, 3, 2)
    quiet.load_state_dict(trunk.state_dict())
    assert torch.equal(trunk(x), quiet(x))


# What counts


@pytest.mark.parametrize("config", CASES, ids=name)
def test_padding_changes_nothing(config):
    """Valid tokens come out as without the others, wherever those are and whatever they hold."""
    trunk = make(config).eval()
    x, place = torch.randn(2, 5, 16, dtype=torch.float64), torch.tensor([0, 2, 3, 6, 8])
    long = 100 * torch.randn(2, 9, 16, dtype=torch.float64)
    long[:, place] = x
    valid = torch.zeros(2, 9, dtype=torch.bool)
    valid[:, place] = True
    assert torch.allclose(trunk(long, valid)[:, place], trunk(x), atol=1e-10)
    *_, last = trunk.descend(long, trunk.pairs(long, valid))
    assert torch.equal(last[~valid], long[~valid])
    padded, alone = trunk.energies(long, valid), trunk.energies(x)
    assert all(torch.allclose(mine, wanted) for mine, wanted in zip(padded, alone, strict=True))
    assert torch.allclose(trunk.attentions(long, valid)[..., place, :][..., place], trunk.attentions(x))


def test_the_order_of_tokens_does_not_matter():
    trunk = make(CASES[0])
    x, order = torch.randn(2, 7, 16, dtype=torch.float64), torch.randperm(7)
    assert torch.allclose(trunk(x)[:, order], trunk(x[:, order]))


def test_a_token_that_is_alone_has_no_attention_energy():
    trunk = make(CASES[0])
    x = torch.randn(2, 1, 16, dtype=torch.float64)
    energies = trunk.energies(x)
    assert (energies.attention == 0).all()
    assert (energies.hopfield < 0).all()
    assert (trunk.attentions(x) == 0).all()


# The backbone


def backbone(**changes) -> EnergyTransformer:
    torch.manual_seed(0)
    return EnergyTransformer(EnergyConfig(size="32x3x4", patch=4, **changes), 3, (16, 16)).eval()


@pytest.mark.parametrize("own", [False, True])
def test_energy_and_attention_of_images(own):
    model = backbone(self_interaction=own)
    images = torch.randn(2, 3, 16, 16)
    energies, attention = model.energy(images), model.attention(images)
    assert energies.total.shape == (4, 2)
    assert (energies.total[1:] < energies.total[:-1]).all()
    assert attention.shape == (3, 2, 4, 16, 16)
    assert torch.allclose(attention.sum(-1), torch.ones(3, 2, 4, 16), atol=1e-5)
    assert (attention.diagonal(dim1=-2, dim2=-1).sum() > 0) == own


@pytest.mark.parametrize("positions", ["sincos", "learned"])
def test_layers_are_the_normalised_steps_and_other_sizes_work(positions):
    model = backbone(positions=positions)
    images = torch.randn(2, 3, 16, 24)
    tokens = model(images, layers=(0, -1))
    assert tokens.grid == (4, 6)
    assert torch.equal(tokens.layers[1], model(images).x)
    shorter = backbone(positions=positions)
    shorter.trunk.steps = 1
    assert torch.allclose(tokens.layers[0], shorter(images).x, atol=1e-6)
    assert model.positions((4, 4), images.device).shape == (16, 32)


def test_learned_positions_keep_their_place_on_another_grid():
    model = backbone(positions="learned")
    with torch.no_grad():
        model.learned.copy_(torch.arange(4.0).repeat(4)[:, None].expand(-1, 32))  # the column
    spread = model.positions((8, 8), torch.device("cpu")).view(8, 8, 32)
    assert torch.allclose(spread[:, 2:6], ((torch.arange(2, 6) + 0.5) / 2 - 0.5)[None, :, None], atol=0.1)
    assert (spread[:, 1:] > spread[:, :-1]).all()


def test_the_papers_start():
    model = backbone(init="paper", positions="learned")
    assert model.trunk.attention.query.std().item() == pytest.approx(0.002, rel=0.1)
    assert model.trunk.memory.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert model.learned.std().item() == pytest.approx(0.002, rel=0.2)
    assert backbone().trunk.attention.query.std().item() == pytest.approx(32**-0.5, rel=0.1)


def test_the_papers_size():
    """About 3.5 M parameters in the block, where a ViT-B has 85 M."""
    with torch.device("meta"):
        trunk = EnergyTrunk(EnergyConfig(), 768, 12, 12)
    assert sum(parameter.numel() for parameter in trunk.parameters()) == 6 * 768**2 + 768 + 1


@pytest.mark.parametrize("recipe", RECIPES)
def test_one_flag_puts_it_into_every_recipe(recipe):
    config = RECIPES[recipe]()
    changed = with_backbone(config, "energy")
    assert isinstance(changed.backbone, EnergyConfig)
    if not isinstance(config.backbone, ConvNetConfig):  # which has nothing to hand on
        assert changed.backbone.dimensions == config.backbone.dimensions[:3]
        assert (changed.backbone.patch, changed.backbone.stem) == (config.backbone.patch, config.backbone.stem)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": "96x6x5"}, "backbone.size is '96x6x5', but 5 heads do not divide 96; choose another HEADS"),
        ({"size": "96x0x4"}, "backbone.size is '96x0x4'; it takes DIMxDEPTH or DIMxDEPTHxHEADS, whole numbers from 1"),
        ({"alpha": 0.0}, "backbone.alpha is 0.0, the size of a step; it takes a number above 0"),
        ({"alpha": math.inf}, "backbone.alpha is inf"),
        ({"beta": -1.0}, "backbone.beta is -1.0, an inverse temperature; it takes a number above 0"),
        ({"beta": 0.0}, "backbone.beta is 0.0, an inverse temperature; it takes a number above 0"),
        ({"memories": 0}, "backbone.memories is 0; it takes a whole number from 1"),
        ({"noise": -0.1}, "backbone.noise is -0.1; it takes a standard deviation from 0"),
        ({"patch": 12, "stem": "conv"}, "needs a patch that is a power of 2"),
        ({"patch": 5}, "backbone.patch is 5, which does not divide the image"),
    ],
)
def test_bad_settings_are_one_sentence(settings, message):
    with pytest.raises(InputError) as caught:
        Config(data=DataConfig(image_size=32), backbone=EnergyConfig(**({"patch": 8} | settings)))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


# Several processes

TRAIN = """
import os, sys, torch, torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from jepa.backbones import EnergyTrunk
from jepa.config import EnergyConfig

how, path = sys.argv[1:]
dist.init_process_group("gloo")
torch.manual_seed(0)
trunk = EnergyTrunk(EnergyConfig(learn_alpha=True, learn_beta=True), 16, 3, 2).double()
x, valid = torch.randn(4, 6, 16, dtype=torch.float64), torch.rand(4, 6) < 0.7
rank, world = dist.get_rank(), dist.get_world_size()
part = slice(rank * 4 // world, (rank + 1) * 4 // world)
model = DistributedDataParallel(trunk) if how == "ddp" else fully_shard(trunk)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(2):
    optimizer.zero_grad()
    model(x[part], valid[part]).square().sum((1, 2)).mean().backward()
    optimizer.step()
full = [getattr(parameter, "full_tensor", lambda: parameter)() for parameter in trunk.parameters()]
if rank == 0:
    torch.save(full, path)
dist.barrier()
os._exit(0)  # gloo's threads are now and then taken down with a crash at the end of a script
"""


def test_two_processes_are_one_with_ddp_and_fsdp(tmp_path):
    (tmp_path / "train.py").write_text(TRAIN)
    results = {}
    for how, count in (("ddp", 1), ("ddp", 2), ("fsdp", 2)):
        saved = tmp_path / f"{how}{count}.pt"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", "--"]
        result = subprocess.run(
            [*command, str(tmp_path / "train.py"), how, str(saved)],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert result.returncode == 0, result.stderr
        results[how, count] = torch.load(saved)
    for other in (("ddp", 2), ("fsdp", 2)):
        for one, two in zip(results["ddp", 1], results[other], strict=True):
            assert torch.allclose(one, two, rtol=1e-10), other
