"""A budget changes where weights lie, never what comes out: journals and deltas are the same bits."""

import ctypes
import hashlib
import json
import mmap
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tiny_llama
from quick import quickly

from pysmezo import (
    ArgumentError,
    BudgetError,
    IoError,
    LargestMask,
    MeZO,
    RandomMask,
    Runtime,
    Sensitive,
    SparseMeZO,
    _core,
    packing,
    planning,
)

# Rows of the vocabulary come in blocks of 512, so that the head is cut too; the inner size cuts gate and up into units.
CONFIG = tiny_llama.config(layers=8, inner=720) | {"vocab_size": 1200, "max_position_embeddings": 4096}
SMALLEST = 3 * (512 * CONFIG["hidden_size"] * 2 + 2 * 4096)  # the least ring: three blocks of the head
SMALLEST_ALL = 3 * (512 * CONFIG["hidden_size"] * 3)  # of a head that trains


def save_base(folder):
    weights = tiny_llama.to_bf16(tiny_llama.random_weights(CONFIG))
    return tiny_llama.save(folder / "bf16", CONFIG, weights, "BF16")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("bases"))


def batch(seed, rows=4, columns=14):
    ids = np.random.default_rng(seed).integers(3, 1200, (rows, columns))
    return {"input_ids": ids, "labels": ids}


def run_of(base, folder, method, n_steps=6, **options):
    options = {"lr": 2.0**-8, "eps": 2.0**-7, "seed": 5, "threads": 2} | options
    with Runtime.from_pretrained(base, method=method, run_dir=folder, **options) as run:
        results = [run.train_step(batch(s)) for s in range(run.step, n_steps)]
        logits = run.logits(batch(99, rows=1))
        run.save_delta(folder / "x.delta.safetensors")
        return results, hashlib.sha256(logits.tobytes()).hexdigest(), run._engine.bytes_by_purpose


def records(folder):
    """A journal without its random salt, which goes into the chain of checksums."""
    found = _core.read_journal(str(folder / "journal.smz"))["records"]
    assert found
    return [{k: v for k, v in r.items() if k != "chain"} for r in found]


def bits(folder):
    delta = (folder / "x.delta.safetensors").read_bytes()
    values = delta[8 + int.from_bytes(delta[:8], "little") :]
    assert len(values) > 100
    return records(folder), values


def smallest_budget(p, a_batch, n_branches, **asked):
    return p.plan(planning.core_batch(packing.pack_sequences(a_batch)), n_branches, **asked)["smallest_budget_bytes"]


def tight(base, method, options=None, of=None):
    """A budget that keeps nothing but what it must."""
    options = {"ring_bytes": SMALLEST} | (options or {}) | {"memory_budget": "64MiB"}
    options.pop("lr", None)
    p = planning.planner(base, method, **options)
    least = smallest_budget(p, of or batch(0), 2 * method.queries)
    return max(least, smallest_budget(p, batch(99, rows=1), 1, want_logits=True))


METHODS = {
    "sensitive": Sensitive(fraction=0.05),
    "mezo": MeZO(),
    "sparse-mezo": SparseMeZO(sparsity=0.5),
    "sparse-mezo, two queries, decay": SparseMeZO(sparsity=0.75, queries=2, weight_decay=0.1),
    "random-mask": RandomMask(sparsity=0.5),
    "largest-mask": LargestMask(sparsity=0.5),
    "mezo, everything": MeZO(trains="all"),
    "sparse-mezo, everything, decay": SparseMeZO(sparsity=0.5, trains="all", weight_decay=0.1),
}
PLACES = {
    "smallest ring": {"memory_budget": "tight", "ring_bytes": SMALLEST},
    "roomy": {"memory_budget": "200MiB"},
    "nothing read ahead": {"memory_budget": "32MiB", "n_readers": 0},
    "state on disk": {"memory_budget": "32MiB", "stream_trained": True, "generation_every": 2},
    "state on disk, never written": {"memory_budget": "32MiB", "stream_trained": True, "generation_every": 99},
    "state on disk, smallest ring": {
        "memory_budget": "tight",
        "ring_bytes": SMALLEST,
        "stream_trained": True,
        "generation_every": 1,
        "threads": 3,
    },
    "one reader, one thread": {"memory_budget": "32MiB", "n_readers": 1, "threads": 1},
    "device": {"memory_budget": "32MiB", "device": "fake:64MiB"},
    "device, smallest rings": {"memory_budget": "tight", "ring_bytes": SMALLEST, "device": "fake:400KiB"},
    "device, state on disk": {
        "memory_budget": "32MiB",
        "device": "fake:5MiB",
        "stream_trained": True,
        "generation_every": 2,
    },
    "through the page cache": {"memory_budget": "32MiB", "cached_reads": True},
    "through the page cache, state on disk": {
        "memory_budget": "tight",
        "ring_bytes": SMALLEST,
        "stream_trained": True,
        "generation_every": 2,
        "cached_reads": True,
    },
}


@pytest.mark.parametrize("name", quickly(("sparse-mezo, two queries, decay",), METHODS))
def test_budgets_give_the_same_bits(base, tmp_path, name):
    resident, logits, _ = run_of(base, tmp_path / "resident", METHODS[name])
    assert resident[0].bytes_read == 0
    for place, options in PLACES.items():
        if METHODS[name].trains == "all" and "ring_bytes" in options:
            options = options | {"ring_bytes": SMALLEST_ALL}
        if options["memory_budget"] == "tight":
            options = options | {"memory_budget": tight(base, METHODS[name], options)}
        results, same, held = run_of(base, tmp_path / place.replace(" ", "-"), METHODS[name], **options)
        assert bits(tmp_path / place.replace(" ", "-")) == bits(tmp_path / "resident"), place
        assert same == logits, place
        if METHODS[name].trains == "all" and not options.get("stream_trained"):
            continue  # it is all copied to memory
        assert results[0].bytes_read > 0
        if place == "roomy":  # everything stays after the first step but rows of the embedding
            assert held["resident units"] > 0 and results[3].bytes_read < 300 * 64 * 2


def cached_share(path):
    """Share of a file's pages that the page cache holds; None: the system does not tell."""
    with (
        open(path, "rb") as f,
        mmap.mmap(f.fileno(), 0, mmap.MAP_PRIVATE) as at,
    ):  # copy on write: ctypes wants to write
        pages = (ctypes.c_ubyte * (-(-len(at) // mmap.PAGESIZE)))()
        place = ctypes.c_char.from_buffer(at)
        failed = ctypes.CDLL(None).mincore(ctypes.c_void_p(ctypes.addressof(place)), ctypes.c_size_t(len(at)), pages)
        del place
        return None if failed else sum(p & 1 for p in pages) / len(pages)


def test_pages_of_the_base_stay_in_the_page_cache_where_asked(base):
    path, method = base / "model.safetensors", Sensitive(fraction=0.05)

    def drop():
        with open(path, "rb") as f:
            os.fdatasync(f.fileno())
            os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    drop()
    if cached_share(path) != 0:
        pytest.skip("this system does not drop pages of a file, or does not tell which it holds")
    shares = {}
    for cached in (False, True):
        options = {"memory_budget": "32MiB", "ring_bytes": SMALLEST, "cached_reads": cached, "lr": 1e-3, "eps": 1e-2}
        with Runtime.from_pretrained(base, method=method, **options) as run:
            drop()
            run.train_step(batch(0))
            shares[cached] = cached_share(path)
        drop()
    assert shares[False] < 0.2 and shares[True] > 0.8, shares


def test_budget_too_small_says_what_would_do(base, tmp_path):
    with pytest.raises(BudgetError, match=r"\[memory_budget\] 1048576 bytes, expected at least"):
        Runtime.from_pretrained(base, method=Sensitive(), memory_budget="1MiB")
    with Runtime.from_pretrained(base, method=Sensitive(), lr=1e-3, eps=1e-2, memory_budget="8MiB") as run:
        with pytest.raises(BudgetError, match=r"expected at least \d+ for a batch of \d+ tokens"):
            run.train_step(batch(0, rows=2, columns=3000))
        assert run.step == 0
        run.train_step(batch(0, rows=120, columns=30))  # in micro-batches


@pytest.mark.parametrize(
    "name",
    quickly(
        ("mezo, everything",),
        ["sensitive", "sparse-mezo, two queries, decay", "sparse-mezo, everything, decay", "mezo, everything"],
    ),
)
@pytest.mark.parametrize("stream_trained", quickly((True,), [False, True]))
def test_micro_batches_give_the_same_bits(base, tmp_path, name, stream_trained):
    """What does not fit at once goes in several passes: language model, candidates, options behind one prompt."""
    method = METHODS[name]
    rng = np.random.default_rng(3)
    prompts = [rng.integers(3, 1200, n).astype(np.int32) for n in (5, 61, 17, 30, 2, 44, 9)]
    packed = [
        packing.pack_sequences(batch(0, 40, 60)),
        packing.pack_choices(prompts, [[1], [2], [7]], [0, 1, 2, 0, 1, 2, 0]),
        packing.pack_choices(prompts, [[1, 5], [2]], [1, 0, 0, 1, 0, 1, 1]),
    ]
    ring = SMALLEST_ALL if method.trains == "all" else SMALLEST
    cut = {"ring_bytes": ring, "stream_trained": stream_trained and name != "sensitive", "generation_every": 2}
    p = planning.planner(base, method, memory_budget="1GiB", **cut)
    least = [p.plan(planning.core_batch(b), 2 * method.queries)["smallest_budget_bytes"] for b in packed]
    settings = {"lr": 2.0**-8, "eps": 2.0**-7, "seed": 5, "threads": 2, "method": method}
    for folder, options in (("whole", {}), ("cut", cut | {"memory_budget": max(least)})):
        with Runtime.from_pretrained(base, run_dir=tmp_path / folder, **settings, **options) as run:
            for b in packed * 2:
                run.train_step(b)
            run.save_delta(tmp_path / folder / "x.delta.safetensors")
    assert bits(tmp_path / "cut") == bits(tmp_path / "whole")
    p = planning.planner(base, method, memory_budget=max(least), **cut)
    found = [p.plan(planning.core_batch(b), 2 * method.queries) for b in packed]
    assert max(f["micro_batches"] for f in found) > 3 and all(f["fits"] for f in found)


def test_a_device_is_a_place_with_a_size(base):
    def opened(device, **options):
        return Runtime.from_pretrained(
            base, method=Sensitive(fraction=0.05), device=device, ring_bytes=SMALLEST, **options
        )

    for device in ("cuda", "fake", "fake:", "cpu:0"):
        with pytest.raises(ArgumentError, match=r"\[device\]"):
            opened(device, memory_budget="32MiB")
    with pytest.raises(ArgumentError, match=r"\[device\] no memory_budget"):
        opened("fake:64MiB")
    with pytest.raises(BudgetError, match=r"\[device\] 4096 bytes, expected at least"):
        opened("fake:4KiB", memory_budget="32MiB")
    with opened("fake:1MiB", memory_budget="32MiB", lr=1e-3, eps=1e-2) as run:
        for s in range(3):
            run.train_step(batch(s))
        assert SMALLEST + (1 << 16) < run._engine.device_bytes <= 1 << 20  # what fits beside the ring stays there
        assert run._engine.bytes_by_purpose["resident units"] == 0


def test_a_base_cut_short_while_training_loses_nothing(base, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for f in base.iterdir():
        (copy / f.name).write_bytes(f.read_bytes())
    method = Sensitive(fraction=0.05)
    options = {
        "lr": 2.0**-8,
        "eps": 2.0**-7,
        "memory_budget": tight(base, method, of=batch(0, 16, 40)),
        "ring_bytes": SMALLEST,
    }
    whole = (copy / "model.safetensors").read_bytes()
    with Runtime.from_pretrained(copy, method=method, run_dir=tmp_path / "r", **options) as run:
        run.train_step(batch(0, 16, 40))
        with open(copy / "model.safetensors", "r+b") as f:
            f.truncate(len(whole) // 2)
        with pytest.raises(IoError, match="truncated"):
            run.train_step(batch(1, 16, 40))
        (copy / "model.safetensors").write_bytes(whole)
    with Runtime.from_pretrained(copy, method=method, run_dir=tmp_path / "r", **options) as run:
        assert run.step == 1
        run.train_step(batch(1, 16, 40))
    with Runtime.from_pretrained(base, method=method, run_dir=tmp_path / "s", **options) as run:
        run.train_step(batch(0, 16, 40))
        run.train_step(batch(1, 16, 40))
    assert records(tmp_path / "r") == records(tmp_path / "s")


def test_a_generation_that_cannot_be_written_loses_nothing(base, tmp_path):
    """Files may not grow as on a full disk, half way through a generation: one error, and the step can be tried again."""
    import resource

    method = METHODS["sparse-mezo"]
    options = {"memory_budget": "32MiB", "stream_trained": True, "generation_every": 2}
    run_of(base, tmp_path / "whole", method, **options)
    settings = {"lr": 2.0**-8, "eps": 2.0**-7, "seed": 5, "threads": 2}
    with Runtime.from_pretrained(base, method=method, run_dir=tmp_path / "r", **settings, **options) as run:
        run.train_step(batch(0))
        run.train_step(batch(1))
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, before[1]))
        try:
            for _ in range(2):
                with pytest.raises(IoError, match="cannot write"):
                    run.train_step(batch(2))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert run.step == 2 and not list((tmp_path / "r" / "generations").glob("*.safetensors"))
        run.train_step(batch(2))
        assert len(list((tmp_path / "r" / "generations").glob("*.safetensors"))) == 1
    run_of(base, tmp_path / "r", method, **options)
    assert bits(tmp_path / "r") == bits(tmp_path / "whole")


def test_quantization_of_another_library_is_refused(base, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for f in base.iterdir():
        (copy / f.name).write_bytes(f.read_bytes())
    config = json.loads((copy / "config.json").read_text()) | {"quantization_config": {"quant_method": "gptq"}}
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(Exception, match="quantization_config"):
        Runtime.from_pretrained(copy)


@pytest.mark.parametrize("name", quickly(("sparse-mezo",), ["mezo", "sparse-mezo", "largest-mask"]))
def test_streamed_state_is_found_again(base, tmp_path, name):
    """Closed anywhere between generations, opened in memory or streamed: the run goes on with the same bits."""
    streamed = {"memory_budget": "32MiB", "stream_trained": True, "generation_every": 3}
    run_of(base, tmp_path / "whole", METHODS[name], n_steps=8)
    for n, options in ((2, streamed), (5, streamed), (6, {}), (8, streamed)):
        _, _, _ = run_of(base, tmp_path / "pieces", METHODS[name], n_steps=n, **options)
    assert bits(tmp_path / "pieces") == bits(tmp_path / "whole")
    found = list((tmp_path / "pieces" / "generations").glob("*.safetensors"))
    assert len(found) == 1
    with Runtime.from_pretrained(base, method=METHODS[name], run_dir=tmp_path / "pieces", seed=5, **streamed) as run:
        with Runtime.from_pretrained(base, method=METHODS[name], run_dir=tmp_path / "whole", seed=5) as same:
            for n in run.tensor_ids():
                assert np.array_equal(run.weights(n), same.weights(n)), n
            assert run.diagnostics() == same.diagnostics()


@pytest.mark.slow
def test_thousands_of_records_do_not_wait_together(base, tmp_path):
    """Opened with streamed state, a long run writes a generation on the way; in memory it is brought forward in parts."""
    settings = {"method": MeZO(), "lr": 2.0**-12, "eps": 2.0**-7, "seed": 5, "threads": 2, "run_dir": tmp_path / "r"}
    with Runtime.from_pretrained(base, **settings) as run:
        for s in range(4100):
            run.train_step(batch(s % 8, rows=1, columns=3))
        want = {n: run.weights(n) for n in run.tensor_ids()}
    generations = tmp_path / "r" / "generations"
    for options in ({}, {"memory_budget": "32MiB", "stream_trained": True, "generation_every": 99}):
        shutil.rmtree(generations, ignore_errors=True)
        with Runtime.from_pretrained(base, **settings, **options) as run:
            assert run.step == 4100
            assert all(np.array_equal(run.weights(n), w) for n, w in want.items())
    assert [f.name for f in generations.iterdir()] == ["generation-0000004096.safetensors"]


def test_a_generation_may_be_written_between_steps(base, tmp_path):
    method = METHODS["sparse-mezo"]
    options = {"memory_budget": "32MiB", "stream_trained": True, "generation_every": 99}
    run_of(base, tmp_path / "whole", method, n_steps=6, **options)
    settings = {"lr": 2.0**-8, "eps": 2.0**-7, "seed": 5, "threads": 2}
    with Runtime.from_pretrained(base, method=method, run_dir=tmp_path / "r", **settings, **options) as run:
        for s in range(5):
            run.train_step(batch(s))
            if s % 2:
                run._engine.save_generation()
    run_of(base, tmp_path / "r", method, n_steps=6, **options)
    assert bits(tmp_path / "r") == bits(tmp_path / "whole")


def test_streamed_state_starts_from_a_delta(base, tmp_path):
    method = METHODS["sparse-mezo"]
    run_of(base, tmp_path / "first", method)
    delta = tmp_path / "first" / "x.delta.safetensors"
    run_of(base, tmp_path / "a", method, delta=delta)
    run_of(base, tmp_path / "b", method, delta=delta, memory_budget="32MiB", stream_trained=True, generation_every=4)
    assert bits(tmp_path / "a") == bits(tmp_path / "b")


def test_streamed_state_needs_a_run_folder(base):
    with pytest.raises(ArgumentError, match=r"\[run_dir\] none"):
        with Runtime.from_pretrained(
            base, method=MeZO(), lr=1e-3, eps=1e-2, memory_budget="32MiB", stream_trained=True
        ) as run:
            run.train_step(batch(0))


KILLED = """
import sys; sys.path.insert(0, sys.argv[3])
import json, test_streaming as t
from pysmezo import Runtime
method = t.METHODS[sys.argv[5]]
with Runtime.from_pretrained(sys.argv[1], method=method, run_dir=sys.argv[2], **json.loads(sys.argv[4])) as run:
    for s in range(run.step, 200):
        run.train_step(t.batch(s))
        print(s, flush=True)
"""


@pytest.mark.slow
def test_a_run_can_be_read_while_it_replaces_its_generations(base, tmp_path):
    options = {"lr": 2.0**-8, "eps": 2.0**-7, "seed": 5, "threads": 1, "memory_budget": "32MiB"}
    options |= {"stream_trained": True, "generation_every": 1}
    program = [sys.executable, "-c", KILLED, base, tmp_path, os.path.dirname(__file__), json.dumps(options), "mezo"]
    child = subprocess.Popen(program, stdout=subprocess.PIPE, text=True)
    try:
        child.stdout.readline()
        seen = []
        while child.poll() is None and (not seen or seen[-1] < seen[0] + 50):
            with Runtime.from_journal(base, tmp_path / "journal.smz", memory_budget="32MiB", threads=1) as reader:
                seen.append(reader.step)
    finally:
        child.kill()
        child.wait()
    assert seen == sorted(seen) and len(set(seen)) > 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sensitive", "sparse-mezo", "mezo"])
def test_killed_at_random_moments_it_goes_on_as_if_nothing_had_happened(base, tmp_path, name):
    """Twenty kills, in opening, reading, computing, committing and writing generations, then the rest: an uninterrupted run's records."""
    method, random = METHODS[name], np.random.default_rng(0)
    options = {"lr": 2.0**-8, "eps": 2.0**-7, "seed": 5, "threads": 2}
    streamed = {"ring_bytes": SMALLEST, "stream_trained": True, "generation_every": 2}
    options |= {"memory_budget": tight(base, method, streamed)} | streamed
    program = [sys.executable, "-c", KILLED, base, tmp_path / "killed", os.path.dirname(__file__), json.dumps(options)]
    program.append(name)
    n_kills, steps = 0, set()
    while n_kills < 20:
        child = subprocess.Popen(program, stdout=subprocess.PIPE, text=True)
        for _ in range(int(random.integers(0, 4))):  # none: while it starts or opens
            child.stdout.readline()
        time.sleep(random.random() * (0.05 if n_kills % 5 else 1.0))
        child.send_signal(signal.SIGKILL)
        n_kills += child.wait() == -signal.SIGKILL
        if (tmp_path / "killed" / "journal.smz").exists():
            steps.add(len(_core.read_journal(str(tmp_path / "killed" / "journal.smz"))["records"]))
    assert len(steps) > 5
    n_steps = max(steps) + 3
    run_of(base, tmp_path / "killed", method, n_steps, **options)
    run_of(base, tmp_path / "whole", method, n_steps)
    assert len(records(tmp_path / "killed")) == n_steps
    assert bits(tmp_path / "killed") == bits(tmp_path / "whole")
