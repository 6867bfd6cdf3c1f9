"""What happens to a run that goes on for days: it is interrupted, its disk fills, its files are moved, its clock is set."""

from __future__ import annotations

import errno
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import psutil
import pytest
from test_cli import failed, locked, task_dir, train_flags, trained  # noqa: F401 (task_dir is a fixture)

from pysmezo import IoError, Runtime, _core, children, cli, data, metrics, progress, report, session, trainer

STEPS = 8
GO_ON = "go on: pysmezo resume --run-dir"


def records(run_dir) -> list[dict]:
    """Without their checksums, which the salt of each journal enters."""
    found = _core.read_journal(str(run_dir / "journal.smz"))["records"]
    return [{k: v for k, v in r.items() if k != "chain"} for r in found]


def measured(run_dir) -> list[tuple]:
    """What a run found, signals over the last steps included, and in which order."""
    keys = ("step", "loss", "loss_mean", "loss_mean_error", "loss_change_z", "grad_rms", "step_rms")
    return [(x.get("type", "step"), *map(x.get, keys)) for x in metrics.lines(run_dir)]


def same(run_dir, other) -> bool:
    return trained(run_dir) == trained(other) and records(run_dir) == records(other)


@pytest.fixture(scope="module")
def whole(task_dir, tmp_path_factory):  # noqa: F811
    """The run that nobody disturbed."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    assert cli.main(["train", *train_flags(task_dir, run_dir), "--eval-every", "4"]) == 0
    return run_dir


@pytest.fixture
def train(task_dir, whole, tmp_path, monkeypatch):  # noqa: F811
    """Trains as `whole` was, but for the children: no tokenizing, no picture. Returns the exit code."""

    def tokenize(model, source, task, out, max_length=None, truncate=False):
        name = os.path.basename(out)
        shutil.copyfile(whole / ("tokens-eval.ids" if name == "tokens.ids" else name), out)
        return data.Dataset.open(out)

    monkeypatch.setattr(session.data, "tokenize", tokenize)
    monkeypatch.setattr(report, "draw", lambda run_dir: "none")

    def run(run_dir=tmp_path / "run", *more) -> int:
        return cli.main(["train", *train_flags(task_dir, run_dir), "--eval-every", "4", *more])

    return run


@pytest.fixture
def interrupts():
    """SIGINT is Python's own, also where the tests run in the background and were started to ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@contextmanager
def doing(owner, name: str, action, call: int = 1):
    """`action()` comes just before the call of that number."""
    original, n = getattr(owner, name), 0

    def wrapped(*arguments, **more):
        nonlocal n
        n += 1
        if n == call:
            action()
        return original(*arguments, **more)

    with pytest.MonkeyPatch.context() as m:
        m.setattr(owner, name, wrapped)
        yield


def sender(*numbers):
    def send():
        for number in numbers:
            os.kill(os.getpid(), number)

    return send


# ---- signals

POINTS = {
    "tokenizing": (session.data, "tokenize", 1),
    "opening": (session, "open_runtime", 1),
    "evaluation before": (Runtime, "scores", 1),
    "measuring": (Runtime, "resolve_auto", 1),
    "step": (Runtime, "train_step", 3),
    "last step": (Runtime, "train_step", STEPS),
    "evaluation on the way": (trainer, "evaluate", 2),
    "evaluation after": (trainer, "evaluate", 4),
    "delta": (Runtime, "save_delta", 1),
    "picture": (report, "draw", 1),
}
BEFORE_A_RUN = {"tokenizing", "opening"}
AFTER_A_STEP = {"step": 3, "last step": STEPS, "evaluation on the way": 4}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("point", POINTS)
def test_interrupted_anywhere_it_goes_on_as_if_it_had_not_been(
    train, whole, tmp_path, capsys, interrupts, point, number
):
    run_dir = tmp_path / "run"
    owner, name, call = POINTS[point]
    with doing(owner, name, sender(number), call):
        assert train() == cli.INTERRUPTED
    said = capsys.readouterr().err.splitlines()[-1]
    assert signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)
    if point in BEFORE_A_RUN:
        assert said == "error: [pysmezo] interrupted; what was committed is kept" and not run_dir.exists()
        assert train() == 0
    else:
        assert said.endswith(f"{GO_ON} {run_dir}")
        if point in AFTER_A_STEP:
            assert said.startswith(f"interrupted after step {AFTER_A_STEP[point]} of {STEPS}, all saved")
        assert cli.main(["resume", "--run-dir", str(run_dir)]) == 0
    # With the evaluations on the way, the interrupted one too.
    assert same(run_dir, whole) and measured(run_dir) == measured(whole)


@pytest.mark.parametrize("numbers", [(signal.SIGINT,) * 2, (signal.SIGTERM,) * 2, (signal.SIGTERM, signal.SIGINT)])
def test_a_second_signal_ends_it_at_once(train, whole, tmp_path, capsys, interrupts, numbers):
    with doing(Runtime, "train_step", sender(*numbers), 3):
        assert train() == cli.INTERRUPTED
    assert GO_ON in capsys.readouterr().err.splitlines()[-1]
    assert len(records(tmp_path / "run")) == 2
    assert cli.main(["resume", "--run-dir", str(tmp_path / "run")]) == 0
    assert same(tmp_path / "run", whole) and measured(tmp_path / "run") == measured(whole)


def test_an_interrupt_of_the_whole_group_while_a_child_tokenizes(task_dir, tmp_path):  # noqa: F811
    """As Ctrl-C at a terminal. The child waits for data that never comes."""
    os.mkfifo(tmp_path / "pipe.jsonl")
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from pysmezo import cli; sys.exit(cli.main())"
    )
    flags = train_flags(task_dir, tmp_path / "run", train=tmp_path / "pipe.jsonl")
    process = subprocess.Popen(
        [sys.executable, "-c", code, "train", *flags], env=children.environment(), stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    deadline, found = time.monotonic() + 60, []
    while not found and time.monotonic() < deadline and process.poll() is None:
        found = psutil.Process(process.pid).children()
        time.sleep(0.005)
    time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (
        cli.INTERRUPTED,
        "",
        "error: [pysmezo] interrupted; what was committed is kept\n",
    )
    assert found and not found[0].is_running() and not (tmp_path / "run").exists()


def test_handlers_of_others_are_left_alone(interrupts):
    before = signal.signal(signal.SIGTERM, own := lambda number, frame: None)
    try:
        with cli.termination_interrupts():
            assert signal.getsignal(signal.SIGTERM) is own
        assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, before)


# ---- one process, its folder and its files


def test_one_process_trains_in_a_folder(train, task_dir, tmp_path, capsys):  # noqa: F811
    """Also where the other has not come as far as to write run.json."""
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "lock").write_text("123")
    with locked(run_dir):
        line = failed(capsys, ["train", *train_flags(task_dir, run_dir), "--eval-every", "4"])
        assert "is in use by process 123, expected nobody" in line
        session.discard(run_dir)
        assert (run_dir / "lock").exists()
    assert train() == 0
    capsys.readouterr()
    with locked(run_dir):
        assert "in use by process" in failed(capsys, ["train", *train_flags(task_dir, run_dir), "--eval-every", "4"])


def replaced(path):
    shutil.copyfile(path, path.with_suffix(".copy"))
    os.replace(path.with_suffix(".copy"), path)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda run_dir: (run_dir / "journal.smz").unlink(), "journal.smz' is gone"),
        (lambda run_dir: replaced(run_dir / "journal.smz"), "journal.smz' is another file"),
        (lambda run_dir: (run_dir / "lock").unlink(), "lock' is gone"),
        (lambda run_dir: run_dir.rename(run_dir.with_name("moved")), "journal.smz' is gone"),
        (lambda run_dir: shutil.rmtree(run_dir), "journal.smz' is gone"),
    ],
    ids=["journal deleted", "journal replaced", "lock deleted", "folder moved", "folder deleted"],
)
def test_files_that_are_taken_away_end_the_run(train, whole, tmp_path, capsys, change, found):
    run_dir = tmp_path / "run"
    with doing(Runtime, "train_step", lambda: change(run_dir), 3):
        assert train() == cli.USAGE
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: [run] '") and found in said and "before the end of step 3" in said
    if (tmp_path / "moved").exists():
        assert cli.main(["resume", "--run-dir", str(tmp_path / "moved")]) == 0
        assert same(tmp_path / "moved", whole)


@pytest.fixture
def sealed(train, tmp_path):
    """A run of which half is done, in a folder where nobody may write."""
    run_dir = tmp_path / "run"
    with doing(Runtime, "train_step", sender(signal.SIGTERM), 4):
        assert train() == cli.INTERRUPTED
    if os.geteuid() == 0:
        mount = ["mount", "--bind", str(run_dir), str(run_dir)]
        if subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("root writes everywhere, and nothing can be mounted here")
        subprocess.run(["mount", "-o", "remount,bind,ro", str(run_dir)], check=True)
        yield run_dir
        subprocess.run(["umount", str(run_dir)], check=True)
    else:
        run_dir.chmod(0o555)
        for path in run_dir.iterdir():
            path.chmod(0o444)
        yield run_dir
        run_dir.chmod(0o755)


def test_a_run_folder_that_is_read_only_is_read(sealed, task_dir, tmp_path, capsys):  # noqa: F811
    capsys.readouterr()
    model, rows = str(task_dir / "model"), str(task_dir / "test.jsonl")
    for arguments in (["resume", "--run-dir", sealed], ["train", *train_flags(task_dir, sealed / "new")]):
        assert "expected permission" in failed(capsys, arguments)
    assert cli.main(["eval", "--run-dir", str(sealed), "--data", rows]) == 0
    assert cli.main(["inspect", str(sealed)]) == 0
    out = str(tmp_path / "replayed.safetensors")
    assert cli.main(["replay", "--model", model, "--journal", str(sealed), "--out", out]) == 0
    assert cli.main(["fork", "--run-dir", str(sealed), "--at", "4", "--out", str(tmp_path / "fork")]) == 0
    assert records(tmp_path / "fork") == records(sealed)


# ---- a disk that is full


@pytest.fixture
def small_disk(tmp_path):
    """A folder that holds 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root mounts a small disk, where mounting is allowed")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(folder, left: int) -> None:
    s = os.statvfs(folder)
    (folder / "other").write_bytes(bytes(s.f_bavail * s.f_frsize - left))


# What is written when there is no room; what fills the disk just before, the pages it leaves, and what is said.
FULL = {
    "the lock": (session, "open_runtime", 0, "[io] cannot write 'RUN/lock'"),
    "run.json": (session, "write_run", 0, "[run] cannot write 'RUN/run.json'"),
    "the journal's header": (Runtime, "resolve_auto", 0, "[io] cannot write 'RUN/journal.smz.tmp-"),
    "a line of metrics": (Runtime, "train_step", 0, "[metrics] cannot write 'RUN/metrics.jsonl'"),
    "the delta": (Runtime, "save_delta", 4, "[io] cannot write 'RUN/trained.delta.safetensors.tmp-"),
}


@pytest.mark.parametrize("what", FULL)
def test_a_full_disk_says_what_it_needs_and_loses_nothing(train, whole, small_disk, capsys, what):
    owner, name, pages, found = FULL[what]
    run_dir = small_disk / "run"
    with doing(owner, name, lambda: fill(small_disk, pages * resource.getpagesize())):
        assert train(run_dir) == cli.USAGE
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: " + found.replace("RUN", str(run_dir)))
    assert "No space left on device; needed " in said and " more bytes, the disk has 0 free; make room" in said
    assert not list(run_dir.rglob("*tmp*"))
    began = (run_dir / "run.json").exists()
    assert began == run_dir.exists() == (what not in ("the lock", "run.json"))
    if began:
        assert cli.main(["resume", "--run-dir", str(run_dir)]) == cli.USAGE  # as full as before
        assert "needed " in capsys.readouterr().err.splitlines()[-1]
    (small_disk / "other").unlink()
    assert (cli.main(["resume", "--run-dir", str(run_dir)]) if began else train(run_dir)) == 0
    assert same(run_dir, whole)


@contextmanager
def files_of_at_most(n_bytes: int):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_limit_on_the_size_of_files(train, whole, tmp_path, capsys):
    run_dir = tmp_path / "run"
    with files_of_at_most(3000):
        assert train() == cli.USAGE
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"error: [metrics] cannot write '{run_dir}/metrics.jsonl'") and "see ulimit -f" in said
    before = (run_dir / "run.json").read_bytes()
    with files_of_at_most(100):
        with pytest.raises(IoError, match="ulimit"):
            session.write_run(run_dir, {"verb": "x" * 200})
    assert (run_dir / "run.json").read_bytes() == before and not list(run_dir.glob("*.tmp"))
    assert cli.main(["resume", "--run-dir", str(run_dir)]) == 0
    assert same(run_dir, whole)


def test_errors_of_the_system_in_our_grammar():
    def said(code, *arguments) -> str:
        return str(children.io_error("run", OSError(code, os.strerror(code)), *arguments))

    where = "/no/such/folder/x"
    assert said(errno.EACCES, where).startswith(f"[run] '{where}': Permission denied; expected permission")
    assert said(errno.ENOSPC, where, 5) == (
        f"[run] cannot write '{where}': No space left on device; needed 5 more bytes; make room and try again"
    )
    assert said(errno.ENOSPC) == "[run] No space left on device; make room and try again"
    assert "; the disk has " in said(errno.ENOSPC, "/x")
    assert said(errno.EIO, where) == f"[run] '{where}': Input/output error"


# ---- measurements that somebody else moves


def steps_in(path) -> list[int]:
    return [x["step"] for x in metrics.lines_of(path)]


def test_measurements_that_are_moved_away_go_on_under_their_name(train, tmp_path):
    """As logrotate does it: renamed, and made anew or not; or copied and cut short."""
    run_dir = tmp_path / "run"
    path, kept = run_dir / metrics.NAME, tmp_path / "kept"

    def rename():
        os.rename(path, kept)

    def rename_and_make():
        rename()
        path.touch()

    def copy_and_cut():
        shutil.copyfile(path, kept)
        os.truncate(path, 0)

    for rotate in (rename, rename_and_make, copy_and_cut):
        with doing(Runtime, "train_step", rotate, 3):
            assert train() == 0
        assert set(steps_in(kept)) == {1, 2} and set(steps_in(path)) == set(range(3, STEPS + 1)), rotate
        shutil.rmtree(run_dir)


def test_a_new_file_takes_no_older_ones_number(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics.Writer, "MOST_BYTES", 100)
    w = metrics.Writer(tmp_path, 0)
    for step in range(1, 31):
        w.write({"step": step, "loss": 0.5})
        if step == 15:
            os.remove(metrics.files(tmp_path)[0])
    w.close()
    found = [x["step"] for x in metrics.lines(tmp_path)]
    assert found == list(range(found[0], 31)) and found[0] < 6


def test_later_lines_are_cut_off_in_place(tmp_path):
    """A disk that is full has no room for a copy; a link stays one."""
    path = tmp_path / metrics.NAME
    path.symlink_to(tmp_path / "elsewhere")
    whole_lines = "".join(json.dumps({"step": s}) + "\n" for s in range(1, 6))
    for text, step, kept in (
        (whole_lines, 5, 5),
        (whole_lines + '{"step": 6, "lo', 5, 5),
        (whole_lines, 3, 3),
        (whole_lines.rstrip("\n"), 5, 5),
        (whole_lines, 0, 0),
    ):
        path.write_text(text)
        with files_of_at_most(len(whole_lines) + 20):
            w = metrics.Writer(tmp_path, step)
            w.write({"step": step + 1})
            w.close()
        assert path.is_symlink() and path.read_text().endswith("\n")
        assert steps_in(path) == [*range(1, kept + 1), step + 1]


# ---- the clock


def test_a_date_that_is_set_changes_no_progress(monkeypatch):
    """Neither does the line stand still where it is set back, nor does time pass where it is set forward."""
    import tqdm.std

    now = [1e9]
    monkeypatch.setattr(time, "time", lambda: now[0])
    monkeypatch.setattr(tqdm.std, "time", lambda: now[0])
    out = io.StringIO()
    with progress.bar(total=100, file=out, mininterval=0.0, unit="step") as bar:
        for jump in (0, -86400 * 365, 86400 * 3650, -1):
            now[0] += jump
            bar.update(1)
    told = out.getvalue()
    assert all(f"{n}/100 [00:00<" in told for n in range(1, 5))
    assert "days" not in told and "-" not in told.replace("-->", "")
