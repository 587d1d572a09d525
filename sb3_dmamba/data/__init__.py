"""Recorded episodes: the container, the sources, windows, statistics."""

from sb3_dmamba.data.consecutive import ConsecutiveSampler
from sb3_dmamba.data.conversion import convert_trajectories
from sb3_dmamba.data.info import DatasetInfo
from sb3_dmamba.data.inspection import DatasetReport, inspect_dataset
from sb3_dmamba.data.joining import join_trajectories
from sb3_dmamba.data.load import load_trajectories
from sb3_dmamba.data.returns import compute_returns, compute_returns_to_go
from sb3_dmamba.data.spaces import check_action_space, flat_space, flatten_observation
from sb3_dmamba.data.statistics import ObservationStatistics, compute_observation_statistics
from sb3_dmamba.data.store import TrajectoriesWriter
from sb3_dmamba.data.summary import Spread, TrajectoriesSummary
from sb3_dmamba.data.trajectories import Episode, Trajectories
from sb3_dmamba.data.windows import WindowBatch, WindowSampler

__all__ = [
    "ConsecutiveSampler",
    "DatasetInfo",
    "DatasetReport",
    "Episode",
    "ObservationStatistics",
    "Spread",
    "Trajectories",
    "TrajectoriesSummary",
    "TrajectoriesWriter",
    "WindowBatch",
    "WindowSampler",
    "check_action_space",
    "compute_observation_statistics",
    "compute_returns",
    "compute_returns_to_go",
    "convert_trajectories",
    "flat_space",
    "flatten_observation",
    "inspect_dataset",
    "join_trajectories",
    "load_trajectories",
]
