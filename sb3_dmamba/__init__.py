"""Decision Mamba for offline reinforcement learning, in Stable-Baselines3's manner."""

__version__ = "0.1.0"
