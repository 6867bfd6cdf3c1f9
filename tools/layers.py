#!/usr/bin/env python3
"""Checks that files include only what lies below them, and reports files that grow too long.

C++: a file in csrc includes its own folder and folders with a lower number. Python headers, pybind11 and torch belong
to bindings and torch alone. Python: what costs memory is imported neither by a module of pysmezo nor by one it imports.
"""

import ast
import re
import sys
from pathlib import Path

LAYER = {
    "base": 1,
    **dict.fromkeys(("noise", "format", "update", "io"), 2),
    "direction": 3,
    "kernels": 4,
    "store": 5,
    "model": 6,
    "engine": 7,
    **dict.fromkeys(("bindings", "torch"), 8),
}
FOREIGN = re.compile(r"^(Python\.h|pybind11/|torch/|ATen/|c10/|numpy/)")
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')

# Packages that cost the training process tens to hundreds of megabytes; a function may import them, a module may not.
HEAVY = {"torch", "transformers", "tokenizers", "matplotlib", "datasets", "bitsandbytes", "pandas"}
# Modules that run in a child process only; others may start them but not import them. Those of torch run where gradients
# are asked for: a function imports them.
CHILDREN = {
    "_torch_layer": {"torch"},
    "_torch_calibration": {"torch"},
    "_corpus": set(),
    "_tokenize": {"tokenizers", "transformers"},
    "_encode": {"tokenizers"},
    "_draw": {"matplotlib"},
    "_draw_lr": set(),
    "_draw_memory": set(),
    "_measure": set(),
    "_prepare": set(),
    "_gguf": set(),
    "_rows": set(),
}

LONG, TOO_LONG = 450, 600
SOURCE = {".h", ".inl", ".cpp", ".cu", ".cuh", ".py"}


def cpp_errors(root):
    csrc = root / "csrc"
    for path in sorted(csrc.rglob("*")):
        if path.suffix not in SOURCE - {".py"}:
            continue
        name = path.relative_to(root)
        folder = path.relative_to(csrc).parts[0]
        if folder not in LAYER:
            yield f"{name}: folder {folder} has no layer number, expected one of {', '.join(LAYER)}"
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            found = INCLUDE.match(line)
            if not found:
                continue
            quote, target = found.groups()
            if FOREIGN.match(target):
                if LAYER[folder] < 8:
                    yield f"{name}:{number}: includes {target}, which only bindings and torch may"
                continue
            if quote == "<":
                continue
            other = target.split("/")[0]
            if "/" not in target or other not in LAYER or not (csrc / target).is_file():
                yield f'{name}:{number}: includes "{target}", expected a file of csrc by its path from there'
            elif other != folder and LAYER[other] >= LAYER[folder]:
                above = f"{other} is {LAYER[other]}, {folder} is {LAYER[folder]}"
                yield f'{name}:{number}: includes "{target}" from a layer that is not lower ({above})'


def runs_at_import(tree):
    """The nodes that run when the module is imported: bodies of functions and of `if TYPE_CHECKING` do not."""
    pending = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending += node.orelse
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield node
            pending += ast.iter_child_nodes(node)


def imported(node):
    """Absolute names for `import a.b`, names that begin with a dot for relative ones."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = "." * node.level + (node.module or "")
        if not node.module or base == "pysmezo":
            return [f"{base.rstrip('.')}.{alias.name}" for alias in node.names]
        return [base]
    return []


def python_errors(root):
    for path in sorted((root / "pysmezo").rglob("*.py")):
        name = path.relative_to(root)
        allowed = CHILDREN.get(path.stem, set())
        for node in runs_at_import(ast.parse(path.read_text(), str(path))):
            for module in imported(node):
                head = module.split(".")[0]
                if (head in HEAVY or module == "safetensors.torch") and head not in allowed:
                    yield f"{name}:{node.lineno}: imports {module} when loaded, expected inside a function or a child"
                child = module.split(".")[-1]
                if child in CHILDREN and head in ("", "pysmezo") and path.stem not in CHILDREN:
                    yield f"{name}:{node.lineno}: imports {module}, which only runs in a child process"


def sizes(root):
    """(path, lines) of the source files that are long, longest first."""
    long = []
    for folder in ("csrc", "pysmezo", "tests", "tools", "benchmarks", "examples"):
        for path in (root / folder).rglob("*"):
            if path.suffix in SOURCE:
                n_lines = len(path.read_text().splitlines())
                if n_lines > LONG:
                    long.append((path.relative_to(root), n_lines))
    return sorted(long, key=lambda row: -row[1])


def check(root):
    """(errors, warnings), each a list of lines."""
    errors = [*cpp_errors(root), *python_errors(root)]
    warnings = []
    for path, n_lines in sizes(root):
        text = f"{path}: {n_lines} lines, expected at most {LONG}"
        (errors if n_lines > TOO_LONG else warnings).append(text)
    return errors, warnings


def main():
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[1]
    errors, warnings = check(root)
    for line in warnings:
        print("warning:", line)
    for line in errors:
        print("error:", line)
    print(f"layers: {len(errors)} errors, {len(warnings)} warnings")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
