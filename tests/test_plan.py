"""`plan` says from headers alone what a run holds; the run itself is the oracle."""

import json
import time

import numpy as np
import pytest
import tiny_llama
import tiny_task
from quick import quickly

from pysmezo import (
    LOZO,
    ArgumentError,
    BudgetError,
    FormatError,
    MeZO,
    Runtime,
    Sensitive,
    SparseMeZO,
    SubZero,
    TeZO,
    _core,
    cli,
    packing,
    planning,
)
from pysmezo.verbs import plan as plan_verb

PURPOSES = (
    "working copies", "index sets", "supports", "moments", "factors", "scales", "resident units", "forward", "other",
)  # fmt: skip
CONFIG = tiny_llama.config(hidden=128, inner=384) | {"vocab_size": 1200, "max_position_embeddings": 4096}
METHODS = {
    "sensitive": Sensitive(fraction=0.01),
    "mezo": MeZO(),
    "sparse-mezo": SparseMeZO(queries=2),
    "everything": MeZO(trains="all"),
    "mezo-adam": MeZO(rule="adam"),
    "subzero": SubZero(rank=8, queries=3),
    "tezo": TeZO(rank=8, queries=4, plan="one-sided"),
    "lozo, beside the base": LOZO(rank=4, refresh=5, only_reads=True, rank_cap=16),
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Folders by dtype."""
    folder = tmp_path_factory.mktemp("bases")
    weights = tiny_llama.to_bf16(tiny_llama.random_weights(CONFIG))
    out = {"bf16": tiny_llama.save(folder / "bf16", CONFIG, weights, "BF16")}
    for name, double in (("nf4", False), ("nf4-dq", True)):
        _core.quantize_folder(str(out["bf16"]), str(folder / name), "nf4", double_quant=double)
        out[name] = folder / name
    _core.quantize_folder(str(out["bf16"]), str(folder / "int8"), "int8")
    return out | {"int8": folder / "int8"}


def batch(kind, texts=4, tokens=14, seed=0):
    ids = np.random.default_rng(seed).integers(3, 1200, (texts, tokens))
    prompts = [row.astype(np.int32) for row in ids]
    if kind == "candidates":
        return packing.pack_choices(prompts, [[1], [2]], [0] * texts)
    if kind == "sequences":
        return packing.pack_choices(prompts, [[1, 5], [2]], [1] * texts)
    return packing.pack_sequences({"input_ids": ids, "labels": ids})


def planned(base, method, packed, budget=None, **options):
    p = planning.planner(base, method, memory_budget=budget, threads=2, **options)
    return p.plan(planning.core_batch(packed), method.n_branches)


def opened(base, method, budget, **options):
    return Runtime.from_pretrained(base, method=method, lr=1e-3, eps=1e-2, memory_budget=budget, threads=2, **options)


@pytest.mark.parametrize("dtype", quickly(("bf16",), ["bf16", "nf4", "nf4-dq", "int8"]))
@pytest.mark.parametrize("name", METHODS)
def test_plan_is_what_the_run_holds(bases, tmp_path, name, dtype):
    if name in ("everything", "mezo-adam") and dtype != "bf16":
        return
    method = METHODS[name]
    for kind in ("language", "candidates", "sequences"):
        packed = batch(kind)
        every = {"generation_every": 1}
        least = planned(bases[dtype], method, packed, "1TiB", **every)["smallest_budget_bytes"]
        for budget in (least, least + 70_000, least * 2, "200MiB"):
            found = planned(bases[dtype], method, packed, budget, **every)
            assert found["fits"] and found["budget_bytes"] >= found["predicted_peak_bytes"]
            assert sum(found["bytes_by_purpose"].values()) == found["predicted_peak_bytes"]
            run_dir = tmp_path / f"{kind}-{budget}"
            with opened(bases[dtype], method, budget, run_dir=run_dir, **every) as run:
                for _ in range(4):
                    result = run.train_step(packed)
                held = run._engine.bytes_by_purpose
            for purpose in PURPOSES:
                assert found["bytes_by_purpose"][purpose] == held[purpose], (kind, budget, purpose)
            assert found["bytes_by_purpose"]["ring"] <= held["ring"]
            slack = 0.01 * result.bytes_read if found["trained_streams"] else 0
            assert abs(found["bytes_read_per_step"] - result.bytes_read) <= slack, (kind, budget)


@pytest.mark.parametrize("dtype", ["bf16", "nf4-dq"])
@pytest.mark.parametrize("name", ["sensitive", "mezo"])
def test_smallest_budget_is_the_smallest(bases, tmp_path, name, dtype):
    method, packed = METHODS[name], batch("language")
    least = planned(bases[dtype], method, packed, "1MiB")["smallest_budget_bytes"]
    assert planned(bases[dtype], method, packed, least)["fits"]
    assert not planned(bases[dtype], method, packed, least - 1)["fits"]
    with opened(bases[dtype], method, least, run_dir=tmp_path / "r") as run:
        run.train_step(packed)
    with pytest.raises(BudgetError, match="expected at least"):
        with opened(bases[dtype], method, least - 1, run_dir=tmp_path / "s") as run:
            run.train_step(packed)


def test_index_file_is_counted_by_its_header(bases, tmp_path):
    from safetensors.numpy import save_file

    name = "model.layers.1.mlp.up_proj.weight"
    save_file({name: np.arange(0, 4000, 3, dtype=np.int32)}, tmp_path / "index.safetensors")
    method = Sensitive(index=str(tmp_path / "index.safetensors"))
    found = planned(bases["bf16"], method, batch("language"), "32MiB")
    with opened(bases["bf16"], method, "32MiB") as run:
        assert run._engine.bytes_by_purpose["index sets"] == found["bytes_by_purpose"]["index sets"] > 1333 * 6
    save_file({"another.weight": np.arange(3, dtype=np.int32)}, tmp_path / "other.safetensors")
    with pytest.raises(FormatError, match="another.weight"):
        planned(bases["bf16"], Sensitive(index=str(tmp_path / "other.safetensors")), batch("language"), "32MiB")


@pytest.mark.parametrize("name", ["sensitive", "mezo"])
def test_micro_batches_are_as_few_as_fit(bases, tmp_path, name):
    """Each is a pass that reads the base again."""
    packed, n_micro = batch("language", 24, 60), []
    least = planned(bases["bf16"], METHODS[name], packed, "1TiB")["smallest_budget_bytes"]
    for budget in (least, least + 1_500_000, 4 * least):
        found = planned(bases["bf16"], METHODS[name], packed, budget)
        run_dir = tmp_path / str(budget)
        with opened(bases["bf16"], METHODS[name], budget, run_dir=run_dir, generation_every=1) as run:
            for _ in range(3):
                result = run.train_step(packed)
            assert run._engine.bytes_by_purpose["forward"] == found["bytes_by_purpose"]["forward"]
        slack = 0.01 * result.bytes_read if found["trained_streams"] else 0
        assert abs(found["bytes_read_per_step"] - result.bytes_read) <= slack
        n_micro.append(found["micro_batches"])
    assert n_micro[0] >= 8 and n_micro[0] > n_micro[1] > n_micro[2] == 1, n_micro


def test_a_longer_batch_of_earlier_is_remembered(bases):
    """Its buffers stay: units that stay beside a shorter one must leave them room."""
    method, budget = METHODS["sensitive"], "9MiB"
    with opened(bases["bf16"], method, budget) as run:
        run.train_step(batch("language", 16, 40))
        long = run._engine.bytes_by_purpose
        run.train_step(batch("language", 1, 4))
        held = run._engine.bytes_by_purpose
    assert held["forward"] > 0.9 * long["forward"]
    assert sum(held.values()) <= 9 << 20


def test_nothing_but_headers_is_read(bases, tmp_path):
    """A base whose weights are a hole is planned like the real one."""
    whole = (bases["bf16"] / "model.safetensors").read_bytes()
    n_header = 8 + int.from_bytes(whole[:8], "little")
    (tmp_path / "config.json").write_text((bases["bf16"] / "config.json").read_text())
    with open(tmp_path / "model.safetensors", "wb") as f:
        f.write(whole[:n_header])
        f.truncate(len(whole))
    packed = batch("language")
    assert planned(tmp_path, MeZO(), packed, "32MiB") == planned(bases["bf16"], MeZO(), packed, "32MiB")


def test_dtype_says_what_the_base_is(bases):
    for dtype, base in (("nf4", "nf4-dq"), ("int8", "int8")):
        with opened(bases[base], Sensitive(), "32MiB", dtype=dtype) as run:
            run.train_step(batch("language"))
        with pytest.raises(ArgumentError, match=r"\[dtype\] .*BF16.*quantize"):
            opened(bases["bf16"], Sensitive(), "32MiB", dtype=dtype)
        assert planned(bases[base], Sensitive(), batch("language"), dtype=dtype)["fits"]


def test_step_time_follows_the_rates(bases):
    p = planning.planner(bases["bf16"], Sensitive(fraction=0.01), memory_budget="7MiB", threads=2)
    b = planning.core_batch(batch("language", 2, 8))
    rates = {"gemm_flops_per_s": 1e12, "operands_per_s": 1e9, "updates_per_s": 1e9}
    assert p.plan(b, 2)["predicted_step_s"] is None
    assert p.plan(b, 2, **rates)["predicted_step_s"] is None  # it streams, and no disk was measured
    slow = p.plan(b, 2, read_bytes_per_s=1e3, **rates)
    assert slow["predicted_step_s"] == pytest.approx(slow["bytes_read_per_step"] / 1e3)
    fast = p.plan(b, 2, read_bytes_per_s=1e15, **rates)["predicted_step_s"]
    assert 0 < fast < 0.01
    halved = p.plan(b, 2, read_bytes_per_s=1e15, **{k: v / 2 for k, v in rates.items()})["predicted_step_s"]
    assert halved == pytest.approx(2 * fast)


# ---- the command


@pytest.fixture
def command(bases, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run(*arguments, verb="plan"):
        code = cli.main([verb, "--model", str(bases["bf16"]), "--threads", "2", "--json", *map(str, arguments)])
        out = capsys.readouterr()
        return code, json.loads(out.out.splitlines()[-1]) if out.out else None, out.err

    return run


def test_command(command):
    begin = time.perf_counter()
    code, found, _ = command("--method", "sensitive", "--fraction", 0.01, "--memory-budget", "16MiB", "--batch", 4)
    assert time.perf_counter() - begin < 1
    assert code == cli.OK and found["fits"] and found["predicted_step_s"] is None
    assert found["predicted_process_bytes"] > found["predicted_peak_bytes"]
    assert set(found) >= {"budget_bytes", "bytes_by_purpose", "bytes_read_per_step", "bytes_written_per_step"}
    assert command()[1]["budget_bytes"] is None


def test_command_says_what_would_fit(command):
    flags = ("--method", "sensitive", "--memory-budget", "6MiB")
    code, found, err = command(*flags, "--batch", 64, "--length", 1000)
    assert code == cli.DOES_NOT_FIT and not found["fits"]
    assert f"expected at least {found['smallest_budget_bytes']}" in err
    length = found["largest_length"]
    assert command(*flags, "--batch", 64, "--length", length)[0] == cli.OK
    assert command(*flags, "--batch", 64, "--length", length + 1)[0] == cli.DOES_NOT_FIT
    least = found["smallest_budget_bytes"]
    for budget, expected in ((least, cli.OK), (least - 1, cli.DOES_NOT_FIT)):
        flags = ("--method", "sensitive", "--memory-budget", budget, "--batch", 64, "--length", 1000)
        assert command(*flags)[0] == expected
    assert command("--memory-budget", "plenty")[0] == cli.USAGE


def test_interval_between_generations_is_told(bases):
    p = planning.planner(bases["bf16"], SparseMeZO(), memory_budget="12MiB", stream_trained=True, threads=2)
    b = planning.core_batch(batch("language", 2, 8))
    found = p.plan(b, 2)
    assert found["trained_streams"] and found["generation_every"] == 64  # no rates are known
    n = sum(r * c for _, r, c, linear in core_tensors(bases["bf16"]) if linear)
    assert found["generation_bytes"] == pytest.approx(3 * 0.25 * n, rel=0.01)
    rates = {"gemm_flops_per_s": 1e12, "operands_per_s": 1e9}
    every = [p.plan(b, 2, updates_per_s=u, **rates)["generation_every"] for u in (1e13, 1e9, 1e7)]
    assert every[0] == 64 and 64 > every[1] > every[2] >= 1  # the slower records are applied, the fewer wait
    for method, expected in ((SubZero(rank=4, refresh=10), 10), (LOZO(refresh=10), 20), (LOZO(), 64)):
        p = planning.planner(bases["bf16"], method, memory_budget="20MiB", stream_trained=True, threads=2)
        assert p.plan(b, 2)["generation_every"] == expected
    resident = planning.planner(bases["bf16"], SparseMeZO(), memory_budget="200MiB", threads=2).plan(b, 2)
    assert resident["generation_every"] is None and resident["generation_bytes"] == 0
    lines = plan_verb.lines(found | {"predicted_process_bytes": 1}, 2, 8)
    assert any(line.startswith("generations") and "every 64 steps (a guess" in line for line in lines)


@pytest.mark.parametrize("method", [SparseMeZO(), Sensitive(fraction=0.05, rule="adam"), MeZO(rule="momentum")])
def test_a_resident_generation_is_as_large_as_told(bases, tmp_path, method):
    with opened(bases["bf16"], method, None, run_dir=tmp_path) as run:
        run.train_step(batch("language"))
        run._engine.save_generation()
        written, n = run._engine.generation_bytes_written, run.diagnostics()["n_trained"]
    if method.name == "sparse-mezo":
        n = sum(rows * cols for _, rows, cols, linear in core_tensors(bases["bf16"]) if linear)
    # One is due when replaying takes 30 s: with this rate, at every step.
    rates = {"gemm_flops_per_s": 1e12, "operands_per_s": 1e9, "updates_per_s": n / 30}
    found = planning.planner(bases["bf16"], method, threads=2).plan(planning.core_batch(batch("language")), 2, **rates)
    assert found["bytes_written_per_step"] == pytest.approx(44 + written, rel=1e-6)


def core_tensors(base):
    with Runtime.from_pretrained(base, method=MeZO(), lr=1e-3, eps=1e-2) as run:
        return run._engine.tensors


def test_config_file_holds_fields_of_the_method(command, tmp_path):
    (tmp_path / "c.yaml").write_text("method: sensitive\nfraction: 0.02\nmemory-budget: 32MiB\n")
    by_file = command("--config", tmp_path / "c.yaml")[1]
    by_flags = command("--method", "sensitive", "--fraction", 0.02, "--memory-budget", "32MiB")[1]
    assert by_file["bytes_by_purpose"] == by_flags["bytes_by_purpose"]
    assert command("--method", "sensitive", "--fraction", 0.9)[0] == cli.USAGE
    assert command("--method", "mezo", "--fraction", 0.1)[0] == cli.USAGE


@pytest.mark.slow
def test_training_that_does_not_fit_takes_no_step(bases, tmp_path, capsys):
    import shutil

    model = tmp_path / "model"
    shutil.copytree(bases["bf16"], model)
    tiny_task.write_tokenizer(model)
    tiny_task.write_jsonl(tmp_path / "train.jsonl", tiny_task.rows(40))
    (tmp_path / "task.yaml").write_text(tiny_task.TASK_YAML)
    flags = {
        "model": model, "train": tmp_path / "train.jsonl", "eval": tmp_path / "train.jsonl", "task": tmp_path / "task.yaml",
        "method": "sensitive", "fraction": 0.01, "steps": 3, "batch": 40, "lr": 1e-3, "eps": 1e-3, "threads": 2,
    }  # fmt: skip

    def train(run_dir, budget):
        given = flags | {"memory-budget": budget, "run-dir": tmp_path / run_dir}
        return cli.main(["train", *(x for k, v in given.items() for x in (f"--{k}", str(v))), "--json"])

    assert train("small", "5MiB") == cli.DOES_NOT_FIT
    line = capsys.readouterr().err.splitlines()[-1]
    least = int(line.split("expected at least ")[1].split()[0])
    assert not (tmp_path / "small").exists()
    assert train("fits", least) == cli.OK
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["steps"] == 3
    lines = [json.loads(x) for x in (tmp_path / "fits" / "metrics.jsonl").read_text().splitlines()]
    steps = [x for x in lines if "type" not in x]
    assert all(s["bytes_read"] > 0 and s["stall_s"] >= 0 and s["bytes_written"] == 44 for s in steps)
