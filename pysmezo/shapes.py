"""The named shapes (one table) and what a Llama of a shape looks like in a Hugging Face folder."""

from __future__ import annotations

from typing import NamedTuple

from .errors import ArgumentError


class Shape(NamedTuple):
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    vocabulary: int
    layers: int
    tied: bool


SHAPES = {
    "smollm2-135m": Shape(576, 1536, 9, 3, 49152, 30, True),
    "llama-1b": Shape(2048, 5632, 32, 4, 32000, 22, False),
    "llama-7b": Shape(4096, 11008, 32, 32, 32000, 32, False),
    "llama-13b": Shape(5120, 13824, 40, 40, 32000, 40, False),
    "llama-30b": Shape(6656, 17920, 52, 52, 32000, 60, False),
}


def shape_of(name: str, layers: int | None = None) -> Shape:
    """The named shape, with another number of layers if given."""
    if name not in SHAPES:
        raise ArgumentError(f"[shape] {name!r}, expected one of {', '.join(SHAPES)}")
    if layers is None:
        return SHAPES[name]
    if layers < 1:
        raise ArgumentError(f"[shape] {layers} layers, expected at least 1")
    return SHAPES[name]._replace(layers=layers)


def config(s: Shape) -> dict:
    """config.json of a bf16 Llama of this shape."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "head_dim": s.hidden // s.heads,
        "hidden_act": "silu",
        "hidden_size": s.hidden,
        "intermediate_size": s.inner,
        "max_position_embeddings": 4096,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": s.heads,
        "num_hidden_layers": s.layers,
        "num_key_value_heads": s.kv_heads,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": s.tied,
        "torch_dtype": "bfloat16",
        "vocab_size": s.vocabulary,
    }


def tensors(s: Shape) -> list[tuple[str, list[int]]]:
    """(Hugging Face name, shape) of every tensor, in the order a forward pass meets them."""
    kv = s.hidden // s.heads * s.kv_heads
    block = {
        "input_layernorm": [s.hidden],
        "self_attn.q_proj": [s.hidden, s.hidden],
        "self_attn.k_proj": [kv, s.hidden],
        "self_attn.v_proj": [kv, s.hidden],
        "self_attn.o_proj": [s.hidden, s.hidden],
        "post_attention_layernorm": [s.hidden],
        "mlp.gate_proj": [s.inner, s.hidden],
        "mlp.up_proj": [s.inner, s.hidden],
        "mlp.down_proj": [s.hidden, s.inner],
    }
    out = [("model.embed_tokens.weight", [s.vocabulary, s.hidden])]
    for i in range(s.layers):
        out += [(f"model.layers.{i}.{name}.weight", shape) for name, shape in block.items()]
    out.append(("model.norm.weight", [s.hidden]))
    return out if s.tied else [*out, ("lm_head.weight", [s.vocabulary, s.hidden])]
