"""Models that move between the Stable-Baselines3 face and this one, with equal predictions."""

from sb3_dmamba.d3rlpy.crossing.inward import from_sb3
from sb3_dmamba.d3rlpy.crossing.outward import to_sb3

__all__ = ["from_sb3", "to_sb3"]
