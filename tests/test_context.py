"""Run context: environment, dataset metadata and target return."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit, TransformReward
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_dmamba.context import RunContext, check_spaces, make_factory, set_target_return, wrap
from sb3_dmamba.data import DatasetInfo, Trajectories
from sb3_dmamba.data.trajectories import replace
from sb3_dmamba.envs import ATARI_ID
from sb3_dmamba.envs.return_to_go import ReturnToGo
from sb3_dmamba.errors import ConfigError, DatasetError, SpaceError, UnknownTaskError
from sb3_dmamba.spaces import is_conditioned
from sb3_dmamba.tasks import ReferenceScores, Task, get_task
from tests.models import tiny_model
from tests.toys import ChoiceEnv, choice_trajectories, random_trajectories

DATA = choice_trajectories(50)
BOX, PAIR = spaces.Box(-1.0, 1.0, (2,)), spaces.Discrete(2)
SCORES = ReferenceScores(0.0, 10.0, "by hand")


@pytest.fixture
def choice_id() -> Iterator[str]:
    gym.register("Choice-v0", "tests.toys:ChoiceEnv", max_episode_steps=10)
    yield "Choice-v0"
    del gym.registry["Choice-v0"]


def info(returns: list[float], env_id: str | None = None) -> DatasetInfo:
    return DatasetInfo("by hand", env_id, {}, np.array(returns))


def test_default_target() -> None:
    targets: Any
    for targets, returns, expected in (
        ((5.0, 1.0, 9.0), [0.0, 6.0], 5.0),  # the highest that was reached
        ((5.0, 1.0, 9.0), [9.0], 9.0),
        ((5.0, 9.0), [1.0], 5.0),  # none was
        ((5.0, 9.0), [], 5.0),
        ((), [1.0, 3.26, 2.0], 3.26),
        ((), [0.0, 0.1 + 0.2], 0.1 + 0.2),  # not rounded
        ((), [-20.0, -3.0], -3.0),
    ):
        context = RunContext(None, Task(name="toy", target_returns=targets))
        context.set_dataset(info(returns))
        assert context.target_return == expected


def test_targets_worth_asking_for() -> None:
    expected: Any
    for returns, expected in (
        ([0.0, 10.0], (5.0, 9.0, 10.0)),
        ([3222.36], (3222.0,)),
        ([0.0, 0.04], (0.02, 0.036, 0.04)),
    ):
        context = RunContext(None, None)
        context.set_dataset(info(returns))
        assert context.target_returns() == expected


def test_no_target_is_known() -> None:
    context = RunContext(ChoiceEnv, None)
    for call in (context.target_returns, lambda: context.target_return):
        with pytest.raises(ConfigError, match=r"set model\.target_return"):
            call()
    with pytest.raises(ConfigError):
        context.make_venv()
    context.target_return = 3.0
    venv = context.make_venv()
    assert venv is not None
    assert venv.reset()["return_to_go"].tolist() == [[3.0]]  # type: ignore[call-overload]


def asked(venv: VecEnv | None) -> list[float]:
    assert venv is not None
    observation: Any = venv.reset()
    returns: list[float] = observation["return_to_go"][:, 0].tolist()
    return returns


def atari_info(rewards: list[float], **env_kwargs: Any) -> DatasetInfo:
    n = len(rewards)
    trajectories = Trajectories.from_episodes(
        *([np.zeros((n, 2), np.float32)], [np.zeros(n, np.int64)], [np.array(rewards, np.float32)]),
        *([True], [False]),
        observation_space=BOX,
        action_space=PAIR,
        env_id=ATARI_ID if env_kwargs else None,
        env_kwargs=env_kwargs,
    )
    return DatasetInfo.of(trajectories)


def test_rewards_are_counted_as_the_data_has_them() -> None:
    for task, dataset, expected in (
        (None, None, False),
        ("breakout", None, True),
        ("CartPole-v1", None, False),
        ("breakout", atari_info([1.0, -1.0]), True),  # arrays, which do not say what they are
        ("breakout", atari_info([1.0, 4.0]), False),  # recorded raw
        (None, atari_info([1.0, 0.0], game="Breakout"), True),
        (None, atari_info([1.0, 7.0], game="Breakout"), False),
        ("CartPole-v1", atari_info([1.0, 1.0]), False),
    ):
        context = RunContext(None, None if task is None else get_task(task))
        if dataset is not None:
            context.set_dataset(dataset)
        assert context.clip_rewards is expected, (task, dataset)


class Generous(ChoiceEnv):
    """Pays three times as much."""

    def step(self, action: Any) -> Any:
        shown, reward, *rest = super().step(action)
        return shown, 3.0 * reward, *rest


def test_everything_that_conditions_counts_alike(tmp_path: Path) -> None:
    clipping = Task(name="toy", target_returns=(9.0,), clip_rewards=True)
    model = tiny_model(clipping, env=Generous).fit(DATA, 1)
    model.save(tmp_path / "model")
    for each in (model, type(model).load(tmp_path / "model", env=Generous)):
        venv: Any = each.get_env()
        venv.reset()
        shown, rewards, *_ = venv.step(np.array([1]))
        assert abs(rewards[0]) in (0.0, 3.0)
        assert shown["return_to_go"].item() == 9.0 - np.clip(rewards[0], -1.0, 1.0)
        report = each.evaluate(9.0, 2, n_workers=0)
        assert report.clip_rewards
        assert not each.evaluate(9.0, 2, n_workers=0, clip_rewards=False).clip_rewards
        for clip, expected in ((None, 8.0), (True, 8.0), (False, 6.0)):
            actor = each.as_stateful_wrapper(9.0, clip_rewards=clip)
            observation = np.zeros(each.policy.flat_space.shape or (), np.float32)
            actor.predict(observation, 0.0)
            actor.predict(observation, 3.0)
            assert actor.return_to_go == expected


def test_a_game_is_made_as_its_dataset_was() -> None:
    context = RunContext(None, get_task("breakout"))
    context.set_dataset(atari_info([1.0], game="breakout", sticky_actions=0.0, noop_max=7))
    make: Any = context.find_env()
    assert make.__self__.env_kwargs == {
        "game": "breakout",
        "sticky_actions": 0.0,
        "noop_max": 7,
        "terminal_on_life_loss": False,
    }
    # known by its id with or without the package
    short = Task("mine", env_id="sb3_dmamba/Atari-v0", env_kwargs={"game": "Breakout"})
    for other in (context, RunContext(None, short)):
        with pytest.raises(DatasetError) as raised:
            other.set_dataset(atari_info([1.0], game="Pong"))
        assert (raised.value.value, raised.value.choices) == ("pong", ("breakout",))


def test_given_then_task_then_dataset(choice_id: str) -> None:
    by_task = Task(name="toy", env_id=choice_id, reference=SCORES)
    context = RunContext(None, None)
    assert context.find_env() is None
    assert context.make_venv() is None
    with pytest.raises(UnknownTaskError, match="pass one with env="):
        context.require_env()
    context.set_dataset(info([5.0], env_id=choice_id))
    (env,) = context.make_venv().get_attr("unwrapped")  # type: ignore[union-attr]
    assert isinstance(env, ChoiceEnv)
    context = RunContext(None, by_task)
    assert context.reference_scores() == SCORES
    context.set_env(ChoiceEnv)
    assert context.find_env() is ChoiceEnv
    assert context.reference_scores() is None


def test_the_datasets_arguments_reach_its_environment(choice_id: str) -> None:
    trajectories = dataclasses.replace(DATA, env_id=choice_id, env_kwargs={"max_episode_steps": 4})
    model = tiny_model().fit(trajectories, 1)
    report = model.evaluate(5.0, 2, n_workers=0)
    assert report.env_id == choice_id
    assert report.results[0].lengths.tolist() == [4, 4]


def test_set_env() -> None:
    model = tiny_model(ChoiceEnv).fit(DATA, 1)
    before = model.get_env()
    venv = DummyVecEnv([ChoiceEnv] * 3)
    model.set_env(venv)
    assert isinstance(model.get_env(), ReturnToGo)
    assert (model.n_envs, model.env) == (3, model.get_env())
    assert model.get_env() is not before
    for bad, error in (
        (gym.make("CartPole-v1"), SpaceError),
        ("No-v0", UnknownTaskError),
        (5, UnknownTaskError),
    ):
        with pytest.raises(error):
            model.set_env(bad)  # type: ignore[arg-type]
        assert model.get_env().num_envs == 3  # type: ignore[union-attr]


def test_wrap(choice_id: str) -> None:
    kinds: list[Any] = [choice_id, ChoiceEnv, ChoiceEnv(), Monitor(ChoiceEnv())]
    for env in [*kinds, DummyVecEnv([ChoiceEnv] * 2)]:
        venv = wrap(env, 6.0)
        assert isinstance(venv, VecEnv)
        assert is_conditioned(venv.observation_space)
        assert set(asked(venv)) == {6.0}
        set_target_return(venv, 2.0)
        assert set(asked(venv)) == {2.0}
        assert wrap(venv, 9.0) is venv
        if env in kinds:
            assert venv.env_is_wrapped(Monitor) == [True]  # so that nothing has to warn


@pytest.mark.parametrize("wrapper", [Monitor, lambda env: ReturnToGo(env, 5.0), lambda env: env])
def test_an_environment_is_made_again_as_it_was(wrapper: Any, choice_id: str) -> None:
    make = make_factory(wrapper(TimeLimit(gym.make(choice_id), 3)))
    first, second = make(), make()
    assert first is not second
    first.reset(seed=0)
    steps = [first.step(1)[3] for _ in range(3)]
    assert steps == [False, False, True]
    assert not is_conditioned(first.observation_space)


def test_an_environment_that_cannot_be_made_again() -> None:
    model, unmakable = tiny_model().fit(DATA, 1), DummyVecEnv([ChoiceEnv])
    env: Any
    for env in (ChoiceEnv(), TimeLimit(ChoiceEnv(), 3), unmakable, 5, "Hoper-v5"):
        with pytest.raises(UnknownTaskError) as raised:
            make_factory(env)
        assert raised.value.setting == ("task" if isinstance(env, str) else "env")
        with pytest.raises(UnknownTaskError):
            model.evaluate(5.0, 1, env=env)


def test_a_wrapper_that_recorded_nothing(choice_id: str) -> None:
    class Forgetful(gym.RewardWrapper[Any, Any]):
        def reward(self, reward: Any) -> Any:
            return 2.0 * float(reward)

    with pytest.raises(UnknownTaskError, match="cannot be made again"):
        make_factory(Forgetful(gym.make(choice_id)))
    make = make_factory(TransformReward(gym.make(choice_id), lambda reward: 2.0 * float(reward)))
    env = make()
    env.reset(seed=0)
    assert env.step(1)[1] == 2.0


class Shown:
    def __init__(self, observations: spaces.Space[Any], actions: spaces.Space[Any]) -> None:
        self.observation_space, self.action_space = observations, actions


def test_spaces() -> None:
    part = spaces.Box(0.0, 1.0, (1,))
    shown: list[spaces.Space[Any]] = [
        *(BOX, spaces.Discrete(2), spaces.Dict(a=part, b=part)),
        spaces.Dict(observation=BOX, return_to_go=spaces.Box(-np.inf, np.inf, (1,))),
    ]
    for each in shown:
        check_spaces(BOX, PAIR, Shown(each, spaces.Discrete(2)), "the toy")
    wrong: dict[str, list[Any]] = {
        "action_space": [
            *(spaces.Discrete(3), spaces.Discrete(2, start=1), BOX, spaces.MultiDiscrete([2]))
        ],
        "observation_space": [spaces.Box(-1.0, 1.0, (2, 1)), spaces.Discrete(5)],
    }
    for name, space in ((name, space) for name, some in wrong.items() for space in some):
        given = Shown(BOX, space) if name == "action_space" else Shown(space, PAIR)
        with pytest.raises(SpaceError, match="the toy has") as raised:
            check_spaces(BOX, PAIR, given, "the toy")
        assert raised.value.setting == name


class Counted(ChoiceEnv):
    """Counts how many were made."""

    made: ClassVar[list[int]] = []

    def __init__(self) -> None:
        super().__init__()
        self.made.append(1)


@pytest.fixture
def counted_id() -> Iterator[str]:
    Counted.made.clear()
    gym.register("Counted-v0", Counted)  # type: ignore[arg-type]
    yield "Counted-v0"
    del gym.registry["Counted-v0"]


def test_the_datasets_own_environment_is_made_when_it_is_needed(counted_id: str) -> None:
    for task in (None, counted_id):
        Counted.made.clear()
        model = tiny_model(task).fit(replace(DATA, env_id=counted_id), 2)
        assert not Counted.made
        assert model.env is None
        venv = model.get_env()
        assert venv is model.env is model.get_env()
        model.fit(n_steps=1)
        assert len(Counted.made) == 1


def test_an_environment_that_may_be_another_is_looked_at(counted_id: str) -> None:
    for env_id in (None, "Another-v0"):
        Counted.made.clear()
        tiny_model(counted_id).fit(replace(DATA, env_id=env_id), 1)
        assert len(Counted.made) == 1
        wrong = replace(random_trajectories(observation_shape=(3,), n_actions=2), env_id=env_id)
        with pytest.raises(SpaceError, match=r"task's environment Counted-v0 .*has observations"):
            tiny_model(counted_id).fit(wrong, 1)


def test_a_seed_waits_for_the_environment(counted_id: str) -> None:
    model = tiny_model().fit(replace(DATA, env_id=counted_id), 1)
    model.set_random_seed(5)
    assert not Counted.made
    venv: Any = model.get_env()
    expected, _ = ChoiceEnv().reset(seed=5)
    assert venv.reset()["observation"].tolist() == [expected.tolist()]


def test_games_and_other_data_are_not_mixed() -> None:
    hopper, pong = (
        dataclasses.replace(info([5.0]), env_id="Hopper-v5"),
        atari_info([1], game="Pong"),
    )
    for name, dataset in (("breakout", hopper), ("hopper-medium-v2", pong)):
        with pytest.raises(DatasetError):
            RunContext(None, get_task(name)).check_dataset(dataset)
    other = Task(name="mine", env_id="ALE/Pong-v5")  # which the user may have wrapped
    RunContext(None, other).check_dataset(pong)
    with pytest.raises(DatasetError, match=r"of Hopper-v5, and the task 'breakout'"):
        tiny_model("breakout").fit(replace(DATA, env_id="Hopper-v5"), 1)
