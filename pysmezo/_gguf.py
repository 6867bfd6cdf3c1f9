"""A llama-family GGUF file -> a Hugging Face model folder in bf16: config.json, model.safetensors, tokenizer.json,
tokenizer_config.json.

Needs the package gguf and numpy, no torch. Runs in the demo's preparing child. Two traps, both checked against
transformers by the tests: the rows of q and k are stored interleaved for llama.cpp's rope and are put back in halves;
the digits of a "smollm" vocabulary are split one by one before byte-level merging, which transformers' own GGUF reader
leaves out (it shows only on characters such as U+00BD).
"""

from __future__ import annotations

import json
import os
import struct

import numpy as np

from .errors import ArgumentError, FormatError

WHERE = "gguf"
TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# Token types of the format (llama.cpp's enum): these are matched as a whole, before any merging.
CONTROL, USER_DEFINED = 3, 4
PRE_TOKENIZERS = {
    "smollm": [{"type": "Digits", "individual_digits": True}],
    "gpt-2": [],
}


def hf_name(name: str) -> str:
    parts = name.split(".")
    if parts[0] == "blk" and len(parts) == 4 and parts[2] in BLOCK:
        return f"model.layers.{int(parts[1])}.{BLOCK[parts[2]]}.{parts[3]}"
    if len(parts) == 2 and parts[0] in TOP:
        return f"{TOP[parts[0]]}.{parts[1]}"
    raise FormatError(f"[{WHERE}] tensor {name!r}, expected one of a llama model")


def unpermuted(w: np.ndarray, n_heads: int) -> np.ndarray:
    """Rows of each head from interleaved rope pairs (0, h, 1, h+1, ...) back to halves (0, 1, ... | h, h+1, ...)."""
    half = w.shape[0] // n_heads // 2
    return w.reshape(n_heads, half, 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def to_bf16(x: np.ndarray) -> np.ndarray:
    """fp32 -> bf16 bits, nearest, ties to even. Finite input only."""
    u = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((u + 0x7FFF + ((u >> 16) & 1)) >> 16).astype(np.uint16)


def _short(x: float) -> float:
    """The shortest decimal of the same fp32: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(x)))


class Gguf:
    """Fields and tensors of one file."""

    def __init__(self, path):
        try:
            from gguf import GGUFReader, dequantize
        except ImportError:
            raise ArgumentError(f"[{WHERE}] the package gguf is not installed, expected it: pip install gguf") from None
        self._reader, self._dequantize = GGUFReader(path), dequantize
        if self.field("general.architecture") != "llama":
            raise FormatError(
                f"[{WHERE}] {path} holds a {self.field('general.architecture')!r} model, expected 'llama'"
            )

    def field(self, name: str, default=None):
        f = self._reader.fields.get(name)
        return f.contents() if f is not None else default

    def tensors(self):
        """(Hugging Face name, shape, function that makes the fp32 values), in byte order of the names."""
        heads = {
            "attn_q": self.field("llama.attention.head_count"),
            "attn_k": self.field("llama.attention.head_count_kv"),
        }

        def make(t):
            values = self._dequantize(t.data, t.tensor_type).reshape([int(d) for d in reversed(t.shape)])
            kind = t.name.split(".")[-2]
            return unpermuted(values, heads[kind]) if kind in heads else values

        found = [
            (hf_name(t.name), [int(d) for d in reversed(t.shape)], lambda t=t: make(t)) for t in self._reader.tensors
        ]
        return sorted(found)


def config(g: Gguf, tied: bool) -> dict:
    field = g.field
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(field("tokenizer.ggml.tokens")),
        "hidden_size": field("llama.embedding_length"),
        "intermediate_size": field("llama.feed_forward_length"),
        "num_hidden_layers": field("llama.block_count"),
        "num_attention_heads": field("llama.attention.head_count"),
        "num_key_value_heads": field("llama.attention.head_count_kv"),
        "max_position_embeddings": field("llama.context_length"),
        "rms_norm_eps": _short(field("llama.attention.layer_norm_rms_epsilon")),
        "rope_theta": _short(field("llama.rope.freq_base", 10000.0)),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": tied,
        "bos_token_id": field("tokenizer.ggml.bos_token_id"),
        "eos_token_id": field("tokenizer.ggml.eos_token_id"),
        "pad_token_id": field("tokenizer.ggml.padding_token_id"),
        "torch_dtype": "bfloat16",
    }


def tokenizer(g: Gguf) -> dict:
    """tokenizer.json of a byte-level BPE vocabulary."""
    kind, pre = g.field("tokenizer.ggml.model"), g.field("tokenizer.ggml.pre")
    if kind != "gpt2" or pre not in PRE_TOKENIZERS:
        raise FormatError(
            f"[{WHERE}] tokenizer {kind!r} / {pre!r}, expected gpt2 with one of {', '.join(PRE_TOKENIZERS)}"
        )
    tokens, types = g.field("tokenizer.ggml.tokens"), g.field("tokenizer.ggml.token_type")
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    bos = g.field("tokenizer.ggml.bos_token_id")
    processor = None
    if g.field("tokenizer.ggml.add_bos_token", False):
        word = tokens[bos]
        first = {"SpecialToken": {"id": word, "type_id": 0}}
        a, b = ({"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB"))
        processor = {
            "type": "TemplateProcessing", "single": [first, a], "pair": [first, a, b],
            "special_tokens": {word: {"id": word, "ids": [bos], "tokens": [word]}},
        }  # fmt: skip
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": i, "content": tokens[i], "single_word": False, "lstrip": False, "rstrip": False,
                "normalized": False, "special": t == CONTROL,
            }
            for i, t in enumerate(types) if t in (CONTROL, USER_DEFINED)
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*PRE_TOKENIZERS[pre], byte_level]},
        "post_processor": processor,
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix":
            None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False, "vocab": {t: i for i, t in
            enumerate(tokens)}, "merges": [m.split(" ", 1) for m in g.field("tokenizer.ggml.merges")],
        },
    }  # fmt: skip


def tokenizer_config(g: Gguf) -> dict:
    tokens = g.field("tokenizer.ggml.tokens")
    out = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": g.field("llama.context_length"),
        "add_prefix_space": False,
    }
    for key, name in (("bos_token", "bos"), ("eos_token", "eos"), ("unk_token", "unknown"), ("pad_token", "padding")):
        i = g.field(f"tokenizer.ggml.{name}_token_id")
        if i is not None:
            out[key] = tokens[i]
    template = g.field("tokenizer.chat_template")
    return {**out, "chat_template": template} if template else out


def _write_safetensors(path, tensors) -> None:
    """bf16, one tensor in memory at a time."""
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, shape, _ in tensors:
        end = at + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for name, shape, make in tensors:
            values = make()
            if list(values.shape) != shape or not np.isfinite(values).all():
                raise FormatError(
                    f"[{WHERE}] tensor {name} of shape {list(values.shape)}, expected finite values of shape {shape}"
                )
            f.write(to_bf16(values).tobytes())
        f.flush()
        os.fsync(f.fileno())


def to_hf_folder(path, out_dir) -> None:
    """Writes the four files; out_dir is made when missing."""
    g = Gguf(path)
    os.makedirs(out_dir, exist_ok=True)
    tensors = g.tensors()
    tied = all(name != "lm_head.weight" for name, _, _ in tensors)
    files = {
        "config.json": config(g, tied),
        "tokenizer.json": tokenizer(g),
        "tokenizer_config.json": tokenizer_config(g),
    }
    for name, content in files.items():
        with open(os.path.join(out_dir, name), "w", encoding="utf-8") as f:
            json.dump(content, f, ensure_ascii=False, indent=None if name == "tokenizer.json" else 2)
    _write_safetensors(os.path.join(out_dir, "model.safetensors"), tensors)
