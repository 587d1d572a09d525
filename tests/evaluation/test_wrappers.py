"""The return-to-go in observations, against sums made by hand, in all three kinds."""

from __future__ import annotations

import pickle
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from gymnasium.vector import SyncVectorEnv
from gymnasium.wrappers import TimeLimit
from stable_baselines3.common.atari_wrappers import EpisodicLifeEnv
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
)

from sb3_dmamba.envs.return_to_go import (
    ReturnToGo,
    ReturnToGoEnv,
    ReturnToGoVecEnv,
    ReturnToGoVectorEnv,
    subtract_rewards,
)
from sb3_dmamba.errors import ConditioningError, SpaceError
from sb3_dmamba.evaluation import evaluate_targets
from tests.evaluation.toys import SeededEnv, ToyPolicy, episode_length

ACTION = np.array([0.25, 0.5], dtype=np.float32)  # pays seed + step + 0.75


def rewards_of(seed: int) -> list[float]:
    return [seed + t + 0.75 for t in range(episode_length(seed))]


def expected_to_go(target: float, seed: int) -> list[float]:
    return [target, *(target - np.cumsum(rewards_of(seed)))]


def test_env_counts_down_and_starts_again() -> None:
    env = ReturnToGo(SeededEnv(), 20.0)
    assert isinstance(env, ReturnToGoEnv)
    assert isinstance(env, ReturnToGo)
    for seed in (5, 2):
        shown, _ = env.reset(seed=seed)
        seen, over = [shown["return_to_go"].item()], False
        while not over:
            shown, _, terminated, truncated, _ = env.step(ACTION)
            over = terminated or truncated
            seen.append(shown["return_to_go"].item())
            assert shown in env.observation_space
        assert seen == expected_to_go(20.0, seed)
        assert env.return_to_go == seen[-1]


def test_a_new_target_counts_from_the_next_episode_on() -> None:
    env = ReturnToGo(SeededEnv(), 20.0)
    env.reset(seed=2)
    env.set_target_return(-4)
    assert env.step(ACTION)[0]["return_to_go"].item() == 20.0 - 2.75
    assert env.target_return == -4.0
    assert env.reset(seed=2)[0]["return_to_go"].item() == -4.0


def test_sums_are_float64_inside() -> None:
    class Steady(SeededEnv):
        def step(self, action: Any) -> Any:
            return self._show(), 0.1, False, False, {}

    env = ReturnToGo(Steady(), 1e6)
    env.reset(seed=0)
    for _ in range(1000):
        shown = env.step(ACTION)[0]
    assert abs(env.return_to_go - (1e6 - 100.0)) < 1e-6  # float32 sums would be off by 1.25
    assert shown["return_to_go"].dtype == np.float32


def test_env_passes_both_checkers_and_keeps_what_it_wraps() -> None:
    class Flat(SeededEnv):
        def reset(self, **options: Any) -> Any:
            return super().reset(seed=options.get("seed") or 3)

    env = ReturnToGo(Flat(), 20.0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sb3_check_env(env)
        gymnasium_check_env(ReturnToGo(Flat(), 20.0), skip_render_check=True)
    # what cannot be avoided: gymnasium would rather see no wrapper, and bounded returns
    allowed = ("different from the unwrapped", "is infinity", "is -infinity", "not having a spec")
    messages = [str(each.message) for each in caught]
    assert [text for text in messages if not any(part in text for part in allowed)] == []
    assert env.metadata["render_fps"] == 7
    assert env.render_mode == "rgb_array"
    assert np.asarray(env.render()).shape == (4, 4, 3)


def test_env_can_be_made_again_from_its_spec_and_pickled() -> None:
    env = ReturnToGo(gym.make("CartPole-v1"), 50.0, clip_rewards=True)
    assert env.spec is not None
    again = gym.make(env.spec)
    assert isinstance(again, ReturnToGoEnv)
    assert (again.target_return, again.clip_rewards, again.delayed_rewards) == (50.0, True, False)
    copy = pickle.loads(pickle.dumps(ReturnToGo(SeededEnv(), 3.0)))
    assert copy.reset(seed=2)[0]["return_to_go"].item() == 3.0


def vector(n: int, **options: Any) -> ReturnToGoVectorEnv:
    targets = [20.0, 30.0, 40.0][:n]
    return ReturnToGo(SyncVectorEnv([SeededEnv for _ in range(n)], **options), targets)


AutoresetMode: Any = getattr(gym.vector, "AutoresetMode", None)  # Gymnasium 1.1 and later
needs_modes = pytest.mark.skipif(
    AutoresetMode is None, reason="this Gymnasium has no autoreset modes"
)


def to_go(shown: Any) -> list[float]:
    return [float(value) for value in shown["return_to_go"][:, 0]]


@pytest.mark.parametrize("mode", [None, pytest.param("NextStep", marks=needs_modes)])
def test_vector_env_with_next_step_autoreset(mode: str | None) -> None:
    env = vector(3, **({} if mode is None else {"autoreset_mode": AutoresetMode(mode)}))
    assert isinstance(env, ReturnToGoVectorEnv)
    shown, _ = env.reset(seed=4)  # seeds 4, 5, 6 last 2, 3, 4 steps; then 5, 6, 7
    rows = [to_go(shown)]
    assert env.episode_start.all()
    for _ in range(9):
        shown, *_ = env.step(np.tile(ACTION, (3, 1)))
        assert shown in env.observation_space
        rows.append(to_go(shown))
        assert env.episode_start.tolist() == (shown["observation"][:, 1] == 0).tolist()
    for row, (target, seed) in enumerate([(20.0, 4), (30.0, 5), (40.0, 6)]):
        # an episode ends; the next step only resets
        expected = [value for s in range(seed, seed + 4) for value in expected_to_go(target, s)]
        assert [values[row] for values in rows] == expected[:10]


@needs_modes
def test_vector_env_with_same_step_autoreset() -> None:
    env = vector(2, autoreset_mode=AutoresetMode("SameStep"))
    env.reset(seed=4)
    actions = np.tile(ACTION, (2, 1))
    env.step(actions)
    shown, _, terminated, _, infos = env.step(actions)
    assert terminated.tolist() == [True, False]
    assert to_go(shown) == [20.0, expected_to_go(30.0, 5)[2]]
    assert env.episode_start.tolist() == [True, False]
    final = infos["final_obs"]
    assert final[0]["return_to_go"].item() == expected_to_go(20.0, 4)[-1]
    np.testing.assert_array_equal(final[0]["observation"], [4, 2])
    assert final[1] is None


def test_vector_env_flattens_and_changes_targets() -> None:
    env: Any = ReturnToGo(SyncVectorEnv([lambda: SeededEnv("dict")] * 2), 20.0)
    shown, _ = env.reset(seed=3)
    assert shown["observation"].shape == (2, 41)
    assert shown in env.observation_space
    assert env.single_observation_space["observation"].shape == (41,)
    env.set_target_return([1.0, 2.0])
    shown, *_ = env.step(np.tile(ACTION, (2, 1)))
    assert to_go(shown) == [20.0 - 3.75, 20.0 - 4.75]
    assert to_go(env.reset(seed=3)[0]) == [1.0, 2.0]
    np.testing.assert_array_equal(env.target_return, [1.0, 2.0])


def roll(
    env: ReturnToGoVecEnv, n_steps: int
) -> tuple[list[list[float]], list[list[dict[str, Any]]]]:
    env.seed(4)
    rows, all_infos = [to_go(env.reset())], []
    for _ in range(n_steps):
        shown, _, _, infos = env.step(np.tile(ACTION, (env.num_envs, 1)))
        rows.append(to_go(shown))
        all_infos.append(infos)
    return rows, all_infos


def same_step(target: float, seed: int) -> list[float]:
    """The returns-to-go that a same-step autoreset shows, over four episodes."""
    return [value for s in range(seed, seed + 4) for value in expected_to_go(target, s)[:-1]]


@pytest.mark.parametrize("inside", ["nothing", "VecMonitor", "VecNormalize", "both"])
def test_vec_env_counts_in_the_environments_units(inside: str) -> None:
    venv: Any = DummyVecEnv([SeededEnv, SeededEnv])
    if inside in ("VecMonitor", "both"):
        venv = VecMonitor(venv)
    if inside in ("VecNormalize", "both"):
        venv = VecNormalize(venv, gamma=0.9)
    env = ReturnToGo(VecFrameStack(venv, 1) if inside == "both" else venv, [20.0, 30.0])
    assert isinstance(env, ReturnToGoVecEnv)
    rows, all_infos = roll(env, 8)
    for row, (target, seed) in enumerate([(20.0, 4), (30.0, 5)]):
        assert [values[row] for values in rows] == same_step(target, seed)[:9]
    terminal = all_infos[1][0]["terminal_observation"]  # seed 4 lasts two steps
    assert terminal["return_to_go"].item() == expected_to_go(20.0, 4)[-1]
    assert terminal["observation"].shape == (2,)
    if inside == "nothing":
        np.testing.assert_array_equal(terminal["observation"], [4, 2])
    if inside == "VecMonitor":
        assert all_infos[1][0]["episode"]["r"] == sum(rewards_of(4))


class Lives(SeededEnv):
    """Two lives of two steps each, as an Atari emulator counts them."""

    @property
    def ale(self) -> Lives:
        return self

    def lives(self) -> int:
        return 2 if self.t < 2 else 1 if self.t < 4 else 0

    def step(self, action: Any) -> Any:
        self.t += 1
        return self._show(), 1.0, self.t >= 6, False, {}


def test_a_time_limit_ends_a_game_that_has_lives_left() -> None:
    def make_env() -> gym.Env[Any, Any]:
        return TimeLimit(EpisodicLifeEnv(Lives()), max_episode_steps=1)

    report = evaluate_targets(ToyPolicy(Lives()), make_env, 10.0, 2, n_workers=0)
    assert report.results[0].lengths.tolist() == [1, 1]


def test_a_lost_life_ends_nothing() -> None:
    # Every step pays 1. Step 2 loses a life: EpisodicLifeEnv's reset plays step 3 unseen. Steps 4
    # and 5 are seen, and step 6 ends the game.
    expected = [(9.0, False), (8.0, False), (7.0, False), (6.0, False), (5.0, True)]
    env = ReturnToGo(EpisodicLifeEnv(Lives()), 10.0)
    for _ in range(2):
        shown, _ = env.reset(seed=0)
        assert (shown["return_to_go"].item(), env.episode_start) == (10.0, True)
        seen = []
        for _ in range(5):
            shown, _, terminated, *_ = env.step(ACTION)
            seen.append((shown["return_to_go"].item(), terminated))
            assert not env.episode_start
        assert seen == expected
    shown, _ = env.reset()
    env.step(ACTION)
    shown, _ = env.reset()  # in the middle of a game: a reset begins one all the same
    assert (shown["return_to_go"].item(), shown["observation"][1]) == (10.0, 0.0)


@pytest.mark.parametrize("vec_env", [DummyVecEnv, SubprocVecEnv])
def test_a_lost_life_ends_nothing_in_a_vec_env(vec_env: Any) -> None:
    options = {"start_method": "fork"} if vec_env is SubprocVecEnv else {}
    inner = vec_env([lambda: TimeLimit(EpisodicLifeEnv(Lives()), 99)], **options)
    venv: Any = ReturnToGo(inner, 10.0)
    for _ in range(2):  # the second time, in the middle of a game
        assert venv.reset()["return_to_go"].item() == 10.0
        assert venv.get_attr("t") == [0]
        assert venv.episode_start.tolist() == [True]
        seen = []
        for _ in range(7):
            shown, _, dones, _ = venv.step(ACTION[None])
            seen.append((shown["return_to_go"].item(), bool(dones[0])))
            assert venv.episode_start.tolist() == dones.tolist()
        lives = [(9.0, False), (8.0, False), (7.0, False), (6.0, False)]
        assert seen == [*lives, (10.0, True), (9.0, False), (8.0, False)]
    venv.close()


@pytest.mark.parametrize("vector", [None, SyncVectorEnv, DummyVecEnv])
def test_clipped_rewards_are_taken_off_and_whole_ones_passed_on(vector: Any) -> None:
    class Paying(SeededEnv):
        def step(self, action: Any) -> Any:
            shown, _, *rest = super().step(action)
            return (shown, [0.5, -9.0, 0.25][self.t - 1], *rest)

    inner: Any = Paying() if vector is None else vector([Paying])
    assert not ReturnToGo(inner, 20.0).clip_rewards
    env: Any = ReturnToGo(inner, 20.0, clip_rewards=True)
    assert env.clip_rewards
    if vector is DummyVecEnv:
        env.seed(3)
    env.reset(**({} if vector is DummyVecEnv else {"seed": 3}))
    seen = []
    for _ in range(3):
        shown, reward, *_ = env.step(ACTION if vector is None else ACTION[None])
        seen.append((float(shown["return_to_go"].item()), float(np.ravel(reward)[0])))
    assert seen == [(19.5, 0.5), (20.5, -9.0), (20.25, 0.25)]


def test_an_infinite_reward_is_noticed_clipped_or_delayed() -> None:
    for options in ({}, {"clip_rewards": True}, {"delayed_rewards": True}):
        for reward in (np.inf, np.nan):
            with pytest.raises(ConditioningError) as caught:
                subtract_rewards(1.0, reward, **options)
            assert caught.value.setting == "reward"
    with pytest.raises(ConditioningError):
        subtract_rewards(np.full(2, 1e308), [0.0, -1e308])  # finite, and their sum is not
    assert subtract_rewards(np.ones(3), [0.5, 9.0, -9.0], clip_rewards=True).tolist() == [0.5, 0, 2]
    assert subtract_rewards(1.0, 3, delayed_rewards=True) == 1.0


@pytest.mark.parametrize(
    "make",
    [SeededEnv, lambda: SyncVectorEnv([SeededEnv] * 3), lambda: DummyVecEnv([SeededEnv] * 3)],
)
def test_mistakes(make: Any) -> None:
    env = ReturnToGo(make(), 1.0)
    for target in (float("nan"), float("inf"), "much", None, [1.0, 2.0], [[1.0]]):
        for call in (lambda target: ReturnToGo(make(), target), env.set_target_return):
            with pytest.raises(ConditioningError) as caught:
                call(target)
            assert caught.value.setting == "target_return"
    assert np.all(env.target_return == 1.0)
    with pytest.raises(SpaceError) as refused:
        ReturnToGo(env, 2.0)  # a second time
    assert refused.value.setting == "observation_space"


def test_wrong_environments() -> None:
    for env in (None, "CartPole-v1", SeededEnv):
        with pytest.raises(SpaceError) as caught:
            ReturnToGo(env, 1.0)  # type: ignore[call-overload]
        assert (caught.value.setting, caught.value.value) == ("env", env)
