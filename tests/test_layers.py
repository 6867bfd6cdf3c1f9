"""tools/layers.py passes on this tree and finds what is planted in a copy of a small one."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


layers = load("layers")


@pytest.fixture
def tree(tmp_path):
    files = {
        "csrc/base/error.h": "#pragma once\n#include <string>\n",
        "csrc/noise/address.h": '#include "base/error.h"\n',
        "csrc/format/half.h": '#include "base/error.h"\n',
        "csrc/kernels/cpu/avx2.cpp": '#include "kernels/kernels.h"\n#include <immintrin.h>\n',
        "csrc/kernels/kernels.h": '#include "noise/address.h"\n',
        "csrc/bindings/module.cpp": '#include <pybind11/pybind11.h>\n#include "kernels/kernels.h"\n',
        "pysmezo/runtime.py": "import numpy\n\ndef parity():\n    import torch\n    return torch\n",
        "pysmezo/_tokenize.py": "import tokenizers\n",
        "pysmezo/_draw.py": "import matplotlib\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_this_tree_passes():
    errors, _ = layers.check(ROOT)
    assert errors == []


def test_a_tree_that_keeps_the_rules_passes(tree):
    assert layers.check(tree) == ([], [])


@pytest.mark.parametrize(
    ("name", "line", "expected"),
    [
        ("csrc/base/error.h", '#include "kernels/kernels.h"', "csrc/base/error.h:3"),
        ("csrc/noise/address.h", '#  include "format/half.h"', "not lower"),
        ("csrc/kernels/cpu/avx2.cpp", '#include "bindings/module.cpp"', "bindings is 8, kernels is 4"),
        ("csrc/kernels/kernels.h", '#include "address.h"', "by its path"),
        ("csrc/kernels/kernels.h", '#include "noise/gone.h"', "by its path"),
        ("csrc/kernels/kernels.h", "#include <Python.h>", "only bindings and torch"),
        ("csrc/kernels/kernels.h", "#include <torch/extension.h>", "only bindings and torch"),
        ("csrc/extra/new.h", "#pragma once", "no layer number"),
        ("pysmezo/runtime.py", "import torch", "pysmezo/runtime.py:6"),
        ("pysmezo/runtime.py", "from transformers import AutoModel", "transformers"),
        ("pysmezo/runtime.py", "try:\n    import matplotlib.pyplot\nexcept ImportError:\n    pass", "matplotlib"),
        ("pysmezo/runtime.py", "from safetensors.torch import load_file", "safetensors.torch"),
        ("pysmezo/runtime.py", "from . import _draw", "child process"),
        ("pysmezo/runtime.py", "from ._tokenize import main", "child process"),
        ("pysmezo/runtime.py", "class A:\n    import tokenizers", "tokenizers"),
        ("pysmezo/_draw.py", "import torch", "pysmezo/_draw.py:2"),
    ],
)
def test_a_planted_offence_is_found(tree, name, line, expected):
    path = tree / name
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as f:
        f.write(line + "\n")
    errors, _ = layers.check(tree)
    assert len(errors) == 1
    assert expected in errors[0]


def test_imports_for_types_only_are_allowed(tree):
    path = tree / "pysmezo/runtime.py"
    path.write_text("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\n")
    assert layers.check(tree) == ([], [])


@pytest.mark.parametrize(("n_lines", "n_errors", "n_warnings"), [(450, 0, 0), (451, 0, 1), (600, 0, 1), (601, 1, 0)])
def test_long_files_are_reported(tree, n_lines, n_errors, n_warnings):
    (tree / "csrc/base/long.cpp").write_text("\n" * n_lines)
    errors, warnings = layers.check(tree)
    assert (len(errors), len(warnings)) == (n_errors, n_warnings)
