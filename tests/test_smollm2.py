"""Logits of a real model, SmolLM2-135M as the demo prepares it, against transformers, on real sentences."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("gguf")

from pysmezo import MeZO, Runtime
from pysmezo.demo import prepare

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def batch(demo):
    """Six test sentences of different lengths, padded right; every token but the first is a label."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(demo["model"])
    texts = [json.loads(line)["text"] for line in open(demo["eval"], encoding="utf-8")][:6]
    out = tokenizer(texts, padding=True, return_tensors="pt")
    labels = out["input_ids"].masked_fill(out["attention_mask"] == 0, -100)
    return {"input_ids": out["input_ids"], "attention_mask": out["attention_mask"], "labels": labels}


def reference(demo, batch, dtype):
    """Logits that predict each label, float32 [n_labels, V], by transformers."""
    model = transformers.AutoModelForCausalLM.from_pretrained(demo["model"], dtype=dtype).eval()
    with torch.inference_mode():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.float()
    wanted = batch["labels"][:, 1:] != -100
    return logits[:, :-1][wanted].numpy()


def test_logits(demo, batch):
    exact = reference(demo, batch, torch.float32)
    scale = np.abs(exact).max()
    with Runtime.from_pretrained(demo["model"], method=MeZO(), lr=1e-6, eps=1e-3, dtype="fp32", values="fp32") as run:
        ours = run.logits(batch)
    assert ours.shape == exact.shape
    assert np.abs(ours - exact).max() / scale <= 1e-4

    theirs = reference(demo, batch, torch.bfloat16)
    with Runtime.from_pretrained(demo["model"], method=MeZO(), lr=1e-6, eps=1e-3, dtype="bf16") as run:
        ours = run.logits(batch)
    assert np.abs(ours - exact).max() <= 2 * np.abs(theirs - exact).max()
    assert np.sqrt(np.mean((ours - exact) ** 2)) <= 2 * np.sqrt(np.mean((theirs - exact) ** 2))


def test_readme_example_runs(demo, tmp_path, monkeypatch, capsys):
    root = Path(__file__).parents[1]
    example = re.search(r"```python\n(.*?)```", (root / "README.md").read_text(), re.S)[1]
    (tmp_path / ".demo").mkdir()
    (tmp_path / ".demo" / "v1").symlink_to(Path(demo["model"]).parent)
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {})
    losses = [float(line) for line in capsys.readouterr().out.split()]
    assert len(losses) == 10 and all(np.isfinite(losses))
    assert (tmp_path / "mine.delta.safetensors").stat().st_size > 1e6
