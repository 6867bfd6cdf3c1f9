"""The llama family's decoder in torch, half a block at a time, and the squared gradients of its matrices: fp32 on the
CPU, one sequence [L, D] at once. The mathematics is that of csrc/model; the config is what the core made of it.

Only sensitivity.py imports this, and inside a function: torch costs 200 MB.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from .block_halves import ATTENTION, MATRICES, MLP, NORMS

SCRATCH = 1 << 21  # elements of a matrix's gradient made at once: they stay in the cache

# ----------------------------------------------------------------------------------------------------------------- rope


def _slowed(c: dict, f: np.ndarray) -> np.ndarray:
    """Inverse frequencies of the kinds linear and llama3, from those without scaling."""
    if c["rope_type"] == "linear":
        return f / np.float32(c["factor"])
    if c["rope_type"] != "llama3":
        return f
    length, low, high = c["original_max_position"], c["low_freq_factor"], c["high_freq_factor"]
    wavelengths = 2 * math.pi / f.astype(np.float64)
    smooth = (length / wavelengths - low) / (high - low)
    between = (1 - smooth) * f / c["factor"] + smooth * f
    slow = np.where(wavelengths > length / low, f / c["factor"], between)
    return np.where(wavelengths < length / high, f, slow).astype(np.float32)


def inverse_frequencies(c: dict, head_dim: int, length: int) -> np.ndarray:
    """fp32 [head_dim / 2] for a text of `length` tokens, as csrc/model/rope.cpp has them."""
    theta, exponents = c["theta"], np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    if c["rope_type"] == "dynamic":
        stretch = max(length, c["max_position"]) / c["max_position"]
        theta *= (c["factor"] * stretch - (c["factor"] - 1)) ** (head_dim / (head_dim - 2))
    periods = (float(np.float32(theta)) ** exponents.astype(np.float64)).astype(np.float32)
    if c["rope_type"] != "yarn":
        return _slowed(c, np.float32(1) / periods)

    def correction(rotations: float) -> float:
        return head_dim * math.log(c["original_max_position"] / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = correction(c["beta_fast"]), correction(c["beta_slow"])
    if c["truncate"]:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    ramp = np.clip((np.arange(head_dim // 2) - low) / (high - low or 0.001), 0, 1)
    p = periods.astype(np.float64)
    return (1 / (c["factor"] * p) * ramp + 1 / p * (1 - ramp)).astype(np.float32)


# ---------------------------------------------------------------------------------------------------------- mathematics


@dataclass(frozen=True)
class Mathematics:
    """What a half block computes with beside its weights. cos, sin: fp32 [L, head_dim]; seen: bool [L, L], True
    where a query sees a key, None where it sees all before it."""

    n_heads: int
    n_kv_heads: int
    head_dim: int
    eps: float
    cos: torch.Tensor
    sin: torch.Tensor
    seen: torch.Tensor | None


def mathematics(config: dict, head_dim: int, length: int) -> Mathematics:
    """config: of the engine's header (csrc/model/config.cpp, `mathematics`), all values texts."""
    names = ("factor", "original_max_position", "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow")
    *numbers, attention_factor = (float(x) for x in config["rope_scaling"].split() if x != "truncate")
    rope = {
        **dict(zip(names, numbers, strict=True)),
        "rope_type": config["rope_type"],
        "theta": float(config["rope_theta"]),
        "truncate": config["rope_scaling"].endswith("truncate"),
        "max_position": int(config.get("max_position_embeddings", 0)),
    }
    positions = np.arange(length, dtype=np.float32)
    angles = (positions[:, None] * inverse_frequencies(rope, head_dim, length)).astype(np.float64)
    twice = np.concatenate([angles, angles], axis=1)
    window = int(config["sliding_window"])
    distance = torch.arange(length)[:, None] - torch.arange(length)
    return Mathematics(
        n_heads=int(config["num_attention_heads"]),
        n_kv_heads=int(config["num_key_value_heads"]),
        head_dim=head_dim,
        eps=float(config["rms_norm_eps"]),
        cos=torch.from_numpy((np.cos(twice) * attention_factor).astype(np.float32)),
        sin=torch.from_numpy((np.sin(twice) * attention_factor).astype(np.float32)),
        seen=(distance >= 0) & (distance < window) if 0 < window < length else None,
    )


class Squares:
    """sums: by matrix, fp32 [out, in], the sum over sequences of the squared gradient."""

    def __init__(self):
        self.sums: dict[str, torch.Tensor] = {}
        self._scratch = torch.empty(SCRATCH, dtype=torch.float32)

    def add(self, name: str, dy: torch.Tensor, x: torch.Tensor) -> None:
        """(dy^T x)^2 of a sequence, some rows of it at a time; dy [L, out], x [L, in]."""
        total, cols = self.sums[name], x.shape[1]
        if cols > self._scratch.numel():
            self._scratch = torch.empty(cols, dtype=torch.float32)
        step = self._scratch.numel() // cols
        for r in range(0, total.shape[0], step):
            some = total[r : r + step]
            gradient = self._scratch[: some.numel()].view_as(some)
            torch.mm(dy[:, r : r + step].t(), x, out=gradient)
            some.addcmul_(gradient, gradient)


class _Linear(torch.autograd.Function):
    """x W^T + b. Backward gives the gradient of x alone; that of W is squared, added to the sums and forgotten."""

    @staticmethod
    def forward(ctx, x, weight, bias, name, squares):
        ctx.weight, ctx.name, ctx.squares = weight, name, squares
        if name in squares.sums:
            ctx.save_for_backward(x)
        return functional.linear(x, weight, bias)

    @staticmethod
    def backward(ctx, dy):
        if ctx.saved_tensors:
            ctx.squares.add(ctx.name, dy, *ctx.saved_tensors)
        return dy @ ctx.weight, None, None, None, None


class _Gate(torch.autograd.Function):
    """silu(gate) * up, keeping the two and nothing made of them."""

    @staticmethod
    def forward(ctx, gate, up):
        ctx.save_for_backward(gate, up)
        return functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx, dy):
        gate, up = ctx.saved_tensors
        sigmoid = torch.sigmoid(gate)
        d_up = (dy * sigmoid).mul_(gate)
        # silu' = s (1 + gate (1 - s))
        slope = torch.sub(1, sigmoid).mul_(gate).add_(1).mul_(sigmoid)
        return slope.mul_(up).mul_(dy), d_up


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps))


def _rotate(x: torch.Tensor, m: Mathematics) -> torch.Tensor:
    """x [heads, L, head_dim], pairs half a head apart."""
    first, second = x.chunk(2, -1)
    return x * m.cos + torch.cat((-second, first), -1) * m.sin


def half_block(kind: str, x: torch.Tensor, w: dict[str, torch.Tensor], m: Mathematics, squares: Squares):
    """x + attention(norm(x)) or x + mlp(norm(x)); x [L, D], w by name within the block."""

    def linear(name: str, of: torch.Tensor) -> torch.Tensor:
        return _Linear.apply(of, w[name + ".weight"], w.get(name + ".bias"), name + ".weight", squares)

    h = rms_norm(x, w[NORMS[kind]], m.eps)
    if kind == MLP:
        return x + linear("mlp.down_proj", _Gate.apply(linear("mlp.gate_proj", h), linear("mlp.up_proj", h)))
    q, k, v = (linear(name, h).view(len(x), -1, m.head_dim).transpose(0, 1) for name in MATRICES[ATTENTION][:3])
    groups = m.n_heads // m.n_kv_heads
    q, k, v = _rotate(q, m), _rotate(k, m).repeat_interleave(groups, 0), v.repeat_interleave(groups, 0)
    # With a batch of one: without it torch takes the path that holds [heads, L, L].
    mixed = functional.scaled_dot_product_attention(q[None], k[None], v[None], m.seen, is_causal=m.seen is None)[0]
    return x + linear("self_attn.o_proj", mixed.transpose(0, 1).reshape(len(x), -1))


# ------------------------------------------------------------------------------------------------------------------ head


class Losses:
    """Mean next-token losses of sequences and their gradients, from the rows of the head as they come: a position's
    largest logit, sum of exponentials and mean row are carried along and rescaled (Milakov and Gimelshein, arXiv
    1805.02867, do so for the sum).
    """

    def __init__(self, ids: np.ndarray):
        """ids: int64 [n, L]."""
        self._targets = torch.from_numpy(np.pad(ids[:, 1:], ((0, 0), (0, 1)), constant_values=-1))  # the last has none
        self._most = torch.full(ids.shape, -torch.inf, dtype=torch.float32)
        self._sum, self._of_target = torch.zeros_like(self._most), torch.zeros_like(self._most)

    def add(self, i: int, h: torch.Tensor, rows: torch.Tensor, first: int, mean_row: torch.Tensor | None):
        """Takes rows first, first + 1, ... of the head for sequence i. h: the normed last states [L, D]. mean_row: what
        the call for the rows before returned, None for the first. Returns the sum of exp(logit - largest) row, [L, D].
        """
        logits = h @ rows.t()
        targets = self._targets[i] - first
        here = torch.nonzero((targets >= 0) & (targets < len(rows)))[:, 0]
        self._of_target[i, here] = logits[here, targets[here]]
        most = torch.maximum(self._most[i], logits.max(-1).values)
        shrink = torch.exp(self._most[i] - most)
        p = logits.sub_(most[:, None]).exp_()
        self._sum[i] = self._sum[i] * shrink + p.sum(-1)
        self._most[i] = most
        return p @ rows if mean_row is None else torch.addmm(mean_row * shrink[:, None], p, rows)

    def of(self, i: int) -> float:
        """The mean over the L - 1 positions that have a target."""
        own = torch.log(self._sum[i]) + self._most[i] - self._of_target[i]
        return float(own[:-1].double().mean())

    def gradient(self, i: int, mean_row: torch.Tensor, target_rows: torch.Tensor) -> torch.Tensor:
        """d loss / d h, [L, D]. mean_row: what the last `add` returned; target_rows: of the head, [L - 1, D]."""
        out = mean_row / self._sum[i][:, None]
        out[:-1] -= target_rows
        out[-1] = 0
        return out.div_(len(target_rows))
