"""One gradient step on the energy of an Energy Transformer, with a memory-efficient backward pass.

Shapes: B images, N tokens, D width, H heads of width Z = D / H, M memories. Attention weights P are (B·H, N, N),
indexed by query, then key. In equations, C indexes queries, B keys and μ memories, as in the paper.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

__all__ = ["EnergyMask", "StepOptions", "StepWeights", "energy_gradient", "energy_step"]

EPS = 1e-5  # epsilon of EnergyLayerNorm


class StepWeights(NamedTuple):
    """Weights that project g to queries, keys and memories, and back to ∂E/∂g.

    β is folded into the weights, because scaling the weights is cheaper than scaling the activations.
    """

    attention_in: Tensor  # (2·D, D): β W_Q and W_K
    attention_out: Tensor  # (2·D, D): -W_Q and -W_K / β
    memory_in: Tensor  # (M, D): ξ, times β for softmax memories
    memory_out: Tensor  # (M, D): -ξ


class EnergyMask(NamedTuple):
    """Masks of the tokens and query-key pairs that contribute to the energy. None means no mask."""

    attention_bias: Tensor | None  # (B or 1, 1, N, N): 0, or a large negative number for masked pairs
    has_key: Tensor | None  # (B·H, N, 1): 1 for queries with at least one key, else 0
    valid: Tensor | None  # (B, N, 1): 1 for valid tokens, else 0


class StepOptions(NamedTuple):
    """Settings of a step other than tensors."""

    num_heads: int
    softmax_memory: bool  # whether the memories use a softmax instead of a relu


def energy_gradient(
    g: Tensor, weights: StepWeights, mask: EnergyMask, options: StepOptions
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ∂E/∂g (B, N, D), the queries and keys (2, B·H, N, Z), and the memory activations (B, N, M).

    ∂E/∂g has three terms per token: as a query, ∂E/∂Q_C = -Σ_B P_CB K_B; as a key, ∂E/∂K_B = -Σ_C P_CB Q_C with the
    same P; and from the memories, -Σ_μ relu(ξ_μ · g) ξ_μ.
    """
    queries_keys = split_heads(F.linear(g, weights.attention_in), options.num_heads)
    sums = weighted_sums(attention_weights(queries_keys, mask, options), queries_keys, mask)
    activations = F.linear(g, weights.memory_in)
    activations = activations.softmax(-1).to(activations.dtype) if options.softmax_memory else activations.relu_()
    attention_part = merge_heads(*sums, options.num_heads).flatten(0, 1) @ weights.attention_out
    gradient = torch.addmm(attention_part, activations.flatten(0, 1), weights.memory_out).view_as(g)
    return gradient if mask.valid is None else gradient * mask.valid, queries_keys, activations


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """Reshape (B, N, 2·D) to (2, B·H, N, Z)."""
    return rearrange(x, "b n (two h z) -> two (b h) n z", two=2, h=num_heads).contiguous()


def merge_heads(first: Tensor, second: Tensor, num_heads: int) -> Tensor:
    """Merge two tensors (B·H, N, Z) into one (B, N, 2·D). This is the inverse of `split_heads`."""
    halves = [rearrange(half, "(b h) n z -> b n h z", h=num_heads) for half in (first, second)]
    return torch.stack(halves, 2).flatten(2)


def attention_weights(queries_keys: Tensor, mask: EnergyMask, options: StepOptions) -> Tensor:
    """Return P (B·H, N, N), the softmax of β Q·K over keys."""
    logits = queries_keys[0] @ queries_keys[1].mT
    if mask.attention_bias is not None:
        logits.unflatten(0, (-1, options.num_heads)).add_(mask.attention_bias)
    return logits.softmax(-1).to(logits.dtype)


def weighted_sums(p: Tensor, queries_keys: Tensor, mask: EnergyMask) -> tuple[Tensor, Tensor]:
    """Return Σ_B P_CB K_B for each query and Σ_C P_CB Q_C for each key. Queries without a key are masked."""
    queries, keys = queries_keys
    if mask.has_key is None:
        return p @ keys, p.mT @ queries
    return (p @ keys) * mask.has_key, p.mT @ (queries * mask.has_key)


def energy_step(
    x: Tensor,
    *,
    gamma: Tensor,
    delta: Tensor,
    alpha: Tensor,
    weights: StepWeights,
    mask: EnergyMask,
    options: StepOptions,
) -> Tensor:
    """Return x - α ∂E/∂g at g = γ (x - mean x) / sqrt(var x + ε) + δ, for tokens x (B, N, D); γ and δ are (D,)."""
    # torch.compile decides on its own what to recompute, and torch.func does not support this custom backward pass
    use_autograd = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    if torch.is_grad_enabled() and not use_autograd:
        result: Tensor = LeanStep.apply(x, gamma, delta, alpha, *weights, *mask, options)
        return result
    return plain_step(x, gamma=gamma, delta=delta, alpha=alpha, weights=weights, mask=mask, options=options)[0]


def plain_step(
    x: Tensor,
    *,
    gamma: Tensor,
    delta: Tensor,
    alpha: Tensor,
    weights: StepWeights,
    mask: EnergyMask,
    options: StepOptions,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute a step with differentiable operations; also return the queries, keys and memory activations."""
    g = F.layer_norm(x, delta.shape, gamma, delta, EPS).to(weights.attention_in.dtype)
    gradient, queries_keys, activations = energy_gradient(g, weights, mask, options)
    return torch.addcmul(x, alpha, gradient.to(x.dtype), value=-1), queries_keys, activations


class LeanStep(torch.autograd.Function):
    """An energy step that saves only x, Q, K and the memory activations, and recomputes the rest in the backward pass.

    It saves 7·N·D numbers per step (with 4 memories per dimension), and nothing of size N². Recomputation adds 2% to
    the FLOPs with 64 tokens of width 256, and 5% with 196 tokens.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, gamma: Tensor, delta: Tensor, alpha: Tensor, *rest: Any) -> Tensor:
        """Compute a step. `rest` holds the fields of `StepWeights` and `EnergyMask`, then the `StepOptions`."""
        weights, mask, ctx.options = StepWeights(*rest[:4]), EnergyMask(*rest[4:7]), rest[7]
        result, queries_keys, activations = plain_step(
            x, gamma=gamma, delta=delta, alpha=alpha, weights=weights, mask=mask, options=ctx.options
        )
        ctx.save_for_backward(x, gamma, delta, alpha, *weights, *mask, queries_keys, activations)
        return result

    @staticmethod
    def backward(ctx: Any, d_result: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients with respect to x, γ, δ, α and the weights."""
        x, gamma, delta, alpha, *rest, queries_keys, activations = ctx.saved_tensors
        weights, mask, options = StepWeights(*rest[:4]), EnergyMask(*rest[4:]), ctx.options
        if torch.is_grad_enabled():  # double backward
            inputs = (x, gamma, delta, alpha, *weights)
            result, *_ = plain_step(
                x, gamma=gamma, delta=delta, alpha=alpha, weights=weights, mask=mask, options=options
            )
            differentiable = [tensor for tensor in inputs if tensor.requires_grad]
            gradients = iter(torch.autograd.grad(result, differentiable, d_result, create_graph=True))
            return *(next(gradients) if tensor.requires_grad else None for tensor in inputs), *[None] * 4

        dtype = weights.attention_in.dtype
        normed, mean, rstd = torch.native_layer_norm(x, delta.shape, gamma, delta, EPS)
        g = normed.to(dtype).flatten(0, 1)
        d_gradient = d_result * -alpha  # with respect to ∂E/∂g
        d_gradient = (d_gradient if mask.valid is None else d_gradient * mask.valid).to(dtype)
        d_flat = d_gradient.flatten(0, 1)

        d_memory_out = activations.flatten(0, 1).T @ d_flat
        d_overlap = activation_backward(d_flat @ weights.memory_out.T, activations.flatten(0, 1), options)
        d_memory_in = d_overlap.T @ g
        d_g = d_overlap @ weights.memory_in
        del d_overlap

        p = attention_weights(queries_keys, mask, options)
        d_attention_out = merge_heads(*weighted_sums(p, queries_keys, mask), options.num_heads).flatten(0, 1).T @ d_flat
        d_sums = split_heads(F.linear(d_gradient, weights.attention_out), options.num_heads)
        d_pair = attention_backward(d_sums, p, queries_keys, mask)
        d_queries_keys = merge_heads(*d_pair, options.num_heads).flatten(0, 1)
        del d_pair
        d_attention_in = d_queries_keys.T @ g
        d_g.addmm_(d_queries_keys, weights.attention_in)

        d_x, d_gamma, d_delta = torch.ops.aten.native_layer_norm_backward(
            d_g.to(x.dtype).view_as(x), x, delta.shape, mean, rstd, gamma, delta, [True, True, True]
        )
        # Σ d · ∂E/∂g, reusing the products computed above: Σ d · (S W) = Σ (Sᵀ d) · W
        d_alpha = (d_attention_out * weights.attention_out).sum() + (d_memory_out * weights.memory_out).sum()
        d_weights = (d_attention_in, d_attention_out, d_memory_in, d_memory_out)
        return d_x.add_(d_result), d_gamma, d_delta, d_alpha / alpha, *d_weights, *[None] * 4


def activation_backward(d_activations: Tensor, activations: Tensor, options: StepOptions) -> Tensor:
    """Return the gradient with respect to the memory overlaps, given that of the activations (B·N, M), in place."""
    if options.softmax_memory:
        return torch._softmax_backward_data(d_activations, activations, -1, activations.dtype)
    relu_backward = torch.ops.aten.threshold_backward.grad_input
    return relu_backward(d_activations, activations, 0, grad_input=d_activations)  # type: ignore[no-any-return]


def attention_backward(d_sums: Tensor, p: Tensor, queries_keys: Tensor, mask: EnergyMask) -> tuple[Tensor, Tensor]:
    """Return the gradients with respect to queries and keys.

    `d_sums` holds the gradients with respect to the weighted sums (2, B·H, N, Z).
    """
    (queries, keys), (d_query_sums, d_key_sums) = queries_keys, d_sums
    masked_queries = queries
    if mask.has_key is not None:
        d_query_sums, masked_queries = d_query_sums * mask.has_key, queries * mask.has_key
    d_p = torch.baddbmm(d_query_sums @ keys.mT, masked_queries, d_key_sums.mT)
    d_logits = torch._softmax_backward_data(d_p, p, -1, p.dtype)
    d_queries = p @ d_key_sums
    if mask.has_key is not None:
        d_queries = d_queries * mask.has_key
    return torch.baddbmm(d_queries, d_logits, keys), torch.baddbmm(p.mT @ d_query_sums, d_logits.mT, queries)
