"""OpenModel: a model as it is at its journal's tail. Asked, evaluated, saved; what trains it is a Runtime."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from . import _core, packing, planning
from .errors import ArgumentError


class OpenModel:
    """What `Runtime` is beside training; a context manager closes it."""

    def __init__(self, engine, seed: int, task, model_dir: Path):
        self._engine = engine
        self._seed = seed
        self.task = task
        self.model_dir = model_dir
        self._tokenizer = None
        self._deltas: dict[str, str] = {}  # path by name
        self._closed = False

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def close(self) -> None:
        """Syncs the journal and lets go of the run folder and the tokenizing child."""
        if self._tokenizer is not None:
            self._tokenizer.close()
            self._tokenizer = None
        self._closed = True
        self._engine.close()

    def _check_open(self) -> None:
        # The engine has let go of its journal: a step it took now would be lost.
        if self._closed:
            raise ArgumentError("[run] closed, expected an open one; Runtime.from_pretrained opens its run_dir again")

    # ---- facts

    @property
    def step(self) -> int:
        """The last committed step; 0 before the first."""
        return self._engine.step

    @property
    def started(self) -> bool:
        return self._engine.started

    @property
    def seed(self) -> int:
        return self._seed

    @property
    def lr(self) -> float | None:
        return self._engine.lr if self.started else None

    @property
    def eps(self) -> float | None:
        return self._engine.eps if self.started else None

    @property
    def notes(self) -> list[str]:
        return self._engine.notes

    def tensor_ids(self) -> dict[str, int]:
        """Name -> tensor id of every parameter (invariant I6)."""
        return {name: i for i, (name, *_) in enumerate(self._engine.tensors)}

    def diagnostics(self) -> dict[str, float | None]:
        """n_trained: elements the method selected at the start. n_parameters: all of the model's. surviving_perturbation: cos^2 of the direction
        that was asked for and the one that operand rounding left (1: nothing lost), at the run's eps and the next step; None before the run has an eps. 1 for low rank, whose factors products take as they are."""
        n_all = sum(rows * cols for _, rows, cols, _ in self._engine.tensors)
        return {
            "n_trained": self._engine.n_trained,
            "n_parameters": n_all,
            "surviving_perturbation": self._engine.surviving_perturbation(self._engine.eps, self.step + 1)
            if self.started
            else None,
        }

    def weights(self, name: str) -> np.ndarray:
        """float32 values of one parameter at the journal's tail, in its own shape. ArgumentError: there is no such parameter."""
        ids = self.tensor_ids()
        if name not in ids:
            raise ArgumentError(
                f"[weights] no parameter {name!r}, expected one of the model's, such as {next(iter(ids))!r}"
            )
        _, rows, cols, _ = self._engine.tensors[ids[name]]
        w = self._engine.weights(ids[name])
        return w if rows == 1 else w.reshape(rows, cols)

    # ---- batches

    def _pack(self, batch) -> tuple[packing.Packed, object]:
        self._check_open()
        if isinstance(batch, packing.Packed):
            packed = batch
        elif isinstance(batch, dict):
            packed = packing.pack_sequences(batch)
        elif hasattr(batch, "prompts"):
            packed = packing.pack_choices(batch.prompts, batch.options, batch.labels)
        elif isinstance(batch, (list, tuple)) and batch and isinstance(batch[0], dict):
            if self.task is None:
                raise ArgumentError("[batch] a list of texts, expected a task: open the runtime with task=")
            if self._tokenizer is None:
                from .tokenizer_client import TokenizerClient

                self._tokenizer = TokenizerClient(self.model_dir, self.task)
            b = self._tokenizer.batch(batch)
            packed = packing.pack_choices(b.prompts, b.options, b.labels)
        else:
            raise ArgumentError(
                f"[batch] {type(batch).__name__}, expected dict(input_ids, attention_mask, labels) or, with a task, a list of"
                ' {"text", "label"}'
            )
        return packed, planning.core_batch(packed)

    # ---- evaluation

    def evaluate(self, batches):
        """EvalResult over batches of the same kinds as train_step's, on the model at the journal's tail."""
        from .evaluate import EvalResult, evaluate_scores

        scores, labels, losses, shared = [], [], [], True
        for batch in batches:
            packed, core = self._pack(batch)
            found = self._engine.scores(core)
            # Of examples that have a label: the others have no loss, and a loss that is not a number is one.
            losses.append(np.asarray(found["example_losses"][0])[np.unique(packed.labels[:, 2])])
            if packed.n_options:
                scores.append(np.asarray(found["scores"], np.float32).reshape(packed.n_examples, packed.n_options))
                labels.append(packed.answers)
                shared = shared and packed.shared_options
        if not losses:
            raise ArgumentError("[evaluate] no batch, expected at least one")
        if scores:
            return evaluate_scores(np.concatenate(scores), np.concatenate(labels), shared_options=shared)
        losses = np.concatenate(losses)
        return EvalResult(float(losses.mean()), None, len(losses))

    def scores(self, batch) -> np.ndarray:
        """Option scores, float32 [n_examples, n_options]: logits of the candidates, or mean token log-probabilities.
        ArgumentError: a batch without options."""
        packed, core = self._pack(batch)
        if not packed.n_options:
            raise ArgumentError("[scores] a batch without options, expected a choice task")
        return np.asarray(self._engine.scores(core)["scores"], np.float32).reshape(packed.n_examples, packed.n_options)

    def logits(self, batch) -> np.ndarray:
        """fp32 [n_labels, V]: the logits that predict each label (of the position before it, as in transformers)."""
        _, core = self._pack(batch)
        return self._engine.logits(core, [(0, +1, 0.0)], 0)[0]

    def generate(self, input_ids, max_new_tokens: int = 32) -> list[int]:
        """Greedy continuation of one sequence of token ids; returns the new ids. Every token runs the whole text again."""
        ids = np.asarray(input_ids)
        if ids.size == 0 or ids.size != ids.shape[-1]:
            raise ArgumentError(f"[generate] input_ids of shape {ids.shape}, expected one sequence of at least one id")
        ids = [int(i) for i in ids.reshape(-1)]
        new: list[int] = []
        for _ in range(max_new_tokens):
            # The label's value does not matter: only the position before it is asked.
            batch = {"input_ids": [ids + [0]], "labels": [[-100] * len(ids) + [0]]}
            new.append(int(self.logits(batch)[0].argmax()))
            ids.append(new[-1])
        return new

    # ---- saving

    def flush(self) -> None:
        """Syncs the journal and brings every stored weight to its tail."""
        self._check_open()
        self._engine.sync()
        self._engine.flush()

    def save_delta(self, path) -> int:
        """Writes what training changed; returns the file's bytes. Atomic: a reader sees the old file or the new one."""
        self._check_open()
        self._engine.save_delta(str(path))
        return Path(path).stat().st_size

    def load_delta(self, name: str, path) -> None:
        """Gives a delta a name for `use`. FormatError, IoError: it is none, or damaged."""
        self._check_open()
        _core.read_state(str(path), "delta")
        self._deltas[name] = str(path)

    def use(self, weights: dict[str, float]) -> None:
        """The model becomes base + sum of weight * (delta - base) over deltas by name; {} puts the base back. The base is not loaded again.

        For a runtime without run_dir, opened with the method the deltas were made by (delta= brings it); MeZO's deltas of different tensors need
        one that trains them all. No step can be taken while deltas are in use. ArgumentError: an unknown name, a weight that is no finite number,
        a training run, a delta of other tensors, elements or values. BudgetError: what trains does not fit in memory."""
        self._check_open()
        for name, weight in weights.items():
            if name not in self._deltas:
                raise ArgumentError(
                    f"[use] delta {name!r}, expected one that load_delta named: {', '.join(self._deltas) or 'none'}"
                )
            if not isinstance(weight, (int, float)) or not -float("inf") < weight < float("inf"):
                raise ArgumentError(f"[use] weight {weight!r} of {name!r}, expected a finite number")
        self._engine.use([(self._deltas[name], float(weight)) for name, weight in weights.items()])

    def merge(self, folder, dtype: str = "bf16", progress=None) -> int:
        """Writes the whole model as a new Hugging Face folder that any tool reads, every weight in `dtype`, bf16 (rounded to nearest) or fp32,
        piece by piece in bounded memory; returns the bytes of its tensors. progress(bytes done, bytes in all). The folder appears whole or not at all.
        ArgumentError: it is there already, or another dtype."""
        self._check_open()
        if dtype not in ("bf16", "fp32"):
            raise ArgumentError(
                f"[merge] dtype {dtype!r}, expected bf16 or fp32: nothing is rounded back into 4 or 8 bits"
            )
        return self._engine.merge(os.path.expanduser(str(folder)), dtype, progress=progress)

    def export_peft(self, folder) -> dict:
        """Writes what training changed as a new folder with a SHiRA adapter, which PEFT loads over the same base: sparse differences to the
        weights of linear layers, 12 bytes each. Returns r, n_values (that differ), bytes_out, modules. ArgumentError: what changed is no such
        weight, or more than PEFT's one rank for all layers leaves room for; `merge` writes such a model."""
        self._check_open()
        return self._engine.export_shira(os.path.expanduser(str(folder)))
