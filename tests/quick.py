import pytest


def quickly(quick, parameters):
    """Parameters of which only those in `quick` are run by tools/check quick."""
    return [p if p in quick else pytest.param(p, marks=pytest.mark.slow) for p in parameters]
