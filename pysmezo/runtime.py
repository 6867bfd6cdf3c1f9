"""Runtime: the facade of the core. Opens a model and trains it step by step; what is asked of it and saved lies in open_model.py.

Every number that a StepResult or EvalResult holds comes from the engine; nothing here computes a loss of the model, except where the caller
brings an objective of their own.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np

from . import _core, autotune, memory, packing, planning
from .errors import ArgumentError
from .methods import Method, SparseMeZO, described_by_delta, described_by_journal, from_dict
from .open_model import OpenModel
from .results import ProbeResult, StepResult


def _check_begun(engine, lr, eps) -> None:
    """ArgumentError: the run began with another lr or eps than is asked for."""
    if not engine.started:
        return
    for name, asked, found in (("lr", lr, engine.lr), ("eps", eps, engine.eps)):
        if asked != "auto" and np.float32(asked) != np.float32(found):
            raise ArgumentError(
                f'[run] {name} {asked:g}, but the run in this folder began with {found:g}, expected the same or "auto"; train_step\'s'
                " lr_scale is what may change from step to step"
            )


class Runtime(OpenModel):
    """A model that trains. Use `Runtime.from_pretrained`; a context manager closes it."""

    def __init__(self, engine, method: Method, lr, eps, seed: int, task, model_dir, run_dir, rss_at_open_bytes: int):
        super().__init__(engine, seed, task, model_dir)
        self.method = method
        self.run_dir = run_dir
        self.rss_at_open_bytes = rss_at_open_bytes
        self.choices: dict = {}  # what "auto" chose, with its diagnostics
        self._lr, self._eps = lr, eps
        self._anon_peak = 0

    # ---- opening

    @classmethod
    def from_pretrained(
        cls,
        model,
        method: Method | None = None,
        *,
        lr: float | str = "auto",
        eps: float | str = "auto",
        memory_budget=None,
        run_dir=None,
        seed: int | None = None,
        dtype: str = "auto",
        device: str = "cpu",
        threads: int | None = None,
        operand: str = "nearest",
        reduction: str = "example",
        sync_every: int = 1,
        task=None,
        delta=None,
        values: str = "auto",
        generation_every: int = 0,
        stream_trained: bool = False,
        n_readers: int = 2,
        ring_bytes: int = 0,
        cached_reads: bool = False,
    ) -> Runtime:
        """Opens a Hugging Face folder (config.json, safetensors) read-only.

        run_dir: journal and what else the run leaves; opening one that holds a journal resumes it. None: nothing is durable.
        method: None is the delta's, else SparseMeZO(). lr, eps: numbers, or "auto": measured by resolve_auto, or by the first train_step on its own
        batch; a run that is resumed has its own, and takes no others. operand: how perturbed weights are rounded, nearest | dither | split
        (not at all). reduction: a loss is the mean over examples, each the mean over its labels, or the mean over labels: example | token.
        threads: None is SMEZO_THREADS, else every CPU this process may run on. sync_every: steps between syncs of the journal; a power cut may
        lose the last sync_every - 1. dtype: what GEMM inputs are rounded to; "nf4" and "int8" say that the base is
        stored so (ArgumentError if not) and round as "auto" does. values: what trained
        weights are kept in, auto | fp32 | bf16+8 | bf16. task: a Task or the path of its YAML file; batches may then be lists of
        {"text", "label"}. delta: a delta to start from; its values, where "auto", and without a method its method (and the seed its support was
        drawn from) are taken too. seed: of every random choice, 0 unless given. memory_budget: bytes this process may hold above what it has now, "2GiB"; the base then
        stays on disk and is read as it is needed (n_readers threads read ahead into a ring of ring_bytes, 0: chosen). What trains and does not
        fit is kept as generations in the run folder, one every generation_every steps (0: as few as cost least); stream_trained: even what would fit. None: all in memory.
        cached_reads: weights are read through the operating system's page cache, for machines whose cache has room while this process has not:
        a memory limit of a container counts those pages, the budget does not. device: "cpu", or "fake:SIZE": host memory of its own that stands in
        for an accelerator's, where matrices that do not train are copied to before they are used.
        Raises ArgumentError, FormatError, BudgetError, IoError.
        """
        if delta is not None:
            found = described_by_delta(delta)
            its_values = found.pop("values")
            if values == "auto" and (method is None or method.name == found["method"]):
                values = its_values
            if method is None:
                drawn_from = found.pop("seed", None)
                seed = drawn_from if seed is None else seed
                method = from_dict({"kind": found.pop("method"), **found})
        seed = 0 if seed is None else seed
        method = SparseMeZO() if method is None else method
        if not isinstance(method, Method):
            raise ArgumentError(
                f"[method] {type(method).__name__}, expected a method such as SparseMeZO(sparsity=0.75)"
            )
        for name, value in (("lr", lr), ("eps", eps)):
            if value != "auto" and not (planning.is_number(value) and 0 < value < float("inf")):
                raise ArgumentError(f"[{name}] {value!r}, expected a positive number or 'auto'")
        lr, eps = (value if value == "auto" else float(value) for value in (lr, eps))
        memory.parse_bytes(memory_budget)
        planning.device_bytes(device, memory_budget)
        if dtype in planning.QUANTIZED:
            planning.planner(model, method, dtype)
        arguments = planning.engine_arguments(
            model, method, memory_budget=memory_budget, run_dir=run_dir, seed=seed, dtype=dtype, threads=threads,
            operand=operand, reduction=reduction, sync_every=sync_every, delta=delta, values=values,
            generation_every=generation_every, stream_trained=stream_trained, n_readers=n_readers,
            ring_bytes=ring_bytes, cached_reads=cached_reads, device=device,
        )  # fmt: skip
        return cls._open(arguments, method, lr, eps, task)

    @classmethod
    def from_journal(
        cls,
        model,
        journal,
        to: int | None = None,
        *,
        index=None,
        delta=None,
        memory_budget=None,
        cached_reads: bool = False,
        threads: int | None = None,
        task=None,
    ) -> Runtime:
        """The model of a run as it was after step `to` (None: after its last), rebuilt from the base and its journal.

        To evaluate, generate from, save as a delta or merge. The journal, and generations that lie beside it, are only read, also while another process
        writes them; train_step is refused: `pysmezo fork` makes a run that goes on from there. index: the index file the run was made with, where it
        had one. delta: the delta it began with. memory_budget, cached_reads, threads, task: as in from_pretrained. Raises ArgumentError (no such step, another model, index or delta than the run's), FormatError, BudgetError, IoError.
        """
        if to is not None and not (isinstance(to, int) and 0 <= to < _core.ALL_RECORDS):
            raise ArgumentError(f"[replay] step {to!r}, expected a step of the journal, or 0 for the base")
        method, options = described_by_journal(journal, index)
        arguments = planning.engine_arguments(
            model, method, memory_budget=memory_budget, cached_reads=cached_reads, threads=threads, delta=delta, journal=journal, replay_to=to,
            **options,
        )  # fmt: skip
        return cls._open(arguments, method, "auto", "auto", task)  # lr and eps are the journal's

    @classmethod
    def _open(cls, arguments: dict, method, lr, eps, task) -> Runtime:
        if isinstance(task, (str, os.PathLike)):
            from .tasks import Task

            task = Task.from_yaml(task)
        rss_at_open = memory.rss_bytes()
        memory.reset_peak()
        engine, run_dir = _core.Engine(**arguments), arguments["run_dir"]
        try:
            _check_begun(engine, lr, eps)
        except ArgumentError:
            engine.close()
            raise
        model = Path(arguments["model_dir"])
        return cls(
            engine, method, lr, eps, arguments["seed"], task, model, Path(run_dir) if run_dir else None, rss_at_open
        )

    # ---- training

    @property
    def is_auto(self) -> bool:
        """True when lr or eps is "auto" and not resolved yet."""
        return not self.started and "auto" in (self._lr, self._eps)

    def resolve_auto(self, batches, objective=None) -> None:
        """Fixes lr and eps, measuring on these batches what is "auto", by the objective that train_step is given, and writes the journal's
        header. train_step does it with its own batch when nobody has. batches: a list, of which the first 32 are used. ArgumentError: no eps or
        lr follows from them, or eps is smaller than the method can take."""
        if self.started:
            return
        packed = [self._pack(b) for b in batches[: autotune.N_LR_PROBES]]

        def losses(batch, branches, step):
            return self._losses(batch, branches, step, objective)[0]

        eps, lr = self._eps, self._lr
        if eps == "auto":
            choice = autotune.find_eps(self._engine, packed[: autotune.N_EPS_BATCHES], losses=losses)
            eps = choice.eps
            self.choices |= {"eps": eps, "eps_rms_difference": choice.rms_difference, "eps_agreed": choice.agreed}
        self._engine.check_eps(eps)  # before minutes of probes
        if lr == "auto":
            choice = autotune.find_lr(self._engine, packed, eps, method=self.method, losses=losses)
            lr = choice.lr
            self.choices |= {"lr": lr, "trace_h": choice.trace_h, "trace_h_error": choice.trace_h_error}
        self._engine.start(lr, eps)

    def _losses(self, batch, branches, step: int, objective) -> tuple[list[float], dict[str, float]]:
        """(the loss of each branch, seconds by part of the forward where it tells them) of what _pack gave."""
        packed, core = batch
        if objective is None:
            found = self._engine.probe(core, branches, step)
            return [float(x) for x in found["losses"]], dict(found["parts"])
        if packed.task == packing.CHOICE_CANDIDATES:
            raise ArgumentError(
                "[objective] a choice task, expected a batch of dict(input_ids, attention_mask, labels)"
            )
        logits = self._engine.logits(core, branches, step)
        return [float(objective(x, packed.labels[:, 1], packed.labels[:, 2])) for x in logits], {}

    def train_step(self, batch, objective=None, lr_scale: float = 1.0) -> StepResult:
        """One step: probe, scalars, commit. When it returns the step has happened and is durable (but see sync_every).

        batch: dict(input_ids, attention_mask, labels) [B, L] with -100 ignored; or, with a task, [{"text", "label"}].
        objective: f(logits fp32 [n_labels, V], labels [n_labels], example_index [n_labels]) -> float, lower is better; no gradient is needed.
        lr_scale: a schedule's factor for this step, from 0 up.
        ArgumentError: an objective with a choice batch; a run that is replayed, closed, has deltas in use or has reached its rank_cap. BudgetError:
        the batch does not fit. IoError: the record could not be written, and the step has not happened.
        """
        if not (planning.is_number(lr_scale) and lr_scale >= 0):
            raise ArgumentError(f"[lr_scale] {lr_scale!r}, expected a number from 0 up")
        packed = self._pack(batch)
        if not self.started:
            self.resolve_auto([batch], objective)
        begin = time.perf_counter()
        read, stalled = self._engine.traffic
        written = self._engine.generation_bytes_written
        branches = self._engine.branches()
        step = self.step + 1
        losses, parts = self._losses(packed, branches, step, objective)
        probed = time.perf_counter()
        scalars = self._engine.scalars(branches, losses)
        plus, minus = _sides(branches, losses)
        lr = self._engine.lr * float(lr_scale)
        applied = self._engine.commit(lr, float(np.mean(losses)), plus, minus, scalars)
        end = time.perf_counter()
        parts["commit"] = end - probed
        peak, anon = memory.peaks()
        self._anon_peak = max(self._anon_peak, anon)
        return StepResult(
            step=step,
            loss=float(np.mean(losses)),
            loss_plus=plus,
            loss_minus=minus,
            projected_grad=float(np.mean(scalars[: self.method.queries])),
            scalars=tuple(scalars),
            lr=lr,
            seconds=end - begin,
            stall_s=self._engine.traffic[1] - stalled,
            bytes_read=self._engine.traffic[0] - read,
            bytes_written=(_core.RECORD_HEAD_BYTES + 4 * len(scalars) if self.run_dir else 0)
            + self._engine.generation_bytes_written
            - written,
            peak_rss_bytes=peak,
            peak_anon_bytes=self._anon_peak,
            skipped=not applied,
            parts=parts,
        )

    def probe(self, batch):
        """The next step's question without its answer: branches, per-example losses [n_branches, n_examples], scalars. Changes nothing."""
        _, core = self._pack(batch)
        if not self.started:
            self.resolve_auto([batch])
        branches = self._engine.branches()
        found = self._engine.probe(core, branches, self.step + 1)
        return ProbeResult(
            branches, found["example_losses"], [float(x) for x in found["losses"]],
            tuple(self._engine.scalars(branches, list(found["losses"]))),
        )  # fmt: skip

    def bare_forward(self, batch, n_branches: int = 2):
        """The same visit with unperturbed branches: what a probe would cost if noise were free. Returns seconds by part."""
        _, core = self._pack(batch)
        return self._engine.probe(core, [(0, +1, 0.0)] * n_branches, 0)["parts"]


def _sides(branches, losses) -> tuple[float, float]:
    """(mean loss of the branches at +eps, of those at -eps or, where there are none, the centre's)."""
    plus = [loss for (_, sign, eps), loss in zip(branches, losses, strict=True) if eps > 0 and sign > 0]
    minus = [loss for (_, sign, _), loss in zip(branches, losses, strict=True) if sign < 0]
    centre = [loss for (_, _, eps), loss in zip(branches, losses, strict=True) if eps == 0]
    return float(np.mean(plus)), float(np.mean(minus or centre))
