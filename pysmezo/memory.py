"""What this process holds, read from the process itself. `ru_maxrss` is not used: it is inherited through exec and never falls."""

from __future__ import annotations

import re


def _status(*keys: str) -> dict[str, int]:
    try:
        with open("/proc/self/status") as f:
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
    """ "2GiB", "400M", 123 -> bytes (powers of 1024); None stays None. ArgumentError for anything else."""
    from .errors import ArgumentError

    if text is None or isinstance(text, int):
        return text
    m = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:I?B)?\s*", str(text).upper())
    if not m:
        raise ArgumentError(f"[memory_budget] {text!r}, expected bytes such as 2GiB, 400MiB or 1500000000")
    return int(float(m[1]) * _UNITS[m[2]])
