"""Real games of the Arcade Learning Environment against an emulator that is driven by hand."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import SyncVectorEnv
from numpy.typing import NDArray
from stable_baselines3.common.atari_wrappers import AtariWrapper
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_dmamba.algorithm import DecisionMamba
from sb3_dmamba.data.trajectories import Trajectories
from sb3_dmamba.envs import ATARI_ID, MINIMAL_ACTIONS
from sb3_dmamba.envs.return_to_go import ReturnToGo
from sb3_dmamba.errors import ConfigError, DatasetError, MissingDependencyError
from sb3_dmamba.tasks import get_task

ale_py = pytest.importorskip("ale_py", reason="ale-py, of the atari extra, is not installed")
cv2 = pytest.importorskip("cv2", reason="OpenCV, of the atari extra, is not installed")

GAMES = ["Breakout", "Qbert", "Pong", "Seaquest"]


def make(game: str = "Breakout", **options: Any) -> gym.Env[Any, Any]:
    return gym.make(ATARI_ID, game=game, **{"sticky_actions": 0.0, "noop_max": 0, **options})


def unwrapped(env: gym.Env[Any, Any]) -> Any:
    return env.unwrapped


class ByHand:
    """The emulator itself, with the steps of the DQN replay written out."""

    def __init__(self, game: str) -> None:
        self.ale = ale_py.ALEInterface()
        self.ale.setLoggerMode(ale_py.LoggerMode.Error)
        self.ale.setFloat("repeat_action_probability", 0.0)
        self.ale.loadROM(ale_py.roms.get_rom_path(game.lower()))
        self.ale.reset_game()
        self.actions = self.ale.getMinimalActionSet()

    def frame(self, screens: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
        both = np.max(screens, axis=0)
        return np.asarray(cv2.resize(both, (84, 84), interpolation=cv2.INTER_AREA))

    def step(self, action: int) -> tuple[NDArray[np.uint8], float, bool]:
        reward, screens = 0.0, []
        for _ in range(4):
            reward += self.ale.act(self.actions[action])
            screens.append(self.ale.getScreenGrayscale())
            if self.ale.game_over():
                break
        return self.frame(screens[-2:]), reward, self.ale.game_over()


def test_actions_are_the_emulators_minimal_set() -> None:
    for game in GAMES:
        env = make(game)
        assert tuple(unwrapped(env).get_action_meanings()) == MINIMAL_ACTIONS[game]
        assert env.action_space == gym.spaces.Discrete(len(MINIMAL_ACTIONS[game]))
        assert get_task(game.lower()).actions == MINIMAL_ACTIONS[game]
    assert make("Pong", full_action_space=True).action_space == gym.spaces.Discrete(18)
    for name in ("SpaceInvaders", "space_invaders", "spaceinvaders"):
        assert make(name).action_space == gym.spaces.Discrete(6)


@pytest.mark.parametrize("game", ["Breakout", "Qbert"])
def test_frames_and_rewards_are_those_of_the_emulator(game: str) -> None:
    env, by_hand = make(game), ByHand(game)
    shown, _ = env.reset(seed=3)
    stack = [np.zeros((84, 84), np.uint8)] * 3
    stack.append(by_hand.frame([by_hand.ale.getScreenGrayscale()]))
    np.testing.assert_array_equal(shown, stack)
    rng = np.random.default_rng(0)
    total, n_steps, is_over = 0.0, 0, False
    while not is_over:
        action = int(rng.integers(env.action_space.n))  # type: ignore[attr-defined]
        shown, reward, terminated, truncated, _ = env.step(action)
        frame, expected_reward, is_over = by_hand.step(action)
        stack = [*stack[1:], frame]
        assert (reward, terminated, truncated) == (expected_reward, is_over, False)
        if not is_over:  # nobody acts on what follows
            np.testing.assert_array_equal(shown, stack)
        total += float(reward)
        n_steps += 1
    assert n_steps > 100
    assert total > 0.0


def play(env: gym.Env[Any, Any], seed: int | None, n_steps: int = 60) -> list[Any]:
    rng = np.random.default_rng(1)
    first = env.reset(seed=seed)[0]
    return [first, *(env.step(int(rng.integers(4)))[0] for _ in range(n_steps))]


def test_sticky_actions_and_idle_starts_follow_the_seed() -> None:
    for options in ({"sticky_actions": 0.25}, {"noop_max": 30}, {}):
        games = [np.stack(play(make(**options), seed)) for seed in (0, 0, 5)]
        assert np.array_equal(games[0], games[1])
        assert np.array_equal(games[0], games[2]) == (not options)


def test_the_defaults_are_the_dqn_replays() -> None:
    env = gym.make(ATARI_ID, game="Breakout")
    ale = unwrapped(env).ale
    assert ale.getFloat("repeat_action_probability") == 0.25
    assert ale.getInt("max_num_frames_per_episode") == 108_000
    assert env.observation_space == gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)
    assert env.reset(seed=0)[1]["lives"] == 5
    assert env.metadata["render_fps"] == 15


def test_a_game_is_truncated_after_its_frames() -> None:
    env = make("Pong", max_episode_frames=40)
    env.reset(seed=0)
    ends = [env.step(0)[2:4] for _ in range(10)]
    assert ends == [(False, False)] * 9 + [(False, True)]


def test_mistakes() -> None:
    wrong: list[tuple[str, Any]] = [
        ("game", "Brakeout"),
        ("game", "xyz"),
        ("sticky_actions", 1.5),
        ("frame_skip", 0),
        ("frame_stack", 2.0),
        ("noop_max", -1),
        ("screen_size", True),
    ]
    for setting, value in wrong:
        with pytest.raises(ConfigError) as caught:
            make(**{"game": "Breakout", setting: value})
        assert (caught.value.setting, caught.value.value) == (setting, value)


@pytest.mark.parametrize(("package", "name"), [("ale_py", "ale-py"), ("cv2", "opencv-python")])
def test_a_missing_package_names_the_extra(
    package: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=rf"{name}.*sb3-dmamba\[atari\]"):
        get_task("breakout").make_env()


def test_the_id_is_found_in_a_fresh_interpreter() -> None:
    for code in (
        f"import gymnasium; gymnasium.make({ATARI_ID!r}, game='Pong')",
        f"from sb3_dmamba.tasks import get_task; get_task({ATARI_ID!r}).make_env(game='Pong')",
        "from sb3_dmamba.tasks import get_task; get_task('pong').make_env()",
    ):
        code += "; import sys; assert 'torch' not in sys.modules"
        subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    # where this package was imported before Gymnasium
    script = (
        "from sb3_dmamba import collect\n"
        f"print(collect('random', {ATARI_ID!r}, 8, env_kwargs={{'game': 'Breakout'}}).n_steps)"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert found.stdout.strip() == "8", found.stderr


ROUND = [1, 0, 2, 0, 3, 0, 2, 2]  # fires, and lets most balls pass


def actions_of_a_game() -> Iterator[int]:
    while True:
        yield from ROUND


def lives_of(env: gym.Env[Any, Any]) -> int:
    return int(unwrapped(env).ale.lives())


def test_an_episode_may_end_with_a_life_and_the_game_goes_on() -> None:
    whole, lives = make(), make(terminal_on_life_loss=True)
    whole.reset(seed=0)
    first, _ = lives.reset(seed=0)
    assert not first[:3].any()
    total, lost = np.zeros(2), 0
    for action in actions_of_a_game():
        shown, reward, terminated, _, _ = lives.step(action)
        expected = whole.step(action)
        total += [float(reward), float(expected[1])]
        assert np.array_equal(shown[-1], expected[0][-1])
        if not terminated:
            continue
        assert unwrapped(lives).was_real_done == expected[2]
        if expected[2]:
            break
        lost += 1
        assert lives_of(lives) == lives_of(whole) == 5 - lost
        again, _ = lives.reset()
        assert np.array_equal(again[-1], shown[-1])
        assert not again[:3].any()
        assert not unwrapped(lives).was_real_done
    assert lost == 4  # and the fifth ends the game
    assert total[0] == total[1] > 0.0
    lives.reset()
    assert lives_of(lives) == 5
    assert unwrapped(lives).was_real_done


def one_life(game: str = "Breakout") -> gym.Env[Any, Any]:
    return make(game, terminal_on_life_loss=True)


AutoresetMode: Any = getattr(gym.vector, "AutoresetMode", None)  # Gymnasium 1.1 and later
needs_modes = pytest.mark.skipif(
    AutoresetMode is None, reason="this Gymnasium has no autoreset modes"
)


def sb3_breakout() -> gym.Env[Any, Any]:
    # FireResetEnv steps after EpisodicLifeEnv's reset, whose was_real_done is stale from then on
    env = gym.make("ALE/Breakout-v5", frameskip=1, repeat_action_probability=0.0)
    return AtariWrapper(env, noop_max=0, clip_reward=False)


@pytest.mark.parametrize("game", [one_life, sb3_breakout])
@pytest.mark.parametrize("kind", ["gym", "sync", pytest.param("same step", marks=needs_modes)])
def test_the_return_is_whole_again_with_the_lives(game: Any, kind: str) -> None:
    gym.register_envs(ale_py)
    inner: Any = game() if kind == "gym" else None
    if inner is None:
        modes = {} if kind == "sync" else {"autoreset_mode": AutoresetMode("SameStep")}
        inner = SyncVectorEnv([game], **modes)
    env: Any = ReturnToGo(inner, 20.0)
    emulator = (inner if kind == "gym" else inner.envs[0]).unwrapped.ale
    env.reset(seed=0)
    actions, n_games, n_lost, expected = actions_of_a_game(), 0, 0, 20.0
    while n_games < 2:
        action = next(actions)
        shown, reward, done, *_ = env.step(action if kind == "gym" else np.array([action]))
        expected -= float(np.ravel(reward)[0])
        if not np.ravel(done)[0]:
            continue
        if kind == "gym":
            assert emulator.lives() == 0
            shown, _ = env.reset()
        elif kind == "sync":
            shown, *_ = env.step(np.zeros(1, dtype=int))
        is_new = emulator.lives() == 5
        expected = 20.0 if is_new else expected
        n_games += is_new
        n_lost += not is_new
        assert np.ravel(shown["return_to_go"])[0] == expected
    assert n_lost == (0 if kind == "gym" else 8)  # it goes on by itself
    env.close()


def test_a_model_of_frames_plays_and_is_scored() -> None:
    """Everything by name: the recipe (made small), the frames, the game as recorded, the score."""
    rng = np.random.default_rng(0)
    data = Trajectories.from_episodes(
        [rng.integers(0, 256, (40, 84, 84), dtype=np.uint8) for _ in range(2)],
        [rng.integers(0, 4, 40) for _ in range(2)],
        [np.ones(40, np.float32), np.zeros(40, np.float32)],
        [True, True],
        [False, False],
        observation_space=gym.spaces.Box(0, 255, (4, 84, 84), np.uint8),
        action_space=gym.spaces.Discrete(4),
        env_id=ATARI_ID,
        env_kwargs={"game": "Breakout", "sticky_actions": 0.0, "max_episode_frames": 60},
        frame_stack=4,
    )
    small: dict[str, Any] = {"hidden_size": 16, "n_layers": 1, "context_length": 4, "batch_size": 4}
    model = DecisionMamba("breakout", seed=0, **small).fit(data, 2)
    report = model.evaluate(n_episodes=2, n_workers=0, deterministic=False)
    assert report.clip_rewards
    assert report.reference is not None
    assert report.results[0].target_return == 90.0
    assert all(length <= 15 for length in report.results[0].lengths)  # 60 frames, as recorded
    venv: Any = model.get_env()
    mean, _ = evaluate_policy(model, venv, n_eval_episodes=1)
    assert np.mean(mean) >= 0.0
    with pytest.raises(DatasetError, match="'Breakout'"):
        DecisionMamba("pong", **small).fit(data, 1)
