"""Small datasets in some formats, comparisons, and what loading a bad one raises."""

from __future__ import annotations

import dataclasses
import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import minari
import numpy as np
import pytest
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer
from PIL import Image

from sb3_dmamba.data import Trajectories, load_trajectories
from sb3_dmamba.errors import DatasetError, DecisionMambaError


def import_d3rlpy() -> Any:
    """Import d3rlpy, or skip what needs it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it imports the old gym, which warns
        return pytest.importorskip("d3rlpy", reason="the d3rlpy extra is not installed")


def skip_without(package: str) -> Any:
    """Import a package of the hub extra, or skip what needs it."""
    return pytest.importorskip(package, reason=f"{package}, of the hub extra, is not installed")


def import_datasets() -> Any:
    """Import Hugging Face's datasets, or skip what needs it; its progress bars are off."""
    datasets = skip_without("datasets")
    datasets.disable_progress_bars()
    return datasets


def to_png(frame: Any) -> dict[str, Any]:
    """Return a frame as the feature Image of Hugging Face's datasets stores it."""
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def make_trajectories(
    lengths: list[int], seed: int = 0, n_observations: int = 3, **changes: Any
) -> Trajectories:
    """Random episodes of given lengths, with some fields replaced."""
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


def write_minari(
    dataset_id: str,
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any],
    episodes: list[dict[str, Any]],
    **options: Any,
) -> minari.MinariDataset:
    """Write episodes of observations (T+1), actions (T), maybe rewards, and how each ends."""
    buffers = []
    for number, episode in enumerate(episodes):
        actions, end = episode["actions"], episode.get("end", "terminated")
        is_last = np.arange(len(actions)) == len(actions) - 1
        buffers.append(
            EpisodeBuffer(
                id=number,
                observations=episode["observations"],
                actions=actions,
                rewards=list(episode.get("rewards", np.arange(len(actions)) + 10.0 * number)),
                terminations=list(is_last & (end == "terminated")),
                truncations=list(is_last & (end == "truncated")),
                infos={"unread": np.full((len(actions) + 1, 2), np.nan)},
            )
        )
    names = ("algorithm_name", "author", "author_email", "code_permalink", "description")
    with warnings.catch_warnings():
        # Minari advises about what a test need not write down; reading stays strict.
        warnings.filterwarnings("ignore", "`eval_env` is set to None|env_spec is None")
        return minari.create_dataset_from_buffers(
            dataset_id,
            buffer=buffers,
            observation_space=observation_space,
            action_space=action_space,
            requirements=[],
            **dict.fromkeys(names, "none"),
            **options,
        )


def assert_same(found: Trajectories, expected: Trajectories) -> None:
    for field in dataclasses.fields(Trajectories):
        ours, theirs = getattr(found, field.name), getattr(expected, field.name)
        if isinstance(theirs, np.ndarray):
            np.testing.assert_array_equal(ours, theirs, field.name)
            assert ours.dtype == theirs.dtype, field.name
        else:
            assert ours == theirs, field.name


def flat_arrays(seed: int = 0, n_observations: int = 11, n_actions: int = 3) -> dict[str, Any]:
    """Nine steps as D4RL keeps them: an episode that fell, one that timed out, one that was cut."""
    generator = np.random.default_rng(seed)
    return {
        "observations": generator.normal(size=(9, n_observations)).astype(np.float32),
        "actions": generator.uniform(-1, 1, size=(9, n_actions)).astype(np.float32),
        "rewards": generator.normal(size=9).astype(np.float32),
        "terminals": np.arange(9) == 3,
        "timeouts": np.arange(9) == 6,
    }


def write_hdf5(path: Path, arrays: dict[str, Any], **options: Any) -> Path:
    """Write flat arrays as D4RL does, with what it keeps besides."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for key, values in arrays.items():
            is_array = isinstance(values, np.ndarray) and values.ndim
            file.create_dataset(key, data=values, **(options if is_array else {}))
        file["next_observations"] = np.zeros((9, 11), np.float32)
        file["infos/qpos"] = np.full((9, 6), np.nan)
        file["metadata/algorithm"] = "SAC"
    return path


def refusal(source: Any, kind: type[DecisionMambaError] = DatasetError, /, **options: Any) -> Any:
    """Return the error that loading a source gets."""
    with pytest.raises(kind) as caught:
        load_trajectories(source, **options)
    return caught.value


def unlike(case: object, error: DecisionMambaError, expected: Mapping[str, Any]) -> list[str]:
    """Return how an error differs; ``path`` may be its end, ``said`` is a part of its message."""
    wrong = []
    for name, value in expected.items():
        found = str(error) if name == "said" else getattr(error, name)
        if name == "said":
            fits = value in found
        elif name == "path":
            fits = Path(found or "").parts[-len(Path(value).parts) :] == Path(value).parts
        else:
            fits = found == value or (np.isscalar(value) and value != value and found != found)
        if not fits:
            wrong.append(f"{case}: {name} is {found!r}, not {value!r}: {error}")
    return wrong
