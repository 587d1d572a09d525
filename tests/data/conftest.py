"""Small datasets, made here or lying beside the repository."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import minari
import numpy as np
import pytest
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer

from sb3_dmamba.data import Trajectories

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The recorded datasets of the development machine."""
    default = REPOSITORY.parent / "shared" / "data"
    folder = Path(os.environ.get("SB3_DMAMBA_SHARED_DATA", default))
    if not (folder / "minari").is_dir():
        pytest.skip(f"no recorded datasets in {folder}: set SB3_DMAMBA_SHARED_DATA")
    return folder


@pytest.fixture
def minari_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Minari's folder of datasets, empty."""
    root = tmp_path / "minari"
    root.mkdir()
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(root))
    return root


MakeMinari = Callable[..., minari.MinariDataset]


@pytest.fixture
def make_minari(minari_root: Path) -> MakeMinari:
    """Write a Minari dataset from observations (T+1) and actions (T) of each episode."""

    def make(
        dataset_id: str,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        observations: list[Any],
        actions: list[Any],
        ends: list[str] | None = None,
        **options: Any,
    ) -> minari.MinariDataset:
        buffers = []
        for episode, (seen, done) in enumerate(zip(observations, actions, strict=True)):
            end = (ends or ["terminated"] * len(actions))[episode]
            flags = np.arange(len(done)) == len(done) - 1
            buffers.append(
                EpisodeBuffer(
                    id=episode,
                    observations=seen,
                    actions=done,
                    rewards=list(np.arange(len(done)) + 10.0 * episode),
                    terminations=list(flags & (end == "terminated")),
                    truncations=list(flags & (end == "truncated")),
                    infos={"unread": np.full((len(done) + 1, 2), np.nan)},
                )
            )
        with warnings.catch_warnings():
            # Minari advises about what a test need not write down; reading stays strict.
            warnings.filterwarnings("ignore", "`eval_env` is set to None|env_spec is None")
            return minari.create_dataset_from_buffers(
                dataset_id,
                buffer=buffers,
                observation_space=observation_space,
                action_space=action_space,
                algorithm_name="none",
                author="tests",
                author_email="tests@example.org",
                code_permalink="none",
                description="made by a test",
                requirements=[],
                **options,
            )

    return make


MakeTrajectories = Callable[..., Trajectories]


@pytest.fixture(scope="session")
def make_trajectories() -> MakeTrajectories:
    """Make random episodes of given lengths, with some fields replaced."""

    def make(
        lengths: list[int], seed: int = 0, n_observations: int = 3, **changes: Any
    ) -> Trajectories:
        generator = np.random.default_rng(seed)
        n_steps = sum(lengths)
        fields: dict[str, Any] = {
            "observations": generator.normal(size=(n_steps, n_observations)),
            "actions": generator.uniform(-1, 1, size=(n_steps, 2)),
            "rewards": generator.normal(size=n_steps),
            "terminated": np.arange(len(lengths)) % 3 == 0,
            "truncated": np.arange(len(lengths)) % 3 == 1,
            "episode_offsets": np.concatenate([[0], np.cumsum(lengths)]),
            "observation_space": spaces.Box(-np.inf, np.inf, (n_observations,), np.float32),
            "action_space": spaces.Box(-1.0, 1.0, (2,), np.float32),
        }
        return Trajectories(**{**fields, **changes})

    return make
