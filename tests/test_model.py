"""Logits against transformers in fp32, for every variant of the llama family that config.json can ask for."""

import json

import numpy as np
import pytest

pytest.importorskip("pysmezo._core")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from quick import quickly

from pysmezo import MeZO, Runtime
from pysmezo.errors import ArgumentError, FormatError

VOCABULARY = 131
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
    "initializer_range": 0.3,
}


def rope(kind, **keys):
    return {"rope_scaling": {"rope_type": kind, **keys}}


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
YARN = {"factor": 4.0, "original_max_position_embeddings": 24}
MSCALE = {"mscale": 1.2, "mscale_all_dim": 0.7, "beta_fast": 16, "beta_slow": 2, "truncate": False}
VARIANTS = {
    "grouped_queries": {},
    "all_heads": {"num_key_value_heads": 6},
    "one_kv_head": {"num_key_value_heads": 1},
    "tied": {"tie_word_embeddings": True},
    "theta": {"rope_theta": 123456.0},
    "linear": rope("linear", factor=2.5),
    "dynamic_within_limit": rope("dynamic", factor=4.0),
    "dynamic_past_limit": {"max_position_embeddings": 24, **rope("dynamic", factor=4.0)},
    "llama3": {"rope_theta": 500000.0, **rope("llama3", **LLAMA3)},
    "yarn": rope("yarn", **YARN),
    "yarn_mscale": rope("yarn", **YARN, **MSCALE),
    "attention_bias": {"attention_bias": True},
    "mlp_bias": {"mlp_bias": True},
    "head_dim": {"head_dim": 16},
    "sliding_window": {"model_type": "mistral", "sliding_window": 7},
    "mistral_without_window": {"model_type": "mistral", "sliding_window": None},
}


def make(folder, changes, dtype=torch.float32):
    """A random model whose norms and biases are not all one and zero, saved; returned in fp32."""
    keys = SMALL | changes
    kind = transformers.MistralConfig if keys.pop("model_type", "llama") == "mistral" else transformers.LlamaConfig
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(kind(**keys), attn_implementation="eager")
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() == 1:
                p.normal_(1.0 if "norm" in name else 0.0, 0.2)
    model.to(dtype).save_pretrained(folder)
    # Read back: casting a model would cast its rotary frequencies too.
    return read(folder, torch.float32)


def read(folder, dtype):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=dtype).eval()


def open_run(folder, **keys):
    options = {"method": MeZO(), "lr": 1e-6, "eps": 1e-3, "dtype": "fp32", "values": "fp32"} | keys
    return Runtime.from_pretrained(folder, **options)


def texts(*lengths):
    rng = np.random.default_rng(0)
    return [rng.integers(0, VOCABULARY, n).tolist() for n in lengths]


def padded(rows):
    """Right-padded; every token but the first is a label."""
    longest = max(map(len, rows))
    pad = [[0] * (longest - len(r)) for r in rows]
    return {
        "input_ids": [r + p for r, p in zip(rows, pad, strict=True)],
        "attention_mask": [[1] * len(r) + p for r, p in zip(rows, pad, strict=True)],
        "labels": [[-100] + r[1:] + [-100] * len(p) for r, p in zip(rows, pad, strict=True)],
    }


def reference(model, rows):
    """Each text alone: the last position predicts nothing."""
    with torch.no_grad():
        return np.concatenate([model(torch.tensor([r])).logits[0, :-1].float().numpy() for r in rows])


def error(got, want):
    assert got.shape == want.shape
    return np.abs(got - want).max() / np.abs(want).max()


QUICK = ("tied", "one_kv_head", "llama3", "dynamic_past_limit", "mlp_bias", "sliding_window")


@pytest.mark.parametrize("name", quickly(QUICK, VARIANTS))
def test_fp32_logits(name, tmp_path):
    model = make(tmp_path / "m", VARIANTS[name])
    # transformers stretches dynamic rope by the longest text it has seen: a fresh model for each text there.
    rows = texts(40, 2, 17, 33)
    want = np.concatenate(
        [reference(read(tmp_path / "m", torch.float32), [r]) for r in rows]
        if name == "dynamic_past_limit"
        else [reference(model, rows)]
    )
    with open_run(tmp_path / "m") as run:
        assert error(run.logits(padded(rows)), want) <= 1e-4


def test_bf16_base_is_read_exactly_in_fp32(tmp_path):
    model = make(tmp_path / "m", {}, torch.bfloat16)
    rows = texts(30, 11)
    with open_run(tmp_path / "m") as run:
        assert error(run.logits(padded(rows)), reference(model, rows)) <= 1e-4


def test_bf16_error_is_at_most_twice_that_of_transformers(tmp_path):
    model = make(tmp_path / "m", {"hidden_size": 192, "head_dim": 32, "initializer_range": 0.08}, torch.bfloat16)
    rows = texts(60, 33, 47)
    want = reference(model, rows)
    theirs = np.sqrt(np.mean((reference(read(tmp_path / "m", torch.bfloat16), rows) - want) ** 2))
    with open_run(tmp_path / "m", dtype="bf16") as run:
        ours = np.sqrt(np.mean((run.logits(padded(rows)) - want) ** 2))
    assert 0 < ours <= 2 * theirs


def test_old_spelling_of_rope_and_sharded_files(tmp_path):
    make(tmp_path / "new", rope("linear", factor=2.5))
    model = make(tmp_path / "old", rope("linear", factor=2.5))
    model.save_pretrained(tmp_path / "old", max_shard_size="40KB")
    (tmp_path / "old" / "model.safetensors").unlink(missing_ok=True)
    assert (tmp_path / "old" / "model.safetensors.index.json").exists()
    config = json.loads((tmp_path / "old" / "config.json").read_text())
    del config["rope_parameters"]
    config |= {"rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 2.5}}
    (tmp_path / "old" / "config.json").write_text(json.dumps(config))
    batch = padded(texts(21))
    with open_run(tmp_path / "new") as new, open_run(tmp_path / "old") as old:
        assert np.array_equal(new.logits(batch), old.logits(batch))


def test_unknown_config_key_is_refused(tmp_path):
    make(tmp_path / "m", {})
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps(config | {"residual_multiplier": 0.2}))
    with pytest.raises(FormatError, match="unknown key 'residual_multiplier'"):
        open_run(tmp_path / "m")


def test_text_past_the_limit_and_foreign_token(tmp_path):
    make(tmp_path / "m", {})
    with open_run(tmp_path / "m") as run:
        with pytest.raises(ArgumentError, match="97"):
            run.logits(padded(texts(97)))
        with pytest.raises(ArgumentError, match="131"):
            run.logits(padded([[1, 131, 2]]))
