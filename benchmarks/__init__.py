"""The benchmark suite: ours beside its peers, and only what computes the right thing.

``dmamba bench`` runs it from a checkout, as ``python -m benchmarks`` does. A suite makes
contenders, lets those that agree with their reference take turns under one timer, and returns
tables and pictures. Tests hold no stopwatch.
"""
