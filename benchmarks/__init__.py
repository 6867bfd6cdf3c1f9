"""Measurements, each a command: `python -m benchmarks.NAME`. Speed is reported as ratios of things timed in one run,
interleaved."""
