"""The oracle is itself tested: its arithmetic against exact fractions, its forward against transformers, its scalar
against a derivative.

The transformers parts are skipped where torch is not installed; the rest always runs.
"""

from fractions import Fraction

import numpy as np
import oracle
import pytest
from tiny_llama import config, linear_names, random_weights

CONFIG = config(hidden=32, heads=4, kv_heads=2, inner=48, vocab=61)


def batch_of(rng, vocab: int, lengths=(5, 9, 3)) -> oracle.Batch:
    sequences = [rng.integers(0, vocab, n).tolist() for n in lengths]
    labels = [oracle.Label(i, p, s[p + 1], i) for i, s in enumerate(sequences) for p in range(len(s) - 1)]
    return oracle.Batch(sequences, labels, len(sequences))


def loss(weights: dict, shape: oracle.Config, batch: oracle.Batch) -> float:
    return oracle.reduce(*oracle.example_losses(weights, shape, batch), "example")


# ------------------------------------------------------------------------------------------------------ fp32 arithmetic


def fraction_to_fp32(x: Fraction) -> np.float32:
    """Nearest fp32, ties to even, by exact rational arithmetic (normal range only)."""
    if x == 0:
        return np.float32(0)
    e = 0
    m = abs(x)
    while m >= 2**24:
        m, e = m / 2, e + 1
    while m < 2**23:
        m, e = m * 2, e - 1
    low = m.numerator // m.denominator
    rest = m - low
    up = rest > Fraction(1, 2) or (rest == Fraction(1, 2) and low % 2 == 1)
    return np.float32(np.ldexp(float(low + up), e) * (1 if x > 0 else -1))


def test_fma32_is_exact_arithmetic_rounded_once():
    rng = np.random.default_rng(1)
    a = (rng.normal(size=4000) * 10.0 ** rng.integers(-6, 2, 4000)).astype(np.float32)
    x = rng.normal(size=4000).astype(np.float32)
    y = (rng.normal(size=4000) * 10.0 ** rng.integers(-3, 3, 4000)).astype(np.float32)
    got = oracle.fma32(a, x, y)
    want = np.array(
        [
            fraction_to_fp32(Fraction(float(i)) * Fraction(float(j)) + Fraction(float(k)))
            for i, j, k in zip(a, x, y, strict=True)
        ]
    )
    assert np.array_equal(got.view(np.uint32), want.astype(np.float32).view(np.uint32))


def test_fma32_where_rounding_twice_is_wrong():
    # A sum 2^-60 beside a tie of fp32: float64 cannot hold the difference, so rounding twice takes the tie's even side.
    for a, x, y, want in [
        (4097, 16773121 * 2.0**-60, 1.0, 1 + 2.0**-23),  # 2^-24 + 2^-60: above the tie
        (2**18 - 1, (2**18 + 1) * 2.0**-60, 1 + 2.0**-23, 1 + 2.0**-23),  # 2^-24 - 2^-60: below the tie
    ]:
        a, x, y = np.float32(a), np.float32(x), np.float32(y)
        for sign in (1, -1):
            assert oracle.fma32(sign * a, x, sign * y) == sign * want
            assert np.float32(np.float64(sign * a) * np.float64(x) + np.float64(sign * y)) != sign * want
    assert oracle.fma32(np.float32(2.0**-24), np.float32(1), np.float32(1 + 2.0**-23)) == np.float32(
        1 + 2.0**-22
    )  # a true tie: to even


def test_store_rounds_up_as_often_as_the_dropped_bits_say():
    w = oracle.from_bits(np.full(256, 0x3F8012A0, np.uint32))
    kept = oracle.fp32_bits(oracle.store(w, "bf16+8", np.arange(256)))
    assert set(kept.tolist()) == {0x3F801200, 0x3F801300} and (kept == 0x3F801300).sum() == 0xA0
    w = oracle.from_bits(np.full(65536, 0xBF80A001, np.uint32))
    kept = oracle.fp32_bits(oracle.store(w, "bf16", np.arange(65536)))
    assert set(kept.tolist()) == {0xBF800000, 0xBF810000} and (kept == 0xBF810000).sum() == 0xA001
    with pytest.raises(ValueError):
        oracle.store(w, "bf16+8", np.full(65536, 256))


def test_split24_gives_the_value_back():
    w = np.random.default_rng(2).normal(size=1000).astype(np.float32)
    w = oracle.from_bits(oracle.fp32_bits(w) & np.uint32(0xFFFFFF00))
    hi, tail = oracle.split24(w)
    back = oracle.from_bits((((hi.astype(np.int64) << 8) + tail) << 8).astype(np.uint32))
    assert np.array_equal(back, w)
    assert np.abs(oracle.from_bits(hi.astype(np.uint32) << 16) - w).max() <= np.abs(w).max() * 2**-8


# -------------------------------------------------------------------------------------------------- the forward, losses


def transformers_logits(c: dict, weights: dict, tokens, exact: bool) -> np.ndarray:
    """LlamaForCausalLM in float64. As it stands it makes norms and rotary angles in fp32 whatever the model's dtype;
    `exact` replaces those two places by torch's own float64 functions."""
    torch = pytest.importorskip("torch")
    modeling = pytest.importorskip("transformers.models.llama.modeling_llama")
    keep = {k: v for k, v in c.items() if k != "rope_theta"}
    config = modeling.LlamaConfig(
        **keep, rope_parameters={"rope_type": "default", "rope_theta": c["rope_theta"]}, attn_implementation="sdpa"
    )
    model = modeling.LlamaForCausalLM(config).double().eval()
    missing = model.load_state_dict({k: torch.from_numpy(v).double() for k, v in weights.items()}, strict=False)
    assert not missing.unexpected_keys and set(missing.missing_keys) <= {"lm_head.weight"}
    model.tie_weights()

    def norm(self, x):
        return torch.nn.functional.rms_norm(x, (x.shape[-1],), self.weight, self.variance_epsilon)

    def rotary(self, x, position_ids):
        d = c["head_dim"]
        inverse = 1.0 / c["rope_theta"] ** (torch.arange(0, d, 2, dtype=torch.float64) / d)
        angles = torch.cat([position_ids[..., None].double() * inverse] * 2, dim=-1)
        return angles.cos(), angles.sin()

    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        if exact:
            patch.setattr(modeling.LlamaRMSNorm, "forward", norm)
            patch.setattr(modeling.LlamaRotaryEmbedding, "forward", rotary)
        return model(torch.tensor([tokens])).logits[0].numpy()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_forward_equals_transformers(tied, kv_heads):
    c = CONFIG | {"tie_word_embeddings": tied, "num_key_value_heads": kv_heads}
    weights = random_weights(c, seed=kv_heads)
    tokens = np.random.default_rng(3).integers(0, c["vocab_size"], 40).tolist()
    got = oracle.forward(weights, oracle.Config.of(c), tokens)
    exact = transformers_logits(c, weights, tokens, exact=True)
    assert np.abs(got - exact).max() <= 1e-10 * np.abs(exact).max()
    as_shipped = transformers_logits(c, weights, tokens, exact=False)
    assert np.abs(got - as_shipped).max() <= 1e-5 * np.abs(exact).max()


def test_losses_equal_torch_cross_entropy():
    torch = pytest.importorskip("torch")
    weights, shape = random_weights(CONFIG), oracle.Config.of(CONFIG)
    rng = np.random.default_rng(4)
    batch = batch_of(rng, CONFIG["vocab_size"])
    total, count = oracle.example_losses(weights, shape, batch)
    for i, s in enumerate(batch.sequences):
        logits = torch.from_numpy(transformers_logits(CONFIG, weights, s, exact=True))
        want = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(s[1:]), reduction="sum").item()
        assert count[i] == len(s) - 1
        assert total[i] == pytest.approx(want, rel=1e-10)
    assert oracle.reduce(total, count, "example") == pytest.approx(
        np.mean([t / n for t, n in zip(total, count, strict=True)])
    )
    assert oracle.reduce(total, count, "token") == pytest.approx(total.sum() / count.sum())
    assert oracle.reduce(total, count, "token") != pytest.approx(oracle.reduce(total, count, "example"))


def test_choice_by_candidates_and_by_sequences_agree_on_single_tokens():
    # A one-token option's log-probability and its logit differ by the same normaliser for every option, so the cross-
    # entropies are equal.
    weights, shape = random_weights(CONFIG), oracle.Config.of(CONFIG)
    prompts = [[3, 7, 9], [11, 2, 5, 8]]
    options, answers = (17, 29, 40), (2, 0)
    by_logit = oracle.Batch(
        prompts, [oracle.Label(i, len(p) - 1, -1, i) for i, p in enumerate(prompts)], 2, "candidates", options, answers
    )
    sequences, labels = [], []
    for i, p in enumerate(prompts):
        for o, token in enumerate(options):
            labels.append(oracle.Label(len(sequences), len(p) - 1, token, i, o))
            sequences.append([*p, token])
    by_sequence = oracle.Batch(sequences, labels, 2, "sequences", (), answers)
    a, b = oracle.example_losses(weights, shape, by_logit), oracle.example_losses(weights, shape, by_sequence)
    assert a[0] == pytest.approx(b[0], rel=1e-12) and a[1].tolist() == b[1].tolist() == [1, 1]
    assert (a[0] > 0).all() and a[0][0] != pytest.approx(a[0][1])


def test_padding_does_not_reach_the_losses():
    ids = [[0, 0, 5, 9, 13], [4, 6, 8, 0, 0]]
    mask = [[0, 0, 1, 1, 1], [1, 1, 1, 0, 0]]
    wanted = [[-100, -100, 5, 9, 13], [-100, -100, 8, -100, -100]]
    batch = oracle.Batch.padded(ids, mask, wanted)
    assert batch.sequences == [[5, 9, 13], [4, 6, 8]]
    assert [(y.sequence, y.position, y.target) for y in batch.labels] == [(0, 0, 9), (0, 1, 13), (1, 1, 8)]


# ------------------------------------------------------------------------------------------------------------- the step


def test_threshold_counts_and_ties():
    w = np.array([[0.5, -0.25, 0.25, 1.0], [-2.0, 0.25, 3.0, -0.125]], np.float32)
    assert oracle.threshold(w, 0.75) == 0.25  # k = 2 of 8: the second smallest magnitude, and its ties come in
    assert (np.abs(w) <= oracle.threshold(w, 0.75)).sum() == 4
    assert oracle.threshold(w, 0.0) == np.inf
    assert oracle.threshold(w, 0.999) == 0.125  # k = max(1, 0)


@pytest.mark.parametrize("sparsity", [0.0, 0.75])
def test_scalar_is_the_directional_derivative(sparsity):
    """g -> grad . (m z) with an error of order eps^2; the derivative is taken by Richardson extrapolation, no autograd
    anywhere."""
    weights, shape = random_weights(CONFIG), oracle.Config.of(CONFIG)
    rng = np.random.default_rng(5)
    batch = batch_of(rng, CONFIG["vocab_size"])
    names = linear_names(weights)
    z = {n: rng.normal(size=weights[n].shape).astype(np.float32) for n in names}
    h = {n: oracle.threshold(weights[n], sparsity) for n in names}

    def g(eps):
        s = oracle.step(weights, shape, batch, names, lambda n, q: z[n], lambda n, w: np.abs(w) <= h[n], eps, 0.0)
        return s.scalars[0]

    e = 2.0**-9
    far, near, nearest = g(4 * e), g(2 * e), g(e)
    limit = (4 * nearest - near) / 3
    assert abs(near - limit) < abs(far - limit) / 3  # second order: a quarter of the error at half the step
    assert nearest == pytest.approx(limit, rel=1e-3)
    d = 2.0**-20
    moved = {n: w.astype(np.float64) for n, w in weights.items()}
    for n in names:
        moved[n] += d * np.where(np.abs(weights[n]) <= h[n], z[n], 0)
    one_sided = (loss(moved, shape, batch) - loss(weights, shape, batch)) / d
    assert limit == pytest.approx(one_sided, rel=1e-3)


@pytest.mark.slow
def test_scalar_equals_autograd_when_torch_is_there():
    torch = pytest.importorskip("torch")
    modeling = pytest.importorskip("transformers.models.llama.modeling_llama")
    weights, shape = random_weights(CONFIG), oracle.Config.of(CONFIG)
    rng = np.random.default_rng(6)
    batch = batch_of(rng, CONFIG["vocab_size"])
    names = linear_names(weights)
    z = {n: rng.normal(size=weights[n].shape).astype(np.float32) for n in names}
    keep = {k: v for k, v in CONFIG.items() if k != "rope_theta"}
    model = modeling.LlamaForCausalLM(
        modeling.LlamaConfig(**keep, rope_parameters={"rope_type": "default", "rope_theta": CONFIG["rope_theta"]})
    ).double()
    model.load_state_dict({k: torch.from_numpy(v).double() for k, v in weights.items()})
    total = 0
    for s in batch.sequences:
        total = total + torch.nn.functional.cross_entropy(
            model(torch.tensor([s])).logits[0, :-1], torch.tensor(s[1:])
        ) / len(batch.sequences)
    total.backward()
    want = sum(float((model.get_parameter(n).grad * torch.from_numpy(z[n]).double()).sum()) for n in names)
    got = oracle.step(
        weights, shape, batch, names, lambda n, q: z[n], lambda n, w: np.ones(w.shape, bool), 2.0**-12, 0.0
    )
    assert got.scalars[0] == pytest.approx(want, rel=1e-4)


def test_step_descends_and_leaves_the_masked_alone():
    weights, shape = random_weights(CONFIG), oracle.Config.of(CONFIG)
    rng = np.random.default_rng(7)
    batch = batch_of(rng, CONFIG["vocab_size"])
    names = linear_names(weights)
    z = {(n, q): rng.normal(size=weights[n].shape).astype(np.float32) for n in names for q in range(4)}
    h = {n: oracle.threshold(weights[n], 0.75) for n in names}
    s = oracle.step(
        weights, shape, batch, names, lambda n, q: z[n, q], lambda n, w: np.abs(w) <= h[n], 1e-3, 1e-4, queries=4
    )
    assert s.losses.shape == (8, 3) and s.scalars.shape == (4,)
    assert loss(s.weights, shape, batch) < loss(weights, shape, batch)
    for n in weights:
        moved = s.weights[n] != weights[n]
        if n in names:
            assert moved.any() and not moved[~s.masks[n]].any()
        else:
            assert not moved.any()


def test_update_order_is_decay_then_queries_then_one_rounding():
    w = np.array([1.5, -0.75, 1000.0], np.float32)
    z = [np.array([1.0, -2.0, 0.5], np.float32), np.array([0.25, 1.0, -1.0], np.float32)]
    mask = np.array([True, True, False])
    got = oracle.update(w, z, mask, [3.0, -1.0], 2.0**-8, weight_decay=0.5)
    # Powers of two and short numbers: exact by hand. c = (3, -1) / 512, decay = 1 / 512.
    want = [1.5 - 1.5 / 512 - 3 / 512 + 0.25 / 512, -0.75 + 0.75 / 512 + 6 / 512 + 1 / 512, 1000.0]
    assert got.tolist() == want
