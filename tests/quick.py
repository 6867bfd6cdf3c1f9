import os

import pytest

# tools/check sanitizers says so: it keeps memory that is let go of, and its own beside the program's.
measures_memory = pytest.mark.skipif("SMEZO_SANITIZED" in os.environ, reason="a sanitizer's memory is measured too")


def quickly(quick, parameters):
    """Parameters of which only those in `quick` are run by tools/check quick."""
    return [p if p in quick else pytest.param(p, marks=pytest.mark.slow) for p in parameters]
