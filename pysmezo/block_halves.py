"""A decoder block as two halves, attention and MLP: what each holds, and what calibrating over them takes."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass

from .errors import ArgumentError, BudgetError
from .top_elements import PIECE, n_of

WHERE = "sensitivity"
MIB = 1 << 20
ATTENTION, MLP = HALVES = "attention", "mlp"
MATRICES = {
    ATTENTION: tuple(f"self_attn.{x}_proj" for x in "qkvo"),
    MLP: tuple(f"mlp.{x}_proj" for x in ("gate", "up", "down")),
}
NORMS = {ATTENTION: "input_layernorm.weight", MLP: "post_attention_layernorm.weight"}
TILE_BYTES = 32 * MIB  # rows of the head at once, and their logits
IN_MEMORY_BYTES = 256 * MIB  # of activations, without a budget
OTHER_BYTES = 104 * MIB  # pages of libraries and their buffers, the open base, what the allocator keeps


class Model:
    """Sizes of an open model, and which of its matrices are chosen. fp32 values come from its base, as they are asked."""

    def __init__(self, run, trains: str):
        """trains: "linear" or a glob pattern, as a method's. ArgumentError: no linear weight of a block is meant."""
        self.run = run
        self.config = json.loads(run._engine.header_json)["config"]
        self.shapes = {name: (rows, cols) for name, rows, cols, _ in run._engine.tensors}
        linear = [name for name, *_, block_linear in run._engine.tensors if block_linear]
        glob = re.escape(trains).replace(r"\*", ".*").replace(r"\?", ".")
        chosen = [n for n in linear if trains == "linear" or re.fullmatch(glob, n)]
        if not chosen:
            raise ArgumentError(
                f"[{WHERE}] trains {trains!r} matches no linear weight of a block, expected linear or a pattern such as "
                f"'*.mlp.*'; the first is {linear[0]}"
            )
        self.sizes = {name: math.prod(self.shapes[name]) for name in chosen}  # of the chosen, in tensor order
        self.n_blocks = 1 + max(int(name.split(".")[2]) for name in linear)
        self.lowest = min(int(name.split(".")[2]) for name in chosen)
        self.width = self.shapes["model.norm.weight"][1]
        self.head = "lm_head.weight" if "lm_head.weight" in self.shapes else "model.embed_tokens.weight"
        self.query = self.shapes["model.layers.0.self_attn.q_proj.weight"][0]
        self.inner = self.shapes["model.layers.0.mlp.up_proj.weight"][0]
        self.head_dim = self.query // int(self.config["num_attention_heads"])

    def half(self, kind: str, block: int) -> dict[str, int]:
        """Elements of each tensor of half a block, by its name within the block; the largest first, since reading one
        holds it twice for a moment.
        """
        at = f"model.layers.{block}."
        names = [NORMS[kind], *(f"{m}.{end}" for m in MATRICES[kind] for end in ("weight", "bias"))]
        found = {n: math.prod(self.shapes[at + n]) for n in names if at + n in self.shapes}
        return dict(sorted(found.items(), key=lambda row: -row[1]))

    def n_weights(self, kind: str, block: int) -> int:
        return sum(self.half(kind, block).values())

    def chosen(self, kind: str, block: int) -> list[str]:
        """Names within the block."""
        return [name for name in self.half(kind, block) if f"model.layers.{block}.{name}" in self.sizes]


@dataclass(frozen=True)
class Plan:
    peak_bytes: int  # above the process with torch imported
    activation_bytes: int
    in_memory: bool  # of the activations
    tile_rows: int  # of the head
    gflops: int


def plan_of(m: Model, n: int, length: int, per: str, fraction: float, budget: int | None) -> Plan:
    """What n sequences take, from shapes alone. BudgetError: more than the budget even with activations in a file."""
    vocabulary, width = m.shapes[m.head]
    tile = min(vocabulary, max(256, TILE_BYTES // (4 * max(width, length))))
    held = [2 * tile * width + 3 * length * tile + 8 * length * width + 3 * n * length]
    # Of one sequence at the fullest moment of its backward pass, [length, floats].
    for kind, floats in ((ATTENTION, 12 * m.query + 8 * width), (MLP, 9 * m.inner + 8 * width)):
        weights, largest = m.n_weights(kind, m.lowest), max(m.half(kind, m.lowest).values())
        # Any block may have all that are chosen of a half.
        sums = sum(
            max(m.sizes.get(f"model.layers.{b}.{x}.weight", 0) for b in range(m.n_blocks)) for x in MATRICES[kind]
        )
        held.append(weights + max(largest, sums + length * floats))
    k = n_of(sum(m.sizes.values()) if per == "global" else max(m.sizes.values()), fraction)
    entries = k + max(k // 4, PIECE)  # of 12 bytes; of 29 while they are cut, but then a half's weights are gone
    cutting = 29 * entries + 4 * max(m.sizes.values())
    chosen = 12 * entries if per == "global" else 8 * n_of(sum(m.sizes.values()), fraction)
    least = OTHER_BYTES + max(4 * max(held) + chosen, cutting)
    if budget is not None and least > budget:
        raise BudgetError(
            f"[memory_budget] {budget} bytes, expected at least {least}: half a block in fp32, as many sums of squares, "
            f"and what a sequence of {length} tokens takes"
        )
    activations = 4 * (m.n_blocks + 2) * n * length * width
    in_memory = activations <= (IN_MEMORY_BYTES if budget is None else budget - least)
    flops = n * length * (work_of(m) + 4 * vocabulary * width)
    return Plan(least + (activations if in_memory else 0), activations, in_memory, tile, max(1, round(flops / 1e9)))


def work_of(m: Model) -> int:
    """Multiplications and additions of a token with the blocks' matrices: a forward pass; for blocks with a gradient the
    attention half once more, and then both halves three times as much (forward, and twice backward).
    """
    once = sum(m.n_weights(kind, b) for kind in HALVES for b in range(m.n_blocks))
    again = sum(3 * m.n_weights(MLP, b) + 4 * m.n_weights(ATTENTION, b) for b in range(m.lowest, m.n_blocks))
    return 2 * (once + again)
