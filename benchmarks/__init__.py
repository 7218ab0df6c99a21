"""Benchmarks: each prints ratios against a floor and against peers that are measured in the same run."""
