"""The same episodes in every format: each must come back value for value.

A case is a set of episodes; a format writes it down somewhere and says which cases it can hold
and what of their ends it can tell. A source without a format here fails the suite.
"""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import (
    DictReplayBuffer,
    DictRolloutBuffer,
    ReplayBuffer,
    RolloutBuffer,
)

from sb3_dmamba.data import Trajectories, load_trajectories
from sb3_dmamba.data.recording import collect
from sb3_dmamba.data.sources import SOURCES
from sb3_dmamba.spaces import flat_space, flatten_observation
from tests.data.builders import (
    assert_same,
    import_d3rlpy,
    import_datasets,
    skip_without,
    to_png,
    write_minari,
)
from tests.data.dqn_files import FRAME, STACK, Played, Recorder

pytestmark = pytest.mark.filterwarnings("ignore:the ring is full")

LENGTHS = (5, 2, 9, 1, 4, 7)
ENDS = ("terminated", "truncated", "terminated", "terminated", "truncated", "cut")
OFFSETS = np.concatenate([[0], np.cumsum(LENGTHS)])
N = int(OFFSETS[-1])


@dataclass(frozen=True)
class Case:
    """Episodes as they should come back, and what the environment showed: (N, ...) or a dict."""

    name: str
    data: Trajectories
    shown: Any
    space: spaces.Space[Any]

    def parts(self) -> list[slice]:
        return [slice(*pair) for pair in itertools.pairwise(OFFSETS.tolist())]

    def flags(self) -> tuple[np.ndarray, np.ndarray]:
        """Say of each step whether it terminated an episode, and whether it truncated one."""
        terminated, truncated = np.zeros(N, dtype=bool), np.zeros(N, dtype=bool)
        terminated[OFFSETS[1:] - 1] = self.data.terminated
        truncated[OFFSETS[1:] - 1] = self.data.truncated
        return terminated, truncated

    def show(self, steps: Any) -> Any:
        if isinstance(self.shown, dict):
            return {key: values[steps] for key, values in self.shown.items()}
        return self.shown[steps]


def make_case(name: str) -> Case:
    generator = np.random.default_rng(7)
    ends = np.array(ENDS)
    space: spaces.Space[Any]
    shown: Any
    action_space: spaces.Space[Any] = spaces.Discrete(4)
    stack = 1
    fields: dict[str, Any] = {}
    if name == "frames":
        space = spaces.Box(0, 255, (36, 40, 3), np.uint8)
        shown = generator.integers(0, 256, (N, *space.shape), dtype=np.uint8)
    elif name == "stacks":
        space = spaces.Box(0, 255, (STACK, *FRAME), np.uint8)
        frames = generator.integers(1, 256, (N, *FRAME), dtype=np.uint8)
        stack, fields["observations"] = STACK, frames
        ends = np.array(["terminated"] * (len(LENGTHS) - 1) + ["cut"])
        shown = np.zeros((N, *space.shape), dtype=np.uint8)
        for start, end in itertools.pairwise(OFFSETS.tolist()):
            for step in range(start, end):
                first = max(start, step + 1 - STACK)
                shown[step, STACK - (step + 1 - first) :] = frames[first : step + 1]
    elif name in ("mapping", "unsorted"):
        parts = {"gear": spaces.Discrete(5), "speed": spaces.Box(-9.0, 9.0, (2,), np.float32)}
        space = spaces.Dict(sorted(parts.items(), reverse=name == "unsorted"))
        shown = {
            "gear": generator.integers(0, 5, N),
            "speed": generator.uniform(-9, 9, (N, 2)).astype(np.float32),
        }
    else:
        space = spaces.Box(-np.inf, np.inf, (11,), np.float32)
        shown = generator.normal(size=(N, 11)).astype(np.float32)
    actions: np.ndarray = np.arange(N)[::-1] % 4
    if name == "continuous":
        action_space = spaces.Box(-1.0, 1.0, (3,), np.float32)
        actions = generator.uniform(-1, 1, (N, 3)).astype(np.float32)
    rewards = generator.normal(size=N).astype(np.float32)
    fields.setdefault("observations", flatten_observation(space, shown, batch=True))
    data = Trajectories(
        **fields,
        actions=actions,
        rewards=np.sign(rewards) if name == "stacks" else rewards,
        terminated=ends == "terminated",
        truncated=ends == "truncated",
        episode_offsets=OFFSETS,
        observation_space=flat_space(space),
        action_space=action_space,  # type: ignore[arg-type]
        frame_stack=stack,
    )
    return Case(name, data, shown, space)


NAMES = ("continuous", "discrete", "frames", "mapping", "unsorted", "stacks")
CASES = {name: make_case(name) for name in NAMES}
FLAT = ("continuous", "discrete", "frames")  # what needs no more than arrays


Written = tuple[Any, dict[str, Any]]  # what is given to load_trajectories: source, options


def spaces_of(case: Case) -> dict[str, Any]:
    return {"observation_space": case.space, "action_space": case.data.action_space}


def flat_arrays(case: Case) -> dict[str, Any]:
    terminated, truncated = case.flags()
    return {
        "observations": case.shown,
        "actions": case.data.actions,
        "rewards": case.data.rewards,
        "terminals": terminated,
        "timeouts": truncated,
    }


def write_arrays(case: Case, folder: Path) -> Written:
    return flat_arrays(case), spaces_of(case)


def write_hdf5(case: Case, folder: Path) -> Written:
    with h5py.File(folder / "data.hdf5", "w") as file:
        for key, values in flat_arrays(case).items():
            file[key] = values
    return folder / "data.hdf5", spaces_of(case)


def write_npz(case: Case, folder: Path) -> Written:
    np.savez_compressed(folder / "data.npz", **flat_arrays(case))
    return folder / "data.npz", spaces_of(case)


def write_d4rl_name(case: Case, folder: Path) -> Written:
    path, _ = write_hdf5(case, folder)
    path.rename(folder / "hopper_medium-v2.hdf5")
    return "hopper-medium-v2", {"folder": folder, "download": False}


def write_pickle(case: Case, folder: Path) -> Written:
    arrays = flat_arrays(case)
    episodes = [{key: values[part] for key, values in arrays.items()} for part in case.parts()]
    (folder / "data.pkl").write_bytes(pickle.dumps(episodes))
    return folder / "data.pkl", spaces_of(case)


def make_rows(case: Case) -> Any:
    """Return a table with a row an episode, as D4RL's sets on the hub: their ``dones`` are ends."""
    datasets = import_datasets()
    names = {"observations": case.shown, "actions": case.data.actions, "rewards": case.data.rewards}
    columns = names | {"dones": case.flags()[0]}

    def cut(values: Any, part: slice) -> Any:
        if isinstance(values, dict):
            return {key: cut(each, part) for key, each in values.items()}
        return [to_png(each) for each in values[part]] if values.ndim > 3 else values[part].tolist()

    def describe(values: Any) -> Any:
        if isinstance(values, dict):
            return {key: describe(each) for key, each in values.items()}
        if values.ndim > 3:
            return datasets.List(datasets.Image())
        feature = datasets.Value(values.dtype.name)
        for _ in range(values.ndim):
            feature = datasets.List(feature)
        return feature

    rows = {key: [cut(values, part) for part in case.parts()] for key, values in columns.items()}
    features = datasets.Features({key: describe(values) for key, values in columns.items()})
    return datasets.Dataset.from_dict(rows, features=features)


def write_dataset(case: Case, folder: Path) -> Written:
    return make_rows(case), spaces_of(case)


def write_dataset_dict(case: Case, folder: Path) -> Written:
    rows, datasets = make_rows(case), import_datasets()
    backwards = rows.select(range(len(rows))[::-1])
    both = datasets.DatasetDict(test=rows, train=backwards.select(range(len(rows))[::-1]))
    return both, {**spaces_of(case), "split": "train"}


def write_saved_dataset(case: Case, folder: Path) -> Written:
    make_rows(case).save_to_disk(folder / "saved", num_shards=2)
    return folder / "saved", spaces_of(case)


def write_parquet(case: Case, folder: Path) -> Written:
    make_rows(case).to_parquet(folder / "rows.parquet")
    return folder / "rows.parquet", spaces_of(case)


def write_minari_object(case: Case, folder: Path, **options: Any) -> Written:
    """Write as Minari's own collector does: with the observation after the last step."""
    data = case.data
    ends = np.select([data.terminated, data.truncated], ["terminated", "truncated"], "cut")
    episodes = [
        {
            # whatever comes next stands for it: it must not be taken for a step
            "observations": case.show(np.r_[part, part.stop % N]),
            "actions": data.actions[part],
            "rewards": data.rewards[part],
            "end": end,
        }
        for part, end in zip(case.parts(), ends, strict=True)
    ]
    written = ("written/case-v0", case.space, data.action_space, episodes)
    return write_minari(*written, jpeg_encoding=False, **options), {}


def write_minari_arrow(case: Case, folder: Path) -> Written:
    skip_without("pyarrow")
    return write_minari_object(case, folder, data_format="arrow")


def write_minari_parquet(case: Case, folder: Path) -> Written:
    skip_without("pyarrow")
    write_minari_object(case, folder, data_format="parquet")
    return folder / "minari" / "written" / "case-v0" / "data", {}


def write_minari_id(case: Case, folder: Path) -> Written:
    write_minari_object(case, folder)
    return "written/case-v0", {}


def write_minari_folder(case: Case, folder: Path) -> Written:
    write_minari_object(case, folder)
    return (folder / "minari" / "written").rename(folder / "moved") / "case-v0", {}


def write_to_minari(case: Case, folder: Path) -> Written:
    return case.data.to_minari("exported/case-v0", author="tests"), {}


def write_d3rlpy(case: Case, folder: Path) -> Written:
    d3rlpy, shown = import_d3rlpy(), case.shown
    if isinstance(shown, dict):  # in the order of the space, scalars as vectors
        assert isinstance(case.space, spaces.Dict)
        shown = [shown[key].reshape(N, -1) for key in case.space.spaces]
    episodes = [
        d3rlpy.dataset.Episode(
            observations=[each[part] for each in shown] if isinstance(shown, list) else shown[part],
            actions=case.data.actions[part].reshape(part.stop - part.start, -1),
            rewards=case.data.rewards[part][:, None],
            terminated=bool(case.data.terminated[number]),
        )
        for number, part in enumerate(case.parts())
    ]
    buffer = d3rlpy.dataset.ReplayBuffer(d3rlpy.dataset.InfiniteBuffer(), episodes=episodes)
    return buffer, spaces_of(case)


def write_to_d3rlpy(case: Case, folder: Path) -> Written:
    import_d3rlpy()
    return case.data.to_d3rlpy(), {"observation_space": case.data.observation_space}


def fill_replay_buffer(case: Case, buffer: Any) -> None:
    terminated, truncated = case.flags()
    for step in range(N):
        following = case.show([(step + 1) % N])  # after an end it is another episode's
        buffer.add(
            case.show([step]),
            following,
            case.data.actions[[step]],
            case.data.rewards[[step]],
            (terminated | truncated)[[step]],
            [{"TimeLimit.truncated": bool(truncated[step])}],
        )


def make_replay_buffer(case: Case, size: int) -> Any:
    kind: Any = DictReplayBuffer if isinstance(case.space, spaces.Dict) else ReplayBuffer
    return kind(size, case.space, case.data.action_space)


def write_replay_buffer(case: Case, folder: Path) -> Written:
    buffer = make_replay_buffer(case, N + 5)
    fill_replay_buffer(case, buffer)
    return buffer, {}


def write_rollout_buffer(case: Case, folder: Path) -> Written:
    kind: Any = DictRolloutBuffer if isinstance(case.space, spaces.Dict) else RolloutBuffer
    buffer = kind(N, case.space, case.data.action_space)
    for step in range(N):
        buffer.add(
            case.show([step]),
            case.data.actions[[step]],
            case.data.rewards[[step]],
            np.array([step in OFFSETS]),
            torch.zeros(1),
            torch.zeros(1),
        )
    return buffer, {"no_time_limit": True}


def write_dqn_replay(case: Case, folder: Path) -> Written:
    logs = folder / "Breakout" / "1" / "replay_logs"
    n_rows = N + (STACK - 1) * len(LENGTHS)
    recorder = Recorder(logs, capacity=n_rows // 2)  # episodes straddle the two files
    for number, part in enumerate(case.parts()):
        frames, actions = case.data.observations[part], case.data.actions[part]
        is_end = bool(case.data.terminated[number])
        recorder.play(Played(frames, actions, case.data.rewards[part], is_end))
    assert n_rows % 2 == 0
    return folder / "Breakout", {}


def write_store(case: Case, folder: Path) -> Written:
    case.data.save(folder / "store")
    return folder / "store", {}


class Replay(gym.Env[Any, Any]):
    """Plays a case's episodes, one after the other, and checks the actions."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.observation_space, self.action_space = case.space, case.data.action_space
        self.step_number = -1
        self.terminated, self.truncated = case.flags()

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.step_number += 1
        return self.case.show(self.step_number % N), {}

    def step(self, action: Any) -> Any:
        step = self.step_number
        np.testing.assert_array_equal(action, self.case.data.actions[step])
        ended = self.terminated[step] or self.truncated[step]
        self.step_number += not ended
        shown = self.case.show(self.step_number % N)
        reward = float(self.case.data.rewards[step])
        return shown, reward, bool(self.terminated[step]), bool(self.truncated[step]), {}


def write_collected(case: Case, folder: Path) -> Written:
    env = Replay(case)
    return collect(
        lambda observation: case.data.actions[env.step_number],
        env,
        N,
        frame_stack=case.data.frame_stack,
        folder=folder / "collected" if case.name == "mapping" else None,
    ), {}


def keep_all(case: Case) -> tuple[np.ndarray, np.ndarray]:
    return case.data.terminated, case.data.truncated


def not_terminated_is_truncated(case: Case) -> tuple[np.ndarray, np.ndarray]:
    return case.data.terminated, ~case.data.terminated


def only_that_it_ended(case: Case) -> tuple[np.ndarray, np.ndarray]:
    return ~case.data.cut, np.zeros(len(LENGTHS), dtype=bool)


@dataclass(frozen=True)
class Format:
    """One way to write episodes down: which cases it can hold, and what it can tell of ends."""

    name: str
    loader: str | None  # the row of the registry that must read it
    write: Callable[[Case, Path], Written]
    cases: tuple[str, ...]
    ends: Callable[[Case], tuple[np.ndarray, np.ndarray]] = keep_all  # terminated and truncated
    keeps_frames: bool = True  # whether frames that are stacked when drawn stay single


MAPPINGS = (*FLAT, "mapping", "unsorted")
EVERYTHING = (*MAPPINGS, "stacks")
FORMATS = (
    Format("arrays", "arrays:load_arrays", write_arrays, MAPPINGS),
    Format("D4RL HDF5", "d4rl:open_d4rl_file", write_hdf5, FLAT),
    Format("D4RL name", "d4rl:open_d4rl_name", write_d4rl_name, ("continuous",)),
    Format("npz", "d4rl:open_d4rl_file", write_npz, FLAT),
    Format("DT pickle", "d4rl:open_d4rl_file", write_pickle, FLAT),
    Format("Minari id", "minari:open_minari_id", write_minari_id, MAPPINGS),
    Format("Minari folder", "minari:open_minari_folder", write_minari_folder, MAPPINGS),
    Format("Minari object", "minari:load_minari_object", write_minari_object, MAPPINGS),
    Format("Minari Arrow", "minari:load_minari_object", write_minari_arrow, MAPPINGS),
    Format("Minari Parquet", "minari:open_minari_folder", write_minari_parquet, MAPPINGS),
    Format("Dataset", "huggingface:open_rows", write_dataset, MAPPINGS),
    Format("DatasetDict", "huggingface:open_rows", write_dataset_dict, MAPPINGS),
    Format("saved Dataset", "huggingface:open_rows", write_saved_dataset, MAPPINGS),
    Format("Parquet", "huggingface:open_rows", write_parquet, MAPPINGS),
    Format(
        "to_minari", "minari:load_minari_object", write_to_minari, EVERYTHING, keeps_frames=False
    ),
    Format("d3rlpy", "d3rlpy:load_d3rlpy", write_d3rlpy, MAPPINGS, not_terminated_is_truncated),
    Format(
        "to_d3rlpy", "d3rlpy:load_d3rlpy", write_to_d3rlpy, EVERYTHING, not_terminated_is_truncated
    ),
    Format("SB3 replay", "sb3:load_replay_buffer", write_replay_buffer, MAPPINGS),
    Format(
        "SB3 rollout", "sb3:load_rollout_buffer", write_rollout_buffer, MAPPINGS, only_that_it_ended
    ),
    Format("DQN replay", "dqn_replay:load_dqn_replay", write_dqn_replay, ("stacks",)),
    Format("store", "trajectories:load_store", write_store, EVERYTHING),
    Format("collected", None, write_collected, EVERYTHING),
)


PAIRS = [
    pytest.param(each, CASES[name], id=f"{each.name}-{name}")
    for each in FORMATS
    for name in each.cases
]


@pytest.mark.parametrize(("written_as", "case"), PAIRS)
def test_every_value_comes_back(written_as: Format, case: Case, minari_root: Path) -> None:
    folder = minari_root.parent
    source, options = written_as.write(case, folder)
    if written_as.loader is not None:
        row = next(row for row in SOURCES if row.matches(source))
        assert row.loader.rpartition(".")[2] == written_as.loader
    found, expected = load_trajectories(source, **options), case.data

    np.testing.assert_array_equal(found.episode_offsets, OFFSETS)
    steps = np.arange(N)
    seen = found.stack_frames(steps)  # the observations, where nothing is stacked
    np.testing.assert_array_equal(seen, expected.stack_frames(steps))
    np.testing.assert_array_equal(found.actions, expected.actions)
    np.testing.assert_array_equal(found.rewards, expected.rewards)
    terminated, truncated = written_as.ends(case)
    np.testing.assert_array_equal(found.terminated, terminated)
    np.testing.assert_array_equal(found.truncated, truncated)
    for name in ("observations", "actions", "rewards", "terminated", "episode_offsets"):
        assert getattr(found, name).dtype == getattr(expected, name).dtype, name
    assert found.observation_space == expected.observation_space
    assert found.action_space == expected.action_space
    assert found.frame_stack == (expected.frame_stack if written_as.keeps_frames else 1)
    np.testing.assert_array_equal(found.returns, expected.returns)
    np.testing.assert_array_equal(found.returns_to_go, expected.returns_to_go)
    found.save(folder / "again")
    assert_same(Trajectories.open(folder / "again"), found)


def test_every_source_has_a_format() -> None:
    # The T-maze records when it is asked: there is nothing to write down.
    covered = {each.loader for each in FORMATS} | {"tmaze:load_tmaze"}
    assert {row.loader.rpartition(".")[2] for row in SOURCES} <= covered
