"""The Energy Transformer (Hoover et al. 2023, arXiv 2302.07253): one recurrent block that descends an energy.

With tokens x and g = EnergyLayerNorm(x), a step is x <- x - α ∂E/∂g, where E = E_attention + E_hopfield is taken at g.
The gradient is written out (`gradient` of each part) instead of differentiated, so a forward pass builds no graph of
its own inside, works under `no_grad`, and is differentiated again by training.

Shapes: B images, N tokens, D width, H heads of width Z = D / H, M memories, T steps. In the attention, queries C ask
and keys B answer: its arrays are (…, C, B).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from jepa.backbones.base import Trunk
from jepa.backbones.energy_step import EPS, Form, Pairs, Weights, energy_gradient, energy_step
from jepa.backbones.patches import PatchBackbone
from jepa.config import EnergyConfig

__all__ = ["Energies", "EnergyLayerNorm", "EnergyTransformer", "EnergyTrunk"]


class Energies(NamedTuple):
    """The energy of every image before each step and after the last, (T + 1, B) each."""

    attention: Tensor
    hopfield: Tensor

    @property
    def total(self) -> Tensor:
        """What the steps descend."""
        return self.attention + self.hopfield


class Positive(nn.Module):
    """Numbers above 0: constant, or learned as their logarithms."""

    log: Tensor

    def __init__(self, value: float, learned: bool, count: int = 1) -> None:
        super().__init__()
        log = torch.full((count,), math.log(value))
        if learned:
            self.log = nn.Parameter(log)
        else:  # the config has it, so a checkpoint needs not
            self.register_buffer("log", log, persistent=False)

    def forward(self) -> Tensor:
        """Return the numbers (count,)."""
        return self.log.exp()


class EnergyLayerNorm(nn.Module):
    """g = γ (x - mean x) / sqrt(var x + ε) + δ over the features, with one γ > 0 for all of them (equation 2).

    It is the gradient of the convex L(x) = D γ sqrt(var x + ε) + δ·x, so ∂g/∂x is symmetric and positive semi-definite
    and a step against ∂E/∂g goes down in E(g(x)). With a γ for every feature, as in an ordinary LayerNorm, it need not.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = Positive(1.0, learned=True)
        self.delta = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (…, D)."""
        return F.layer_norm(x, self.delta.shape, self.gammas(), self.delta, EPS)

    def gammas(self) -> Tensor:
        """Return γ once for every feature (D,)."""
        gamma: Tensor = self.gamma()
        return gamma.expand_as(self.delta)


class EnergyAttention(nn.Module):
    """E = -1/β Σ_h Σ_C log Σ_B exp(β K_hB · Q_hC), K = W_K g, Q = W_Q g, without values (equation 3)."""

    def __init__(self, dim: int, heads: int, config: EnergyConfig) -> None:
        super().__init__()
        self.heads, width = heads, dim // heads
        self.beta = Positive(config.beta or width**-0.5, config.learn_beta, heads)
        self.query = nn.Parameter(torch.empty(dim, dim))  # W_Q, head by head
        self.key = nn.Parameter(torch.empty(dim, dim))  # W_K
        for weight in (self.query, self.key):
            nn.init.normal_(weight, std=0.002 if config.init == "paper" else dim**-0.5)

    def ways(self) -> tuple[Tensor, Tensor]:
        """Return the weights to β Q and K, and those back, each (2·D, D)."""
        beta: Tensor = self.beta()
        beta = beta.repeat_interleave(self.query.shape[0] // self.heads)[:, None]
        return torch.cat([beta * self.query, self.key]), -torch.cat([self.query, self.key / beta])

    def logits(self, g: Tensor, pairs: Pairs) -> Tensor:
        """Return β Q·K (B, H, C, B), very negative where a pair is left out."""
        queries, keys = (
            rearrange(F.linear(g, weight), "b n (h z) -> b h n z", h=self.heads) for weight in (self.query, self.key)
        )
        logits: Tensor = (self.beta()[:, None, None] * queries) @ keys.mT
        return logits if pairs.bias is None else logits + pairs.bias

    def weights(self, g: Tensor, pairs: Pairs) -> Tensor:
        """Return P (B, H, C, B): how much each key B answers query C; a row sums to 1, or is 0 without a key."""
        weights = self.logits(g, pairs).softmax(-1)
        return weights if pairs.queries is None else weights * pairs.queries.unflatten(0, (-1, self.heads))

    def energy(self, g: Tensor, pairs: Pairs) -> Tensor:
        """E (B,)."""
        each = self.logits(g, pairs).logsumexp(-1, keepdim=True)  # (B, H, C, 1)
        each = each if pairs.queries is None else each * pairs.queries.unflatten(0, (-1, self.heads))
        energy: Tensor = -(each.sum((2, 3)) / self.beta()).sum(-1)
        return energy


class HopfieldMemory(nn.Module):
    """E = -1/2 Σ_B Σ_μ relu(ξ_μ · g_B)² (equation 5), or -1/β Σ_B log Σ_μ exp(β ξ_μ · g_B) with softmax memories."""

    def __init__(self, dim: int, config: EnergyConfig) -> None:
        super().__init__()
        self.softmax = config.memory == "softmax"
        self.beta = Positive(config.beta or dim**-0.5, config.learn_beta and self.softmax)
        self.weight = nn.Parameter(torch.empty(config.memories * dim, dim))  # ξ
        nn.init.normal_(self.weight, std=0.02 if config.init == "paper" else dim**-0.5)

    def ways(self) -> tuple[Tensor, Tensor]:
        """Return the weights to what is recalled, and those back, each (M, D)."""
        return self.beta() * self.weight if self.softmax else self.weight, -self.weight

    def energy(self, g: Tensor) -> Tensor:
        """E of every token (B, N)."""
        overlap = F.linear(g, self.weight)
        if not self.softmax:
            return -0.5 * overlap.relu().square().sum(-1)
        beta: Tensor = self.beta()
        return -(beta * overlap).logsumexp(-1) / beta


class EnergyTrunk(Trunk):
    """T steps down the energy with the same weights; the output is EnergyLayerNorm(x_T)."""

    def __init__(self, config: EnergyConfig, dim: int, steps: int, heads: int) -> None:
        super().__init__()
        self.steps, self.noise, self.self_interaction = steps, config.noise, config.self_interaction
        self.alpha = Positive(config.alpha, config.learn_alpha)
        self.norm = EnergyLayerNorm(dim)
        self.attention = EnergyAttention(dim, heads, config)
        self.memory = HopfieldMemory(dim, config)
        self.form = Form(heads, self.memory.softmax)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Map tokens (B, N, D) to normalised tokens; tokens that are not `valid` (B, N) have no part in the energy."""
        *_, last = self.descend(x, self.pairs(x, valid))
        return self.norm(last)  # type: ignore[no-any-return]

    def layers(self, x: Tensor, valid: Tensor | None = None) -> list[Tensor]:
        """Return the normalised tokens after every step."""
        _, *after = self.descend(x, self.pairs(x, valid))
        return [self.norm(x) for x in after]

    def descend(self, x: Tensor, pairs: Pairs) -> Iterator[Tensor]:
        """Yield the tokens before the first step and after each: x <- x - α ∂E/∂g, and noise in training."""
        weights, gammas, alpha = self.weights(x), self.norm.gammas(), self.alpha()
        yield x
        for _ in range(self.steps):
            x = energy_step(x, gammas, self.norm.delta, alpha, weights, pairs, self.form)
            if self.noise and self.training:
                x = x + self.noise * torch.randn_like(x)
            yield x

    def weights(self, x: Tensor) -> Weights:
        """Work out, once for all steps, the weights in and out of attention and memories."""
        weights = (*self.attention.ways(), *self.memory.ways())
        return Weights(*(weight.to(compute_type(x)) for weight in weights))

    def gradient(self, g: Tensor, pairs: Pairs) -> Tensor:
        """∂E/∂g (B, N, D) at normalised tokens; 0 for tokens that do not count."""
        return energy_gradient(g, self.weights(g), pairs, self.form)[0]

    def energy(self, g: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """Return attention and Hopfield energy (B,) at normalised tokens g (B, N, D)."""
        hopfield = self.memory.energy(g)  # (B, N)
        if pairs.tokens is not None:
            hopfield = hopfield * pairs.tokens[..., 0]
        return self.attention.energy(g, pairs), hopfield.sum(-1)

    def energies(self, x: Tensor, valid: Tensor | None = None) -> Energies:
        """Return the energies along the descent from tokens x (B, N, D)."""
        pairs = self.pairs(x, valid)
        attention, hopfield = zip(*(self.energy(self.norm(x), pairs) for x in self.descend(x, pairs)), strict=True)
        return Energies(torch.stack(attention), torch.stack(hopfield))

    def attentions(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Return the attention weights (T, B, H, C, B) of every step, query by key."""
        pairs = self.pairs(x, valid)
        *before, _ = self.descend(x, pairs)
        return torch.stack([self.attention.weights(self.norm(x), pairs) for x in before])

    def pairs(self, x: Tensor, valid: Tensor | None = None) -> Pairs:
        """Work out, once for all steps, what takes part: valid tokens, and no token with itself unless it may."""
        count = x.shape[1]
        if valid is None and self.self_interaction:
            return Pairs(None, None, None)
        allowed = torch.ones(1, 1, count, count, dtype=torch.bool, device=x.device)
        if not self.self_interaction:
            allowed = ~torch.eye(count, dtype=torch.bool, device=x.device)[None, None]
        if valid is not None:
            allowed = allowed & valid[:, None, None, :] & valid[:, None, :, None]
        kind = compute_type(x)
        # a finite number, so that a query without any key gives no NaN before it is set to 0
        bias = torch.zeros_like(allowed, dtype=kind).masked_fill(~allowed, torch.finfo(kind).min / 2)
        queries = None
        if valid is not None or count == 1:
            queries = allowed.any(-1, keepdim=True).expand(len(x), self.form.heads, -1, -1).flatten(0, 1).to(kind)
        return Pairs(bias, queries, None if valid is None else valid[..., None].to(x.dtype))


def compute_type(x: Tensor) -> torch.dtype:
    """Return the type of matrix products: autocast's where it is on, else that of the tokens."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


class EnergyTransformer(PatchBackbone):
    """An Energy Transformer over a grid of patches; only the tokens in `keep` enter the recurrence."""

    trunk: EnergyTrunk

    def __init__(self, config: EnergyConfig, channels: int, image_size: tuple[int, int]) -> None:
        dim, steps, heads = config.dimensions
        trunk = EnergyTrunk(config, dim, steps, heads)
        super().__init__(trunk, config.stem, config.patch, dim, steps, channels, image_size)
        self.learned = None
        if config.positions == "learned":
            self.learned = nn.Parameter(torch.empty(self.trained_grid[0] * self.trained_grid[1], dim))
            nn.init.normal_(self.learned, std=0.002 if config.init == "paper" else dim**-0.5)

    def positions(self, grid: tuple[int, int], device: torch.device) -> Tensor:
        """Return the positions (N, D) of a grid; learned ones are interpolated to another grid than the trained one."""
        if self.learned is None:
            return super().positions(grid, device)
        if grid == self.trained_grid:
            return self.learned
        table = rearrange(self.learned, "(h w) d -> 1 d h w", h=self.trained_grid[0])
        spread = F.interpolate(table, grid, mode="bicubic", antialias=True)
        return rearrange(spread, "1 d h w -> (h w) d")

    def energy(self, images: Tensor) -> Energies:
        """Return the energies (T + 1, B) of normalised images (B, C, H, W) before every step and after the last."""
        return self.trunk.energies(self.embed(images)[0])
