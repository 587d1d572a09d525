"""The Atari DQN replay: replay buffers as Dopamine logs them."""

from sb3_dmamba.data.sources.dqn_replay.loading import load_dqn_replay

__all__ = ["load_dqn_replay"]
