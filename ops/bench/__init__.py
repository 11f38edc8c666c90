"""Benchmarks and endurance runs: each measures ours beside a peer in the same run, on services of its own."""
