"""Llama folders of a real shape with random weights, written by numpy alone: for time and memory, never for
learning."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import numpy as np

# Two layers of a 7B, its vocabulary cut: 404 M weights in linear layers, 0.8 GB in bf16, past any last-level cache of a
# small machine.
LARGE = {"hidden": 4096, "inner": 11008, "heads": 32, "kv_heads": 32, "vocab": 4096, "layers": 2}


def _tensors(hidden, inner, heads, kv_heads, vocab, layers) -> dict[str, tuple]:
    kv = hidden // heads * kv_heads
    shapes = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    for i in range(layers):
        at = f"model.layers.{i}."
        shapes |= {f"{at}self_attn.{p}_proj.weight": (hidden, hidden) for p in "qo"}
        shapes |= {f"{at}self_attn.{p}_proj.weight": (kv, hidden) for p in "kv"}
        shapes |= {f"{at}mlp.{p}_proj.weight": (inner, hidden) for p in ("gate", "up")}
        shapes[f"{at}mlp.down_proj.weight"] = (hidden, inner)
        shapes |= {f"{at}{p}_layernorm.weight": (hidden,) for p in ("input", "post_attention")}
    return shapes


def make_folder(folder: Path, shape: dict) -> Path:
    """A tied bf16 llama of that shape; made once, one tensor in memory at a time."""
    done = folder / "config.json"
    if done.exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    shapes = _tensors(**shape)
    header, at = {}, 0
    for name, dims in shapes.items():
        n_bytes = 2 * int(np.prod(dims))
        header[name] = {"dtype": "BF16", "shape": list(dims), "data_offsets": [at, at + n_bytes]}
        at += n_bytes
    text = json.dumps(header | {"__metadata__": {"format": "pt"}}).encode()
    text += b" " * (-len(text) % 8)
    rng = np.random.default_rng(0)
    with open(folder / "model.safetensors", "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for dims in shapes.values():
            w = (
                np.ones(dims, np.float32)
                if len(dims) == 1
                else rng.standard_normal(dims, np.float32) * np.float32(dims[-1] ** -0.5)
            )
            f.write((w.view(np.uint32) >> 16).astype(np.uint16).tobytes())
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": shape["hidden"],
        "num_hidden_layers": shape["layers"],
        "num_attention_heads": shape["heads"],
        "num_key_value_heads": shape["kv_heads"],
        "head_dim": shape["hidden"] // shape["heads"],
        "intermediate_size": shape["inner"],
        "vocab_size": shape["vocab"],
        "max_position_embeddings": 2048,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": "bfloat16",
    }
    part = folder / "config.part"
    part.write_text(json.dumps(config))
    os.replace(part, done)
    return folder
