"""Training in two processes equals training in one. This file is also the program of the two, launched once for all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from jepa.backbones import fit_layers
from jepa.backbones.energy_transformer import EnergyTrunk
from jepa.config import (
    Config,
    ConvNetConfig,
    DataConfig,
    EnergyConfig,
    FixationConfig,
    LeJepaConfig,
    MAEConfig,
    SaccadeConfig,
    VICRegConfig,
    ViTConfig,
)
from jepa.data import Batch
from jepa.distributed import rank, sync_batchnorm, world_size
from jepa.rng import Rng
from jepa.runs import fresh_objective

ROOT = Path(__file__).resolve().parent.parent
FIXATIONS = FixationConfig(view_fraction=0.6, shift=0.4, rotation=10)
RESNET, VIT = ConvNetConfig("resnet18", small_stem=True), ViTConfig(size="32x2x2", patch=4)
OBJECTIVES = {
    "saccade": (
        RESNET,
        SaccadeConfig(hidden=16, inverse=0.5, invariance=0.5, patch_codes=0.5, correlation=0.1, fixations=FIXATIONS),
    ),
    "vicreg": (RESNET, VICRegConfig(expander=16, fixations=FIXATIONS)),
    "lejepa": (VIT, LeJepaConfig(slices=16, hidden=24, projection=8, num_local=3, local_size=8, sigreg=0.3)),
    "mae": (VIT, MAEConfig(decoder="16x1x2")),
}


def part_of_this_process(count: int) -> slice:
    """Return which of a number of examples this process trains on."""
    return slice(rank() * count // world_size(), (rank() + 1) * count // world_size())


def train_objective(name: str) -> dict[str, Tensor]:
    """Train an objective for two steps, with batch statistics of all processes."""
    backbone, settings = OBJECTIVES[name]
    data = DataConfig(image_size=16, mean=(0.5,) * 3, std=(0.25,) * 3)
    objective = fresh_objective(Config(batch_size=8, backbone=backbone, objective=settings, data=data))
    images = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    fit_layers(objective, images / 255)
    objective.double().train()
    sync_batchnorm(objective)
    positions = torch.arange(8)[part_of_this_process(8)]
    model = DistributedDataParallel(objective, broadcast_buffers=False) if world_size() > 1 else objective
    optimizer = torch.optim.SGD([p for p in objective.parameters() if p.requires_grad], lr=0.01)
    for step in range(2):
        inputs = objective.sample(Batch(images[positions], None, positions), Rng(0, step, positions))
        inputs = type(inputs)(*(x.double() if torch.is_tensor(x) and x.is_floating_point() else x for x in inputs))
        optimizer.zero_grad()
        model(inputs)["loss"].backward()
        optimizer.step()
        objective.after_step(0.5)
    return objective.state_dict()


def train_energy(wrapper) -> dict[str, Tensor]:
    """Train Energy Transformer blocks for two steps, some of whose tokens are padding."""
    torch.manual_seed(0)
    trunk = EnergyTrunk(EnergyConfig(learn_alpha=True, learn_beta=True), 16, 3, 2).double()
    x, valid = torch.randn(4, 6, 16, dtype=torch.float64), torch.rand(4, 6) < 0.7
    part = part_of_this_process(4)
    model = wrapper(trunk) if world_size() > 1 else trunk
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(x[part], valid[part]).square().sum((1, 2)).mean().backward()
        optimizer.step()
    return {name: getattr(p, "full_tensor", lambda p=p: p)().detach() for name, p in trunk.named_parameters()}


TRAININGS = {name: lambda name=name: train_objective(name) for name in OBJECTIVES}
TRAININGS |= {
    "energy with DDP": lambda: train_energy(DistributedDataParallel),
    "energy with FSDP": lambda: train_energy(fully_shard),
}


@pytest.fixture(scope="module")
def of_two_processes(tmp_path_factory) -> dict[str, dict[str, Tensor]]:
    """The tensors of all trainings in two processes."""
    saved = tmp_path_factory.mktemp("processes") / "tensors.pt"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [*launch, __file__, str(saved)], capture_output=True, text=True, check=False, env=environment
    )
    assert result.returncode == 0, result.stderr
    return torch.load(saved)


@pytest.mark.parametrize("name", TRAININGS)
def test_two_processes_equal_one(name, of_two_processes):
    one, two = TRAININGS[name](), of_two_processes[name]
    assert one.keys() == two.keys()
    for key, tensor in one.items():
        assert torch.allclose(tensor, two[key], rtol=1e-8, atol=1e-10), key


def main(path: str) -> None:
    """Run all trainings in each process, and save the tensors of the first."""
    dist.init_process_group("gloo")
    tensors = {name: training() for name, training in TRAININGS.items()}
    if rank() == 0:
        torch.save(tensors, path)
    dist.barrier()
    os._exit(0)  # gloo threads sometimes crash at exit


if __name__ == "__main__":
    main(sys.argv[1])
