from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from sb3_dmamba.data import load_trajectories
from sb3_dmamba.errors import SpaceError
from sb3_dmamba.spaces import space_to_json
from tests.data.builders import refusal, unlike, write_hdf5


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


def test_options() -> None:
    given: dict[str, Any] = {
        "action_space": spaces.Box(-2, 2, (1,)),
        "observation_space": spaces.Box(-100, 100, (2,)),
        "env_id": "Pendulum-v1",
        "env_kwargs": {"g": 9.81},
    }
    data = load_trajectories(_arrays(actions=np.full((6, 1), 1.5)), name="mine", **given)
    assert {name: getattr(data, name) for name in given} == given
    assert data.source == "mine"
    refusal(_arrays(), SpaceError, action_space=spaces.MultiBinary(1))
    refusal(_arrays(), SpaceError, observation_space=spaces.Text(3))


def test_spaces_that_are_inferred() -> None:
    actions = np.array([0, 3, 1, 0, 0, 1], dtype=np.int32)
    frames = np.zeros((6, 40, 40), dtype=np.uint8)
    data = load_trajectories(_arrays(observations=frames, actions=actions))
    assert data.action_space == spaces.Discrete(4)
    assert data.actions.tolist() == [0, 3, 1, 0, 0, 1]
    assert data.observation_space == spaces.Box(0, 255, (40, 40), np.uint8)
    assert data.observations.dtype == np.uint8


def test_dict_observations() -> None:
    space = spaces.Dict(mode=spaces.Discrete(2), speed=spaces.Box(0, 9, (1,)))
    parts = {"mode": np.array([0, 1, 0, 1, 0, 1]), "speed": np.arange(6.0)[:, None]}
    data = load_trajectories(_arrays(observations=parts), observation_space=space)
    assert data.observations.tolist() == [[1 - s % 2, s % 2, s] for s in range(6)]
    assert refusal(_arrays(observations=parts)).setting == "observation_space"
    parts["mode"][4] = 2
    error = refusal(_arrays(observations=parts), observation_space=space)
    assert (error.setting, error.value) == ("observations", 2)


BAD: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"rewards": None}, {"setting": "rewards"}),
    ({"rewards": None, "reward": np.zeros(6)}, {"said": "rename 'reward' to 'rewards'"}),
    ({"terminals": None, "timeouts": None, "dones": 0}, {"said": "'dones' to 'terminals' if no"}),
    ({"timeouts": None, "timeout": np.zeros(6)}, {"setting": "timeout", "choices": ("timeouts",)}),
    ({"terminals": None, "timeouts": None}, {"setting": "terminals"}),
    ({"truncations": np.zeros(6)}, {"choices": ("timeouts", "truncations")}),
    ({"timeouts": np.zeros(5)}, {"setting": "timeouts", "value": (5,)}),
    ({"rewards": np.zeros(5)}, {"setting": "actions", "said": "actions (6, 1), rewards (5,)"}),
    ({"rewards": np.zeros((6, 2))}, {"setting": "rewards", "value": (6, 2)}),
    ({"rewards": np.float32(1)}, {"setting": "rewards", "value": ()}),
    ({"rewards": np.zeros(0)}, {"setting": "rewards"}),
    ({"timeouts": np.array([0, 0, 0, 1, np.nan, 0])}, {"index": 4, "value": np.nan}),
    ({"terminals": np.array([0, 0, 2, 0, 0, 0])}, {"setting": "terminals", "index": 2, "value": 2}),
    ({"terminals": np.full(6, "no")}, {"setting": "terminals"}),
    ({"observations": np.zeros((5, 2))}, {"said": "observations have shape (5, 2)"}),
    ({"observations": np.full((6, 2), np.nan)}, {"setting": "observations", "episode": 0}),
    ({"actions": np.full((6, 1), 2.0)}, {"setting": "action_space", "said": "2.0 to 2.0"}),
    ({"actions": np.full((6, 1), np.nan)}, {"setting": "actions", "index": 0}),
    ({"actions": np.zeros((6, 1), dtype=int)}, {"setting": "action_space"}),
    ({"actions": np.zeros(6)}, {"setting": "action_space"}),
    ({"actions": np.array([0, 0, -1, 0, 0, 0])}, {"index": 2, "value": -1}),
    ({"actions": np.array([0, 1, 0, 2**64 - 1, 0, 0], np.uint64)}, {"index": 3}),
    ({"actions": np.zeros((0, 1))}, {"setting": "actions", "value": (0, 1)}),
    ({"actions": np.full((6, 1), "left")}, {"setting": "actions", "value": np.dtype("<U4")}),
]


def test_bad_arrays() -> None:
    wrong = []
    for changes, expected in BAD:
        wrong += unlike(changes, refusal(_arrays(**changes)), expected)
    assert not wrong, "\n".join(wrong)


def at(*steps: int) -> Any:
    return np.isin(np.arange(12), steps)


def _ends(**flags: Any) -> dict[str, Any]:
    steps = {
        "observations": np.zeros((12, 2)),
        "actions": np.zeros((12, 1)),
        "rewards": np.ones(12),
    }
    return {**steps, **flags}


BOTH = {"terminals": at(2, 8), "timeouts": at(5, 11)}
DONE = at(2, 5, 8, 11)


def test_every_flag_of_an_end_is_read(tmp_path: Path) -> None:
    right: list[dict[str, Any]] = [
        {"dones": DONE, "timeouts": at(5, 11)},
        {"done": DONE, "truncated": at(5, 11)},
        {"terminated": at(2, 8), "dones": DONE},
        {"timeouts": at(5, 11), "episode_starts": at(0, 3, 6, 9), "terminals": at(2, 8)},
        {**BOTH, "dones": DONE, "is_last": DONE, "dones_float": DONE.astype(float)},
        {**BOTH, "is_first": at(0, 3, 6, 9), "ends": np.arange(4), "not_done": ~DONE},
        {"terminals": at(2, 8)[:, None], "timeouts": at(5, 11)[:, None].astype("f4")},
        {**BOTH, "masks": ~DONE, "discount": 1 - DONE * 0.5, "absorbing": at(2)},
        {**BOTH, "episode_ids": np.arange(12) // 3, "infos/timeout": at(5, 11)},
    ]
    wrong = [
        *({"terminals": at(2, 8), name: DONE} for name in ("episode_ends", "is_last", "Done")),
        *({"timeouts": at(5, 11), name: at(2, 8)} for name in ("term", "terminate", "is_terminal")),
        *({"terminals": at(2, 8), name: at(5, 11)} for name in ("trunc", "time_out", "TimeLimits")),
        *({"terminals": at(2, 8), "is_first": at(0, 3, 6, 9)},),
        *({"terminals": at(2), "timeouts": at(5, 11), "dones": DONE},),
        *({"terminals": at(2, 8), name: ~DONE} for name in ("not_dones", "masks", "discounts")),
        *({"terminals": at(2, 8), name: np.arange(12) // 3} for name in ("episode_id", "trajIdx")),
        *({"terminals": at(2, 8), f"{group}timeout": DONE} for group in ("infos/", "TimeLimit.")),
        *({"terminal": at(2, 8), "timeouts": at(5, 11)},),
    ]
    for flags in right:
        for source in (_ends(**flags), write_hdf5(tmp_path / "a.hdf5", _ends(**flags))):
            data = load_trajectories(source)
            assert data.lengths.tolist() == [3, 3, 3, 3], flags
            assert data.terminated.tolist() == [True, False, True, False]
            assert data.truncated.tolist() == [False, True, False, True]
    for flags in wrong:
        for source in (_ends(**flags), write_hdf5(tmp_path / "a.hdf5", _ends(**flags))):
            assert refusal(source).setting in flags, flags
    other = {**BOTH, "end_effector_contact": at(1), "last": np.full(12, 2), "done_reason": "none"}
    assert len(load_trajectories(_ends(**other))) == 4


def test_masked_values_are_refused() -> None:
    for name in ("observations", "actions", "rewards", "terminals"):
        whole = _arrays()[name]
        masked = np.ma.masked_array(whole, np.arange(whole.size).reshape(whole.shape) == 1)
        error = refusal(_arrays(**{name: masked}))
        assert (error.setting, error.value) == (name, np.ma.MaskedArray)
        load_trajectories(_arrays(**{name: np.ma.masked_array(whole)}))


def test_bounds_that_cannot_be_learnt() -> None:
    top = np.finfo(np.float32).max
    actions = {"actions": np.linspace(-1, 1, 6)[:, None] * [0.5, 0]}
    for low, high in (
        (-top, top),
        (-np.inf, np.inf),
        (-1.0, np.inf),
        (-1e9, 1e9),
        ([-1, 0], [1, 0]),
    ):
        lowest, highest = (np.float32(np.broadcast_to(each, 2)) for each in (low, high))
        space = spaces.Box(lowest, highest)
        error = refusal(_arrays(**actions), SpaceError, action_space=space)
        assert (error.setting, error.value) == ("action_space", space)
        code = str(error).partition("action_space=")[2].partition(", in which")[0]
        advised = eval(code, {"gymnasium": gymnasium, "np": np})
        assert advised == error.choices[0]
        for given in (advised, space_to_json(advised)):
            data = load_trajectories(_arrays(**actions), action_space=given)
            assert data.action_space == advised
        assert load_trajectories(data, action_space=spaces.Box(-1, 1, (2,))).actions is data.actions
    wide = spaces.Box(-1000, 1000, (2,))
    assert load_trajectories(_arrays(**actions), action_space=wide).action_space == wide


def test_parts_are_brought_into_the_order_asked_for(tmp_path: Path) -> None:
    a, b = spaces.Discrete(2), spaces.Box(0, 9, (1,))
    parts = {"a": np.arange(6) % 2, "b": np.arange(6.0)[:, None]}
    space = spaces.Dict([("b", b), ("a", a)])
    data = load_trajectories(_arrays(observations=parts), observation_space=space)
    data.save(tmp_path / "store")
    for source in (data, tmp_path / "store"):
        sorted_ = load_trajectories(source, observation_space=spaces.Dict(a=a, b=b))
        assert sorted_.observations[:, 2].tolist() == data.observations[:, 0].tolist()
        assert load_trajectories(sorted_, observation_space=space).observations.tolist() == (
            data.observations.tolist()
        )
    assert load_trajectories(tmp_path / "store").observation_space != sorted_.observation_space
