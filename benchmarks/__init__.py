"""Benchmarks of every op against its reference and its public rivals: `python -m benchmarks --help`."""
