#!/usr/bin/env python3
"""Proves on the object files that instruction sets stay apart.

Two objects that define the same weak symbol leave one copy to the linker, and a copy made with wide-vector flags would
crash a narrower machine: so every weak symbol of an instruction-set object carries that set's namespace in its name.
And the disassembly of each set shows no register or instruction that is wider than the set.
"""

import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

# What the disassembly of a set must not show; baseline is the plain core.
WIDE = r"%[yz]mm|%k[0-7]\b"
VEX = r"\tv(?!err\b|erw\b|m[a-z]*(?:call|run|launch|resume|func|load|save|clear|ptr|xo))[a-z0-9]+"
EVEX = r"%zmm|%k[0-7]\b|%[xy]mm(?:1[6-9]|2\d|3[01])\b"
BF16 = r"\tvdpbf16ps|\tvcvtne2?ps2bf16"
TILES = r"%tmm|\tt(?:dp|ile|release|zero)"
FORBIDDEN = {
    "baseline": f"{WIDE}|{VEX}|{TILES}",
    "avx2": f"{EVEX}|{BF16}|{TILES}",
    "avx512": f"{BF16}|{TILES}",
    "avx512_bf16": TILES,
    "amx": None,
}
# Weak by the ABI and the same in every object: a pointer to the exception personality, and the like.
HARMLESS = re.compile(r"^DW\.ref\.")


def output(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def object_sets(build):
    """Set name -> its object files, from the folders CMake makes for the targets."""
    sets = {}
    for isa in FORBIDDEN:
        target = "smezo_core" if isa == "baseline" else f"smezo_{isa}"
        found = sorted((build / "CMakeFiles" / f"{target}.dir").rglob("*.o"))
        if found:
            sets[isa] = found
    return sets


def weak_symbols(obj, isa):
    """Weak definitions of an object that another object may share. In a mangled name smezo::avx2 reads 5smezo4avx2."""
    own = f"5smezo{len(isa)}{isa}"
    for line in output("nm", "--defined-only", "--format=posix", str(obj)).splitlines():
        name, kind = line.split()[:2]
        if kind in "WwVvu" and own not in name and not HARMLESS.match(name):
            yield name


def wide_instructions(obj, isa):
    """(function, instruction) of the first offence in each function."""
    if FORBIDDEN[isa] is None:
        return
    pattern = re.compile(FORBIDDEN[isa])
    function, reported = "", None
    for line in output("objdump", "-d", "--demangle", "--no-show-raw-insn", str(obj)).splitlines():
        if line.endswith(">:"):
            function = line.partition("<")[2][:-2]
        elif function != reported and pattern.search(line):
            reported = function
            yield function, " ".join(line.split()[1:])


def check(sets):
    errors = []
    for isa, objects in sets.items():
        for obj in objects:
            if isa != "baseline":
                for name in weak_symbols(obj, isa):
                    plain = output("c++filt", name).strip()
                    errors.append(f"{isa}: {obj.name} defines the weak symbol {plain}, expected it in smezo::{isa}")
            for function, instruction in wide_instructions(obj, isa):
                errors.append(f"{isa}: {obj.name} has '{instruction}' in {function}, wider than the set")
    return errors


def main():
    build = Path(sys.argv[1])
    if platform.machine() not in ("x86_64", "AMD64"):
        print(f"symbols: not run: the lists are for x86-64, this is {platform.machine()}")
        return 0
    missing = [tool for tool in ("nm", "objdump", "c++filt") if shutil.which(tool) is None]
    if missing:
        print(f"symbols: not run: {', '.join(missing)} not found")
        return 0
    sets = object_sets(build)
    if "baseline" not in sets:
        print(f"error: no object files in {build}, build first")
        return 1
    errors = check(sets)
    for line in errors:
        print("error:", line)
    counts = ", ".join(f"{isa} {len(objects)}" for isa, objects in sets.items())
    print(f"symbols: {len(errors)} errors in objects of {counts}")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
