"""tools/symbols.py finds, in objects compiled on the spot, weak symbols that could be shared and wide instructions."""

import importlib.util
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
spec = importlib.util.spec_from_file_location("symbols", ROOT / "tools" / "symbols.py")
symbols = importlib.util.module_from_spec(spec)
spec.loader.exec_module(symbols)

pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64") or not all(map(shutil.which, ("g++", "nm", "objdump", "c++filt"))),
    reason="needs g++ and binutils on x86-64",
)

SHARED = "inline __attribute__((noinline)) int shared(int x) { return x * 3; }\nint use(int x) { return shared(x); }\n"
OWN = """
namespace smezo::avx2 {
inline __attribute__((noinline)) int own(int x) { return x * 3; }
}
int use(int x) { return smezo::avx2::own(x); }
"""
LOOP = "void scale(float* x) { for (int i = 0; i < 1024; ++i) x[i] *= 3; }\n"
HIGH = 'void move() { asm volatile("vmovaps %xmm17, %xmm18"); }\n'


def compiled(tmp_path, text, *flags):
    source = tmp_path / "planted.cpp"
    source.write_text(text)
    subprocess.run(["g++", "-std=c++20", "-O3", *flags, "-c", source, "-o", tmp_path / "planted.o"], check=True)
    return tmp_path / "planted.o"


@pytest.mark.parametrize(
    ("isa", "text", "flags", "expected"),
    [
        ("avx2", SHARED, ["-mavx2"], "weak symbol shared(int)"),
        ("avx512", OWN, ["-mavx2"], "weak symbol smezo::avx2::own(int)"),
        ("baseline", LOOP, ["-mavx"], "in scale(float*)"),
        ("baseline", "float twice(float x) { return x + x; }", ["-mavx"], "vaddss"),
        ("avx2", LOOP, ["-mavx512f", "-mprefer-vector-width=512"], "zmm"),
        ("avx2", HIGH, ["-mavx512vl"], "xmm17"),
        ("avx512", 'void f() { asm("vdpbf16ps %zmm1, %zmm2, %zmm3"); }', [], "vdpbf16ps"),
        ("avx512_bf16", 'void f() { asm("tilezero %tmm0"); }', [], "tilezero"),
    ],
)
def test_planted_offences_are_found(tmp_path, isa, text, flags, expected):
    errors = symbols.check({isa: [compiled(tmp_path, text, *flags)]})
    assert len(errors) == 1
    assert expected in errors[0]


@pytest.mark.parametrize(
    ("isa", "text", "flags"),
    [
        ("baseline", SHARED + LOOP, []),
        ("avx2", OWN + LOOP, ["-mavx2"]),
        ("avx512", LOOP, ["-mavx512f", "-mprefer-vector-width=512"]),
        ("amx", 'void f() { asm("tilezero %tmm0"); }', []),
    ],
)
def test_objects_that_keep_to_their_set_pass(tmp_path, isa, text, flags):
    assert symbols.check({isa: [compiled(tmp_path, text, *flags)]}) == []
