"""accelerate's side of `benchmarks.streaming`, in a process of its own: a bf16 transformers model whose weights lie on
disk, two ways. `disk_offload`: accelerate's function of that name; the model is loaded, then written to a folder of one
memory-mapped file a weight. `device_map`: from_pretrained(device_map={"": "disk"}), which reads the checkpoint itself.

Nothing of pysmezo is imported here: its memory would count as theirs.
"""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

from . import common

STATE: dict = {}


def peak_bytes() -> int:
    """The most that was resident since the last reset."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024


def load(model: str, way: str, offload: str, threads: int = 2) -> dict:
    import accelerate
    import torch
    import transformers

    torch.set_num_threads(threads)
    open_model = transformers.AutoModelForCausalLM.from_pretrained
    if way == "device_map":
        made = open_model(model, dtype=torch.bfloat16, device_map={"": "disk"}, offload_folder=offload)
    else:
        made = accelerate.disk_offload(
            open_model(model, dtype=torch.bfloat16), offload, execution_device=torch.device("cpu")
        )
    STATE.update(torch=torch, model=made.eval())
    kept = [name for name, p in made.named_parameters() if p.device.type != "meta"]
    if kept:
        raise RuntimeError(f"{kept[0]} and {len(kept) - 1} more stay in memory, expected all on disk")
    loading = peak_bytes()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew: loading is not what is compared
    return {
        "loading": loading,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "accelerate": accelerate.__version__,
    }


def read_bytes() -> int:
    """What the disk gave this process so far; pages that were cached do not count."""
    return int(re.search(r"^read_bytes: (\d+)", Path("/proc/self/io").read_text(), re.M)[1])


def forward(input_ids: list) -> dict:
    """A forward of [B, T] ids under no_grad; logits only where the last token of each text is predicted. loss: mean
    cross-entropy of the last tokens."""
    torch, model = STATE["torch"], STATE["model"]
    ids = torch.tensor(input_ids)
    start, before = time.perf_counter(), read_bytes()
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=2).logits[:, 0].float()
        loss = torch.nn.functional.cross_entropy(logits, ids[:, -1]).item()
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "loss": loss, "peak": peak_bytes(), "read": read_bytes() - before}


if __name__ == "__main__":
    sys.tracebacklimit = 0
    common.serve({f.__name__: f for f in (load, forward)})
