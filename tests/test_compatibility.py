"""Environments of the old gym and of dm_control, where they are installed."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from sb3_dmamba.context import make_factory, wrap
from sb3_dmamba.errors import MissingDependencyError, UnknownTaskError
from sb3_dmamba.tasks import get_task
from tests.models import tiny_model
from tests.toys import ChoiceEnv, choice_trajectories

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the old gym warns about itself
    shimmy = pytest.importorskip("shimmy", reason="Shimmy, of the shimmy extra, is not installed")
    old_gym = pytest.importorskip("gym", reason="the old gym is not installed")

pytestmark = pytest.mark.filterwarnings("ignore")  # of packages that nobody maintains


def old_space(space: Any) -> Any:
    if isinstance(space, spaces.Discrete):
        return old_gym.spaces.Discrete(int(space.n))
    return old_gym.spaces.Box(space.low, space.high, dtype=space.dtype)


class OldChoice(old_gym.Env):  # type: ignore[misc, name-defined]
    """:class:`ChoiceEnv` for gym 0.26."""

    render_mode = None

    def __init__(self) -> None:
        self.inner = ChoiceEnv()
        self.observation_space = old_space(self.inner.observation_space)
        self.action_space = old_space(self.inner.action_space)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return self.inner.reset(seed=seed)

    def step(self, action: Any) -> Any:
        return self.inner.step(action)


class OlderChoice(OldChoice):
    """:class:`ChoiceEnv` for gym 0.21, which seeds apart and knows one end only."""

    next_seed: int | None = None

    def seed(self, seed: int | None = None) -> list[int | None]:
        self.next_seed = seed
        return [seed]

    def reset(self) -> Any:  # type: ignore[override]
        seed, self.next_seed = self.next_seed, None
        return self.inner.reset(seed=seed)[0]

    def step(self, action: Any) -> Any:
        shown, reward, terminated, truncated, info = self.inner.step(action)
        return shown, reward, terminated or truncated, info


DATA = choice_trajectories(50)


@pytest.mark.parametrize("kind", [OldChoice, OlderChoice])
def test_old_environments_are_acted_in_as_new_ones(kind: Any) -> None:
    model = tiny_model(ChoiceEnv, seed=0).fit(DATA, 1)
    expected = model.evaluate(5.0, 3, n_workers=0)
    report = model.evaluate(5.0, 3, env=lambda: kind(), n_workers=0)
    assert report.results[0].returns.tolist() == expected.results[0].returns.tolist()
    venv: Any = wrap(kind(), 5.0)
    assert venv.reset()["return_to_go"].item() == 5.0
    model.set_env(kind())
    assert model.get_env().num_envs == 1  # type: ignore[union-attr]


def test_an_id_of_the_old_gym() -> None:
    old_gym.register("OldChoice-v0", entry_point=OldChoice, max_episode_steps=4)
    try:
        task = get_task("gym:OldChoice-v0")
        with task.make_env() as env:
            assert env.action_space == ChoiceEnv().action_space
            env.reset(seed=0)
            assert [env.step(0)[3] for _ in range(4)] == [False, False, False, True]
        report = tiny_model(task.name).fit(DATA, 1).evaluate(5.0, 2, n_workers=0)
        assert report.results[0].lengths.tolist() == [4, 4]
        with task.make_env(max_episode_steps=2) as env:
            env.reset(seed=0)
            assert [env.step(0)[3] for _ in range(2)] == [False, True]
    finally:
        del old_gym.envs.registry["OldChoice-v0"]
    with pytest.raises(UnknownTaskError) as caught:
        get_task("gym:Missing-v0").make_env()
    assert caught.value.value == "gym:Missing-v0"


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, package in (("gym:A-v0", "gym"), ("dm_control/a-b-v0", "shimmy")):
        monkeypatch.setattr(
            "sb3_dmamba.envs.make.find_spec",
            lambda name, absent=package: None if name == absent else object(),
        )
        with pytest.raises(MissingDependencyError) as caught:
            get_task(name).make_env()
        assert (caught.value.package, caught.value.extra) == (package, "shimmy")


def _can_simulate() -> bool:
    try:
        from dm_control import suite

        suite.load("cartpole", "swingup")
    except Exception:  # each mismatch of dm_control and MuJoCo fails in its own way
        return False
    return "dm_control" in sys.modules


@pytest.fixture(scope="module")
def dm_control() -> Any:
    pytest.importorskip("dm_control", reason="dm_control, of the shimmy extra, is not installed")
    if not _can_simulate():
        pytest.skip("this dm_control does not work with this MuJoCo")
    from dm_control import suite

    return suite


def test_dm_control_by_name_and_as_an_object(dm_control: Any) -> None:
    name = "dm_control/cartpole-swingup-v0"
    with get_task(name).make_env() as env:
        assert env.reset(seed=0)[0]["position"].shape == (3,)
    venv: Any = wrap(name, 100.0)
    assert venv.reset()["observation"].shape == (1, 5)
    loaded: Any = wrap(dm_control.load("cartpole", "swingup"), 100.0)
    assert loaded.reset()["observation"].shape == (1, 5)
    shown, rewards, _, _ = loaded.step(np.zeros((1, 1), np.float32))
    assert shown["return_to_go"].item() == np.float32(100.0 - float(rewards[0]))
    made = make_factory(name)()
    assert made.action_space.shape == (1,)
    again = make_factory(made)()
    assert again is not made
