"""Tiny random llamas for tests: a Hugging Face config, weights by name, and a folder on disk, made with numpy alone."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np


def config(
    hidden=64, layers=2, heads=4, kv_heads=2, inner=176, vocab=128, tied=False, theta=10000.0, norm_eps=1e-5
) -> dict:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": hidden // heads,
        "intermediate_size": inner,
        "vocab_size": vocab,
        "max_position_embeddings": 256,
        "rope_theta": theta,
        "rms_norm_eps": norm_eps,
        "tie_word_embeddings": tied,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def random_weights(c: dict, seed: int = 0) -> dict[str, np.ndarray]:
    """fp32 weights by Hugging Face name, scaled so that activations neither die nor explode."""
    rng = np.random.default_rng(seed)
    d, f, h = c["hidden_size"], c["intermediate_size"], c["head_dim"]
    shapes = {"model.embed_tokens.weight": (c["vocab_size"], d), "model.norm.weight": (d,)}
    if not c["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (c["vocab_size"], d)
    for i in range(c["num_hidden_layers"]):
        at = f"model.layers.{i}."
        shapes |= {
            at + "self_attn.q_proj.weight": (c["num_attention_heads"] * h, d),
            at + "self_attn.k_proj.weight": (c["num_key_value_heads"] * h, d),
            at + "self_attn.v_proj.weight": (c["num_key_value_heads"] * h, d),
            at + "self_attn.o_proj.weight": (d, c["num_attention_heads"] * h),
            at + "mlp.gate_proj.weight": (f, d),
            at + "mlp.up_proj.weight": (f, d),
            at + "mlp.down_proj.weight": (d, f),
            at + "input_layernorm.weight": (d,),
            at + "post_attention_layernorm.weight": (d,),
        }
    return {
        n: (rng.normal(size=s) * (0.2 if len(s) == 2 else 0.1) + (len(s) == 1)).astype(np.float32)
        for n, s in shapes.items()
    }


def linear_names(weights: dict) -> list[str]:
    """The linear weights of the decoder blocks."""
    return sorted(n for n in weights if "_proj" in n)


def to_bf16(weights: dict) -> dict[str, np.ndarray]:
    """Values cut to bf16, still held in fp32, so that a bf16 file holds them exactly."""
    return {n: (w.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32) for n, w in weights.items()}


def save(folder: Path, c: dict, weights: dict[str, np.ndarray], dtype: str = "F32") -> Path:
    """A Hugging Face folder: config.json and model.safetensors in F32 or BF16 (weights must then be exact in bf16)."""
    folder.mkdir(parents=True, exist_ok=True)
    names = {"F32": "float32", "BF16": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(c | {"torch_dtype": names[dtype]}))
    header, blobs, at = {}, [], 0
    for n, w in weights.items():
        bits = np.ascontiguousarray(w, np.float32).view(np.uint32)
        blob = bits.tobytes() if dtype == "F32" else (bits >> 16).astype(np.uint16).tobytes()
        header[n] = {"dtype": dtype, "shape": list(w.shape), "data_offsets": [at, at + len(blob)]}
        blobs.append(blob)
        at += len(blob)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))
    return folder
