"""What the recorder writes down, against environments whose every number is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import batch_space
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecMonitor, VecNormalize

from sb3_dmamba.algorithm import DecisionMamba
from sb3_dmamba.data import load_trajectories
from sb3_dmamba.data.recording import collect
from sb3_dmamba.data.trajectories import Trajectories
from sb3_dmamba.envs.return_to_go import ReturnToGo
from sb3_dmamba.errors import ConditioningError, ConfigError, DatasetError, SpaceError
from tests.data.builders import assert_same, import_d3rlpy
from tests.evaluation.toys import SeededEnv, episode_length
from tests.models import tiny_model
from tests.toys import ChoiceEnv, choice_trajectories

ACTION = np.array([0.25, 0.5], dtype=np.float32)  # pays seed + step + 0.75


def constant(observation: Any) -> np.ndarray:
    return ACTION


class ManualVectorEnv(VectorEnv[Any, Any, Any]):
    """Seeded environments under any of Gymnasium's three ways to reset, in any version of it."""

    def __init__(self, n: int, mode: str | None, kind: str = "box") -> None:
        self.num_envs = n
        self.envs = [SeededEnv(kind) for _ in range(n)]
        self.metadata = {} if mode is None else {"autoreset_mode": mode}
        self.mode = mode or "NextStep"
        self.single_observation_space = self.envs[0].observation_space
        self.single_action_space = self.envs[0].action_space
        self.observation_space = batch_space(self.single_observation_space, n)
        self.action_space = batch_space(self.single_action_space, n)
        space = self.observation_space  # one buffer for ever, as copy=False has it
        self.shown: Any = np.zeros(space.shape or (), space.dtype)
        self.over: Any = np.zeros(n, dtype=bool)

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, dtype=bool))
        for index in np.flatnonzero(mask).tolist():
            self.shown[index] = self.envs[index].reset(seed=None if seed is None else seed + index)[
                0
            ]
        self.over[mask] = False
        return self.shown, {}

    def step(self, actions: Any) -> Any:
        rewards, ends = np.zeros(self.num_envs), np.zeros((2, self.num_envs), dtype=bool)
        for index, env in enumerate(self.envs):
            if self.over[index]:
                self.shown[index] = env.reset()[0]
                continue
            self.shown[index], rewards[index], *flags, _ = env.step(actions[index])
            ends[:, index] = flags
            if any(flags) and self.mode == "SameStep":
                self.shown[index] = env.reset()[0]
        self.over = ends.any(axis=0) & (self.mode == "NextStep")
        return self.shown, rewards, ends[0], ends[1], {}


def check_episodes(data: Trajectories, n_steps: int) -> list[tuple[int, int]]:
    """Check every number that constant actions give; return seed and length of each episode."""
    assert data.n_steps == n_steps
    found = []
    for episode in data:
        seed, length = int(episode.observations[0, 0]), len(episode)
        steps = np.arange(length)
        np.testing.assert_array_equal(episode.observations[:, 0], np.full(length, seed))
        np.testing.assert_array_equal(episode.observations[:, 1], steps)
        np.testing.assert_array_equal(episode.rewards, seed + steps + 0.75)
        np.testing.assert_array_equal(episode.actions, np.tile(ACTION, (length, 1)))
        whole = length == episode_length(seed)
        assert whole == (episode.terminated or episode.truncated)
        assert episode.terminated == (whole and seed % 2 == 0)
        assert episode.truncated == (whole and seed % 2 == 1)
        found.append((seed, length))
    return found


def test_one_environment_and_several() -> None:
    # Seeds 4, 5, 6 last 2, 3, 4 steps; of the fourth episode one step is left.
    data = collect(constant, SeededEnv(), 10, seed=4)
    assert check_episodes(data, 10) == [(4, 2), (5, 3), (6, 4), (7, 1)]
    assert (data.env_id, data.env_kwargs) == (None, {})
    assert data.source == "constant in an environment"
    for n_steps in (1, 2, 17):
        found = check_episodes(collect(constant, SeededEnv, n_steps, seed=10, n_envs=3), n_steps)
        assert {seed for seed, _ in found} >= set(range(10, 10 + min(3, n_steps)))


@pytest.mark.parametrize("mode", [None, "NextStep", "SameStep", "Disabled"])
def test_resets_of_vector_environments_are_no_steps(mode: str | None) -> None:
    # By hand: environment 0 plays seeds 4, 5, ..., environment 1 seeds 5, 6, ...
    for n_steps, expected in (
        (7, [(4, 2), (5, 2), (5, 3)]),
        (20, [(4, 2), (5, 3), (5, 3), (6, 4), (6, 4), (7, 1), (7, 3)]),
    ):
        data = collect(constant, ManualVectorEnv(2, mode), n_steps, seed=4)
        assert sorted(check_episodes(data, n_steps)) == expected


def test_vector_environments_of_both_libraries() -> None:
    envs: list[Any] = [DummyVecEnv([SeededEnv] * 2), SyncVectorEnv([SeededEnv] * 2)]
    for env in (*envs, VecMonitor(DummyVecEnv([SeededEnv] * 2))):
        found = check_episodes(collect(constant, env, 11, seed=4), 11)
        assert sorted(found)[:3] == [(4, 2), (5, 3), (5, 3)]


def test_environments_that_overwrite_what_they_returned_or_were_given() -> None:
    class Reusing(SeededEnv):
        buffer = np.zeros(2)

        def _show(self) -> Any:
            self.buffer[:] = super()._show()
            return self.buffer

        def step(self, action: Any) -> Any:
            stepped = super().step(action)
            action[:] = -1
            return stepped

    vector = ManualVectorEnv(2, "SameStep")
    vector.envs = [Reusing(), Reusing()]
    for env in (Reusing, DummyVecEnv([Reusing]), vector):
        check_episodes(collect(constant, env, 11, seed=4), 11)
    frames = collect(constant, ManualVectorEnv(1, "SameStep", "image"), 9, seed=4)
    assert frames.observations.dtype == np.uint8
    assert frames.observations[:, 0, 1].tolist() == [0, 1, 0, 1, 2, 0, 1, 2, 3]


def test_a_folder_gives_the_same(tmp_path: Path) -> None:
    inside = collect(constant, SeededEnv(), 30, seed=4)
    outside = collect(constant, SeededEnv(), 30, seed=4, folder=tmp_path / "store")
    assert_same(outside, inside)
    assert load_trajectories(tmp_path / "store").n_steps == 30
    with pytest.raises(DatasetError, match="store"):
        collect(constant, SeededEnv(), 5, folder=tmp_path / "store")
    assert collect(constant, SeededEnv(), 5, folder=tmp_path / "store", overwrite=True).n_steps == 5


def test_other_frames_are_not_taken_for_stacks() -> None:
    class Constant(SeededEnv):
        def __init__(self) -> None:
            super().__init__()
            self.observation_space = spaces.Box(0, 255, (3, 4, 5), np.uint8)

        def _show(self) -> Any:
            return np.ones((3, 4, 5), np.uint8)

    for stack, kind in ((3, DatasetError), (2, SpaceError)):
        with pytest.raises(kind) as caught:
            collect("random", Constant, 5, frame_stack=stack)
        assert caught.value.setting == "frame_stack"


def described(env: Any, **options: Any) -> tuple[str | None, dict[str, Any]]:
    data = collect("random", env, 3, **options)
    return data.env_id, dict(data.env_kwargs)


def test_ids_are_noted_where_they_would_not_mislead() -> None:
    short, sutton = {"max_episode_steps": 7}, {"sutton_barto_reward": True}
    assert described("Pendulum-v1", env_kwargs={"g": 9.0}) == ("Pendulum-v1", {"g": 9.0})
    assert described("CartPole-v1", env_kwargs=short, n_envs=2) == ("CartPole-v1", short)

    def cart(**kwargs: Any) -> Any:
        return gym.make("CartPole-v1", **kwargs)

    vector = gym.make_vec("CartPole-v1", 2, vectorization_mode="sync")
    known: list[tuple[Any, dict[str, Any]]] = [
        *((cart(**short), short), (cart(**sutton), sutton), (cart, {}), (Monitor(cart()), {})),
        *((vector, {}), (VecNormalize(DummyVecEnv([lambda: Monitor(cart())])), {})),
    ]
    for env, kwargs in known:
        assert described(env) == ("CartPole-v1", kwargs)
    stacked = VecFrameStack(DummyVecEnv([cart]), 2)
    rescaled: Any = gym.wrappers.RescaleObservation(
        gym.make("MountainCar-v0"), np.float32(-1), np.float32(1)
    )
    for env in (rescaled, gym.wrappers.vector.ClipReward(vector, 0, 0.5), stacked):
        assert described(env) == (None, {})
    assert described(stacked, env_id="mine", env_kwargs={"k": 1}) == ("mine", {"k": 1})


def test_environments_that_were_passed_stay_open_and_others_are_closed() -> None:
    made: list[SeededEnv] = []

    def make() -> SeededEnv:
        made.append(SeededEnv())
        return made[-1]

    collect(constant, make, 5, n_envs=2)
    assert [env.is_closed for env in made] == [True, True]
    mine = SeededEnv()
    collect(constant, mine, 5)
    assert not mine.is_closed


def test_a_stable_baselines3_model_is_reproducible() -> None:
    model = PPO("MlpPolicy", "Pendulum-v1", n_steps=8, batch_size=8, seed=0)
    torch_before = torch.get_rng_state()
    numpy_before = np.random.get_state()[1].tolist()  # type: ignore[index]  # noqa: NPY002
    one = collect(model, "Pendulum-v1", 450, seed=3, n_envs=2)
    with torch.random.fork_rng():
        torch.manual_seed(99)  # which must not matter
        two = collect(model, "Pendulum-v1", 450, seed=3, n_envs=2)
    other = collect(model, "Pendulum-v1", 450, seed=4, n_envs=2)
    np.testing.assert_array_equal(one.observations, two.observations)
    np.testing.assert_array_equal(one.actions, two.actions)
    assert not np.array_equal(one.actions, other.actions)
    assert torch.equal(torch.get_rng_state(), torch_before)
    assert np.random.get_state()[1].tolist() == numpy_before  # type: ignore[index]  # noqa: NPY002
    assert one.lengths.tolist() == [200, 200, 25, 25]
    assert one.truncated.tolist() == [True, True, False, False]
    assert one.source == "PPO in Pendulum-v1"


def test_exploration_draws_from_the_seed() -> None:
    model = DQN("MlpPolicy", "CartPole-v1", seed=0, buffer_size=10)
    model.exploration_rate = 1.0  # draws from the action space's own generator
    before = model.action_space.np_random.bit_generator.state
    one, two = (collect(model, "CartPole-v1", 50, seed=3).actions for _ in range(2))
    np.testing.assert_array_equal(one, two)
    assert 0 < one.mean() < 1
    assert model.action_space.np_random.bit_generator.state == before


class NoisyEnv(SeededEnv):
    """Shows uniform noise from the generator that its seed made."""

    def step(self, action: Any) -> Any:
        return self._show(), 0.0, False, False, {}

    def _show(self) -> np.ndarray:
        return self.np_random.uniform(-1.0, 1.0, 2)


def test_actions_do_not_follow_the_environments_noise() -> None:
    noisy, again, other = (collect("random", NoisyEnv(), 400, seed=s) for s in (3, 3, 4))
    noise, actions = noisy.observations[:, 0], noisy.actions[:, 0]
    np.testing.assert_array_equal(actions, again.actions[:, 0])
    assert not np.array_equal(actions, other.actions[:, 0])
    for shift in range(3):
        followed = np.corrcoef(noise[shift:], actions[: 400 - shift])[0, 1]
        assert abs(followed) < 0.2


class Remembering:
    """Speaks SB3's protocol for recurrent policies; its action is its age in quarters."""

    def predict(self, observation: Any, state: Any, episode_start: Any, deterministic: Any) -> Any:
        age = np.where(episode_start, 0, 0 if state is None else state + 1)
        actions = np.zeros((len(age), 2), dtype=np.float32)
        actions[:, 0] = age / 4
        return actions, age


def test_memories_begin_with_their_episodes() -> None:
    envs: list[Any] = [DummyVecEnv([SeededEnv, SeededEnv])]
    envs += [ManualVectorEnv(2, mode) for mode in ("NextStep", "SameStep", "Disabled")]
    for env in (SeededEnv, *envs):
        data = collect(Remembering(), env, 30, seed=4, n_envs=2 if env is SeededEnv else 1)
        np.testing.assert_array_equal(data.actions[:, 0] * 4, data.observations[:, 1])


class Counting:
    """Speaks d3rlpy's stateful protocol, and notes what it is told."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def reset(self) -> None:
        self.heard.append("reset")

    def predict(self, x: np.ndarray, reward: float) -> np.ndarray:
        assert x.shape == (2,)
        self.heard.append(reward)
        return ACTION


def test_stateful_policies_hear_their_rewards() -> None:
    for env in (SeededEnv(), ManualVectorEnv(1, "NextStep")):
        policy = Counting()
        check_episodes(collect(policy, env, 6, seed=4), 6)
        assert policy.heard == ["reset", 0.0, 4.75, "reset", 0.0, 5.75, 6.75, "reset", 0.0]
    with pytest.raises(ConfigError) as caught:
        collect(Counting(), SeededEnv, 6, n_envs=2)
    assert caught.value.setting == "n_envs"


@pytest.fixture(scope="module")
def small_model() -> DecisionMamba:
    return tiny_model(ChoiceEnv(), device="cpu", n_layers=1).fit(choice_trajectories(20), n_steps=2)


def test_our_own_model_is_asked_for_its_target(small_model: DecisionMamba) -> None:
    expected = collect(small_model.as_stateful_wrapper(7.0), ChoiceEnv(), 10, seed=0)
    small_model.target_return = 7.0
    envs: tuple[Any, ...] = (
        *(ChoiceEnv(), ChoiceEnv, DummyVecEnv([ChoiceEnv]), SyncVectorEnv([ChoiceEnv])),
        ReturnToGo(ChoiceEnv(), 7.0),
    )
    for env in envs:
        data = collect(small_model, env, 25, seed=0, deterministic=True)
        assert data.observation_space == expected.observation_space
        np.testing.assert_array_equal(data.observations[:10], expected.observations)
        np.testing.assert_array_equal(data.actions[:10], expected.actions)
        assert data.lengths.tolist() == [10, 10, 5]
    small_model.target_return = None
    with pytest.raises(ConditioningError):
        collect(small_model.policy, ChoiceEnv(), 5)


def test_normalised_environments_are_recorded_in_their_own_numbers() -> None:
    inside = VecNormalize(DummyVecEnv([SeededEnv, SeededEnv]))
    env = VecNormalize(VecMonitor(inside), norm_obs=False)  # normalises twice
    env.reset()
    for _ in range(20):
        env.step(np.tile(ACTION, (2, 1)))
    env.training = False  # must stay so
    seen: list[Any] = []

    def policy(observation: Any) -> np.ndarray:
        seen.append(observation)
        return ACTION

    statistics: Any = inside.obs_rms
    mean, count = statistics.mean.copy(), env.ret_rms.count
    first: Any = inside.normalize_obs(np.array([4.0, 0.0]))
    for each in (inside, env):
        check_episodes(collect(policy, each, 12, seed=4), 12)
        np.testing.assert_allclose(seen[0], first)
        seen.clear()
    np.testing.assert_array_equal(statistics.mean, mean)
    assert (inside.training, env.training, env.ret_rms.count) == (True, False, count)
    with pytest.raises(DatasetError) as caught:
        collect(policy, VecFrameStack(inside, 2), 12)
    assert caught.value.setting == "observation_space"


def test_d3rlpys_algorithms() -> None:
    d3rlpy = import_d3rlpy()
    config: Any = d3rlpy.algos.SACConfig()
    algorithm = config.create(device="cpu")
    algorithm.create_impl((2,), 2)
    best = collect(algorithm, SeededEnv, 12, seed=0, n_envs=2, deterministic=True)
    np.testing.assert_allclose(best.actions, algorithm.predict(best.observations), atol=1e-5)
    drawn, again = (collect(algorithm, SeededEnv, 12, seed=0, n_envs=2).actions for _ in range(2))
    np.testing.assert_array_equal(drawn, again)
    assert np.abs(drawn - best.actions).max() > 1e-3

    discrete = d3rlpy.algos.DQNConfig().create(device="cpu")
    discrete.create_impl((41,), 5)
    data = collect(discrete, SeededEnv("dict", "discrete"), 12, seed=0)  # sees the flat view
    np.testing.assert_array_equal(data.actions, discrete.predict(data.observations))

    transformer = d3rlpy.algos.DecisionTransformerConfig(context_size=3).create(device="cpu")
    transformer.create_impl((2,), 2)
    with pytest.raises(ConfigError, match="as_stateful_wrapper"):
        collect(transformer, SeededEnv(), 6)
    assert collect(transformer.as_stateful_wrapper(9.0), SeededEnv(), 12, seed=4).n_steps == 12


def test_bad_arguments() -> None:
    mine = SeededEnv()
    wrong: list[tuple[dict[str, Any], str]] = [
        *(({name: value}, name) for name, value in {"n_steps": 0, "seed": -1}.items()),
        ({"n_envs": None}, "n_envs"),
        *(({"policy": policy}, "policy") for policy in (3, "greedy")),
        *(({"env": env}, "env") for env in (3, lambda: 3)),
        ({"env": mine, "n_envs": 2}, "n_envs"),
        ({"env": mine, "env_kwargs": {"a": 1}}, "env_kwargs"),
        ({"env": lambda: mine, "n_envs": 2}, "env"),
    ]
    for changes, setting in wrong:
        arguments = {"policy": constant, "env": SeededEnv, "n_steps": 5, **changes}
        with pytest.raises(ConfigError) as caught:
            collect(**arguments)
        assert caught.value.setting == setting


def refuse(actions: Any, env: Any, step: int, what: str) -> None:
    taken = iter(actions)
    with pytest.raises(DatasetError, match=what) as caught:
        collect(lambda observation: next(taken), env, 5)
    assert (caught.value.setting, caught.value.index) == ("action", step)


def test_actions_outside_the_space() -> None:
    for action in ([0.0, 1.5], [0.0, np.nan], [np.inf, 0.0], [0.0, -np.inf], [0.0, 1.0001]):
        refuse([np.array(action)], SeededEnv(), 0, f"{action[0] or action[1]}, outside Box")
    refuse([np.zeros(3)], SeededEnv(), 0, r"shape \(1, 3\) and dtype float64 for 1 environment")
    refuse(["left"], SeededEnv(), 0, "dtype <U4")
    refuse([1, 5], SeededEnv("box", "discrete"), 1, "5, outside Discrete")
    refuse([1.0], SeededEnv("box", "discrete"), 0, "dtype float64")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])  # recorded as float32 either way
def test_actions_that_are_not_finite_are_refused_where_there_are_no_bounds(dtype: type) -> None:
    class Unbounded(SeededEnv):
        def __init__(self) -> None:
            super().__init__()
            self.action_space = spaces.Box(-np.inf, np.inf, (2,), dtype)

    for action in (np.nan, -np.inf, 1e300):  # 1e300 is infinite in float32
        refuse((np.full(2, each) for each in (0.0, 1e30, action)), Unbounded(), 2, "outside Box")


def test_observations_that_are_not_finite() -> None:
    class Broken(SeededEnv):
        def step(self, action: Any) -> Any:
            shown, *rest = super().step(action)
            return (shown * np.nan if self.seed_now == 5 and self.t == 2 else shown, *rest)

    with pytest.raises(DatasetError) as caught:
        collect(constant, Broken(), 12, seed=4)
    assert (caught.value.setting, caught.value.index) == ("observation", 4)
