"""The T-maze: its rules, what it shows and when, and the data of its scripted agents."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as check_gymnasium_env
from stable_baselines3.common.env_checker import check_env as check_sb3_env

from sb3_dmamba import envs
from sb3_dmamba.algorithm import DecisionMamba
from sb3_dmamba.config import Memory
from sb3_dmamba.data import Trajectories, load_trajectories
from sb3_dmamba.envs import TMAZE_ID, parse_tmaze_name
from sb3_dmamba.envs.tmaze import BACK, DOWN, FORWARD, UP, TMaze
from sb3_dmamba.errors import ConfigError, DatasetError
from sb3_dmamba.tasks import get_task

CORRIDOR, JUNCTION = [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]


def start(env: TMaze, side: int) -> np.ndarray:
    """Start an episode whose cue shows a side."""
    for seed in range(100):
        observation, _ = env.reset(seed=seed)
        if observation[side - UP]:
            return observation
    raise AssertionError("no such episode")


def walk(env: TMaze, *actions: int) -> list[tuple[Any, ...]]:
    return [env.step(np.int64(action)) for action in actions]


@pytest.mark.parametrize(("side", "other", "length"), [(UP, DOWN, 1), (DOWN, UP, 4)])
def test_the_arm_that_was_shown_pays(side: int, other: int, length: int) -> None:
    env = TMaze(length)
    for turn, reward in ((side, 1.0), (other, 0.0)):
        observation = start(env, side)
        assert observation.tolist() == [side == UP, side == DOWN, 1.0, 0.0]
        *way, last = walk(env, *[FORWARD] * length, turn)
        assert [step[0].tolist() for step in way] == [CORRIDOR] * (length - 1) + [JUNCTION]
        assert [step[1:4] for step in way] == [(0.0, False, False)] * length
        assert last[1:4] == (reward, True, False)
        assert last[4] == {"is_success": turn == side}


def test_steps_that_lead_nowhere_cost_and_the_cue_does_not_come_back() -> None:
    env = TMaze(2)
    start(env, UP)
    steps = walk(env, BACK, UP, DOWN, FORWARD, BACK, FORWARD, FORWARD, FORWARD, BACK)
    assert [step[1] for step in steps] == [
        -0.01, -0.01, -0.01, 0.0, -0.01, 0.0, 0.0, -0.01, -0.01
    ]  # fmt: skip
    assert [step[0].tolist() for step in steps] == [CORRIDOR] * 6 + [JUNCTION] * 2 + [CORRIDOR]


def test_it_is_truncated_in_the_end() -> None:
    env = TMaze(3)
    start(env, UP)
    *steps, last = walk(env, *[BACK] * 16)
    assert not any(step[2] or step[3] for step in steps)
    assert last[2:] == (False, True, {"is_success": False})
    start(env, DOWN)
    last = walk(env, *[BACK] * 12, *[FORWARD] * 3, DOWN)[-1]
    assert last[1:4] == (1.0, True, False)  # the last step there is


@pytest.mark.filterwarnings("ignore:.*render")
def test_gymnasiums_and_stable_baselines3s_checks() -> None:
    envs.register()
    env = gym.make(TMAZE_ID, length=7)
    check_sb3_env(env)
    check_gymnasium_env(env.unwrapped)


def test_it_draws_itself() -> None:
    env = TMaze(3, render_mode="ansi")
    start(env, DOWN)
    assert env.render() == "     ^\nv A...\n     v\n"
    walk(env, FORWARD)
    assert env.render() == "     ^\n  .A..\n     v\n"
    assert TMaze(3).render() is None


def test_arguments() -> None:
    assert type(TMaze(np.int64(7)).length) is int  # type: ignore[arg-type]
    for setting, value in (("length", 0), ("length", 2.5), ("length", True), ("render_mode", "x")):
        with pytest.raises(ConfigError) as caught:
            TMaze(**{setting: value})  # type: ignore[arg-type]
        assert (caught.value.setting, caught.value.value) == (setting, value)


@pytest.fixture(scope="module")
def data() -> Trajectories:
    return load_trajectories("tmaze-20", n_episodes=400, seed=1)


def test_names() -> None:
    names = {"tmaze-50": 50, "tmaze-1": 1, "tmaze-0": None, "tmaze-": None, "tmaze-05": None}
    assert {name: parse_tmaze_name(name) for name in names} == names
    assert parse_tmaze_name("hopper-medium-v2") is None


def test_the_recorded_steps_are_the_environments(data: Trajectories) -> None:
    assert (data.env_id, data.env_kwargs) == (TMAZE_ID, {"length": 20})
    assert data.env_id is not None
    env = gym.make(data.env_id, **data.env_kwargs)
    assert (env.observation_space, env.action_space) == (data.observation_space, data.action_space)
    maze = TMaze(20)
    for episode in list(data)[:40]:
        seen = start(maze, UP if episode.observations[0, 0] else DOWN)
        for observation, action, reward in zip(
            episode.observations, episode.actions, episode.rewards, strict=True
        ):
            np.testing.assert_array_equal(observation, seen)
            seen, paid, terminated, truncated, _ = maze.step(action)
            assert paid == pytest.approx(float(reward))
        assert (terminated, truncated) == (episode.terminated, episode.truncated)


def test_the_agents_are_of_mixed_quality_and_the_return_tells(data: Trajectories) -> None:
    assert len(data) == 400
    right = data.returns > 0.5
    assert 0.65 < right.mean() < 0.85
    cue_up = np.array([episode.observations[0, 0] > 0 for episode in data])
    turned_up = np.array([episode.actions[-1] == UP for episode in data])
    finished = data.terminated
    np.testing.assert_array_equal(right[finished], (cue_up == turned_up)[finished])
    assert 0.4 < turned_up[finished].mean() < 0.6
    assert data.lengths.min() == 21
    assert data.lengths.max() > 21


def test_seeds_decide_and_numbers_are_checked() -> None:
    first = load_trajectories("tmaze-5", n_episodes=20, seed=3)
    again = load_trajectories("tmaze-5", n_episodes=20, seed=3)
    other = load_trajectories("tmaze-5", n_episodes=20, seed=4)
    np.testing.assert_array_equal(first.actions, again.actions)
    np.testing.assert_array_equal(first.observations, again.observations)
    assert first.n_steps != other.n_steps or not np.array_equal(first.actions, other.actions)
    wrong: list[dict[str, Any]] = [{"n_episodes": 0}, {"n_episodes": 1.5}, {"seed": -1}]
    for options in wrong:
        with pytest.raises(DatasetError) as caught:
            load_trajectories("tmaze-5", **options)
        assert caught.value.setting in options


def test_the_task() -> None:
    task = get_task("tmaze-33")
    assert (task.dataset, task.env_kwargs) == ("tmaze-33", {"length": 33})
    assert task.make_env().unwrapped.length == 33  # type: ignore[attr-defined]
    assert task.target_returns == (1.0,)


def success(model: DecisionMamba, memory: Memory) -> float:
    report = model.evaluate([1.0], 100, memory=memory, seed=1000, n_workers=0)
    return float((np.array(report.results[0].returns) > 0.5).mean())


@pytest.mark.slow  # two trainings of two minutes
@pytest.mark.timeout(1800)
def test_a_short_window_is_at_chance_and_a_state_that_was_carried_remembers() -> None:
    short = DecisionMamba("tmaze-50", seed=0, carry_state=False, context_length=20).fit()
    assert 0.3 < success(short, "window") < 0.7
    assert 0.3 < success(short, "stream") < 0.7
    model = DecisionMamba("tmaze-50", seed=0).fit()
    assert success(model, "stream") > 0.9


def test_a_short_corridor_is_learnt_in_seconds() -> None:
    model = DecisionMamba("tmaze-6", seed=0, n_updates=250, warmup_updates=20, n_layers=1)
    model.fit(load_trajectories("tmaze-6", n_episodes=300))
    assert success(model, "stream") > 0.9
    assert model.evaluate([1.0], 5, n_workers=0).results[0].returns.shape == (5,)
