"""Stable-Baselines3's buffers: what an agent has seen while it learned."""

from sb3_dmamba.data.sources.sb3.loading import load_replay_buffer, load_rollout_buffer

__all__ = ["load_replay_buffer", "load_rollout_buffer"]
