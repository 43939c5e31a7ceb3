"""One step down the energy of an Energy Transformer, its gradient written out, with little memory for training.

Shapes: B images, N tokens, D width, H heads of width Z = D / H, M memories. In the attention, queries C ask and keys B
answer: its weights P are (B·H, C, B).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

__all__ = ["Pairs", "Weights", "energy_gradient", "energy_step"]

EPS = 1e-5


class Weights(NamedTuple):
    """What leads from g to queries, keys and memories, and back. β is in the way in, where it is a small product."""

    attend: Tensor  # (2·D, D): β W_Q and W_K
    attended: Tensor  # (2·D, D): -W_Q and -W_K / β
    recall: Tensor  # (M, D): ξ, times β for softmax memories
    recalled: Tensor  # (M, D): -ξ


class Pairs(NamedTuple):
    """Which tokens count, and which key may answer which query; None: all."""

    bias: Tensor | None  # (B or 1, 1, C, B): 0, or a large negative number for a pair that is left out
    queries: Tensor | None  # (B·H, C, 1): 1 for a query that has a key, else 0
    tokens: Tensor | None  # (B, N, 1): 1 for a token that counts, else 0


class Form(NamedTuple):
    """What is not a tensor."""

    heads: int
    softmax: bool  # memories: softmax, or relu


def energy_gradient(g: Tensor, weights: Weights, pairs: Pairs, form: Form) -> tuple[Tensor, Tensor, Tensor]:
    """Return ∂E/∂g (B, N, D), queries and keys (2, B·H, N, Z), and how much each memory is recalled (B, N, M).

    A token is drawn as a query to its keys, as a key to the queries it answers, and to the memories that are like it:
    ∂E/∂Q_C = -Σ_B P_CB K_B, ∂E/∂K_B = -Σ_C P_CB Q_C with the same P, and -Σ_μ relu(ξ_μ · g) ξ_μ.
    """
    queries_keys = split_heads(F.linear(g, weights.attend), form.heads)
    sides = both_sides(attention(queries_keys, pairs, form), queries_keys, pairs)
    recall = F.linear(g, weights.recall)
    recall = recall.softmax(-1).to(recall.dtype) if form.softmax else recall.relu_()
    drawn = join_heads(*sides, form.heads).flatten(0, 1) @ weights.attended
    gradient = torch.addmm(drawn, recall.flatten(0, 1), weights.recalled).view_as(g)
    return gradient if pairs.tokens is None else gradient * pairs.tokens, queries_keys, recall


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Turn (B, N, 2·D) into (2, B·H, N, Z)."""
    return rearrange(x, "b n (two h z) -> two (b h) n z", two=2, h=heads).contiguous()


def join_heads(first: Tensor, second: Tensor, heads: int) -> Tensor:
    """Undo `split_heads`."""
    parts = [rearrange(part, "(b h) n z -> b n h z", h=heads) for part in (first, second)]
    return torch.stack(parts, 2).flatten(2)


def attention(queries_keys: Tensor, pairs: Pairs, form: Form) -> Tensor:
    """Return P (B·H, C, B), the softmax of β Q·K over the keys B."""
    logits = queries_keys[0] @ queries_keys[1].mT
    if pairs.bias is not None:
        logits.unflatten(0, (-1, form.heads)).add_(pairs.bias)
    return logits.softmax(-1).to(logits.dtype)


def both_sides(p: Tensor, queries_keys: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Return Σ_B P_CB K_B and Σ_C P_CB Q_C, without the queries that have no key."""
    queries, keys = queries_keys
    if pairs.queries is None:
        return p @ keys, p.mT @ queries
    return (p @ keys) * pairs.queries, p.mT @ (queries * pairs.queries)


def energy_step(
    x: Tensor, gamma: Tensor, delta: Tensor, alpha: Tensor, weights: Weights, pairs: Pairs, form: Form
) -> Tensor:
    """Return x - α ∂E/∂g at g = γ (x - mean x) / sqrt(var x + ε) + δ, for tokens x (B, N, D); γ and δ are (D,)."""
    # a compiler keeps and works out again what it sees fit, and torch.func wants operations that it knows
    plain = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    if torch.is_grad_enabled() and not plain:
        result: Tensor = LeanStep.apply(x, gamma, delta, alpha, *weights, *pairs, form)
        return result
    return plain_step(x, gamma, delta, alpha, weights, pairs, form)[0]


def plain_step(
    x: Tensor, gamma: Tensor, delta: Tensor, alpha: Tensor, weights: Weights, pairs: Pairs, form: Form
) -> tuple[Tensor, Tensor, Tensor]:
    """The step in differentiable operations; also returns what `energy_gradient` does."""
    g = F.layer_norm(x, delta.shape, gamma, delta, EPS).to(weights.attend.dtype)
    gradient, queries_keys, recall = energy_gradient(g, weights, pairs, form)
    return torch.addcmul(x, alpha, gradient.to(x.dtype), value=-1), queries_keys, recall


class LeanStep(torch.autograd.Function):
    """The step with a backward pass of its own, which keeps x, Q, K and the recall and works out the rest again.

    That is 7 N·D numbers a step (with 4 memories a dimension), and none of size N². What is worked out again costs
    2 % of the FLOPs at 64 tokens of width 256, 5 % at 196.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, gamma: Tensor, delta: Tensor, alpha: Tensor, *rest: Any) -> Tensor:
        """Take the step."""
        weights, pairs, ctx.form = Weights(*rest[:4]), Pairs(*rest[4:7]), rest[7]
        result, queries_keys, recall = plain_step(x, gamma, delta, alpha, weights, pairs, ctx.form)
        ctx.save_for_backward(x, gamma, delta, alpha, *weights, *pairs, queries_keys, recall)
        return result

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, γ, δ, α and the weights."""
        x, gamma, delta, alpha, *rest, queries_keys, recall = ctx.saved_tensors
        weights, pairs, form = Weights(*rest[:4]), Pairs(*rest[4:]), ctx.form
        if torch.is_grad_enabled():  # to be differentiated again
            inputs = (x, gamma, delta, alpha, *weights)
            result, *_ = plain_step(x, gamma, delta, alpha, weights, pairs, form)
            wanted = [tensor for tensor in inputs if tensor.requires_grad]
            found = iter(torch.autograd.grad(result, wanted, d, create_graph=True))
            return *(next(found) if tensor.requires_grad else None for tensor in inputs), *[None] * 4

        dtype = weights.attend.dtype
        normed, mean, rstd = torch.native_layer_norm(x, delta.shape, gamma, delta, EPS)
        g = normed.to(dtype).flatten(0, 1)
        down = d * -alpha
        down = (down if pairs.tokens is None else down * pairs.tokens).to(dtype)  # what reaches ∂E/∂g
        flat = down.flatten(0, 1)

        d_recalled = recall.flatten(0, 1).T @ flat
        d_overlap = recall_backward(flat @ weights.recalled.T, recall.flatten(0, 1), form)
        d_recall = d_overlap.T @ g
        d_g = d_overlap @ weights.recall
        del d_overlap

        p = attention(queries_keys, pairs, form)
        d_attended = join_heads(*both_sides(p, queries_keys, pairs), form.heads).flatten(0, 1).T @ flat
        d_sides = split_heads(F.linear(down, weights.attended), form.heads)
        d_attention = join_heads(*attention_backward(d_sides, p, queries_keys, pairs), form.heads).flatten(0, 1)
        d_attend = d_attention.T @ g
        d_g.addmm_(d_attention, weights.attend)

        d_x, d_gamma, d_delta = torch.ops.aten.native_layer_norm_backward(
            d_g.to(x.dtype).view_as(x), x, delta.shape, mean, rstd, gamma, delta, [True, True, True]
        )
        # Σ d · ∂E/∂g, by way of the products that are there: Σ d · (S W) = Σ (Sᵀ d) · W
        d_alpha = ((d_attended * weights.attended).sum() + (d_recalled * weights.recalled).sum()) / alpha
        return d_x.add_(d), d_gamma, d_delta, d_alpha, d_attend, d_attended, d_recall, d_recalled, *[None] * 4


def recall_backward(d_recall: Tensor, recall: Tensor, form: Form) -> Tensor:
    """Turn the gradient of the recall (N, M) into that of the overlaps with the memories, in its place."""
    if form.softmax:
        return torch._softmax_backward_data(d_recall, recall, -1, recall.dtype)
    return torch.ops.aten.threshold_backward.grad_input(d_recall, recall, 0, grad_input=d_recall)  # type: ignore[no-any-return]


def attention_backward(d_sides: Tensor, p: Tensor, queries_keys: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Return the gradients of queries and keys from those of both sides (2, B·H, N, Z)."""
    (queries, keys), (d_query_side, d_key_side) = queries_keys, d_sides
    asked = queries
    if pairs.queries is not None:
        d_query_side, asked = d_query_side * pairs.queries, queries * pairs.queries
    d_p = torch.baddbmm(d_query_side @ keys.mT, asked, d_key_side.mT)
    d_logits = torch._softmax_backward_data(d_p, p, -1, p.dtype)
    d_queries = p @ d_key_side
    if pairs.queries is not None:
        d_queries = d_queries * pairs.queries
    return torch.baddbmm(d_queries, d_logits, keys), torch.baddbmm(p.mT @ d_query_side, d_logits.mT, queries)
