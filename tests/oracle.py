"""A dense float64 oracle of one zeroth-order step on a llama, in numpy, written from the equations and from nothing
else.

Sources: MeZO, arXiv 2305.17333, algorithm 1 and definition 1 (SPSA); Sparse-MeZO, arXiv 2402.15751, algorithm 1 and
equation 3; the exact order of roundings is the library's own contract: decay first, then one fma a query, then one
rounding to the stored format. It shares no code with the package. Noise, mask bits and rounding bits are arrays that
the caller passes in, so that what is tested is what is done with them.

Traps: every fp32 operation that must match bit for bit is made here from exact arithmetic (`fma32`), never from float32
expressions, whose products are rounded; the losses on the other hand are plain float64 and agree with fp32 code only to
a tolerance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

Array = np.ndarray


# ------------------------------------------------------------------------------------------------ exact fp32 arithmetic


def fma32(a, x, y) -> Array:
    """fp32(a * x + y) with one rounding, for fp32 inputs.

    The product of two 24-bit numbers is exact in float64. Its sum with y is not: rounding to 53 bits and then to 24 can
    be wrong. So the sum is rounded to odd first (Boldo and Melquiond 2008), which makes the second rounding right.
    """
    a, x, y = (np.asarray(v, np.float32).astype(np.float64) for v in (a, x, y))
    p = a * x
    s = p + y
    # Two-sum (Knuth): err is exactly p + y - s.
    t = s - p
    err = (p - (s - t)) + (y - t)
    bits = np.atleast_1d(s).view(np.int64)
    err = np.atleast_1d(np.broadcast_to(err, np.shape(s)))
    even = (bits & 1) == 0
    away = (err > 0) == (np.atleast_1d(s) > 0)  # the exact sum lies beyond s, seen from zero
    odd = np.where((err != 0) & even, np.where(away, bits + 1, bits - 1), bits)
    return odd.view(np.float64).reshape(np.shape(s)).astype(np.float32)


def fp32_bits(values) -> Array:
    return np.ascontiguousarray(values, np.float32).view(np.uint32)


def from_bits(bits) -> Array:
    return np.ascontiguousarray(bits).astype(np.uint32).view(np.float32)


def store(values: Array, dtype: str, random_bits: Array | None) -> Array:
    """fp32 values -> what a weight of `dtype` keeps of them, as fp32. Stochastic rounding adds the random bits below
    the kept ones."""
    if dtype == "fp32":
        return np.asarray(values, np.float32)
    dropped = {"bf16+8": 8, "bf16": 16}[dtype]
    bits = fp32_bits(values).astype(np.uint64)
    r = np.asarray(random_bits, np.uint64)
    if r.shape != bits.shape or (r >> dropped).any():
        raise ValueError(f"{dtype} wants {dropped} random bits for each of {bits.shape} values")
    return from_bits(((bits + r) >> dropped) << dropped)


def split24(values: Array) -> tuple[Array, Array]:
    """A 24-bit value -> (bf16 bits, signed tail): the nearest bf16, ties away from zero, and the difference of the
    24-bit patterns."""
    u24 = (fp32_bits(values) >> 8).astype(np.int64)
    hi = (u24 + 0x80) >> 8
    return hi.astype(np.uint16), (u24 - (hi << 8)).astype(np.int8)


# ---------------------------------------------------------------------------------------------------- the llama forward


@dataclass(frozen=True)
class Config:
    """What the forward needs of a Hugging Face llama config."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    vocab: int
    theta: float
    norm_eps: float
    tied: bool

    @staticmethod
    def of(c: dict) -> Config:
        theta = c.get("rope_theta") or (c.get("rope_parameters") or {}).get("rope_theta", 10000.0)
        return Config(
            hidden=c["hidden_size"],
            layers=c["num_hidden_layers"],
            heads=c["num_attention_heads"],
            kv_heads=c.get("num_key_value_heads") or c["num_attention_heads"],
            head_dim=c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"],
            inner=c["intermediate_size"],
            vocab=c["vocab_size"],
            theta=float(theta),
            norm_eps=float(c["rms_norm_eps"]),
            tied=bool(c.get("tie_word_embeddings", False)),
        )


def rms_norm(x: Array, gain: Array, eps: float) -> Array:
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * gain


def rotate(x: Array, theta: float) -> Array:
    """Rotary embedding, Hugging Face half layout. x: [T, heads, head_dim]; angle of pair i at position p is p *
    theta^(-2 i / head_dim)."""
    n, _, d = x.shape
    angle = np.arange(n)[:, None, None] * theta ** (-2.0 * np.arange(d // 2) / d)
    a, b = x[..., : d // 2], x[..., d // 2 :]
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], axis=-1)


def attend(q: Array, k: Array, v: Array) -> Array:
    """Causal softmax attention. q: [T, heads, d]; k, v: [T, kv_heads, d]; each kv head serves heads / kv_heads query
    heads in a row."""
    n, heads, d = q.shape
    group = heads // k.shape[1]
    hidden_from = np.triu(np.ones((n, n), bool), 1)
    out = np.empty_like(q)
    for h in range(heads):
        s = q[:, h] @ k[:, h // group].T / np.sqrt(d)
        s[hidden_from] = -np.inf
        p = np.exp(s - s.max(axis=1, keepdims=True))
        out[:, h] = p / p.sum(axis=1, keepdims=True) @ v[:, h // group]
    return out


def forward(weights: dict[str, Array], config: Config, tokens) -> Array:
    """Logits float64 [T, V] of one sequence. Weights by Hugging Face name, [out, in]."""
    w = {name: np.asarray(a, np.float64) for name, a in weights.items()}
    embedding = w["model.embed_tokens.weight"]
    x = embedding[np.asarray(tokens, np.int64)]
    n, d = len(x), config.head_dim
    for i in range(config.layers):
        at = f"model.layers.{i}."
        y = rms_norm(x, w[at + "input_layernorm.weight"], config.norm_eps)
        q = (y @ w[at + "self_attn.q_proj.weight"].T).reshape(n, config.heads, d)
        k = (y @ w[at + "self_attn.k_proj.weight"].T).reshape(n, config.kv_heads, d)
        v = (y @ w[at + "self_attn.v_proj.weight"].T).reshape(n, config.kv_heads, d)
        a = attend(rotate(q, config.theta), rotate(k, config.theta), v)
        x = x + a.reshape(n, config.heads * d) @ w[at + "self_attn.o_proj.weight"].T
        y = rms_norm(x, w[at + "post_attention_layernorm.weight"], config.norm_eps)
        gate, up = y @ w[at + "mlp.gate_proj.weight"].T, y @ w[at + "mlp.up_proj.weight"].T
        x = x + (gate / (1 + np.exp(-gate)) * up) @ w[at + "mlp.down_proj.weight"].T
    x = rms_norm(x, w["model.norm.weight"], config.norm_eps)
    return x @ (embedding if config.tied else w["lm_head.weight"]).T


# ----------------------------------------------------------------------------------------------------------- the losses


@dataclass(frozen=True)
class Label:
    """The logits at `position` of `sequence` predict `target`, for `option` of `example`."""

    sequence: int
    position: int
    target: int
    example: int
    option: int = 0


@dataclass(frozen=True)
class Batch:
    """Sequences that do not see each other; an option of a choice is a whole sequence, prompt included, whatever the
    package shares.

    task: "language_model"; "candidates" (one label an example, its target unused; scores are the logits of
    `candidates`); "sequences" (score of an option: mean log-probability of its labels).
    """

    sequences: list
    labels: list[Label]
    n_examples: int
    task: str = "language_model"
    candidates: tuple = ()
    answers: tuple = ()

    @staticmethod
    def padded(input_ids, attention_mask, labels) -> Batch:
        """From Hugging Face arrays [B, T]: a label at column t is predicted at the column before it; -100 is no
        label."""
        sequences, found = [], []
        for i, (ids, mask, wanted) in enumerate(zip(input_ids, attention_mask, labels, strict=True)):
            real = [t for t in range(len(ids)) if mask[t]]
            sequences.append([int(ids[t]) for t in real])
            found += [Label(i, p - 1, int(wanted[t]), i) for p, t in enumerate(real) if p > 0 and wanted[t] != -100]
        return Batch(sequences, found, len(sequences))


def log_softmax(x: Array) -> Array:
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def example_losses(weights: dict[str, Array], config: Config, batch: Batch) -> tuple[Array, Array]:
    """(sum of negative log-likelihoods, count) of every example; a choice's loss is one cross-entropy, count 1."""
    logits = [forward(weights, config, s) for s in batch.sequences]
    total, count = np.zeros(batch.n_examples), np.zeros(batch.n_examples, np.int64)
    if batch.task == "language_model":
        for y in batch.labels:
            total[y.example] -= log_softmax(logits[y.sequence][y.position])[y.target]
            count[y.example] += 1
        return total, count
    if batch.task == "candidates":
        scores = {y.example: logits[y.sequence][y.position][list(batch.candidates)] for y in batch.labels}
    else:
        of: dict = {}
        for y in batch.labels:
            of.setdefault((y.example, y.option), []).append(log_softmax(logits[y.sequence][y.position])[y.target])
        n_options = 1 + max(option for _, option in of)
        scores = {e: np.array([np.mean(of[e, o]) for o in range(n_options)]) for e in range(batch.n_examples)}
    for e, answer in enumerate(batch.answers):
        total[e] = -log_softmax(scores[e])[answer]
        count[e] = 1
    return total, count


def reduce(total: Array, count: Array, reduction: str) -> float:
    """ "example": mean over examples of the mean over their tokens; "token": sum over tokens / number of tokens."""
    return float(np.mean(total / count)) if reduction == "example" else float(total.sum() / count.sum())


# ------------------------------------------------------------------------------------------------------------- the step


def threshold(w0: Array, sparsity: float) -> np.float32:
    """h: the k-th smallest |w0|, k = max(1, round((1 - sparsity) * n)). sparsity is the frozen fraction; at 0 nothing
    is frozen."""
    if sparsity == 0:
        return np.float32(np.inf)
    magnitudes = np.sort(np.abs(np.asarray(w0, np.float32)).ravel())
    k = max(1, int(np.floor((1 - sparsity) * magnitudes.size + 0.5)))
    return magnitudes[k - 1]


@dataclass
class Step:
    losses: Array  # of each example, mean over its tokens; [2 * queries, n_examples], + and - of a query adjacent
    reduced: Array  # [2 * queries]
    scalars: Array  # g of every query, float64, by SPSA
    masks: dict[str, Array] = field(default_factory=dict)
    weights: dict[str, Array] = field(default_factory=dict)  # after the step; untouched ones included


def perturbed(weights, z, masks, eps: float, sign: int) -> dict[str, Array]:
    """w + sign * eps * (m z) in float64; eps is the fp32 number that the record holds."""
    moved = {name: np.asarray(a, np.float64) for name, a in weights.items()}
    for name, m in masks.items():
        moved[name] = moved[name] + sign * float(np.float32(eps)) * np.where(m, z[name].astype(np.float64), 0.0)
    return moved


def update(
    w: Array,
    z: list[Array],
    mask: Array,
    scalars,
    lr: float,
    weight_decay: float = 0.0,
    values: str = "fp32",
    random_bits=None,
):
    """One tensor after one record. z: one array a query. The mask is of the value before the record; outside it, bits
    are kept."""
    old = np.asarray(w, np.float32)
    new = old
    decay = np.float32(lr * weight_decay)
    if decay != 0:
        new = fma32(-decay, np.where(mask, new, np.float32(0)), new)
    for zq, g in zip(z, scalars, strict=True):
        c = np.float32(lr * float(np.float32(g)) / len(z))
        new = fma32(-c, np.where(mask, zq, np.float32(0)), new)
    return np.where(mask, store(new, values, random_bits), old)


def step(
    weights: dict[str, Array],
    config: Config,
    batch: Batch,
    trained: list[str],
    z: Callable[[str, int], Array],
    mask: Callable[[str, Array], Array],
    eps: float,
    lr: float,
    queries: int = 1,
    weight_decay: float = 0.0,
    values: str = "fp32",
    rounding: Callable[[str], Array] | None = None,
    reduction: str = "example",
    scalars=None,
) -> Step:
    """One training step. `z(name, query)` and `rounding(name)` have the tensor's shape; `mask(name, w)` is bool of it.

    `scalars`: take these instead of the step's own, to compare updates bit for bit.
    Weight decay is of matrices only: norms and biases are left alone, as in MeZO.
    """
    weights = {name: np.asarray(a, np.float32) for name, a in weights.items()}
    masks = {name: np.broadcast_to(mask(name, weights[name]), weights[name].shape) for name in trained}
    directions = [{name: np.asarray(z(name, q), np.float32) for name in trained} for q in range(queries)]
    losses, reduced, g = [], [], []
    for d in directions:
        for sign in (+1, -1):
            total, count = example_losses(perturbed(weights, d, masks, eps, sign), config, batch)
            losses.append(total / count)
            reduced.append(reduce(total, count, reduction))
        g.append((reduced[-2] - reduced[-1]) / (2 * float(np.float32(eps))))
    out = dict(weights)
    for name in trained:
        matrix = weights[name].ndim == 2 and min(weights[name].shape) > 1
        out[name] = update(
            weights[name],
            [d[name] for d in directions],
            masks[name],
            g if scalars is None else scalars,
            lr,
            weight_decay if matrix else 0.0,
            values,
            rounding(name) if rounding else None,
        )
    return Step(np.array(losses), np.array(reduced), np.array(g), masks, out)
