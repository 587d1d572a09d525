"""Decision Mamba as a Stable-Baselines3 algorithm."""

from sb3_dmamba.algorithm.decision_mamba import DecisionMamba

__all__ = ["DecisionMamba"]
