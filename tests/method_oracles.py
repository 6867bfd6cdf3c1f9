"""The field's methods as dense float64 oracles of whole runs: what each branch asks, what a record does.

Directions, scalars and rules are those of oracle_methods.py; this file says which of them a row is made of. Random
arrays come from pysmezo._core by address (I6), tested on their own. A new row needs an entry in ROWS.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import numpy as np
import oracle_methods as m

from pysmezo import _core as core
from pysmezo import methods


def bf16(x) -> np.ndarray:
    """To the nearest bf16, ties to even, as float64."""
    u = np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.uint64)
    u = (u + 0x7FFF + ((u >> 16) & 1)) & 0xFFFF0000
    return u.astype(np.uint32).view(np.float32).astype(np.float64)


@dataclass
class Draws:
    """Random arrays of a run by address."""

    seed: int
    ids: dict[str, int]
    shapes: dict[str, tuple]
    layers: int

    def dense(self, name, step, query, noise):
        shape = self.shapes[name]
        z = core.noise(noise, self.seed, step, query, self.ids[name], 0, int(np.prod(shape)))
        return z.reshape(shape).astype(np.float64)

    def array(self, name, step, query, noise, shape, purpose="direction"):
        z = core.noise(noise, self.seed, step, query, self.ids[name], 0, int(np.prod(shape)), purpose)
        return z.reshape(shape).astype(np.float64)

    def resting(self, step, drop):
        """Names of the tensors whose layer sits the step out."""
        n = min(int(drop * self.layers + 0.5), self.layers - 1)  # halves up
        draws = core.random_bits("subset", self.seed, step, 0, 0, 0, self.layers, 32)
        active = m.active_layers(draws, self.layers - n)
        return {s for s in self.shapes if s.startswith("model.layers.") and not active[int(s.split(".")[2])]}


@dataclass
class Row:
    """One run of a method. `weights`: what trains, float64 [m, n] by name, kept up to date. A kind of row has
    `directions(step)`: of every query, Z by name."""

    method: methods.Method
    draws: Draws
    weights: dict[str, np.ndarray]
    rules: dict = field(default_factory=dict)

    def __post_init__(self):
        self.first = dict(self.weights)

    def scalars(self, branches, losses, eps) -> np.ndarray:
        losses = np.asarray(losses)
        if self.method.plan == "two-sided":
            return m.two_sided(losses[0::2], losses[1::2], eps)
        return m.one_sided(losses[1:], losses[0], eps)

    def step(self, step, scalars, lr, eps) -> None:
        z = self.directions(step)
        for name in self.weights:
            if name in z[0]:
                e = m.mean_estimate(scalars, [q[name] for q in z])
                old, mask = self.weights[name], self.mask(name)
                # What has left the mask stays where it is, whatever its momentum.
                self.weights[name] = np.where(mask, self.rule(name).step(self.decayed(name, lr), e, lr), old)

    def mask(self, name):
        """Of the elements that train, from the weights as they are."""
        return True

    def decayed(self, name, lr):
        """Of what trains, before the rule; of matrices only."""
        w = self.weights[name]
        if not self.method.weight_decay or w.ndim < 2:
            return w
        return w - lr * self.method.weight_decay * np.where(self.mask(name), w, 0.0)

    def rule(self, name):
        """The tensor's own, with its moments."""
        if name not in self.rules:
            self.rules[name] = self.new_rule()
        return self.rules[name]

    def new_rule(self):
        return rule_of(self.method)


class Sign:
    """w <- w - lr sign(e) (ZO-signSGD)."""

    def step(self, w, e, lr):
        return w - lr * np.sign(e)


@dataclass
class WindowAdam:
    method: methods.Method
    past: list = field(default_factory=list)

    def step(self, w, e, lr):
        self.past = [*self.past, e][-self.method.window :]
        a = self.method
        return w - lr * m.window_adam(self.past, a.beta1, a.beta2, a.adam_eps, a.corrected)


@dataclass
class WindowMomentum:
    method: methods.Method
    past: list = field(default_factory=list)

    def step(self, w, e, lr):
        self.past = [*self.past, e][-self.method.window :]
        rule = m.Momentum(self.method.beta1, self.method.damped)
        for g in self.past:
            w_new = rule.step(w, g, lr)
        return w_new


def rule_of(method):
    if method.rule == "momentum":
        return WindowMomentum(method) if method.window else m.Momentum(method.beta1, method.damped)
    if method.rule in ("adam", "adam-c"):
        a = method
        return WindowAdam(a) if a.window else m.Adam(a.beta1, a.beta2, a.adam_eps, a.corrected)
    return Sign() if method.rule == "sign" else m.Sgd()


class Dense(Row):
    """z of the tensors that take part, masked where the method has a mask."""

    def directions(self, step):
        resting = self.draws.resting(step, getattr(self.method, "drop", 0.0)) if hasattr(self.method, "drop") else set()
        return [
            {
                n: np.where(self.mask(n), self.draws.dense(n, step, q, self.method.noise), 0.0)
                for n in self.weights
                if n not in resting
            }
            for q in range(self.method.queries)
        ]


class Small(Dense):
    """|w| <= h, h of the first weights (SparseMeZO)."""

    def h(self, name):
        w = np.sort(np.abs(self.first[name]), axis=None)
        return w[max(1, int((1 - self.method.sparsity) * w.size + 0.5)) - 1]

    def mask(self, name):
        return np.abs(self.weights[name]) <= self.h(name)


class Large(Dense):
    def mask(self, name):
        w = np.sort(np.abs(self.first[name]), axis=None)
        k = max(1, int((1 - self.method.sparsity) * w.size + 0.5))
        return np.abs(self.weights[name]) >= w[w.size - k]


class AtRandom(Small):
    def mask(self, name):
        share = np.mean(np.abs(self.first[name]) <= self.h(name))
        w = self.first[name]
        bits = core.random_bits("mask", self.draws.seed, 0, 0, self.draws.ids[name], 0, w.size, 16)
        return bits.reshape(w.shape) < int(share * 65536 + 0.5)


class ScalarSign(Dense):
    def scalars(self, branches, losses, eps):
        return np.sign(super().scalars(branches, losses, eps))

    def new_rule(self):
        return m.Sgd()


class Fzoo(Dense):
    def scalars(self, branches, losses, eps):
        return m.fzoo(losses[1:], losses[0], eps, self.method.over_eps)


class LargestOfRows(Dense):
    """The index set of the base's largest weights of each row."""

    def mask(self, name):
        if name not in self.rules:
            w = self.weights[name]
            k = max(1, int(w.shape[1] * self.method.fraction + 0.5))
            self.rules[name] = m.top_k_of_rows(np.abs(w), k)
        return self.rules[name]

    def rule(self, name):
        return m.Sgd()


class WholeRows(Dense):
    """A share of the rows: one of every run of equal length, by the address of its number."""

    def mask(self, name):
        rows, cols = self.draws.shapes[name]
        k = max(1, int(rows * self.method.fraction + 0.5))
        draws = core.random_bits("subset", self.draws.seed, 0, 0, self.draws.ids[name], 0, k, 32).astype(object)
        edges = [j * rows // k for j in range(k + 1)]
        chosen = [edges[i] + (int(draws[i]) * (edges[i + 1] - edges[i]) >> 32) for i in range(k)]
        return np.isin(np.arange(rows), chosen)[:, None]


class RandomElements(Dense):
    """A share of the elements: one of every run of equal length, by the address of its number."""

    def mask(self, name):
        shape = self.draws.shapes[name]
        n = int(np.prod(shape))
        k = max(1, int(n * self.method.fraction + 0.5))
        draws = core.random_bits("subset", self.draws.seed, 0, 0, self.draws.ids[name], 0, k, 32).astype(object)
        edges = [j * n // k for j in range(k + 1)]
        chosen = [edges[i] + (int(draws[i]) * (edges[i + 1] - edges[i]) >> 32) for i in range(k)]
        return np.isin(np.arange(n), chosen).reshape(shape)


class Curved(Dense):
    def hizoo(self, name):
        if name not in self.rules:
            self.rules[name] = m.HiZOO(self.method.smoothing, np.ones(self.weights[name].shape))
        return self.rules[name]

    def directions(self, step):
        (z,) = super().directions(step)
        return [{n: self.hizoo(n).direction(z[n]) for n in z}]

    def scalars(self, branches, losses, eps):
        centre, plus, minus = losses
        return np.array([(plus - minus) / (2 * eps), abs(plus + minus - 2 * centre) / (2 * eps**2)])

    def step(self, step, scalars, lr, eps):
        g, curvature = scalars
        (z,) = super().directions(step)
        for n in z:
            # Losses that give these very scalars.
            plus, minus = eps * g + eps**2 * curvature, -eps * g + eps**2 * curvature
            raw = self.draws.dense(n, step, 0, self.method.noise)
            self.weights[n] = self.hizoo(n).step(self.weights[n], raw, plus, minus, 0.0, eps, lr)


class LowRank(Row):
    def epoch(self, step):
        return 0 if not getattr(self.method, "refresh", 0) else (step - 1) // self.method.refresh

    def v(self, name, epoch):
        n = self.draws.shapes[name][1]
        return bf16(self.draws.array(name, epoch, 0, self.method.noise, (self.method.rank, n), "factor")).T


class Lozo(LowRank):
    def u(self, name, step, query):
        rows = self.draws.shapes[name][0]
        return bf16(self.draws.array(name, step, query, self.method.noise, (rows, self.method.rank)))

    def directions(self, step):
        return [
            {n: m.lozo_direction(self.u(n, step, q), self.v(n, self.epoch(step))) for n in self.weights}
            for q in range(self.method.queries)
        ]


class LozoM(Lozo):
    def step(self, step, scalars, lr, eps):
        for n in self.weights:
            if n not in self.rules:
                self.rules[n] = (m.LozoMomentum(self.method.beta1), {})
            rule, kept = self.rules[n]
            v = kept.setdefault(self.epoch(step), self.v(n, self.epoch(step)))
            us = [self.u(n, step, q) for q in range(self.method.queries)]
            self.weights[n] = rule.step(self.decayed(n, lr), scalars, us, v, lr)


class SubZero(LowRank):
    def factor(self, name, epoch, query, rows):
        g = self.draws.array(name, epoch, query, "gaussian", (self.method.rank, rows), "factor").T
        return bf16(m.orthonormal(g))

    def directions(self, step):
        out = []
        for q in range(self.method.queries):
            r, z = self.method.rank, {}
            for n in self.weights:
                rows, cols = self.draws.shapes[n]
                e = self.epoch(step)
                t = self.draws.array(n, step, q, self.method.noise, (r, r))
                z[n] = m.subzero_direction(self.factor(n, e, 1, rows), self.factor(n, e, 0, cols), t)
            out.append(z)
        return out


class Tezo(LowRank):
    """sgd, momentum and adam-c act on the numbers between fixed factors."""

    def u(self, name, step=0, query=0):
        rows = self.draws.shapes[name][0]
        return bf16(self.draws.array(name, 0, 1, self.method.noise, (rows, self.method.rank), "factor"))

    def tau(self, name, step, query):
        return self.draws.array(name, step, query, self.method.noise, (self.method.rank,))

    def directions(self, step):
        return [
            {n: m.tezo_direction(self.u(n), self.v(n, 0), self.tau(n, step, q)) for n in self.weights}
            for q in range(self.method.queries)
        ]

    def step(self, step, scalars, lr, eps):
        for n in self.weights:
            if n not in self.rules:
                self.rules[n] = (m.TeZO(self.u(n), self.v(n, 0), rule_of(self.method)), self.weights[n])
            tezo, first = self.rules[n]
            tezo.step(scalars, [self.tau(n, step, q) for q in range(self.method.queries)], lr)
            self.weights[n] = first + tezo.change()


class TezoAdam(Tezo):
    def step(self, step, scalars, lr, eps):
        a = self.method
        for n in self.weights:
            if n not in self.rules:
                self.rules[n] = m.TeZOAdam(self.u(n), self.v(n, 0), a.beta1, a.beta2, a.adam_eps, a.corrected)
            taus = [self.tau(n, step, q) for q in range(a.queries)]
            self.weights[n] = self.rules[n].step(self.decayed(n, lr), scalars, taus, lr)


# name -> (method, oracle, lr in units of the tests' own)
ROWS = {
    "mezo": (methods.MeZO(), Dense, 1.0),
    "mezo, queries": (methods.MeZO(queries=3, noise="gaussian"), Dense, 1.0),
    "mezo-adam, norms too, decay": (
        methods.MeZOAdam(trains="model.layers.*", adam_eps=1e-4, weight_decay=0.25),
        Dense,
        2.0**-4,
    ),
    "mezo-adam, as it is": (methods.MeZOAdam(corrected=False, adam_eps=1e-2), Dense, 2.0**-4),
    "mezo-adam, as it is, window": (methods.MeZOAdam(window=3, corrected=False, adam_eps=1e-2), Dense, 2.0**-4),
    "mezo-momentum, decay, window of 2": (methods.MeZOMomentum(window=2, weight_decay=0.25), Dense, 1.0),
    "random-mask": (methods.RandomMask(0.75), AtRandom, 1.0),
    "largest-mask": (methods.LargestMask(0.75), Large, 1.0),
    "sparse-mezo": (methods.SparseMeZO(0.75), Small, 1.0),
    "sparse-mezo, momentum, decay": (methods.SparseMeZO(0.5, rule="momentum", weight_decay=0.25), Small, 1.0),
    "sparse-mezo, adam, queries": (methods.SparseMeZO(0.75, rule="adam", queries=2, adam_eps=1e-4), Small, 2.0**-4),
    "lezo": (methods.LeZO(drop=0.5), Dense, 1.0),
    "lezo, all": (methods.LeZO(drop=0.5, trains="all", weight_decay=0.25), Dense, 1.0),
    "lezo, a tie": (methods.LeZO(drop=0.25), Dense, 1.0),
    "lezo, adam": (methods.LeZO(drop=0.5, rule="adam", corrected=False, adam_eps=1e-2), Dense, 2.0**-4),
    "one-sided": (methods.OneSided(queries=3), Dense, 1.0),
    "one-sided, one query": (methods.OneSided(), Dense, 1.0),
    "fzoo": (methods.FZOO(queries=4), Fzoo, 2.0**-4),
    "fzoo, over eps": (methods.FZOO(queries=4, over_eps=True), Fzoo, 2.0**-10),
    "zo-sign": (methods.ZOSign(), Dense, 2.0**-4),
    "zo-sign, decay": (methods.ZOSign(weight_decay=0.25), Dense, 2.0**-4),
    "zo-sign, of the scalar": (methods.ZOSign(of="scalar", queries=2), ScalarSign, 2.0**-4),
    "mezo-momentum": (methods.MeZOMomentum(queries=2), Dense, 1.0),
    "mezo-momentum, adding up": (methods.MeZOMomentum(damped=False), Dense, 0.25),
    "mezo-momentum, window": (methods.MeZOMomentum(window=4), Dense, 1.0),
    "mezo-adam": (methods.MeZOAdam(beta2=0.99, adam_eps=1e-4), Dense, 2.0**-4),
    "mezo-adam, window": (methods.MeZOAdam(window=5, beta1=0.7, beta2=0.9, adam_eps=1e-4), Dense, 2.0**-4),
    "adamezo": (methods.AdaMeZO(adam_eps=1e-4), Dense, 2.0**-4),
    "hizoo": (methods.HiZOO(smoothing=2.0**-12), Curved, 1.0),
    "mazo": (methods.MaZO(fraction=0.1, weight_decay=0.25), LargestOfRows, 1.0),
    "sensitive": (methods.Sensitive(fraction=0.05), RandomElements, 1.0),
    "sensitive, adam": (methods.Sensitive(fraction=0.05, rule="adam", adam_eps=1e-4), RandomElements, 2.0**-4),
    "lezo, momentum": (methods.LeZO(drop=0.5, rule="momentum"), Dense, 1.0),
    "random-rows": (methods.RandomRows(fraction=0.2), WholeRows, 1.0),
    "lozo": (methods.LOZO(rank=3, refresh=3), Lozo, 1.0),
    "lozo, queries": (methods.LOZO(rank=2, refresh=50, queries=3, noise="gaussian"), Lozo, 1.0),
    "lozo-m": (methods.LOZOMomentum(rank=3, refresh=4), LozoM, 1.0),
    "lozo-m, decay": (methods.LOZOMomentum(rank=2, refresh=3, queries=2, weight_decay=0.25), LozoM, 1.0),
    "subzero": (methods.SubZero(rank=4, refresh=6, weight_decay=0.25), SubZero, 2.0**-3),
    "lozo, beside the base": (methods.LOZO(rank=3, refresh=6, only_reads=True, rank_cap=12), Lozo, 1.0),
    "subzero, beside the base": (methods.SubZero(rank=3, refresh=7, only_reads=True, rank_cap=9), SubZero, 2.0**-3),
    "tezo": (methods.TeZO(rank=5, noise="gaussian"), Tezo, 1.0),
    "tezo, one-sided queries": (methods.TeZO(rank=4, queries=3, plan="one-sided"), Tezo, 1.0),
    "tezo-m": (methods.TeZOMomentum(rank=5, queries=2), Tezo, 1.0),
    "tezo-adam": (methods.TeZOAdam(rank=5, adam_eps=1e-4), TezoAdam, 2.0**-4),
    "tezo-adam, corrected, decay": (
        methods.TeZOAdam(rank=5, adam_eps=1e-4, corrected=True, weight_decay=0.25),
        TezoAdam,
        2.0**-4,
    ),
    "tezo-adam-c, as it is": (methods.TeZOAdamC(rank=5, adam_eps=1e-2, corrected=False), Tezo, 2.0**-4),
    "tezo-adam-c": (methods.TeZOAdamC(rank=5, adam_eps=1e-4), Tezo, 2.0**-4),
}
oracle_of = {name: partial(row[1], row[0]) for name, row in ROWS.items()}
