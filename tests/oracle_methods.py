"""Dense float64 oracles of the field's zeroth-order methods, in numpy, from the papers' equations and from nothing else.

What a row is made of, each a function or a small class here: where the weights are asked (the directions Z of a query),
what is made of the losses (the scalars), what the step does with them (the rule and its state). Directions are
normalised as the library's are: every entry of a dense one has variance 1, a low-rank one has E||Z||^2 = m n, and the
same Z perturbs and updates. Random arrays are handed in. Nothing here is shared with the package.

Where a paper is ambiguous, or its released code says something else, the choice stands beside it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

Array = np.ndarray

# ----------------------------------------------------------------------------------------------------------- directions


def tezo_direction(u: Array, v: Array, tau: Array) -> Array:
    """Z = U diag(tau) V^T / sqrt(r); U [m, r], V [n, r] fixed for the run, tau [r] of a step (TeZO, arXiv 2501.19057).

    Its paper has no 1 / sqrt(r): with it E||Z||^2 = m n, and the estimate is unbiased over U, V and tau.
    """
    return (u * tau) @ v.T / np.sqrt(len(tau))


def lozo_direction(u: Array, v: Array) -> Array:
    """Z = U V^T / sqrt(r); U [m, r] of a step, V [n, r] of nu steps (LOZO, arXiv 2410.07698, algorithm 1).

    The paper perturbs with U V^T and updates with U V^T / r, which is this at a radius larger by sqrt(r); its released
    code leaves the 1 / r out.
    """
    return u @ v.T / np.sqrt(u.shape[1])


def orthonormal(g: Array) -> Array:
    """The orthonormal factor of a Gaussian [m, r], whose triangular factor has a positive diagonal."""
    q, r = np.linalg.qr(np.asarray(g, np.float64))
    return q * np.where(np.diag(r) < 0, -1.0, 1.0)


def subzero_direction(u: Array, v: Array, z: Array) -> Array:
    """Z = sqrt(m n) / r U Z' V^T; U [m, r], V [n, r] orthonormal for F steps, Z' [r, r] of a step (SubZero, arXiv
    2410.08989, equations 5 and 6)."""
    (m, r), n = u.shape, len(v)
    return np.sqrt(m * n) / r * (u @ z @ v.T)


def active_layers(draws: Array, keep: int) -> Array:
    """Which of the layers take part in a step: the `keep` with the smallest draws (LeZO, arXiv 2410.09823, section 3).
    What lies outside the layers always does."""
    chosen = np.zeros(len(draws), bool)
    chosen[np.argsort(draws, kind="stable")[:keep]] = True
    return chosen


def top_k_of_rows(score: Array, k: int) -> Array:
    """The mask of MaZO (arXiv 2502.11513): the k largest scores of every row; of equal ones the first."""
    order = np.argsort(-np.asarray(score, np.float64), axis=1, kind="stable")
    out = np.zeros(score.shape, bool)
    np.put_along_axis(out, order[:, :k], True, axis=1)
    return out


# -------------------------------------------------------------------------------------------------------------- scalars


def two_sided(plus, minus, eps: float) -> Array:
    """g_q = (l(w + eps Z_q) - l(w - eps Z_q)) / (2 eps): SPSA (MeZO, arXiv 2305.17333, definition 1)."""
    return (np.asarray(plus, np.float64) - np.asarray(minus, np.float64)) / (2 * eps)


def one_sided(losses, centre: float, eps: float) -> Array:
    """g_q = (l(w + eps Z_q) - l(w)) / eps, one centre for all queries."""
    return (np.asarray(losses, np.float64) - centre) / eps


def fzoo(losses, centre: float, eps: float, over_eps: bool = False) -> Array:
    """g_q = (l_q - l_0) / sigma, sigma the population's standard deviation of the l_q (1/N; FZOO, arXiv
    2506.09034, as its released code). The paper divides by eps too, the code does not, and the learning rates are the
    code's.
    """
    losses = np.asarray(losses, np.float64)
    return (losses - centre) / losses.std() / (eps if over_eps else 1.0)


# ---------------------------------------------------------------------------------------- rules on a tensor of any shape


def mean_estimate(scalars, directions) -> Array:
    """The gradient's estimate: the mean over queries of g_q Z_q."""
    return sum(float(g) * np.asarray(z, np.float64) for g, z in zip(scalars, directions, strict=True)) / len(directions)


class Sgd:
    """w <- w - lr g_hat."""

    def step(self, w: Array, estimate: Array, lr: float) -> Array:
        return w - lr * estimate


@dataclass
class Momentum:
    """m <- beta m + (1 - beta) g_hat; w <- w - lr m (MeZO, appendix B.2; an average, so that lr means what it means
    without it; damped=False: m <- beta m + g_hat, as torch's SGD)."""

    beta: float = 0.9
    damped: bool = True
    m: Array | float = 0.0

    def step(self, w: Array, estimate: Array, lr: float) -> Array:
        self.m = self.beta * self.m + (1 - self.beta if self.damped else 1.0) * estimate
        return w - lr * self.m


@dataclass
class Adam:
    """m, v: averages of g_hat and its square, with bias taken out (corrected=False: not);
    w <- w - lr m / (sqrt(v) + delta) (MeZO, appendix B.2, with the Adam of arXiv 1412.6980)."""

    beta1: float = 0.9
    beta2: float = 0.999
    delta: float = 1e-8
    corrected: bool = True
    m: Array | float = 0.0
    v: Array | float = 0.0
    t: int = 0

    def step(self, w: Array, estimate: Array, lr: float) -> Array:
        self.t += 1
        self.m = self.beta1 * self.m + (1 - self.beta1) * estimate
        self.v = self.beta2 * self.v + (1 - self.beta2) * estimate**2
        m, v = self.m, self.v
        if self.corrected:
            m, v = m / (1 - self.beta1**self.t), v / (1 - self.beta2**self.t)
        return w - lr * m / (np.sqrt(v) + self.delta)


def window_adam(estimates: list[Array], beta1: float, beta2: float, delta: float, corrected: bool = True) -> Array:
    """What a step takes off, over lr: Adam's moments rebuilt from the last estimates, oldest first, and from no older
    ones (AdaMeZO, arXiv 2605.00650, algorithm 1): m / (sqrt(v) + delta), bias taken out over the window."""
    m = v = 0.0
    for g in estimates:
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
    if corrected:
        m, v = m / (1 - beta1 ** len(estimates)), v / (1 - beta2 ** len(estimates))
    return m / (np.sqrt(v) + delta)


# ------------------------------------------------------------------------------------- rules in a low-rank method's terms


@dataclass
class TeZO:
    """W = W_0 + U diag(c) V^T / sqrt(r): SGD, momentum or Adam on c (TeZO, TeZO-m; `adam` is this library's
    tezo-adam-c)."""

    u: Array
    v: Array
    rule: Sgd | Momentum | Adam = field(default_factory=Sgd)
    c: Array | None = None

    def step(self, scalars, taus, lr: float) -> None:
        c = np.zeros(self.u.shape[1]) if self.c is None else self.c
        self.c = self.rule.step(c, mean_estimate(scalars, taus), lr)

    def change(self) -> Array:
        return tezo_direction(self.u, self.v, self.c)


@dataclass
class TeZOAdam:
    """Adam with the separable second moment (TeZO, equation 8), elementwise on the working copy:

    tau_M <- beta1 tau_M + (1 - beta1) g tau,  tau_V <- beta2 tau_V + (1 - beta2) (g tau)^2,
    W <- W - lr (U diag(tau_M) V^T / sqrt(r)) / sqrt((U o U) diag(tau_V) (V o V)^T / r + delta).

    The cross terms of Z o Z are left out, as there. corrected: takes the averages' bias out.
    """

    u: Array
    v: Array
    beta1: float = 0.9
    beta2: float = 0.99
    delta: float = 1e-8
    corrected: bool = False
    m: Array | float = 0.0
    s: Array | float = 0.0
    t: int = 0

    def step(self, w: Array, scalars, taus, lr: float) -> Array:
        self.t += 1
        g = mean_estimate(scalars, taus)
        self.m = self.beta1 * self.m + (1 - self.beta1) * g
        self.s = self.beta2 * self.s + (1 - self.beta2) * g**2
        m, s = self.m, self.s
        if self.corrected:
            m, s = m / (1 - self.beta1**self.t), s / (1 - self.beta2**self.t)
        r = self.u.shape[1]
        second = (self.u**2 * s) @ (self.v**2).T / r
        return w - lr * tezo_direction(self.u, self.v, m) / np.sqrt(second + self.delta)


@dataclass
class LozoMomentum:
    """N <- beta N + (1 - beta) g U;  W <- W - lr N V^T / sqrt(r); where V is drawn anew, N <- N (V_old^T V_new) / n
    first (LOZO-M, arXiv 2410.07698, section 3.3)."""

    beta: float = 0.9
    n: Array | float = 0.0
    last_v: Array | None = None

    def step(self, w: Array, scalars, us, v: Array, lr: float) -> Array:
        if self.last_v is not None and self.last_v is not v:
            self.n = self.n @ (self.last_v.T @ v) / len(v)
        self.last_v = v
        self.n = self.beta * self.n + (1 - self.beta) * mean_estimate(scalars, us)
        return w - lr * lozo_direction(self.n, v)


@dataclass
class HiZOO:
    """A diagonal curvature h, ones at first (HiZOO, arXiv 2402.15173, algorithm 1): asks at w +- eps z / sqrt(h), then

    h <- (1 - s) h + s |l+ + l- - 2 l0| h o z^2 / (2 eps^2),  w <- w - lr g z / sqrt(h), with the new h.
    """

    s: float = 1e-8
    h: Array | float = 1.0

    def direction(self, z: Array) -> Array:
        return z / np.sqrt(self.h)

    def step(self, w: Array, z: Array, plus: float, minus: float, centre: float, eps: float, lr: float) -> Array:
        curvature = abs(plus + minus - 2 * centre) / (2 * eps**2)
        self.h = (1 - self.s) * self.h + self.s * curvature * self.h * z**2
        return w - lr * float(two_sided(plus, minus, eps)) * self.direction(z)
