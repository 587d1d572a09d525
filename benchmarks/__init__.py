"""Benchmarks of this package beside its peers, of verified implementations only.

``dmamba bench`` runs it from a checkout, as ``python -m benchmarks`` does. A suite makes
contenders, lets those that agree with their reference take turns under one timer, and returns
tables and pictures. Tests hold no stopwatch.
"""
