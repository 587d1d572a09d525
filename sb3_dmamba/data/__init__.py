"""Recorded episodes: the container, the sources, windows, statistics."""

from sb3_dmamba.data.inspection import (
    DatasetInfo,
    DatasetReport,
    ObservationStatistics,
    compute_observation_statistics,
    inspect_dataset,
)
from sb3_dmamba.data.joining import join_trajectories
from sb3_dmamba.data.returns import (
    Spread,
    TrajectoriesSummary,
    compute_returns,
    compute_returns_to_go,
)
from sb3_dmamba.data.samplers import ConsecutiveSampler, WindowBatch, WindowSampler
from sb3_dmamba.data.sources import convert_trajectories, load_trajectories
from sb3_dmamba.data.trajectories import Episode, Trajectories, TrajectoriesWriter
from sb3_dmamba.spaces import check_action_space, flat_space, flatten_observation

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
