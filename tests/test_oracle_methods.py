"""The methods' oracle is itself tested: directions against their laws by Monte Carlo, rules against each other where
their papers say that they are the same, gradients against derivatives.
"""

import numpy as np
import oracle_methods as o
import pytest

M, N, R = 6, 5, 3
DRAWS = 10_000


def dense(rng):
    return rng.normal(size=(M, N))


def tezo(rng):
    return o.tezo_direction(rng.normal(size=(M, R)), rng.normal(size=(N, R)), rng.normal(size=R))


def lozo(rng):
    return o.lozo_direction(rng.normal(size=(M, R)), rng.normal(size=(N, R)))


def subzero(rng):
    u, v = o.orthonormal(rng.normal(size=(M, R))), o.orthonormal(rng.normal(size=(N, R)))
    return o.subzero_direction(u, v, rng.normal(size=(R, R)))


@pytest.mark.parametrize("direction", [dense, tezo, lozo, subzero])
def test_directions_have_norm_mn_and_give_the_gradient_in_the_mean(direction):
    """E||Z||^2 = m n and E[<G, Z> Z] = G: within three standard errors, entry by entry (of 30, so a little more)."""
    rng, g = np.random.default_rng(7), np.random.default_rng(8).normal(size=(M, N))
    z = np.stack([direction(rng) for _ in range(DRAWS)])
    norms = (z**2).sum(axis=(1, 2))
    assert abs(norms.mean() - M * N) < 3 * norms.std() / np.sqrt(DRAWS)
    estimates = (z * g).sum(axis=(1, 2))[:, None, None] * z
    off = (estimates.mean(axis=0) - g) / (estimates.std(axis=0) / np.sqrt(DRAWS))
    assert np.abs(off).max() < 4 and np.abs(off).mean() < 1.2


def test_orthonormal_factors_are():
    q = o.orthonormal(np.random.default_rng(0).normal(size=(40, 7)))
    assert np.allclose(q.T @ q, np.eye(7), atol=1e-14)


def test_subzero_with_fixed_factors_projects():
    """Given its factors the estimate is m n / r^2 times the orthogonal projection of the gradient onto their spans."""
    rng = np.random.default_rng(1)
    u, v, g = o.orthonormal(rng.normal(size=(M, R))), o.orthonormal(rng.normal(size=(N, R))), rng.normal(size=(M, N))
    mean = np.zeros((M, N))
    for i in range(R):  # E[<G, Z> Z] is the sum over the entries of Z', which are uncorrelated
        for j in range(R):
            z = np.zeros((R, R))
            z[i, j] = 1
            d = o.subzero_direction(u, v, z)
            mean += (g * d).sum() * d
    assert np.allclose(mean, M * N / R**2 * (u @ u.T @ g @ v @ v.T))


def test_scalars_are_derivatives():
    """Of a quadratic: two-sided exactly, one-sided up to eps / 2 times the second derivative."""
    rng, eps = np.random.default_rng(2), 1e-3
    w, z, a = rng.normal(size=8), rng.normal(size=8), rng.normal(size=(8, 8))

    def loss(x):
        return float(x @ a @ x)

    slope, bend = float((a + a.T) @ w @ z), float(2 * z @ a @ z)
    plus, minus, centre = loss(w + eps * z), loss(w - eps * z), loss(w)
    assert o.two_sided(plus, minus, eps) == pytest.approx(slope, rel=1e-9)
    assert o.one_sided(plus, centre, eps) == pytest.approx(slope + eps / 2 * bend, rel=1e-6)


def test_fzoo_does_not_change_with_the_scale_of_losses():
    losses, centre = np.array([1.0, 1.5, 0.7, 1.1]), 1.02
    g = o.fzoo(losses, centre, 1e-3)
    assert np.allclose(g, o.fzoo(5 * losses, 5 * centre, 1e-3))
    assert np.allclose(o.fzoo(losses, centre, 1e-3, over_eps=True), g * 1e3)
    assert np.allclose(g * losses.std(), losses - centre)


def test_active_layers_and_rows_are_as_many_as_asked():
    rng = np.random.default_rng(3)
    chosen = np.stack([o.active_layers(rng.random(8), 2) for _ in range(4000)])
    assert (chosen.sum(axis=1) == 2).all() and np.abs(chosen.mean(axis=0) - 0.25).max() < 0.03
    score = np.array([[1, 3, 3, 2], [0, 0, 0, 0]])
    assert o.top_k_of_rows(score, 2).tolist() == [[False, True, True, False], [True, True, False, False]]


def steps(n=6, seed=4):
    rng = np.random.default_rng(seed)
    return [([float(rng.normal()) for _ in range(2)], [rng.normal(size=R) for _ in range(2)]) for _ in range(n)]


@pytest.mark.parametrize("rule", [o.Sgd, o.Momentum])
def test_tezo_in_coefficients_is_the_rule_on_the_dense_estimate(rule):
    """Both rules are linear, so moving c moves W as the dense rule does (its paper's claim for TeZO-m)."""
    rng = np.random.default_rng(5)
    u, v, w = rng.normal(size=(M, R)), rng.normal(size=(N, R)), rng.normal(size=(M, N))
    low, whole, at = o.TeZO(u, v, rule()), rule(), w
    for scalars, taus in steps():
        low.step(scalars, taus, 0.1)
        at = whole.step(at, o.mean_estimate(scalars, [o.tezo_direction(u, v, t) for t in taus]), 0.1)
    assert np.allclose(w + low.change(), at, atol=1e-13)


def test_tezo_adam_drops_the_cross_terms_and_nothing_else():
    """At rank 1 there are none: its second moment is that of the dense Adam."""
    rng = np.random.default_rng(6)
    u, v, w = rng.normal(size=(M, 1)), rng.normal(size=(N, 1)), rng.normal(size=(M, N))
    low, at = o.TeZOAdam(u, v, 0.9, 0.99, delta=0.0), w
    whole, dense_at = o.Adam(0.9, 0.99, delta=0.0), w
    low.corrected = True
    for _ in range(5):
        g, tau = float(rng.normal()), rng.normal(size=1)
        at = low.step(at, [g], [tau], 0.01)
        dense_at = whole.step(dense_at, g * o.tezo_direction(u, v, tau), 0.01)
    assert np.allclose(at, dense_at, atol=1e-12)


def test_lozo_momentum_while_v_stays_is_momentum():
    rng = np.random.default_rng(9)
    v, w = rng.normal(size=(N, R)), rng.normal(size=(M, N))
    low, whole, at, dense_at = o.LozoMomentum(), o.Momentum(), w, w
    for _ in range(5):
        g, us = [float(rng.normal())], [rng.normal(size=(M, R))]
        at = low.step(at, g, us, v, 0.1)
        dense_at = whole.step(dense_at, g[0] * o.lozo_direction(us[0], v), 0.1)
    assert np.allclose(at, dense_at)
    before = low.n @ v.T
    low.beta = 1.0  # no new direction: what is left of the momentum is its projection
    new = rng.normal(size=(N, R))
    low.step(at, [0.0], [np.zeros((M, R))], new, 0.1)
    assert np.allclose(low.n, before @ new / N)


def test_a_window_over_all_steps_is_adam():
    rng = np.random.default_rng(10)
    estimates = [rng.normal(size=7) for _ in range(5)]
    whole, w = o.Adam(0.7, 0.9, 1e-5), np.zeros(7)
    for g in estimates:
        before, w = w, whole.step(w, g, 1.0)
    assert np.allclose(before - w, o.window_adam(estimates, 0.7, 0.9, 1e-5))


def test_hizoo_learns_the_curvature():
    """Of a separable quadratic the diagonal grows where it is steep: ratios follow a_i, and with s = 0 it is MeZO."""
    rng, a = np.random.default_rng(11), np.array([0.1, 1.0, 10.0])

    def loss(x):
        return float((a * x * x).sum() / 2)

    plain, learned, w, eps = o.HiZOO(s=0.0), o.HiZOO(s=0.02), rng.normal(size=3), 1e-3
    z = rng.normal(size=3)
    found = [loss(w + eps * z), loss(w - eps * z), loss(w)]
    same = plain.step(w, z, *found, eps, 0.1)
    assert np.allclose(same, w - 0.1 * float(o.two_sided(found[0], found[1], eps)) * z)
    for _ in range(400):
        z = rng.normal(size=3)
        d = learned.direction(z)
        learned.step(w, z, loss(w + eps * d), loss(w - eps * d), loss(w), eps, 0.0)
    assert learned.h[0] < learned.h[1] < learned.h[2]
