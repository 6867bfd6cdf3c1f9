"""What a process holds, as the system counts it. `ru_maxrss` is not used: it is inherited through exec and never falls."""

from __future__ import annotations

import os
import re


def _status(*keys: str, process: int | str = "self") -> dict[str, int]:
    try:
        with open(f"/proc/{process}/status") as f:
            found = dict(re.findall(r"^(\w+):\s+(\d+) kB", f.read(), re.M))
    except OSError:
        found = {}
    return {k: int(found.get(k, 0)) * 1024 for k in keys}


def rss_bytes() -> int:
    """Resident bytes now."""
    return _status("VmRSS")["VmRSS"]


def peaks() -> tuple[int, int]:
    """(peak resident bytes since the last reset, anonymous resident bytes now)."""
    s = _status("VmHWM", "RssAnon")
    return s["VmHWM"], s["RssAnon"]


def resident(process: int | str = "self") -> dict[str, int]:
    """Resident bytes of a process: anonymous, of files, shared; and the peak of their sum since its last reset. All 0: it is gone."""
    found = _status("RssAnon", "RssFile", "RssShmem", "VmHWM", process=process)
    names = ("rss_anon_bytes", "rss_file_bytes", "rss_shmem_bytes", "peak_rss_bytes")
    return dict(zip(names, found.values(), strict=True))


def cgroup_file(proc: str = "/proc/self/cgroup", root: str = "/sys/fs/cgroup") -> str | None:
    """The file that says what the control group of this process holds now, page cache and other processes in it included; None: this
    process may read no such file."""
    try:
        with open(proc) as f:
            lines = [line.rstrip("\n").split(":", 2) for line in f]
    except OSError:
        return None
    for _, controllers, path in lines:
        if "memory" in controllers.split(","):  # version 1
            folder, name = os.path.join(root, "memory"), "memory.usage_in_bytes"
        elif not controllers:  # version 2
            folder, name = root, "memory.current"
        else:
            continue
        # In a container the path may be told as the host sees it, and the group's files lie at the root.
        for at in (folder + path, folder):
            found = os.path.join(at, name)
            if os.access(found, os.R_OK):
                return found
    return None


def reset_peak() -> bool:
    """Sets the peak to what is resident now; False where the system does not let us."""
    try:
        with open("/proc/self/clear_refs", "w") as f:
            f.write("5")
        return True
    except OSError:
        return False


_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse_bytes(text: str | int | None) -> int | None:
    """ "2GiB", "400M", 123 -> bytes (powers of 1024); None stays None. ArgumentError for anything else, 0 included."""
    from .errors import ArgumentError

    if text is None:
        return None
    m = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:I?B)?\s*", str(text).upper())
    n = int(float(m[1]) * _UNITS[m[2]]) if m and not isinstance(text, bool) else 0
    if not 0 < n < 1 << 60:
        raise ArgumentError(f"[memory_budget] {text!r}, expected bytes such as 2GiB, 400MiB or 1500000000")
    return n
