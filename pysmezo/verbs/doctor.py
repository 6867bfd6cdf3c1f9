"""The verb doctor: what this machine and installation can do. Rates are kept in the user's cache folder."""

from __future__ import annotations

import glob
import json
import os
import platform
import statistics
import sys
import tempfile
import time

from .. import _core
from ..cli import OK

PACKAGES = (
    "numpy",
    "psutil",
    "safetensors",
    "tokenizers",
    "PyYAML",
    "jinja2",
    "tqdm",
    "gguf",
    "matplotlib",
    "torch",
    "transformers",
)
DISK_BYTES = 128 << 20
BLOCK_BYTES = 4 << 20
N_READERS = 2
N_READINGS = 5  # a disk that is shared, or a virtual one, gives twice as much at one time as at another


def add_flags(parser, verb: str) -> None:
    parser.add_argument(
        "--dir",
        metavar="DIR",
        default=".",
        help="where the disk is measured, such as the model's folder (default: the current folder)",
    )


def cache_file() -> str:
    root = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(root, "pysmezo", "doctor.json")


def caches() -> dict[str, int]:
    """Bytes of the first processor's caches, as Linux reports them; virtual machines may report a whole socket's L3."""
    out = {}
    for folder in sorted(glob.glob("/sys/devices/system/cpu/cpu0/cache/index*")):
        try:
            level, kind, size = (open(f"{folder}/{name}").read().strip() for name in ("level", "type", "size"))
        except OSError:
            continue
        unit = {"K": 1 << 10, "M": 1 << 20}.get(size[-1:], 1)
        suffix = {"Data": "d", "Instruction": "i"}.get(kind, "")
        out[f"L{level}{suffix}"] = int(size.rstrip("KM")) * unit
    return out


def memory_bytes() -> dict[str, int]:
    """The machine's memory, what is free of it, and the container's limit where there is one."""
    import psutil

    found = psutil.virtual_memory()
    out = {"total_bytes": found.total, "available_bytes": found.available}
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limit = open(path).read().strip()
        except OSError:
            continue
        if limit.isdigit() and int(limit) < found.total:
            out["limit_bytes"] = int(limit)
    return out


def versions() -> dict[str, str | None]:
    from importlib.metadata import PackageNotFoundError, version

    out: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            out[package] = version(package)
        except PackageNotFoundError:
            out[package] = None
    return out


def disk_rates(folder: str) -> dict[str, float | None]:
    """Bytes a second of one sequential file, written and synced, then read past the page cache (the median of a few times;
    None where that cannot be done).
    """
    block = os.urandom(BLOCK_BYTES)
    with tempfile.NamedTemporaryFile(dir=folder, prefix="pysmezo-doctor-") as f:
        start = time.perf_counter()
        for _ in range(DISK_BYTES // BLOCK_BYTES):
            f.write(block)
        f.flush()
        os.fsync(f.fileno())
        written = DISK_BYTES / (time.perf_counter() - start)
        rates = [read_rate(f.name) for _ in range(N_READINGS)]
        return {"write_bytes_per_s": written, "read_bytes_per_s": statistics.median(rates) if all(rates) else None}


def read_rate(path: str, block_bytes: int = BLOCK_BYTES) -> float | None:
    """Bytes a second of two threads that read a file past the page cache, as streaming does; None where the file system cannot."""
    import mmap
    from concurrent.futures import ThreadPoolExecutor

    if not hasattr(os, "O_DIRECT"):
        return None
    try:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError:
        return None
    try:
        n_blocks = os.fstat(handle).st_size // block_bytes

        # As the ring (csrc/store/ring.h): in huge pages, and touched before.
        memory = mmap.mmap(-1, max(N_READERS * block_bytes, 8 << 20))
        if hasattr(mmap, "MADV_HUGEPAGE"):
            memory.madvise(mmap.MADV_HUGEPAGE)
        memory.write(bytes(len(memory)))

        def read(thread: int) -> None:
            block = memoryview(memory)[thread * block_bytes : (thread + 1) * block_bytes]
            for i in range(thread, n_blocks, N_READERS):
                os.preadv(handle, [block], i * block_bytes)

        start = time.perf_counter()
        with ThreadPoolExecutor(N_READERS) as pool:
            list(pool.map(read, range(N_READERS)))
        return n_blocks * block_bytes / (time.perf_counter() - start)
    except OSError:
        return None
    finally:
        os.close(handle)


def kept() -> dict:
    """The report of an earlier run; {} where there is none."""
    try:
        with open(cache_file(), encoding="utf-8") as f:
            found = json.load(f)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def run(arguments, verb: str):
    disk = disk_rates(arguments.dir)
    report = {
        "instruction_set": _core.choose_isa(),
        "instruction_sets": _core.supported_isas(),
        "numerics": _core.numerics_name(),
        "threads": _core.default_threads(),
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "caches_bytes": caches(),
        "memory": memory_bytes(),
        "disk": disk,
        # By file system (st_dev): `plan` takes the one that the model lies on.
        "disks": {**kept().get("disks", {}), str(os.stat(arguments.dir).st_dev): disk},
        "compute": _core.doctor_rates(),
        "versions": versions(),
    }
    path = cache_file()
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path + ".tmp", "w", encoding="utf-8") as f:
            json.dump(report, f, indent=2)
        os.replace(path + ".tmp", path)
    except OSError as e:
        print(f"rates not kept: {path}: {e.strerror}", file=sys.stderr)
    print("\n".join(lines(report)), flush=True)
    return OK, report


def lines(r: dict) -> list[str]:
    mib = 1 << 20
    disk = ", ".join(
        f"{name.split('_')[0]} {'not measured' if v is None else f'{v / 1e6:.0f} MB/s'}"
        for name, v in r["disk"].items()
    )
    memory = ", ".join(f"{name.split('_')[0]} {v // mib} MiB" for name, v in r["memory"].items())
    c = r["compute"]
    missing = [p for p, v in r["versions"].items() if v is None]
    return [
        f"instruction set  {r['instruction_set']} ({r['numerics']}), of {', '.join(r['instruction_sets'])}",
        f"threads          {r['threads']}",
        f"caches           {', '.join(f'{k} {v // 1024} KiB' for k, v in r['caches_bytes'].items()) or 'not reported'}",
        f"memory           {memory}",
        f"disk             {disk}",
        f"compute          GEMM {c['gemm_flops_per_s'] / 1e9:.0f} Gflop/s, operands {c['operands_per_s'] / 1e9:.1f} G weights/s, "
        f"updates {c['updates_per_s'] / 1e9:.1f} G weights/s",
        f"system           {r['system']} on {r['machine']}",
        f"versions         {', '.join(f'{p} {v}' for p, v in r['versions'].items() if v)}",
        f"not installed    {', '.join(missing) or 'nothing'}",
    ]
