"""Every row of the table of methods: against the float64 oracle, and the same bits resident, streamed, resumed and
replayed."""

import json
import resource

import bad_runs
import golden_runs
import method_oracles
import numpy as np
import oracle
import pytest
import tiny_llama
from quick import quickly
from test_step import CONFIG, EPS, LOSS_TOLERANCE, LR, SEED, SHAPE, WEIGHT_SHAPES, a_batch, trained_of

from pysmezo import ArgumentError, FormatError, Runtime, autotune, methods
from pysmezo import _core as core
from pysmezo.methods import METHODS

ROWS = method_oracles.ROWS
QUICK = ("lezo", "mezo-adam", "lozo-m", "tezo-adam")
N_STEPS = 20
SKIPPED = 4  # with lozo-m's refresh of 4, the first step of its new factors


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    weights = tiny_llama.random_weights(CONFIG)
    return tiny_llama.save(tmp_path_factory.mktemp("base") / "m", CONFIG, weights), weights


def opened(folder, name, **options):
    method, _, lr = ROWS[name]
    options = {"lr": LR * lr, "eps": EPS, "seed": SEED, "dtype": "fp32", "values": "fp32", "threads": 2} | options
    return Runtime.from_pretrained(folder, method=method, **options)


def follow(base, name, flip=1.0, n_steps=N_STEPS):
    """Losses, scalars and weights of every step against the oracle's own run, which takes from the package nothing but
    the random numbers and, so that roundings do not pile up, each step's scalars."""
    folder, weights = base
    method, _, lr = ROWS[name]
    trained = trained_of(method, weights)
    with opened(folder, name) as run:
        draws = method_oracles.Draws(SEED, run.tensor_ids(), {n: WEIGHT_SHAPES[n] for n in trained}, SHAPE.layers)
        row = method_oracles.oracle_of[name](draws, {n: weights[n].astype(np.float64) for n in trained})
        for i in range(n_steps):
            batch, same = a_batch(i)
            if i == SKIPPED:  # nothing moves, no moment counts it
                assert run.train_step(batch, objective=lambda *_: float("nan")).skipped
                continue
            probe = run.probe(batch)
            z = row.directions(i + 1)
            want = []
            for query, sign, eps in probe.branches:
                moved = {n: row.weights[n] + sign * eps * z[query].get(n, 0.0) for n in trained}
                total, count = oracle.example_losses(weights | moved, SHAPE, same)
                want.append(total / count)
            assert np.asarray(probe.losses) == pytest.approx(np.asarray(want), rel=LOSS_TOLERANCE)
            before = {n: run.weights(n).copy() for n in trained}
            result = run.train_step(batch)
            assert result.scalars == probe.scalars
            exact = exact_update(row, z, before, result.scalars, flip * result.lr)
            means = np.mean(want, axis=1)
            scalars, error = row.scalars(probe.branches, means, EPS), LOSS_TOLERANCE * np.abs(means).max()
            moved = [row.scalars(probe.branches, means + error * unit, EPS) for unit in np.eye(len(means))]
            bound = np.abs(np.array(moved) - scalars).sum(axis=0)  # of each scalar, by every loss
            assert (np.abs(scalars - result.scalars) <= bound + 1e-6 * (1 + np.abs(scalars))).all()
            row.step(i + 1, np.float64(result.scalars), flip * result.lr, EPS)
            for n in trained:
                got = run.weights(n)
                np.testing.assert_allclose(got, row.weights[n], rtol=1e-6, atol=5e-7, err_msg=f"{n}, step {i + 1}")
                if exact:
                    assert np.array_equal(oracle.fp32_bits(got), oracle.fp32_bits(exact[n])), f"{n}, step {i + 1}"


def exact_update(row, z, before, scalars, lr):
    """Weights after a step bit for bit, where the rule has an order of operations that the oracle shares: dense sgd."""
    parts = row.method.parts()
    if parts["rule"] != "sgd" or "low_rank" in parts:
        return None
    out = dict(before)
    for n in z[0]:
        decay = row.method.weight_decay if before[n].ndim > 1 else 0.0
        out[n] = oracle.update(before[n], [np.float32(q[n]) for q in z], row.mask(n), scalars, lr, decay)
    return out


@pytest.mark.parametrize("name", quickly(QUICK, ROWS))
def test_a_run_is_the_oracles(base, name):
    follow(base, name)


@pytest.mark.parametrize("name", quickly(QUICK, ROWS))
def test_a_flipped_sign_is_noticed(base, name):
    with pytest.raises(AssertionError):
        follow(base, name, flip=-1.0, n_steps=2)


def final(run):
    return {n: run.weights(n).view(np.uint32) for n in run.tensor_ids()}


def steps(run, n, at=0):
    return [run.train_step(a_batch(at + i)[0]).scalars for i in range(n)]


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[n], b[n]) for n in a)


def has_working_copies(method):
    return not method.parts().get("only_reads") and "index_set" not in method.parts()


@pytest.mark.parametrize("values", quickly(("auto",), ["auto", "fp32"]))
@pytest.mark.parametrize("name", quickly(QUICK, ROWS))
def test_every_placement_gives_the_same_bits(base, tmp_path, name, values):
    folder, _ = base
    method = ROWS[name][0]
    with opened(folder, name, run_dir=tmp_path / "whole", values=values) as run:
        scalars, tail = steps(run, 7), final(run)

    def go_on(where, generation=False, **options):
        options = {"run_dir": tmp_path / where, "values": values} | options
        with opened(folder, name, **options) as run:
            first = steps(run, 3)
            if generation:
                run._engine.save_generation()
        with opened(folder, name, **options) as run:
            assert first + steps(run, 4, 3) == scalars, where
            assert same(final(run), tail), where

    go_on("resumed")
    go_on("resumed from a generation", generation=True)
    go_on("one thread", threads=1)
    tight = {"memory_budget": "24MiB"}
    go_on("streamed", **tight)
    if has_working_copies(method):
        go_on("state streamed", stream_trained=True, generation_every=2, **tight)
    with Runtime.from_journal(folder, tmp_path / "whole" / "journal.smz") as replayed:
        assert replayed.method == method
        assert same(final(replayed), tail)
    with Runtime.from_journal(folder, tmp_path / "whole" / "journal.smz", 4) as replayed:
        replayed.save_delta(tmp_path / "four")
        at_four = final(replayed)
    with Runtime.from_pretrained(folder, delta=tmp_path / "four", dtype="fp32", threads=2) as run:
        assert same(final(run), at_four)


@pytest.mark.parametrize(
    ("method", "written"), [(methods.SubZero(rank=4, refresh=2), [2, 4, 6]), (methods.LOZO(refresh=2), [4])]
)
def test_streamed_records_wait_for_the_end_of_their_factors(base, tmp_path, method, written):
    """Else they would make them anew at every visit of the weights, however many epochs there are."""
    streamed = {"memory_budget": "24MiB", "stream_trained": True, "generation_every": 99}
    options = {"lr": 1e-3, "eps": EPS, "dtype": "fp32", "threads": 2}

    def generations():
        return [p.name for p in (tmp_path / "generations").glob("generation-*")]

    with Runtime.from_pretrained(base[0], method=method, **options) as run:
        scalars, tail = steps(run, 7), final(run)
    with Runtime.from_pretrained(base[0], method=method, run_dir=tmp_path, **options, **streamed) as run:
        found = []
        for i in range(7):
            assert steps(run, 1, i) == scalars[i : i + 1]
            found.append(generations())
        assert same(final(run), tail)
    names = [f"generation-{w:010d}.safetensors" for w in written]
    assert [names for names, before in zip(found, [[], *found], strict=False) if names != before] == [
        [n] for n in names
    ]
    # Nor when the run is opened without its generations, but where the disk is full.
    (tmp_path / "generations" / names[-1]).unlink()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with Runtime.from_pretrained(base[0], method=method, run_dir=tmp_path, **options, **streamed) as run:
            assert any("no generation of step" in note for note in run.notes)
            assert same(final(run), tail)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert generations() == []
    with Runtime.from_pretrained(base[0], method=method, run_dir=tmp_path, **options, **streamed) as run:
        assert generations() == names[-1:]
        assert same(final(run), tail)


def test_the_table_has_a_test_row_for_each_method():
    assert {method.name for method, _, _ in ROWS.values()} == set(METHODS)


def to_bf16(x):
    """fp32 rounded to the nearest bf16, ties to even."""
    u = np.float32(x).view(np.uint32).astype(np.uint64)
    return ((u + 0x7FFF + ((u >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32).astype(np.float64)


@pytest.mark.parametrize(
    ("name", "method"), [("mezo-adam", None), ("sensitive", None), ("hizoo", methods.HiZOO(smoothing=0.75))]
)
def test_the_share_of_the_perturbation_that_survives(base, name, method):
    """cos^2 of the direction that is asked for and the difference of the two operands as bf16, over eight rows of every 128 of
    a matrix, or over an index set."""
    folder, weights = base
    trained, eps = tiny_llama.linear_names(weights), 2.0**-6
    method = method or ROWS[name][0]
    options = {"lr": LR, "eps": eps, "seed": SEED, "dtype": "bf16", "values": "fp32", "threads": 2}
    with Runtime.from_pretrained(folder, method=method, **options) as run:
        draws = method_oracles.Draws(SEED, run.tensor_ids(), {n: WEIGHT_SHAPES[n] for n in trained}, SHAPE.layers)
        row = ROWS[name][1](method, draws, {n: weights[n].astype(np.float64) for n in trained})
        for i in range(2):
            row.directions(i + 1)
            row.step(i + 1, np.float64(run.train_step(a_batch(i)[0]).scalars), LR, eps)
        dot = made = wanted = 0.0
        for n, z in row.directions(3)[0].items():
            w = np.float64(run.weights(n))
            got = (to_bf16(w + eps * z) - to_bf16(w - eps * z)) / (2 * eps)
            seen = z != 0 if name == "sensitive" else np.arange(len(z)) % 128 < 8
            dot, made = dot + (z[seen] * got[seen]).sum(), made + (got[seen] ** 2).sum()
            wanted += (z[seen] ** 2).sum()
        expected = dot**2 / (made * wanted)
        assert 0.9 < expected < 0.99999
        assert 1 - run.diagnostics()["surviving_perturbation"] == pytest.approx(1 - expected, rel=1e-3)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (methods.TeZO(rank=200), "rank 200 .*smaller side"),
        (methods.LOZO(trains="all"), "low-rank direction of 'lm_head.weight'"),
    ],
    ids=repr,
)
def test_what_does_not_suit_a_model_is_refused(base, method, message):
    with pytest.raises(ArgumentError, match=message):
        Runtime.from_pretrained(base[0], method=method)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: methods.HiZOO(noise="rademacher"), "rademacher noise.*z\\^2 is 1"),
        (lambda: methods.HiZOO(queries=2), "several queries"),
        (lambda: methods.FZOO(queries=1), "at least 2"),
        (lambda: methods.TeZO(rule="momentum", weight_decay=0.1), "only read, expected 0"),
        (lambda: methods.MeZO(rule="sign", window=3), "window with rule sign"),
        (lambda: methods.SubZero(window=3, rank=4), "window with a low-rank"),
        (lambda: methods.LOZO(rule="momentum", only_reads=True, rank_cap=8), "rule momentum with factors that change"),
        (lambda: methods.MeZO(rule="adam", beta1=1.0), "beta1 1"),
        (lambda: methods.MeZO(rule="adam", adam_eps=0.0), "adam_eps 0"),
        (lambda: methods.LeZO(drop=1.0), "drop 1"),
        (lambda: methods.LeZO(rule="adam"), "sit steps out with a window, or with adam"),
        (lambda: methods.LeZO(rule="momentum", window=3), "sit steps out with a window"),
        (lambda: methods.MeZO(rule="adagrad"), "rule 'adagrad', expected one of sgd, momentum"),
        (lambda: methods.MeZO(plan="three-sided"), "plan"),
        (lambda: methods.MeZO(queries=65), "65 queries, expected 1 to 64"),
        (lambda: methods.OneSided(queries=128), "128 queries, expected 1 to 127"),
        (lambda: methods.LOZO(rule="adam"), "rule 'adam', expected one of sgd, momentum"),
        (lambda: methods.TeZO(rank=0), "rank 0, expected 1 to 256"),
        (lambda: methods.LOZO(only_reads=True), "rank_cap 0 .* expected at least 2"),
        (lambda: methods.LOZO(only_reads=True, rank_cap=512), "rank_cap 512, expected at most 256"),
        (lambda: methods.SubZero(rank_cap=32), "rank_cap 32, expected it only where"),
        (lambda: methods.SubZero(refresh=0), "refresh 0"),
        (lambda: methods.SparseMeZO(1.0), "sparsity 1, .*frozen fraction"),
        (lambda: methods.MeZO(weight_decay=float("nan")), "weight decay nan"),
        (lambda: methods.Sensitive(fraction=0.6), "fraction 0.6.*at most 0.5"),
        (lambda: methods.MaZO(0.0), "fraction 0, .*at most 0.5"),
        (lambda: methods.ZOSign(of="weights"), "of 'weights'"),
        (lambda: methods.MeZO(trains="\ud800"), "trains .* not Unicode"),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(make, message):
    with pytest.raises(ArgumentError, match=message):
        make()


def test_a_journal_that_piles_up_more_than_its_cap_is_refused(tmp_path):
    header, salt, records = bad_runs.journal_parts(golden_runs.FOLDER / "lozo-beside.smz")
    at = golden_runs.bases(tmp_path)["nf4"]
    for refresh, refused in ((b'"refresh":2', False), (b'"refresh":1', True)):
        changed = header.replace(b'"refresh":2', refresh)
        (tmp_path / "journal.smz").write_bytes(bad_runs.journal(changed, salt, records))
        if refused:
            with pytest.raises(FormatError, match="step 4 makes rank 8 .*rank_cap 4"):
                Runtime.from_journal(at, tmp_path / "journal.smz")
        else:
            Runtime.from_journal(at, tmp_path / "journal.smz").close()


def test_what_piles_up_beside_the_base_has_a_cap(base, tmp_path):
    method = methods.LOZO(rank=3, refresh=2, only_reads=True, rank_cap=6)
    options = {"method": method, "lr": LR, "eps": EPS, "dtype": "fp32", "run_dir": tmp_path / "r"}
    with Runtime.from_pretrained(base[0], **options) as run:
        steps(run, 4)
        with pytest.raises(ArgumentError, match="step 5 begins new factors, which makes rank 9 .*rank_cap 6"):
            run.train_step(a_batch()[0])
        tail = final(run)
    with Runtime.from_pretrained(base[0], **options) as run:
        assert run.step == 4 and same(final(run), tail)
        with pytest.raises(ArgumentError, match="merge writes such a model"):
            run.export_peft(tmp_path / "adapter")
        run.merge(tmp_path / "merged", "fp32")
    with Runtime.from_pretrained(tmp_path / "merged", method=methods.MeZO(), values="fp32") as merged:
        assert same(final(merged), tail)


@pytest.mark.parametrize(
    "method",
    [
        methods.TeZO(rank=4),
        methods.TeZOAdamC(rank=4, queries=2),
        methods.LOZO(rank=2, refresh=3, only_reads=True, rank_cap=8),
        methods.MaZO(fraction=0.1),
    ],
    ids=repr,
)
def test_over_a_base_of_four_bits_nothing_of_it_is_copied(base, tmp_path, method):
    core.quantize_folder(str(base[0]), str(tmp_path / "nf4"), "nf4", blocksize=64, double_quant=False, threads=2)
    options = {"method": method, "lr": LR, "eps": EPS, "dtype": "nf4", "threads": 2}

    def seven(**more):
        with Runtime.from_pretrained(tmp_path / "nf4", **options, **more) as run:
            scalars = steps(run, 7)
            assert more.get("memory_budget") or run._engine.working_copy_bytes == 0
            return scalars, final(run)

    scalars, tail = seven(run_dir=tmp_path / "resident")
    streamed, its_tail = seven(run_dir=tmp_path / "streamed", memory_budget="24MiB")
    assert scalars == streamed and same(tail, its_tail)
    with Runtime.from_journal(tmp_path / "nf4", tmp_path / "resident" / "journal.smz") as replayed:
        assert same(final(replayed), tail)
    with Runtime.from_pretrained(tmp_path / "nf4", method=methods.TeZO(rank=4)) as untrained:
        first = final(untrained)
    assert any(not np.array_equal(first[n], tail[n]) for n in first)


def test_deltas_that_lie_beside_the_base_add_up(base, tmp_path):
    method = methods.SubZero(rank=3, refresh=2, only_reads=True, rank_cap=6)
    for n in (2, 4):
        with Runtime.from_pretrained(base[0], method=method, lr=LR, eps=EPS, dtype="fp32") as run:
            steps(run, n)
            run.save_delta(tmp_path / f"{n}")
    with Runtime.from_pretrained(base[0], delta=tmp_path / "4", dtype="fp32") as run:
        plain = Runtime.from_pretrained(base[0], method=methods.MeZO(), values="fp32")
        trained, untrained = ({n: r.weights(n).astype(np.float64) for n in r.tensor_ids()} for r in (run, plain))
        run.load_delta("two", tmp_path / "2")
        run.load_delta("four", tmp_path / "4")
        run.use({"four": 1.0})
        assert same(final(run), {n: w.astype(np.float32).view(np.uint32) for n, w in trained.items()})
        run.use({"two": 0.5, "four": 2.0})
        with Runtime.from_pretrained(base[0], delta=tmp_path / "2", dtype="fp32") as two:
            for n, w0 in untrained.items():
                want = w0 + 0.5 * (two.weights(n) - w0) + 2.0 * (trained[n] - w0)
                np.testing.assert_allclose(run.weights(n), want, atol=3e-7)


def test_a_second_difference_needs_a_large_eps_or_fp32(base):
    run = Runtime.from_pretrained(base[0], method=methods.HiZOO(), dtype="bf16", lr=1e-3, eps=1e-3)
    with pytest.raises(ArgumentError, match="at least 0.01, or dtype fp32"):
        run.train_step(a_batch()[0])


def test_streamed_moments_of_the_vocabulary_are_refused_and_a_window_is_not(base, tmp_path):
    streamed = {"memory_budget": "24MiB", "stream_trained": True, "run_dir": tmp_path / "r", "lr": 1e-3, "eps": 1e-3}
    with pytest.raises(ArgumentError, match="keeps moments of 'lm_head.weight', of which single rows are read"):
        Runtime.from_pretrained(base[0], method=methods.MeZOAdam(trains="all"), **streamed)
    with Runtime.from_pretrained(base[0], method=methods.MeZOAdam(trains="all", window=3), **streamed) as run:
        run.train_step(a_batch()[0])


@pytest.mark.parametrize("name", METHODS)
def test_a_method_survives_json(name):
    method = METHODS[name]()
    assert methods.from_dict(method.to_dict()) == method


# ---- auto with rules and plans of their own


class Asked:
    """An engine whose probes are noted."""

    def __init__(self, engine, probes):
        self._engine, self._probes = engine, probes

    def probe(self, *of):
        self._probes.append(of)
        return self._engine.probe(*of)

    def __getattr__(self, name):
        return getattr(self._engine, name)


def test_curvature_over_bf16_takes_an_eps_that_it_may_have(base, tmp_path):
    options, batch = {"method": methods.HiZOO(), "dtype": "bf16"}, a_batch()[0]
    with Runtime.from_pretrained(base[0], lr=1e-3, eps="auto", run_dir=tmp_path / "a", **options) as run:
        run.resolve_auto([batch])
        assert run.eps == pytest.approx(0.01) and not run.train_step(batch).skipped
    asked = []
    with Runtime.from_pretrained(base[0], lr="auto", eps=1e-3, run_dir=tmp_path / "b", **options) as run:
        run._engine, engine = Asked(run._engine, asked), run._engine
        with pytest.raises(ArgumentError, match="0.001 for a second difference of bf16 products, expected at least"):
            run.train_step(batch)
        assert not asked
        run._engine = engine


@pytest.mark.parametrize("made_by", [methods.MeZO(), methods.TeZO(rank=8)], ids=repr)
def test_another_methods_delta_is_not_mixed_in_beside_the_base(base, tmp_path, made_by):
    options = {"lr": LR, "eps": EPS, "dtype": "fp32", "values": "fp32"}
    with Runtime.from_pretrained(base[0], method=made_by, **options) as run:
        steps(run, 1)
        run.save_delta(tmp_path / "other")
    with Runtime.from_pretrained(base[0], method=methods.TeZO(rank=4), **options) as run:
        before = final(run)
        with pytest.raises(FormatError, match="expected a multiple of 4 up to 4"):
            run.load_delta("other", tmp_path / "other")
            run.use({"other": 1.0})
        assert same(final(run), before)


@pytest.mark.parametrize(
    "method, scale",
    [
        (methods.MeZO(), 1.0),
        (methods.MeZO(rule="adam", queries=4), 5.0),
        (methods.ZOSign(), 10.0),
        (methods.ZOSign(of="scalar", queries=4), 10.0),
        (methods.FZOO(), 10.0),
        (methods.FZOO(over_eps=True), 0.01),
        (methods.FZOO(rule="adam", queries=4), 5.0),
        (methods.FZOO(rule="adam", queries=4, over_eps=True), 5.0),
        (methods.FZOO(rule="momentum", damped=False), 1.0),
        (methods.MeZOMomentum(damped=False), 0.1),
        (methods.MeZOMomentum(window=1), 10.0),
        (methods.MeZOMomentum(window=1, damped=False), 1.0),
    ],
    ids=repr,
)
def test_lr_of_a_rule_with_a_size_of_its_own(method, scale):
    """A weight moves as far as by SGD: sizes by hand, of scalars of size 10 at eps 1e-3."""
    assert autotune.step_scale(method, 10.0, 1e-3) == pytest.approx(scale)


@pytest.mark.parametrize("method", [methods.MeZOAdam(), methods.LOZOMomentum()])
def test_a_generation_without_its_moments_is_refused(base, tmp_path, method):
    options = {"lr": 1e-3, "eps": EPS, "run_dir": tmp_path, "threads": 2}
    with Runtime.from_pretrained(base[0], method=method, **options) as run:
        steps(run, 2)
        run._engine.save_generation()
    path = tmp_path / "generations" / "generation-0000000002.safetensors"
    tensors, metadata = bad_runs.unpacked(path)
    metadata.pop("crc32c")
    packed = json.loads(metadata["packed"])
    lost = next(n for n in packed if n.endswith(".moment0"))
    packed.remove(lost), tensors.pop(lost)
    path.write_bytes(bad_runs.sealed(tensors, metadata | {"packed": json.dumps(packed)}))
    with pytest.raises(FormatError, match=f"has no '{lost}', expected what the rule keeps"):
        Runtime.from_pretrained(base[0], method=method, **options)
