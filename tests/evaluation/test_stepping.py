"""One check of what an environment's step returns, wherever the step is taken."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv
from gymnasium.wrappers import RecordEpisodeStatistics, TimeLimit
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_dmamba import context
from sb3_dmamba.data.recording import collect
from sb3_dmamba.envs import stepping
from sb3_dmamba.envs.return_to_go import ReturnToGo
from sb3_dmamba.errors import (
    ConditioningError,
    DatasetError,
    EvaluationError,
    SpaceError,
    StepError,
)
from sb3_dmamba.evaluation import evaluate_targets
from sb3_dmamba.evaluation.workers import WorkerEnvs
from tests.evaluation.toys import SeededEnv, ToyPolicy
from tests.models import tiny_model

ACTION = np.array([0.25, 0.5], dtype=np.float32)


class Returning(SeededEnv):
    """Replaces what its second step returns."""

    def __init__(self, **changes: Any) -> None:
        super().__init__()
        self.changes = changes

    def step(self, action: Any) -> Any:
        names = ("observation", "reward", "terminated", "truncated", "info")
        result = super().step(action)
        if self.t != 2:
            return result
        changed = {**dict(zip(names, result, strict=True)), **self.changes}
        return self.changes.get("step", tuple(changed.values()))


WRONG: list[tuple[str, Any]] = [
    ("step", (np.zeros(2), 1.0, False, {})),  # the old gym's four
    ("step", None),
    ("reward", np.nan),
    ("reward", -np.inf),
    ("reward", None),
    ("reward", "much"),
    ("reward", "1.0"),
    ("reward", np.ma.masked),
    ("reward", np.ones(2)),
    ("reward", torch.ones(1, requires_grad=True)),
    ("terminated", None),
    ("terminated", "no"),
    ("truncated", {}),
    ("truncated", np.zeros(2, bool)),
    ("info", None),
    ("info", [("lives", 3)]),
]


def evaluate(make: Any) -> None:
    evaluate_targets(ToyPolicy(SeededEnv()), make, [1.0, 2.0], 2, n_envs=3, seed=4)


def play(make: Any) -> None:
    env: Any = ReturnToGo(make(), 1.0)
    env.reset(seed=4)
    for _ in range(2):
        env.step(ACTION)


def record(make: Any) -> None:
    collect(lambda _: ACTION, make, 9, seed=4, n_envs=2)


@pytest.mark.parametrize("caller", [evaluate, play, record])
def test_the_same_error_everywhere(caller: Any) -> None:
    for name, value in WRONG:
        with pytest.raises(StepError) as caught:
            caller(lambda name=name, value=value: Returning(**{name: value}))
        assert caught.value.setting == name
        kinds = {DatasetError, EvaluationError, ConditioningError}
        assert kinds < set(type(caught.value).__mro__)  # as each of the three documents


def test_a_worker_says_which_episode() -> None:
    """Environments 1 and 3 are with the second worker: the place is that among all asked."""
    envs = WorkerEnvs(lambda: Returning(reward=np.inf), 4, 2)
    try:
        envs.reset([0, 1, 2, 3], [4, 5, 6, 7])
        envs.step([1, 3], np.tile(ACTION, (2, 1)))
        envs.step([0], ACTION[None])
        with pytest.raises(StepError) as caught:
            envs.step([2, 3], np.tile(ACTION, (2, 1)))
        assert (caught.value.index, caught.value.value) == (1, np.inf)
    finally:
        envs.close()


def test_workers_import_neither_torch_nor_stable_baselines3() -> None:
    def make() -> Any:
        import sys

        heavy = {"torch", "stable_baselines3"} & set(sys.modules)
        if heavy:
            raise RuntimeError(f"the worker has imported {heavy}")
        import gymnasium

        return gymnasium.make("sb3_dmamba:sb3_dmamba/TMaze-v0", length=3)  # found there too

    WorkerEnvs(make, 1, 1).close()


def test_vectors_of_rewards() -> None:
    class Paying(SeededEnv):
        def step(self, action: Any) -> Any:
            shown, _, *rest = super().step(action)
            return (shown, np.nan if self.seed_now == 5 else 1.0, *rest)

    env: Any = ReturnToGo(DummyVecEnv([Paying] * 2), 1.0)
    env.seed(4)
    env.reset()
    with pytest.raises(StepError) as caught:
        env.step(np.tile(ACTION, (2, 1)))
    assert (caught.value.setting, caught.value.index) == ("reward", 1)
    with pytest.raises(StepError) as caught:
        collect(lambda _: ACTION, DummyVecEnv([Paying] * 2), 9, seed=4)
    assert (caught.value.setting, caught.value.index) == ("reward", 1)


class Failing(SeededEnv):
    def step(self, action: Any) -> Any:
        reward, terminated, truncated, info = None, False, False, None
        raise TypeError("mine", reward, terminated, truncated, info)


class OldReset(SeededEnv):
    """Returns no info from reset, as the old gym did."""

    def reset(self, **options: Any) -> Any:
        return super().reset(**options)[0]


@pytest.mark.parametrize("wrap", [lambda env: env, lambda env: TimeLimit(env, 9), Monitor])
@pytest.mark.parametrize("caller", [evaluate, play, record])
def test_resets_and_what_wrappers_cannot_read(caller: Any, wrap: Any) -> None:
    with pytest.raises(StepError) as caught:
        caller(lambda: wrap(OldReset()))
    assert caught.value.setting == "reset"
    with pytest.raises(StepError) as caught:
        caller(lambda: wrap(Returning(step=(np.zeros(2), 1.0, False, {}))))
    assert caught.value.setting == "step"


@pytest.mark.parametrize("caller", [evaluate, play, record])
def test_observations_of_another_shape(caller: Any) -> None:
    with pytest.raises(SpaceError) as caught:
        caller(lambda: Returning(observation=np.zeros((2, 5))))
    assert caught.value.setting == "observation"


def test_a_reward_that_is_an_array_of_one_counts() -> None:
    class Column(SeededEnv):
        def step(self, action: Any) -> Any:
            observation, reward, *rest = super().step(action)
            return observation, np.array([reward]), *rest

    policy, targets = ToyPolicy(SeededEnv()), [1.0]
    found, expected = (evaluate_targets(policy, make, targets, 2) for make in (Column, SeededEnv))
    assert found.results[0].returns.tolist() == expected.results[0].returns.tolist()
    for number in (collect(lambda _: ACTION, make, 9, seed=4) for make in (Column, SeededEnv)):
        assert number.rewards.shape == (9,)
    env: Any = ReturnToGo(Column(), 1.0)
    env.reset(seed=4)
    _, reward, *_ = env.step(ACTION)
    assert isinstance(reward, float)
    assert env.return_to_go == 1.0 - reward
    venv = context.wrap(Column(), 1.0)
    venv.reset()
    assert venv.step(ACTION[None])[1].shape == (1,)


def test_actions_have_the_dtype_and_lie_within_the_bounds_of_their_space() -> None:
    class Strict(SeededEnv):  # raises where an action is not in its space
        def __init__(self, dtype: Any) -> None:
            super().__init__()
            low, high = np.array([[-0.1, -0.1], [0.1, 0.3]], dtype)
            self.action_space = spaces.Box(low, high, dtype=dtype)

    for dtype in (np.float16, np.float32, np.float64):
        make = partial(Strict, dtype)
        data = collect("random", make(), 20, seed=4)
        model = tiny_model(memory="stream").fit(data, 1)
        assert model.action_space.dtype == dtype
        with torch.no_grad():  # every tanh at its end: in float32, 0.1 is more than 0.1
            model.policy.model.head.projection.bias.fill_(99.0)
        env: Any = ReturnToGo(make(), 20.0)
        shown, _ = env.reset(seed=4)
        batch = {name: rows[None] for name, rows in shown.items()}
        actor = model.as_stateful_wrapper(20.0)
        for action in (
            model.predict(shown)[0],
            model.predict(batch)[0][0],
            model.policy.predict(shown)[0],
            actor.predict(shown["observation"], 0.0),
        ):
            assert action.dtype == dtype
            assert action in env.action_space
            np.testing.assert_array_equal(action, env.action_space.high)
        model.evaluate(20.0, 2, env=make)
        if dtype == np.float32:
            model.evaluate(20.0, 2, env=partial(Strict, np.float64))


def step_often(env: Any, action: Any) -> None:
    for _ in range(8):
        _, _, *ends, _ = env.step(action)
        if action.ndim == 1 and any(ends):
            env.reset()


def test_an_endless_episode_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stepping, "LONG_EPISODE", 3)
    with pytest.warns(UserWarning, match="max_episode_steps") as caught:
        evaluate_targets(ToyPolicy(SeededEnv()), SeededEnv, [1.0, 2.0], 3)
    assert [each.filename for each in caught] == [__file__]
    evaluate_targets(ToyPolicy(SeededEnv()), SeededEnv, [1.0], 1, max_episode_steps=4)
    for make, batched in (
        (SeededEnv, False),
        (lambda: SyncVectorEnv([SeededEnv] * 2), True),
        (lambda: DummyVecEnv([SeededEnv] * 2), True),
    ):
        env: Any = ReturnToGo(make(), 1.0)
        env.seed(4) if isinstance(env, VecEnv) else env.reset(seed=4)  # 2 and 3 steps, 3 and 4
        env.reset()
        with pytest.warns(UserWarning, match="max_episode_steps") as caught:
            step_often(env, np.tile(ACTION, (2, 1)) if batched else ACTION)
        assert len(caught) == 1


@pytest.mark.parametrize("caller", [evaluate, play, record])
def test_values_that_a_wrapper_cannot_read(caller: Any) -> None:
    wraps: list[Any] = [Monitor, RecordEpisodeStatistics]
    for wrap in wraps:
        for value in (None, "much", np.ones(2), {"a": 1.0}):
            with pytest.raises(StepError) as caught:
                caller(lambda wrap=wrap, value=value: wrap(Returning(reward=value)))
            assert caught.value.setting == "reward"
        with pytest.raises(StepError) as caught:
            caller(lambda wrap=wrap: wrap(Returning(info=None, truncated=True)))
        assert caught.value.setting == "info"
    odd: list[Any] = [[1.0], np.ones((1, 1))]
    for reward in odd:  # counts alone, and not in a Monitor of the user's
        caller(lambda reward=reward: Returning(reward=reward, truncated=np.array([False])))
        with pytest.raises(StepError) as caught:
            caller(lambda reward=reward: Monitor(Returning(reward=reward)))
        assert caught.value.setting == "reward"
    with pytest.raises(TypeError, match="mine"):  # an error of the environment is its own
        caller(lambda: Monitor(Failing()))


def test_rewards_that_a_vector_of_environments_cannot_read() -> None:
    for value in (None, "much", [1.0, 2.0]):
        env: Any = ReturnToGo(DummyVecEnv([partial(Returning, reward=value)]), 1.0)
        env.reset()
        env.step(ACTION[None])
        with pytest.raises(StepError) as caught:
            env.step(ACTION[None])
        assert caught.value.setting == "reward"
    makes: list[Any] = [lambda: SyncVectorEnv([short]), lambda: DummyVecEnv([short])]

    def short() -> Any:
        return Returning(observation=np.zeros(3, np.float32))

    for make in makes:
        with pytest.raises(StepError) as caught:
            collect(lambda _: ACTION[None], make(), 9)
        assert caught.value.setting in ("step", "step_wait")
