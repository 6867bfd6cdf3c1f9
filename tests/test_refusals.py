"""What a run folder, a batch or a file is refused for, and that nothing is lost by it."""

import json
import pathlib
import resource
import shutil

import numpy as np
import pytest
import tiny_task
from test_cli import failed, task_dir, train_flags, trained  # noqa: F401 (task_dir is a fixture)
from test_streaming import batch as streamed_batch
from test_streaming import save_base

from pysmezo import (
    ArgumentError,
    FormatError,
    IoError,
    MeZO,
    Runtime,
    Sensitive,
    SparseMeZO,
    cli,
    evaluate,
    memory,
    methods,
    options,
    packing,
)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("steps: [1]", "--steps .*expected an integer"),
        ("steps: .inf", "expected an integer"),
        ("steps: .nan", "expected an integer"),
        ("steps: 0", "from 1"),
        ("batch: 1000000000000", "from 1 to 65536"),
        ("threads: -3", "from 1"),
        ("eval_every: 0", "from 1"),
        ("warmup: -1", "from 0"),
        ("lr: .inf", "positive number or auto"),
        ("eps: 0", "positive number or auto"),
        ("model: 5", "a path"),
        ("train: {a: 1}", "'train' in .* holds collections"),
    ],
)
def test_yaml_values_of_the_wrong_kind(tmp_path, line, found):
    (tmp_path / "c.yaml").write_text(line + "\n")
    with pytest.raises((ArgumentError, FormatError), match=found):
        options.settings(options.read_config(tmp_path / "c.yaml"))


def test_a_yaml_key_without_a_value_is_not_given(tmp_path):
    (tmp_path / "c.yaml").write_text("batch:\nmethod:\nsparsity:\n")
    assert options.settings(options.read_config(tmp_path / "c.yaml")) == options.settings({})


def test_paths_of_a_method_are_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, method = options.settings({"method": "sensitive", "index": "set.safetensors"})
    assert method.index == str(tmp_path / "set.safetensors")


@pytest.mark.parametrize("text", ["0", 0, -5, "-5", "99999999999999TiB", True, "plenty", ""])
def test_budgets_that_are_none(text):
    with pytest.raises(ArgumentError, match=r"\[memory_budget\]"):
        memory.parse_bytes(text)


def test_the_field_that_says_how_much_trains_may_come_first():
    assert SparseMeZO(0.5).sparsity == 0.5 and Sensitive("set.safetensors").index == "set.safetensors"
    assert methods.LOZO(4).rank == methods.TeZO(4).rank == 4 and methods.MaZO(0.1).fraction == 0.1
    for take in (lambda: methods.LOZO(2, 50), lambda: methods.MeZO("linear")):
        with pytest.raises(TypeError, match="positional"):
            take()


def test_values_of_fields_are_of_their_type():
    method = methods.LOZO(rank=np.int64(4), weight_decay=0, only_reads=False)
    assert type(method.rank) is int and type(method.weight_decay) is float
    assert methods.Sensitive(pathlib.Path("set.safetensors")).to_dict()["index"] == "set.safetensors"
    assert methods.from_dict(method.to_dict()) == method


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda: methods.MeZO(queries=2.5), r"\[MeZO\] queries 2.5, expected an integer"),
        (lambda: methods.MeZO(queries=True), "queries True, expected an integer"),
        (lambda: methods.SparseMeZO("0.5"), "sparsity '0.5', expected a number"),
        (lambda: methods.TeZO(corrected=1), "corrected 1, expected true or false"),
        (lambda: methods.MeZO(trains=None), "trains None, expected a text"),
        (lambda: methods.LOZO(refresh=1 << 80), "refresh 1208925819614629174706176, expected at most"),
        (lambda: methods.MeZO(beta1=0.5), "beta1 0.5 with rule sgd, which does not read it"),
        (lambda: methods.MeZOMomentum(corrected=False), "corrected False with rule momentum"),
        (lambda: methods.MeZOAdam(damped=False), "damped False with rule adam"),
        (lambda: methods.Sensitive("set.safetensors", fraction=0.01), "fraction 0.01 beside an index file"),
        (lambda: methods.Sensitive(""), "index '', expected the path"),
        (lambda: methods.OneSided(plan="two-sided"), "plan 'two-sided', expected one of one-sided"),
        (lambda: methods.TeZOAdam(rule="sgd"), "rule 'sgd', expected one of adam"),
        (lambda: methods.LOZOMomentum(rule="sgd"), "rule 'sgd', expected one of momentum"),
        (lambda: methods.AdaMeZO(rule="momentum"), "rule 'momentum', expected one of adam"),
        (lambda: methods.AdaMeZO(window=0), "window 0, expected at least 1 record"),
        (lambda: methods.FZOO(plan="two-sided"), "plan 'two-sided', expected one of one-sided"),
        (lambda: methods.LOZO(beta2=0.9), "expected it only with adam"),
        (lambda: methods.LOZO(beta1=0.8), "expected it only with momentum$"),
        (lambda: methods.MeZO(weight_decay=-1e-9), "weight decay -1e-09"),
        (lambda: methods.MeZO(rule="adam", adam_eps=1e-60), "adam_eps 1e-60, expected a small number, positive"),
        (lambda: methods.MeZO(rule="momentum", beta1=1 - 1e-9), "expected 0 <= beta < 1"),
        (lambda: methods.from_dict("mezo"), "expected a dictionary"),
    ],
)
def test_fields_that_cannot_mean_anything(make, found):
    with pytest.raises(ArgumentError, match=found):
        make()


@pytest.mark.parametrize(
    ("batch", "found"),
    [
        ({"input_ids": [[1, 2], [3]], "labels": [[1, 2], [3]]}, "input_ids of different lengths"),
        ({"input_ids": [[1.7, 2]], "labels": [[1, 2]]}, "input_ids of type float64"),
        ({"input_ids": [[1, 2**32 + 5]], "labels": [[1, 2]]}, "input_ids of 1 to 4294967301"),
    ],
)
def test_batches(batch, found):
    with pytest.raises(ArgumentError, match=found):
        packing.pack_sequences(batch)


def test_a_loss_that_is_not_a_number_is_not_left_out(tmp_path):
    """I11; examples without a label are."""
    base = save_base(tmp_path)
    ids = np.arange(3, 15).reshape(3, 4)
    labels = ids.copy()
    labels[1] = -100
    batch = {"input_ids": ids, "labels": labels}
    with Runtime.from_pretrained(base, method=MeZO(), lr=1e30, eps=1e-2) as run:
        good = run.evaluate([batch])
        assert good.n_examples == 2 and np.isfinite(good.loss)
        for _ in range(2):
            run.train_step(batch)
        wrecked = run.evaluate([batch])
    assert wrecked.n_examples == 2 and not np.isfinite(wrecked.loss)


def test_options_of_their_own_have_no_prior():
    scores, labels = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 1.0]]), [0, 1, 1]
    assert evaluate.evaluate_scores(scores, labels).auc is not None
    own = evaluate.evaluate_scores(scores, labels, shared_options=False)
    assert own.auc is None and own.accuracy_calibrated is None and own.accuracy == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("a.jsonl", '{"text": "a", "label": 0, "label": 1}\n', "line 1 of .* has a key twice"),
        ("a.csv", "text,label,label\na,0,1\n", "a column twice"),
        ("b.jsonl", '{"text": "\\ud800", "label": 0}\n', "half a character"),
    ],
)
def test_data(task_dir, tmp_path, capsys, name, text, found):  # noqa: F811
    (tmp_path / name).write_text(text)
    with pytest.raises(FormatError, match=found):
        from pysmezo import data

        data.tokenize(task_dir / "model", tmp_path / name, task_dir / "task.yaml", tmp_path / "x.ids")


@pytest.fixture(scope="module")
def stopped(task_dir, tmp_path_factory):  # noqa: F811
    """A run of its own files that stopped after 4 of 8 steps: (its folder, the folder of its files)."""
    root = tmp_path_factory.mktemp("stopped")
    files = shutil.copytree(task_dir, root / "files")
    assert cli.main(["train", *train_flags(files, root / "run", steps=4)]) == 0
    content = json.loads((root / "run" / "run.json").read_text())
    content["settings"]["steps"] = 8
    (root / "run" / "run.json").write_text(json.dumps(content))
    return root


@pytest.fixture
def again(stopped, tmp_path):
    """A copy of it that may be damaged: (run folder, files)."""
    root = shutil.copytree(stopped, tmp_path / "copy")
    for run_file in [root / "run" / "run.json"]:
        run_file.write_text(run_file.read_text().replace(str(stopped), str(root)))
    return root / "run", root / "files"


def resumed(run_dir, capsys, *more) -> str:
    before = {p.name: p.read_bytes() for p in run_dir.iterdir() if p.suffix != ".ids" and p.name != "lock"}
    line = failed(capsys, ["resume", "--run-dir", run_dir, *more])
    assert before == {p.name: p.read_bytes() for p in run_dir.iterdir() if p.suffix != ".ids" and p.name != "lock"}
    return line


def test_training_data_that_changed(again, capsys):
    run_dir, files = again
    tiny_task.write_jsonl(files / "train.jsonl", tiny_task.rows(90)[50:])
    assert "train.jsonl or its task or tokenizer has changed" in resumed(run_dir, capsys)


@pytest.mark.slow
def test_evaluation_data_that_changed_gives_no_before(again, capsys):
    run_dir, files = again
    tiny_task.write_jsonl(files / "test.jsonl", tiny_task.rows(90)[50:])
    assert cli.main(["resume", "--run-dir", str(run_dir), "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["accuracy_before"] is None and result["accuracy_after"] is not None and result["steps"] == 8


def test_a_journal_that_is_gone(again, capsys):
    run_dir, _ = again
    (run_dir / "journal.smz").rename(run_dir / "elsewhere")
    assert "measurements of steps but no journal.smz" in resumed(run_dir, capsys)


def test_settings_edited_by_hand(again, capsys):
    run_dir, _ = again
    (run_dir / "run.json").write_text((run_dir / "run.json").read_text().replace('"steps": 8', '"steps": "x"'))
    assert "steps of " in resumed(run_dir, capsys)
    assert "--threads 'abc'" in failed(capsys, ["resume", "--run-dir", run_dir, "--threads", "abc"])


@pytest.mark.slow
def test_a_folder_without_a_step_takes_other_settings(task_dir, tmp_path, capsys):  # noqa: F811
    run_dir = tmp_path / "run"
    argv = train_flags(task_dir, run_dir, lr="auto", eps="1e-30", steps=2)
    assert "tr(H)" in failed_at_end(capsys, ["train", *argv])
    assert cli.main(["train", *train_flags(task_dir, run_dir, steps=2)]) == 0
    capsys.readouterr()


def failed_at_end(capsys, argv) -> str:
    assert cli.main([str(a) for a in argv]) == cli.USAGE
    return capsys.readouterr().err.splitlines()[-1]


def test_a_model_folder_is_no_run_folder(task_dir, tmp_path, capsys):  # noqa: F811
    model = shutil.copytree(task_dir / "model", tmp_path / "model")
    names = sorted(p.name for p in model.iterdir())
    assert "is a model folder" in failed(capsys, ["train", *train_flags(task_dir, model)])
    assert sorted(p.name for p in model.iterdir()) == names


def test_a_model_is_refused_before_its_data_is_read(task_dir, tmp_path, capsys):  # noqa: F811
    model = shutil.copytree(task_dir / "model", tmp_path / "model")
    (model / "config.json").write_text("{")
    line = failed(capsys, ["train", *train_flags(task_dir, tmp_path / "run", model=model)])
    assert "config.json" in line and "max_position" not in line and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_that_diverges_says_so(task_dir, tmp_path, capsys):  # noqa: F811
    argv = train_flags(task_dir, tmp_path / "run", lr="1e30", steps=2)
    assert cli.main(["train", *argv, "--json"]) == 0
    out = capsys.readouterr().out
    assert "the run diverged" in out
    result = json.loads(out.splitlines()[-1], parse_constant=lambda x: pytest.fail(f"{x} is not JSON"))
    assert result["loss_after"] is None and trained(tmp_path / "run")
    argv = train_flags(task_dir, tmp_path / "skips", eps="1e30", steps=2)
    assert cli.main(["train", *argv, "--json"]) == 0
    out = capsys.readouterr().out
    assert "2 skipped" in out and json.loads(out.splitlines()[-1])["steps_skipped"] == 2


def test_inspect_of_models_and_odd_files(task_dir, tmp_path, capsys):  # noqa: F811
    import os

    os.mkfifo(tmp_path / "pipe")
    assert "expected a plain file" in failed(capsys, ["inspect", tmp_path / "pipe"])
    model = shutil.copytree(task_dir / "model", tmp_path / "model")
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-2.safetensors"}}))
    assert cli.main(["inspect", str(model), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["missing_files"] == ["model-2.safetensors"]
    for header in (
        b'{"a":{"shape":[1],"data_offsets":[0,0]}}',
        b'{"a":{"dtype":"F32","data_offsets":[0]}}',
        b'{"__metadata__":5}',
    ):
        (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
        text = failed(capsys, ["inspect", tmp_path / "x.safetensors"])
        assert "x.safetensors" in text and "expected" in text


def test_a_full_disk_while_measurements_are_written(tmp_path):
    import subprocess
    import sys

    from pysmezo import children

    code = (
        "import resource, signal, sys; from pysmezo import metrics, IoError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "w = metrics.Writer(sys.argv[1], 0)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        "try:\n    [w.write({'step': i, 'x': 'y' * 30}) for i in range(9)]\n"
        "except IoError as e:\n    w.close(); sys.exit(0 if 'metrics.jsonl' in str(e) else 3)\n"
        "sys.exit(4)"
    )
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=children.environment())
    assert run.returncode == 0
    from pysmezo import metrics

    assert [line["step"] for line in metrics.read(tmp_path)] == [0]  # the second is torn


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("bases"))


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"stream_trained": True}, r"\[stream_trained\] no memory_budget"),
        ({"cached_reads": True}, r"\[cached_reads\] no memory_budget"),
        ({"ring_bytes": 1 << 20}, r"\[ring_bytes\] no memory_budget"),
        ({"threads": 0}, r"\[threads\] 0, expected an integer from 1 to 1024"),
        ({"threads": "2"}, r"\[threads\] '2', expected an integer"),
        ({"threads": 2.0}, r"\[threads\] 2.0, expected an integer"),
        ({"seed": -1}, r"\[seed\] -1, expected an integer from 0"),
        ({"seed": 1.5}, r"\[seed\] 1.5, expected an integer"),
        ({"sync_every": "1"}, r"\[sync_every\] '1', expected an integer"),
        ({"lr": True}, r"\[lr\] True, expected a positive number"),
        ({"generation_every": -1}, r"\[generation_every\] -1"),
        ({"n_readers": 1000}, r"\[n_readers\] 1000"),
    ],
)
def test_options_that_would_do_nothing(base, options, found):
    with pytest.raises(ArgumentError, match=found):
        Runtime.from_pretrained(base, **options)


@pytest.mark.parametrize("factor", [-1.0, "1", float("nan"), True])
def test_a_schedules_factor_is_a_number_from_0_up(base, factor):
    with Runtime.from_pretrained(base, method=MeZO(), lr=np.float32(1e-3), eps=np.float32(1e-2)) as run:
        with pytest.raises(ArgumentError, match=r"\[lr_scale\] .*, expected a number from 0 up"):
            run.train_step(streamed_batch(0), lr_scale=factor)
        assert run.step == 0
        assert run.train_step(streamed_batch(0), lr_scale=np.float32(0.5)).lr == np.float32(np.float32(1e-3) * 0.5)


def test_a_run_goes_on_with_the_lr_and_eps_it_began_with(base, tmp_path):
    settings = {"method": MeZO(), "run_dir": tmp_path}
    with Runtime.from_pretrained(base, lr=1e-3, eps=1e-2, **settings) as run:
        assert run.diagnostics()["surviving_perturbation"] is None
        run.train_step(streamed_batch(0))
        assert 0.5 < run.diagnostics()["surviving_perturbation"] <= 1
    for other in ({"lr": 2e-3}, {"lr": 1e-3, "eps": 1.1e-2}):
        with pytest.raises(ArgumentError, match=r"\[run\] (lr 0.002|eps 0.011), but the run in this folder began with"):
            Runtime.from_pretrained(base, **other, **settings)
    for same in ({}, {"lr": 1e-3}, {"lr": "auto", "eps": 0.01}):
        with Runtime.from_pretrained(base, **same, **settings) as run:
            assert run.step == 1


def test_a_run_whose_journal_broke_can_be_opened_again_at_once(base, tmp_path):
    """While what was raised still holds on to it."""
    settings = {"method": MeZO(), "lr": 1e-3, "eps": 1e-2, "run_dir": tmp_path, "sync_every": 4}
    run = Runtime.from_pretrained(base, **settings)
    run.train_step(streamed_batch(0))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "journal.smz").stat().st_size, before[1]))
    try:
        with pytest.raises(IoError) as held:
            run.train_step(streamed_batch(1))
        run.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    with Runtime.from_pretrained(base, **settings) as again:
        assert again.step == 1 and held.value is not None
        again.train_step(streamed_batch(1))


def test_more_steps_than_may_pile_up_are_refused_at_once(task_dir, tmp_path, capsys):  # noqa: F811
    low = {"method": "lozo", "rank": 2, "rank-cap": 8, "refresh": 5, "only-reads": "true"}
    flags = ["train", *train_flags(task_dir, tmp_path / "run", **low, steps=21)]
    assert "steps 21, expected at most 20: then what piles up beside the base has rank_cap 8" in failed(capsys, flags)
    assert not (tmp_path / "run").exists()
