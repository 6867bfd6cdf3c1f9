"""The torch side of the benchmarks, in a process of its own, commanded over pipes (`common.Child`).

The textbook step is MeZO as published (arXiv 2305.17333, algorithm 1; the form of its authors' trainer): four passes
over all parameters, each drawing z again by torch.normal from the step's seed and writing p = p + scale * z out of
place; two forwards of a bf16 transformers model with labels given, so that logits of every position are computed.
Nothing here is tuned down; nothing is tuned up either: it is what one writes.
"""

from __future__ import annotations

import sys
import time

from . import common

STATE: dict = {}


def load(model: str, threads: int = 2) -> dict:
    import torch
    import transformers

    torch.set_num_threads(threads)
    STATE["torch"] = torch
    STATE["model"] = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).eval()
    STATE["batches"] = {}
    n = sum(p.numel() for p in STATE["model"].parameters())
    return {
        "parameters": n,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "attention": STATE["model"].config._attn_implementation,
    }


def batch(name: str, input_ids: list, attention_mask: list | None = None, labels: list | None = None) -> dict:
    """Keeps a batch under a name. Without a mask it is unpadded, and every position is a label unless labels are
    given."""
    torch = STATE["torch"]
    ids = torch.tensor(input_ids)
    STATE["batches"][name] = {"input_ids": ids, "labels": ids.clone() if labels is None else torch.tensor(labels)}
    if attention_mask is not None:
        STATE["batches"][name]["attention_mask"] = torch.tensor(attention_mask)
    return {"shape": list(ids.shape)}


def encode(tokenizer: str, texts: list) -> dict:
    import tokenizers

    return {
        "ids": [e.ids for e in tokenizers.Tokenizer.from_file(tokenizer).encode_batch(texts, add_special_tokens=False)]
    }


def normal_pass(seed: int, scale: float) -> None:
    torch = STATE["torch"]
    torch.manual_seed(seed)
    for p in STATE["model"].parameters():
        z = torch.normal(mean=0, std=1, size=p.data.size(), device=p.data.device, dtype=p.data.dtype)
        p.data = p.data + scale * z


def textbook(name: str, seed: int, eps: float = 1e-3, lr: float = 1e-7) -> dict:
    """One step; seconds in all, of the two forwards, of the four passes."""
    with STATE["torch"].inference_mode():
        marks = [time.perf_counter()]
        losses = []
        for scale in (eps, -2 * eps):
            normal_pass(seed, scale)
            marks.append(time.perf_counter())
            losses.append(STATE["model"](**STATE["batches"][name], use_cache=False).loss.item())
            marks.append(time.perf_counter())
        normal_pass(seed, eps)
        g = (losses[0] - losses[1]) / (2 * eps)
        normal_pass(seed, -lr * g)
        marks.append(time.perf_counter())
    forwards = marks[2] - marks[1] + marks[4] - marks[3]
    return {
        "seconds": marks[-1] - marks[0],
        "forwards_s": forwards,
        "passes_s": marks[-1] - marks[0] - forwards,
        "loss": losses[0],
    }


def forwards(name: str, body_only: bool) -> dict:
    """Two bare forwards: the decoder alone (to the last hidden states), or with logits of every position and the
    loss."""
    b = STATE["batches"][name]
    with STATE["torch"].inference_mode():
        start = time.perf_counter()
        for _ in range(2):
            if body_only:
                STATE["model"].model(**{k: v for k, v in b.items() if k != "labels"}, use_cache=False)
            else:
                STATE["model"](**b, use_cache=False).loss.item()
        return {"seconds": time.perf_counter() - start}


def normal(n: int, repeat: int = 3) -> dict:
    """Values a second of torch.normal_ into a bf16 and an fp32 tensor of n values."""
    import torch

    out = {}
    for kind in ("bfloat16", "float32"):
        x = torch.empty(n, dtype=getattr(torch, kind))
        best = min(_timed(lambda x=x: x.normal_()) for _ in range(repeat))
        out[kind] = n / best / 1e9
    return {"giga_per_s": out}


def linear(n: int, k: int, t: int, dtype: str, threads: int = 2, at_least_s: float = 0.3) -> dict:
    """Flops a second of torch's linear [t, k] x [n, k]^T: the median of repeated calls."""
    import torch

    torch.set_num_threads(threads)
    x, w = torch.randn(t, k).to(getattr(torch, dtype)), torch.randn(n, k).to(getattr(torch, dtype))
    with torch.inference_mode():
        torch.nn.functional.linear(x, w)
        times = []
        while sum(times) < at_least_s or len(times) < 5:
            times.append(_timed(lambda: torch.nn.functional.linear(x, w)))
    return {"giga_flops": 2 * n * k * t / sorted(times)[len(times) // 2] / 1e9}


def quantized_load(n: int, k: int, threads: int = 2) -> dict:
    """Keeps the 4-bit layers [n, k] that `quantized` times: bitsandbytes' NF4 (its defaults: blocks of 64, absmax
    quantized too) and torch's int4 pack (groups of 64)."""
    import bitsandbytes
    import torch

    torch.set_num_threads(threads)
    with torch.no_grad():
        layer = bitsandbytes.nn.Linear4bit(k, n, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4")
        layer.weight = bitsandbytes.nn.Params4bit(torch.randn(n, k) * 0.02, requires_grad=False, quant_type="nf4")
        layer = layer.to("cpu").eval()
        packed = torch._convert_weight_to_int4pack_for_cpu(torch.randint(0, 16, (n, k), dtype=torch.int32), 1)
        scales = torch.randn(k // 64, n, 2).to(torch.bfloat16)
    STATE["quantized"] = {
        "bitsandbytes": layer,
        "int4pack": lambda x: torch._weight_int4pack_mm_for_cpu(x, packed, 64, scales),
    }
    return {"torch": torch.__version__, "bitsandbytes": bitsandbytes.__version__}


def quantized(which: str, k: int, m: int, at_least_s: float) -> dict:
    """Median seconds of one product [m, k] x [n, k]^T in bf16, of at least five calls."""
    import torch

    x, layer, times = torch.randn(m, k).to(torch.bfloat16), STATE["quantized"][which], []
    with torch.no_grad():
        layer(x)
        while sum(times) < at_least_s or len(times) < 5:
            times.append(_timed(lambda: layer(x)))
    return {"seconds": sorted(times)[len(times) // 2]}


def capabilities() -> dict:
    import torch

    return {"torch": torch.__version__, "cpu_capability": torch.backends.cpu.get_cpu_capability()}


def _timed(action) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.tracebacklimit = 0
    verbs = (load, batch, encode, textbook, forwards, normal, linear, quantized_load, quantized, capabilities)
    common.serve({f.__name__: f for f in verbs})
