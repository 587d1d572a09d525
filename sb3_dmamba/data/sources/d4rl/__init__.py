"""D4RL: flat HDF5 files, the Decision Transformer's pickles, and D4RL's names of either."""

from sb3_dmamba.data.sources.d4rl.opening import find_d4rl_file, open_d4rl_file, open_d4rl_name

__all__ = ["find_d4rl_file", "open_d4rl_file", "open_d4rl_name"]
