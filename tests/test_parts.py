"""Parts of Dict observations from the data to acting, matched by name wherever orders differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from sb3_dmamba import DecisionMamba, ReturnToGo, Trajectories, collect, load_trajectories
from sb3_dmamba.errors import SpaceError
from sb3_dmamba.networks import DecisionMambaPolicy

GOAL, POSITION = spaces.Box(5, 9, (2,)), spaces.Box(-1, 1, (2,))
RECORDED = spaces.Dict([("goal", GOAL), ("position", POSITION)])
ACTED = spaces.Dict([("position", POSITION), ("goal", GOAL)])
RIGHT = [7.0, 7.0, 0.0, 0.0]


class Reach(gym.Env[Any, Any]):
    """Three steps of the same observation, whose parts are in another order than in the data."""

    observation_space, action_space = ACTED, spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.n = 0
        return self.look(), {}

    def look(self) -> dict[str, Any]:
        return {"position": np.zeros(2, np.float32), "goal": np.full(2, 7, np.float32)}

    def step(self, action: Any) -> Any:
        self.n += 1
        return self.look(), 1.0, self.n >= 3, False, {}


class Renamed(Reach):
    observation_space = spaces.Dict(place=POSITION, goal=GOAL)


def record() -> Trajectories:
    rows = {"goal": np.full((9, 2), 7.0), "position": np.zeros((9, 2))}
    steps = {"actions": np.arange(9) % 2, "rewards": np.ones(9), "terminals": np.arange(9) % 3 == 2}
    return load_trajectories({"observations": rows, **steps}, observation_space=RECORDED)


def fit(env: Any = None) -> DecisionMamba:
    model = DecisionMamba(env, n_updates=1, hidden_size=8, n_layers=1, seed=0)
    return model.fit(record())


def act(model: DecisionMamba) -> None:
    env: Any = model.get_env()
    model.predict(env.reset())


def test_parts_are_matched_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[float]] = []
    choose = DecisionMambaPolicy.act

    def note(self: Any, observations: Any, *rest: Any, **named: Any) -> Any:
        seen.extend(observations.tolist())
        return choose(self, observations, *rest, **named)

    model = fit()
    model.save(tmp_path / "model")
    record().save(tmp_path / "store")
    monkeypatch.setattr(DecisionMambaPolicy, "act", note)
    conditioned = model.condition_env

    def by_hand() -> Any:
        return ReturnToGo(Reach(), 3)

    look: Any = Reach().look()

    def set_env(env: Any) -> None:
        model.set_env(env)
        act(model)

    calls: dict[str, Any] = {
        "evaluate": lambda: model.evaluate(3, 1, env=Reach),
        "set_env": lambda: set_env(Reach()),
        "set_env of a VecEnv": lambda: set_env(DummyVecEnv([Reach])),
        "condition_env": lambda: model.predict(conditioned(Reach(), 3).reset()[0]),
        "of a vector env": lambda: model.predict(conditioned(SyncVectorEnv([Reach]), 3).reset()[0]),
        "load": lambda: act(DecisionMamba.load(tmp_path / "model", env=Reach())),
        "evaluate after load": lambda: DecisionMamba.load(tmp_path / "model").evaluate(
            3, 1, env=Reach
        ),
        "constructor": lambda: act(fit(Reach())),
        "collect": lambda: collect(model, Reach(), 3),
        "evaluation in fit": lambda: fit().fit(n_steps=1, eval_env=Reach(), eval_freq=1),
        "predict": lambda: model.predict({"observation": Reach().look(), "return_to_go": 3.0}),
        "actor": lambda: model.as_stateful_wrapper(3.0).predict(look, 0.0),
        "by hand": lambda: model.predict(ReturnToGo(Reach(), 3).reset()[0]),
        "by hand, VecEnv": lambda: model.predict(ReturnToGo(DummyVecEnv([Reach]), 3).reset()),
        "by hand, vector env": lambda: model.predict(
            ReturnToGo(SyncVectorEnv([Reach]), 3).reset()[0]
        ),
        "by hand, inside": lambda: model.predict(SyncVectorEnv([by_hand]).reset()[0]),
        "evaluate_policy": lambda: evaluate_policy(model, by_hand(), 1, warn=False),
        "evaluate_policy, VecEnv": lambda: evaluate_policy(
            model, VecMonitor(ReturnToGo(DummyVecEnv([Reach]), 3)), 1
        ),
        "store": lambda: fit().fit(tmp_path / "store", 1).evaluate(3, 1, env=Reach),
    }
    wrong = []
    for name, call in calls.items():
        seen.clear()
        call()
        wrong += [name] if not seen or any(row != RIGHT for row in seen) else []
    assert not wrong


def test_parts_that_cannot_be_matched() -> None:
    model, data = fit(), collect("random", Reach(), 9, seed=0)
    wrapped = [ReturnToGo(Reach(), 3), DummyVecEnv([lambda: ReturnToGo(Reach(), 3)])]
    calls: list[Any] = [
        *(lambda env=env: model.set_env(env) for env in (Renamed(), *wrapped)),
        lambda: model.evaluate(3, 1, env=Renamed),
        lambda: model.evaluate(3, 1, env=lambda: gym.wrappers.FlattenObservation(Reach())),
        lambda: fit(Renamed()),
        lambda: model.fit(data),
    ]
    for call in calls:
        with pytest.raises(SpaceError) as caught:
            call()
        error = caught.value
        assert error.setting == "observation_space"
        assert error.choices == (("goal", 2), ("position", 2))
    model.fit(load_trajectories(data, observation_space=RECORDED), 1)
    with pytest.raises(SpaceError) as caught:
        model.evaluate(3, 1, env=lambda: ReturnToGo(Reach(), 3))
    assert caught.value.setting == "env"


def test_a_return_to_go_made_by_hand_with_other_parts() -> None:
    class Placed(Renamed):
        def look(self) -> Any:
            return {"place": np.zeros(2, np.float32), "goal": np.zeros(2, np.float32)}

    with pytest.raises(SpaceError) as caught:
        fit().predict(ReturnToGo(Placed(), 3).reset()[0])
    assert caught.value.choices == (("goal", 2), ("position", 2))


def test_an_actor_takes_a_tuple_that_ends_in_a_dict() -> None:
    space = spaces.Tuple([POSITION, spaces.Dict(a=POSITION)])
    steps = {"actions": np.arange(9) % 2, "rewards": np.ones(9), "terminals": np.arange(9) == 8}
    observations = np.zeros((9, 2)), {"a": np.ones((9, 2))}
    data = load_trajectories({"observations": observations, **steps}, observation_space=space)
    model = DecisionMamba(None, n_updates=1, hidden_size=8, n_layers=1).fit(data)
    actor = model.as_stateful_wrapper(3.0)
    assert actor.predict((np.zeros(2), {"a": np.ones(2)}), 0.0) in (0, 1)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_actions_have_the_dtype_of_their_space(dtype: Any) -> None:
    class Push(Reach):
        observation_space = POSITION  # type: ignore[assignment]
        action_space = spaces.Box(-1, 1, (1,), dtype)  # type: ignore[assignment]

        def look(self) -> Any:
            return np.zeros(2, np.float32)

        def step(self, action: Any) -> Any:
            assert action in self.action_space
            return super().step(action)

    model = DecisionMamba(None, n_updates=1, hidden_size=8, n_layers=1).fit(
        collect("random", Push(), 9)
    )
    model.evaluate(3, 1, env=Push)
    env: Any = ReturnToGo(Push(), 3)
    env.step(model.predict(env.reset()[0])[0])
    assert model.as_stateful_wrapper(3.0).predict(np.zeros(2), 0.0).dtype == dtype
