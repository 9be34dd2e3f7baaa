"""One file per op, found by name; `benchmarks.harness.OpBenchmark` says what it defines."""
