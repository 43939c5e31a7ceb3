"""The Energy Transformer (Hoover et al. 2023, arXiv 2302.07253): one recurrent block that minimizes an energy.

Given tokens x and g = EnergyLayerNorm(x), each step is x <- x - α ∂E/∂g, where E = E_attention + E_hopfield is
evaluated at g. The gradient is computed in closed form (`energy_step`), so the forward pass does not need autograd.

Shapes: B images, N tokens, D width, H heads of width Z = D / H, M memories, T steps. Attention arrays are (…, N, N),
indexed by query, then key. In equations, C indexes queries, B keys and μ memories, as in the paper.
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
from jepa.backbones.energy_step import EPS, EnergyMask, StepOptions, StepWeights, energy_gradient, energy_step
from jepa.backbones.patch_embed import PatchBackbone
from jepa.config import EnergyConfig

__all__ = ["Energies", "EnergyLayerNorm", "EnergyTransformer", "EnergyTrunk"]


class Energies(NamedTuple):
    """Energies of each image before each step and after the last, (T + 1, B) each."""

    attention: Tensor
    hopfield: Tensor

    @property
    def total(self) -> Tensor:
        """The sum of both, minimized by the steps."""
        return self.attention + self.hopfield


class Positive(nn.Module):
    """Positive scalars, fixed or learned, parametrized by their logarithm."""

    log: Tensor

    def __init__(self, value: float, learned: bool, count: int = 1) -> None:
        super().__init__()
        log = torch.full((count,), math.log(value))
        if learned:
            self.log = nn.Parameter(log)
        else:  # not in checkpoints, because the config has the value
            self.register_buffer("log", log, persistent=False)

    def forward(self) -> Tensor:
        """Return the scalars (count,)."""
        return self.log.exp()


class EnergyLayerNorm(nn.Module):
    """g = γ (x - mean x) / sqrt(var x + ε) + δ over the features, with a single γ > 0 (equation 2).

    It is the gradient of the convex function L(x) = D γ sqrt(var x + ε) + δ·x, so ∂g/∂x is symmetric and positive
    semi-definite, and a small step along -∂E/∂g decreases E(g(x)). With one γ per feature, as in a standard LayerNorm,
    this is not guaranteed.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = Positive(1.0, learned=True)
        self.delta = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x (…, D)."""
        return F.layer_norm(x, self.delta.shape, self.expanded_gamma(), self.delta, EPS)

    def expanded_gamma(self) -> Tensor:
        """Return γ expanded to all features (D,)."""
        gamma: Tensor = self.gamma()
        return gamma.expand_as(self.delta)


class EnergyAttention(nn.Module):
    """E = -1/β Σ_h Σ_C log Σ_B exp(β K_hB · Q_hC) with K = W_K g, Q = W_Q g and no values (equation 3)."""

    def __init__(self, dim: int, num_heads: int, config: EnergyConfig) -> None:
        super().__init__()
        self.num_heads, head_dim = num_heads, dim // num_heads
        self.beta = Positive(config.beta or head_dim**-0.5, config.learn_beta, num_heads)
        self.query = nn.Parameter(torch.empty(dim, dim))  # W_Q of all heads
        self.key = nn.Parameter(torch.empty(dim, dim))  # W_K of all heads
        for weight in (self.query, self.key):
            nn.init.normal_(weight, std=0.002 if config.init == "paper" else dim**-0.5)

    def projections(self) -> tuple[Tensor, Tensor]:
        """Return the weights that map g to β Q and K, and those that map back to ∂E/∂g, (2·D, D) each."""
        beta: Tensor = self.beta()
        beta = beta.repeat_interleave(self.query.shape[0] // self.num_heads)[:, None]
        return torch.cat([beta * self.query, self.key]), -torch.cat([self.query, self.key / beta])

    def logits(self, g: Tensor, mask: EnergyMask) -> Tensor:
        """Return β Q·K (B, H, N, N), with a large negative number for masked pairs."""
        queries, keys = (
            rearrange(F.linear(g, weight), "b n (h z) -> b h n z", h=self.num_heads)
            for weight in (self.query, self.key)
        )
        logits: Tensor = (self.beta()[:, None, None] * queries) @ keys.mT
        return logits if mask.attention_bias is None else logits + mask.attention_bias

    def weights(self, g: Tensor, mask: EnergyMask) -> Tensor:
        """Return the attention weights P (B, H, N, N), which sum to 1 over keys and are 0 for queries without a key."""
        weights = self.logits(g, mask).softmax(-1)
        return weights if mask.has_key is None else weights * mask.has_key.unflatten(0, (-1, self.num_heads))

    def energy(self, g: Tensor, mask: EnergyMask) -> Tensor:
        """Return the attention energy (B,)."""
        log_sums = self.logits(g, mask).logsumexp(-1, keepdim=True)  # (B, H, N, 1)
        if mask.has_key is not None:
            log_sums = log_sums * mask.has_key.unflatten(0, (-1, self.num_heads))
        energy: Tensor = -(log_sums.sum((2, 3)) / self.beta()).sum(-1)
        return energy


class HopfieldMemory(nn.Module):
    """E = -1/2 Σ_B Σ_μ relu(ξ_μ · g_B)² (equation 5), or -1/β Σ_B log Σ_μ exp(β ξ_μ · g_B) with softmax memories."""

    def __init__(self, dim: int, config: EnergyConfig) -> None:
        super().__init__()
        self.softmax = config.memory == "softmax"
        self.beta = Positive(config.beta or dim**-0.5, config.learn_beta and self.softmax)
        self.weight = nn.Parameter(torch.empty(config.memories * dim, dim))  # ξ
        nn.init.normal_(self.weight, std=0.02 if config.init == "paper" else dim**-0.5)

    def projections(self) -> tuple[Tensor, Tensor]:
        """Return the weights that map g to the memories, and those that map back to ∂E/∂g, (M, D) each."""
        return self.beta() * self.weight if self.softmax else self.weight, -self.weight

    def energy(self, g: Tensor) -> Tensor:
        """Return the energy (B, N) of each token."""
        overlap = F.linear(g, self.weight)
        if not self.softmax:
            return -0.5 * overlap.relu().square().sum(-1)
        beta: Tensor = self.beta()
        return -(beta * overlap).logsumexp(-1) / beta


class EnergyTrunk(Trunk):
    """T steps of gradient descent on the energy with shared weights. The output is EnergyLayerNorm(x_T)."""

    def __init__(self, config: EnergyConfig, dim: int, num_steps: int, num_heads: int) -> None:
        super().__init__()
        self.num_steps, self.noise, self.self_interaction = num_steps, config.noise, config.self_interaction
        self.alpha = Positive(config.alpha, config.learn_alpha)
        self.norm = EnergyLayerNorm(dim)
        self.attention = EnergyAttention(dim, num_heads, config)
        self.memory = HopfieldMemory(dim, config)
        self.options = StepOptions(num_heads, self.memory.softmax)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Map tokens (B, N, D) to normalized tokens. Tokens with `valid` (B, N) False have no energy."""
        *_, last = self.descend(x, self.build_mask(x, valid))
        return self.norm(last)  # type: ignore[no-any-return]

    def layers(self, x: Tensor, valid: Tensor | None = None) -> list[Tensor]:
        """Return the normalized tokens (B, N, D) after each step."""
        _, *states = self.descend(x, self.build_mask(x, valid))
        return [self.norm(x) for x in states]

    def attentions(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Return the attention weights (T, B, H, N, N) of all steps, indexed by query, then key."""
        mask = self.build_mask(x, valid)
        *states, _ = self.descend(x, mask)
        return torch.stack([self.attention.weights(self.norm(x), mask) for x in states])

    def descend(self, x: Tensor, mask: EnergyMask) -> Iterator[Tensor]:
        """Yield the tokens before the first step and after each step x <- x - α ∂E/∂g, plus noise in training mode."""
        weights, gamma, alpha = self.step_weights(x), self.norm.expanded_gamma(), self.alpha()
        yield x
        for _ in range(self.num_steps):
            x = energy_step(
                x, gamma=gamma, delta=self.norm.delta, alpha=alpha, weights=weights, mask=mask, options=self.options
            )
            if self.noise and self.training:
                x = x + self.noise * torch.randn_like(x)
            yield x

    def step_weights(self, x: Tensor) -> StepWeights:
        """Return the projection weights shared by all steps, cast to the compute dtype for `x`."""
        weights = (*self.attention.projections(), *self.memory.projections())
        return StepWeights(*(weight.to(compute_dtype(x)) for weight in weights))

    def gradient(self, g: Tensor, mask: EnergyMask) -> Tensor:
        """Return ∂E/∂g (B, N, D) at normalized tokens g, with 0 for invalid tokens."""
        return energy_gradient(g, self.step_weights(g), mask, self.options)[0]

    def energy(self, g: Tensor, mask: EnergyMask) -> tuple[Tensor, Tensor]:
        """Return the attention energy and the Hopfield energy, (B,) each, at normalized tokens g (B, N, D)."""
        hopfield = self.memory.energy(g)  # (B, N)
        if mask.valid is not None:
            hopfield = hopfield * mask.valid[..., 0]
        return self.attention.energy(g, mask), hopfield.sum(-1)

    def energies(self, x: Tensor, valid: Tensor | None = None) -> Energies:
        """Return the energies (T + 1, B) along the descent that starts from tokens x (B, N, D)."""
        mask = self.build_mask(x, valid)
        attention, hopfield = zip(*(self.energy(self.norm(x), mask) for x in self.descend(x, mask)), strict=True)
        return Energies(torch.stack(attention), torch.stack(hopfield))

    def build_mask(self, x: Tensor, valid: Tensor | None = None) -> EnergyMask:
        """Return the mask used by all steps. It excludes invalid tokens and, by default, self-attention."""
        count = x.shape[1]
        if valid is None and self.self_interaction:
            return EnergyMask(None, None, None)
        allowed = torch.ones(1, 1, count, count, dtype=torch.bool, device=x.device)
        if not self.self_interaction:
            allowed = ~torch.eye(count, dtype=torch.bool, device=x.device)[None, None]
        if valid is not None:
            allowed = allowed & valid[:, None, None, :] & valid[:, None, :, None]
        dtype = compute_dtype(x)
        # finite, so that the softmax of a fully masked query is not NaN
        bias = torch.zeros_like(allowed, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min / 2)
        has_key = None
        if valid is not None or count == 1:
            has_key = allowed.any(-1, keepdim=True).expand(x.shape[0], self.options.num_heads, -1, -1)
            has_key = has_key.flatten(0, 1).to(dtype)
        return EnergyMask(bias, has_key, None if valid is None else valid[..., None].to(x.dtype))


def compute_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of matrix products: the autocast dtype if autocast is enabled, else the dtype of `x`."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


class EnergyTransformer(PatchBackbone):
    """An Energy Transformer on a grid of patches. Only the tokens in `keep` are processed."""

    trunk: EnergyTrunk

    def __init__(self, config: EnergyConfig, channels: int, image_size: tuple[int, int]) -> None:
        dim, num_steps, num_heads = config.dimensions
        std = 0.002 if config.init == "paper" else dim**-0.5
        super().__init__(
            EnergyTrunk(config, dim, num_steps, num_heads),
            stem=config.stem,
            patch_size=config.patch,
            dim=dim,
            num_layers=num_steps,
            channels=channels,
            image_size=image_size,
            learned_positions=std if config.positions == "learned" else None,
        )

    @classmethod
    def build_trunk(cls, config: EnergyConfig, dim: int, depth: int, num_heads: int) -> EnergyTrunk:
        """Build the trunk of a predictor with `depth` steps."""
        return EnergyTrunk(config, dim, depth, num_heads)

    def energy(self, images: Tensor) -> Energies:
        """Return the energies (T + 1, B) of normalized images (B, C, H, W) before each step and after the last."""
        return self.trunk.energies(self.embed_patches(images)[0])
