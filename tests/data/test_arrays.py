from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from sb3_dmamba.data import load_trajectories
from sb3_dmamba.errors import DatasetError, SpaceError


def _arrays(**changes: Any) -> dict[str, Any]:
    """Six steps in D4RL's keys: a terminated episode, one that timed out, one that was cut."""
    arrays = {
        "observations": np.arange(12.0).reshape(6, 2),
        "actions": np.linspace(-1, 1, 6)[:, None],
        "rewards": np.arange(6.0),
        "terminals": np.array([0, 0, 1, 0, 0, 0], dtype=bool),
        "timeouts": np.array([0, 0, 0, 1, 0, 0], dtype=bool),
        **changes,
    }
    return {key: value for key, value in arrays.items() if value is not None}


def test_d4rl_keys() -> None:
    data = load_trajectories(
        _arrays(**{"infos/qpos": np.zeros((6, 9)), "next_observations": np.zeros((6, 2))})
    )
    assert data.lengths.tolist() == [3, 1, 2]
    assert data.terminated.tolist() == [True, False, False]
    assert data.truncated.tolist() == [False, True, False]
    assert data.rewards.tolist() == [0, 1, 2, 3, 4, 5]
    np.testing.assert_array_equal(data.observations, np.arange(12).reshape(6, 2))
    assert data.observation_space == spaces.Box(-np.inf, np.inf, (2,), np.float32)
    assert data.action_space == spaces.Box(-1.0, 1.0, (1,), np.float32)
    assert data.source == "arrays"


@pytest.mark.parametrize(
    "names",
    [("terminations", "truncations"), ("terminated", "truncated"), ("terminals", "timeouts")],
)
def test_other_names(names: tuple[str, str]) -> None:
    flags = _arrays()
    arrays = _arrays(terminals=None, timeouts=None)
    arrays[names[0]], arrays[names[1]] = flags["terminals"], flags["timeouts"].astype(np.float32)
    data = load_trajectories(arrays)
    assert data.lengths.tolist() == [3, 1, 2]
    assert data.truncated.tolist() == [False, True, False]


def test_one_kind_of_end_is_enough() -> None:
    assert load_trajectories(_arrays(timeouts=None)).lengths.tolist() == [3, 3]
    assert load_trajectories(_arrays(terminals=None)).lengths.tolist() == [4, 2]


def test_an_end_at_the_last_step_leaves_nothing_over() -> None:
    data = load_trajectories(_arrays(timeouts=np.arange(6) == 5))
    assert data.lengths.tolist() == [3, 3]
    assert data.summary().cut == 0


def test_options() -> None:
    data = load_trajectories(
        _arrays(actions=np.full((6, 1), 1.5)),
        action_space=spaces.Box(-2, 2, (1,)),
        observation_space=spaces.Box(-100, 100, (2,)),
        env_id="Pendulum-v1",
        env_kwargs={"g": 9.81},
        name="mine",
    )
    assert data.action_space == spaces.Box(-2, 2, (1,))
    assert data.observation_space == spaces.Box(-100, 100, (2,))
    assert (data.env_id, data.env_kwargs, data.source) == ("Pendulum-v1", {"g": 9.81}, "mine")


def test_discrete_actions_are_inferred_from_integers() -> None:
    data = load_trajectories(_arrays(actions=np.array([0, 3, 1, 0, 0, 1], dtype=np.int32)))
    assert data.action_space == spaces.Discrete(4)
    assert data.actions.tolist() == [0, 3, 1, 0, 0, 1]


def test_frames() -> None:
    frames = np.zeros((6, 40, 40), dtype=np.uint8)
    data = load_trajectories(_arrays(observations=frames))
    assert data.observation_space == spaces.Box(0, 255, (40, 40), np.uint8)
    assert data.observations.dtype == np.uint8


def test_dict_observations() -> None:
    space = spaces.Dict(mode=spaces.Discrete(2), speed=spaces.Box(0, 9, (1,)))
    parts = {"mode": np.array([0, 1, 0, 1, 0, 1]), "speed": np.arange(6.0)[:, None]}
    data = load_trajectories(_arrays(observations=parts), observation_space=space)
    assert data.observations.tolist() == [[1 - s % 2, s % 2, s] for s in range(6)]
    with pytest.raises(DatasetError, match="pass observation_space"):
        load_trajectories(_arrays(observations=parts))
    parts["mode"][4] = 2
    with pytest.raises(DatasetError, match="holds 2, which is not in"):
        load_trajectories(_arrays(observations=parts), observation_space=space)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rewards": None}, "the dict has no 'rewards': it has 'observations', 'actions'"),
        ({"rewards": None, "reward": np.zeros(6)}, "rename 'reward' to 'rewards'"),
        ({"observations": None, "obs": np.zeros(6)}, "rename 'obs' to 'observations'"),
        (
            {"terminals": None, "timeouts": None, "dones": np.zeros(6)},
            "neither .* is there: rename 'dones', to 'terminals' where no time limit",
        ),
        ({"timeouts": None, "timeout": np.zeros(6)}, "has 'timeout': rename it to 'timeouts'"),
        ({"terminals": None, "timeouts": None}, "neither 'terminals' nor 'timeouts'"),
        ({"truncations": np.zeros(6)}, "has 'timeouts' and 'truncations': give one"),
        ({"timeouts": np.zeros(5)}, r"rewards \(6,\).*timeouts \(5,\)"),
        ({"rewards": np.zeros(5)}, r"actions \(6,.*rewards \(5,\)"),
        ({"rewards": np.zeros((6, 2))}, r"rewards have shape \(6, 2\)"),
        ({"timeouts": np.array([0, 0, 0, 1, np.nan, 0])}, r"timeouts\[4\] is nan: only 0 and 1"),
        ({"terminals": np.array([0, 0, 2, 0, 0, 0])}, r"terminals\[2\] is 2: only 0 and 1"),
        ({"terminals": np.full(6, "no")}, "terminals are <U2: give booleans"),
        ({"rewards": np.zeros(0)}, "the dataset is empty"),
        ({"observations": np.zeros((5, 2))}, r"observations have shape \(5, 2\)"),
        ({"observations": np.full((6, 2), np.nan)}, r"observations\[0, 0\] is nan \(episode 0"),
        ({"actions": np.zeros((5, 1))}, r"actions \(5, 1\), rewards \(6,\)"),
        ({"actions": np.full((6, 1), 2.0)}, "cannot be told .* 2.0 to 2.0: pass action_space"),
        ({"actions": np.full((6, 1), np.nan)}, r"actions\[0, 0\] is nan"),
        ({"actions": np.zeros((6, 1), dtype=int)}, "cannot be told .* dtype int64"),
        ({"actions": np.zeros(6)}, r"cannot be told from actions of shape \(6,\)"),
        ({"actions": np.array([0, 0, -1, 0, 0, 0])}, r"actions\[2\] is -1: pass action_space"),
        (
            {"actions": np.array([0, 1, 0, 2**64 - 1, 0, 0], np.uint64)},
            r"actions\[3\] is 18446744073709551615: pass action_space",
        ),
        ({"actions": np.zeros((0, 1))}, r"actions \(0, 1\)"),
        ({"actions": np.full((6, 1), "left")}, "actions have shape .* dtype <U4"),
        ({"actions": np.zeros(0, dtype=int)}, r"actions \(0,\)"),
    ],
)
def test_bad_arrays(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        load_trajectories(_arrays(**changes))


def test_bad_spaces() -> None:
    with pytest.raises(SpaceError, match="MultiBinary"):
        load_trajectories(_arrays(), action_space=spaces.MultiBinary(1))
    with pytest.raises(SpaceError, match="is Text"):
        load_trajectories(_arrays(), observation_space=spaces.Text(3))
    with pytest.raises(DatasetError, match=r"actions have shape \(6, 1\) where \(6,\)"):
        load_trajectories(_arrays(), action_space=spaces.Discrete(3))


def test_actions_that_no_int64_holds() -> None:
    actions = np.array([0, 1, 0, 2**64 - 1, 0, 0], np.uint64)
    with pytest.raises(DatasetError, match=r"actions\[3\] is 18446744073709551615 \(episode 1"):
        load_trajectories(_arrays(actions=actions), action_space=spaces.Discrete(3, start=-1))


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (np.array([0, 1, 0, 1, -3, 0]), r"actions\[4\] is -3"),
        (np.array([[0], [0], [0], [0], [np.nan], [0]]), r"actions\[4, 0\] is nan"),
        (np.full((6, 1), 2.0), r"shape \(6, 1\)"),
    ],
)
def test_a_bad_action_of_a_mapped_array_is_named_by_its_place(
    tmp_path: Path, actions: np.ndarray, message: str
) -> None:
    np.save(tmp_path / "actions.npy", actions)
    mapped = np.load(tmp_path / "actions.npy", mmap_mode="r")
    with pytest.raises(DatasetError, match=message):
        load_trajectories(_arrays(actions=mapped))
