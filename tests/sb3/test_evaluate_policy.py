"""``evaluate_policy`` under every wrapper of Stable-Baselines3's, against episodes by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.atari_wrappers import EpisodicLifeEnv
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecEnv,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
)

from sb3_dmamba.envs.return_to_go import ReturnToGo
from tests.evaluation.test_wrappers import Lives
from tests.sb3.setting import (
    TARGET,
    PixelEnv,
    assert_same_episodes,
    by_hand,
    fitted,
    make_conditioned,
    make_env,
    seeds_of,
)

pytestmark = pytest.mark.filterwarnings("ignore:Evaluation environment is not wrapped with a")

WRAPPER: Any = ReturnToGo
MakeVecEnv = Callable[[int], VecEnv]


def to_go(env: Any) -> Any:
    return ReturnToGo(env, TARGET)


def evaluate(model: Any, venv: Any, n_episodes: int, **options: Any) -> Any:
    return evaluate_policy(model, venv, n_episodes, return_episode_rewards=True, **options)


def monitored() -> gym.Env[Any, Any]:
    return Monitor(make_env())


def scaled(venv: Any, **options: Any) -> VecNormalize:
    """Rewards scaled beyond recognition from the first step on."""
    return VecNormalize(venv, norm_obs=False, clip_reward=0.5, gamma=0.5, **options)


NESTINGS: dict[str, MakeVecEnv] = {
    "around DummyVecEnv": lambda n: to_go(DummyVecEnv([make_env] * n)),
    "inside DummyVecEnv": lambda n: DummyVecEnv([make_conditioned] * n),
    "around Monitor": lambda n: DummyVecEnv([lambda: to_go(monitored())] * n),
    "inside Monitor": lambda n: DummyVecEnv([lambda: Monitor(make_conditioned())] * n),
    "around DummyVecEnv and Monitor": lambda n: to_go(DummyVecEnv([monitored] * n)),
    "around VecMonitor": lambda n: to_go(VecMonitor(DummyVecEnv([make_env] * n))),
    "inside VecMonitor": lambda n: VecMonitor(to_go(DummyVecEnv([make_env] * n))),
    "around VecNormalize": lambda n: to_go(scaled(VecMonitor(DummyVecEnv([make_env] * n)))),
    "inside VecNormalize": lambda n: scaled(VecMonitor(to_go(DummyVecEnv([make_env] * n)))),
    "inside all": lambda n: scaled(VecMonitor(DummyVecEnv([make_conditioned] * n))),
    "by make_vec_env": lambda n: make_vec_env(
        make_env, n, wrapper_class=WRAPPER, wrapper_kwargs={"target_return": TARGET}
    ),
    "around VecFrameStack of one": lambda n: to_go(VecFrameStack(DummyVecEnv([make_env] * n), 1)),
    "inside VecFrameStack of one": lambda n: VecFrameStack(DummyVecEnv([make_conditioned] * n), 1),
}


@pytest.mark.parametrize("nesting", NESTINGS)
def test_every_nesting_plays_the_episodes_played_by_hand(nesting: str) -> None:
    model = fitted()
    for n_envs in (1, 3, 7):  # of which some have no episode to play
        venv = NESTINGS[nesting](n_envs)
        venv.seed(4)  # the environments' episodes have 2 to 5 steps, by their seed
        assert_same_episodes(evaluate(model, venv, 5), by_hand(model, seeds_of(4, 5, n_envs)))


@pytest.mark.parametrize(
    ("memory", "mixer", "n_actions"),
    [
        ("window", "mamba", 5),
        ("window", "attention", None),
        ("stream", "mamba", None),
        ("stream", "attention", 5),
    ],
)
def test_every_model_plays_the_episodes_played_by_hand(
    memory: str, mixer: str, n_actions: int | None
) -> None:
    model = fitted(memory=memory, mixer=mixer, n_actions=n_actions)
    kind = "box" if n_actions is None else "discrete"

    def make() -> gym.Env[Any, Any]:
        return make_env(actions=kind)

    venv = to_go(DummyVecEnv([make] * 3))
    venv.seed(4)
    assert_same_episodes(evaluate(model, venv, 7), by_hand(model, seeds_of(4, 7, 3), make))
    venv.seed(4)
    assert_same_episodes(evaluate(model.policy, venv, 7), by_hand(model, seeds_of(4, 7, 3), make))


def test_a_target_is_set_through_wrappers_on_both_sides() -> None:
    model = fitted()
    for venv in (
        VecMonitor(to_go(DummyVecEnv([make_env] * 2))),
        VecMonitor(DummyVecEnv([make_conditioned] * 2)),
        DummyVecEnv([lambda: Monitor(make_conditioned())] * 2),
    ):
        model.set_env(venv)
        model.get_env()
        model.target_return = 3.0
        venv.seed(4)
        assert_same_episodes(evaluate(model, venv, 2), by_hand(model, [4, 5], target=3.0))


def normalizing(venv: Any, **options: Any) -> VecNormalize:
    """A VecNormalize with statistics that somebody saved."""
    normalizer = VecNormalize(venv, training=False, **options)
    rms: Any = normalizer.obs_rms
    rms = rms["observation"] if isinstance(rms, dict) else rms
    rms.mean, rms.var = np.array([0.5, -0.25]), np.array([2.0, 0.5])
    return normalizer


def test_normalised_observations_in_both_nestings() -> None:
    model = fitted()

    class Normalized(gym.ObservationWrapper[Any, Any, Any]):
        def observation(self, observation: Any) -> Any:
            mean, std = np.array([0.5, -0.25]), np.sqrt(np.array([2.0, 0.5]) + 1e-8)
            return ((observation - mean) / std).astype(np.float32)

    expected = by_hand(model, seeds_of(4, 5, 2), lambda: Normalized(make_env()))
    assert expected != by_hand(model, seeds_of(4, 5, 2))
    inner = to_go(normalizing(VecMonitor(DummyVecEnv([make_env] * 2))))
    keys = ["observation"]
    outer = normalizing(VecMonitor(DummyVecEnv([make_conditioned] * 2)), norm_obs_keys=keys)
    for venv in (inner, outer):
        venv.seed(4)
        assert_same_episodes(evaluate(model, venv, 5), expected)


def test_stacked_observations_in_both_nestings() -> None:
    model = fitted(shape=(4,))

    class Stacked(gym.Wrapper[Any, Any, Any, Any]):
        def reset(self, **options: Any) -> Any:
            shown, info = self.env.reset(**options)
            self.seen = [np.zeros_like(shown), shown]
            return np.concatenate(self.seen), info

        def step(self, action: Any) -> Any:
            shown, *rest = self.env.step(action)
            self.seen = [self.seen[-1], shown]
            return (np.concatenate(self.seen), *rest)

    expected = by_hand(model, seeds_of(4, 5, 2), lambda: Stacked(make_env()))
    for venv in (
        to_go(VecFrameStack(DummyVecEnv([make_env] * 2), 2)),
        VecFrameStack(DummyVecEnv([make_conditioned] * 2), 2),  # the newest return-to-go counts
        VecFrameStack(to_go(DummyVecEnv([make_env] * 2)), 2),
    ):
        venv.seed(4)
        assert_same_episodes(evaluate(model, venv, 5), expected)


def test_images_with_their_channels_last_are_transposed_as_in_stable_baselines3() -> None:
    model = fitted(shape=(3, 4, 5), encoder="linear")

    class ChannelsFirst(gym.ObservationWrapper[Any, Any, Any]):
        def observation(self, observation: Any) -> Any:
            return np.moveaxis(observation, -1, 0)

    expected = by_hand(model, seeds_of(4, 5, 2), lambda: ChannelsFirst(PixelEnv()))
    plain: Any = DummyVecEnv([PixelEnv] * 2)
    inside: Any = DummyVecEnv([lambda: to_go(PixelEnv())] * 2)
    for venv in (to_go(VecTransposeImage(plain)), VecTransposeImage(inside), to_go(plain)):
        venv.seed(4)
        assert_same_episodes(evaluate(model, venv, 5), expected)


def test_one_environment_that_is_no_vec_env() -> None:
    model, env = fitted(), make_conditioned()
    env.reset(seed=3)  # an unseeded reset counts on
    assert_same_episodes(evaluate(model, env, 3), by_hand(model, [4, 5, 6]))


class TwoLives(Lives):
    """:class:`Lives` as a model of :func:`fitted` sees it, paid by the action."""

    def step(self, action: Any) -> Any:
        shown, _, *rest = super().step(action)
        return (np.sin(shown), 1.0 + float(np.ravel(action)[0]), *rest)

    def reset(self, **options: Any) -> Any:
        shown, info = super().reset(**options)
        return np.sin(shown), info


@pytest.mark.parametrize("n_envs", [1, 2])
def test_lost_lives_end_no_episode(n_envs: int) -> None:
    model = fitted(memory="stream")
    report = model.evaluate(
        TARGET, 3, env=lambda: EpisodicLifeEnv(TwoLives()), n_envs=n_envs, n_workers=0
    )
    expected = report.results[0].returns.tolist()
    assert len(set(expected)) == 3
    for make in (
        lambda: to_go(DummyVecEnv([lambda: EpisodicLifeEnv(Monitor(TwoLives()))] * n_envs)),
        lambda: DummyVecEnv([lambda: to_go(EpisodicLifeEnv(Monitor(TwoLives())))] * n_envs),
    ):
        venv: Any = make()
        for _ in range(2):  # the second time, some games are left in their middle
            venv.seed(model.seed)
            returns, lengths = evaluate(model, venv, 3)
            np.testing.assert_allclose(sorted(returns), sorted(expected), rtol=1e-5)
            assert lengths == [6, 6, 6]  # Monitor sees the step between two lives
