"""The Atari DQN replay: what is read, what is left out, and what is said of damaged files."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from sb3_dmamba.data import Trajectories, load_trajectories
from sb3_dmamba.data.sources import convert_trajectories, dqn_replay
from sb3_dmamba.data.sources.dopamine import MEMBERS
from sb3_dmamba.errors import ConfigError, DecisionMambaError
from tests.data.builders import assert_same, refusal, unlike
from tests.data.dqn_files import FRAME, Played, Recorder, member_path, write_member

LENGTHS = [5, 9, 1, 14, 3, 8, 12, 6]


def _record(
    folder: Path, lengths: Sequence[int] = LENGTHS, capacity: int = 20, log_at: int = 0
) -> list[Played]:
    recorder = Recorder(folder, capacity, log_at)
    played = [Played.random(length, seed) for seed, length in enumerate(lengths)]
    for episode in played:
        recorder.play(episode)
    return played


def _assert_equal(data: Trajectories, played: Sequence[Played]) -> None:
    assert data.lengths.tolist() == [len(episode.actions) for episode in played]
    for found, expected in zip(data, played, strict=True):
        np.testing.assert_array_equal(found.observations, expected.observations)
        np.testing.assert_array_equal(found.actions, expected.actions)
        np.testing.assert_array_equal(found.rewards, expected.rewards)
        assert (found.terminated, found.truncated) == (expected.terminated, False)


def _cut(episode: Played, start: int, stop: int, terminated: bool = False) -> Played:
    steps = slice(start, stop)
    return Played(
        episode.observations[steps], episode.actions[steps], episode.rewards[steps], terminated
    )


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    return tmp_path / "Breakout" / "1" / "replay_logs"


# Rows: 3 blank + steps each, 82 in all: four files of 20 rows, and 2 rows that never come.
@pytest.mark.parametrize("capacity", [20, 41, 82])
@pytest.mark.parametrize("late_row", [False, True], ids=["whole", "Dopamine's last row"])
def test_every_step_comes_back(logs: Path, capacity: int, late_row: bool) -> None:
    played = _record(logs, capacity=capacity, log_at=capacity - 1 if late_row else 0)
    data = load_trajectories(logs)
    read = 82 // capacity * capacity - late_row
    if capacity == 20 and late_row:
        read = 79
    expected, row = [], 0
    for episode in played:
        row += 3
        there = min(max(read - row, 0), len(episode.actions))
        whole = there == len(episode.actions)
        if there:
            expected.append(_cut(episode, 0, there, terminated=whole))
        row += len(episode.actions)
    _assert_equal(data, expected)


def test_what_it_says_of_itself(logs: Path) -> None:
    _record(logs)
    data = load_trajectories(logs.parents[1])
    assert data.observation_space == spaces.Box(0, 255, (4, *FRAME), np.uint8)
    assert (data.action_space, data.frame_stack) == (spaces.Discrete(4), 4)
    assert data.observations.dtype == np.uint8
    assert data.source == "dqn-replay:Breakout/1 (4 checkpoints, 0 to 3)"
    assert data.env_id == "sb3_dmamba:sb3_dmamba/Atari-v0"
    expected = {"game": "Breakout", "sticky_actions": 0.25, "frame_skip": 4, "frame_stack": 4}
    assert data.env_kwargs == {**expected, "terminal_on_life_loss": False, "noop_max": 30}


def test_settings_beside_the_data(logs: Path) -> None:
    _record(logs)
    info = logs.parent / "info.json"
    info.write_text(json.dumps({"sticky_actions": 0.0, "frame_skip": 3, "else": [1]}))
    kwargs = load_trajectories(logs.parent).env_kwargs
    assert (kwargs["sticky_actions"], kwargs["frame_skip"]) == (0.0, 3)
    for text, expected in (
        ("{", {"said": "as JSON"}),
        ("[]", {"said": "no JSON object"}),
        ('{"frame_skip": "4"}', {"setting": "frame_skip", "value": "4"}),
    ):
        info.write_text(text)
        assert not unlike(text, refusal(logs.parent), {**expected, "path": info})


def test_frames_of_another_shape(logs: Path) -> None:
    played = _record(logs)
    data = load_trajectories(logs, frame_stack=1)
    assert data.observation_space.shape == FRAME
    np.testing.assert_array_equal(data[0].observations, played[0].observations)
    for number in range(4):
        write_member(logs, "observation", number, np.ones((20, 40, 40), np.uint8))
    assert load_trajectories(logs).env_kwargs["screen_size"] == 40


def test_rewards_are_clipped(logs: Path) -> None:
    _record(logs)
    rewards = np.linspace(-4, 4, 20)
    rewards[[0, 1, 2, 8, 9, 10]] = 0  # blank rows
    write_member(logs, "reward", 0, rewards)
    data = load_trajectories(logs, checkpoints=[0])
    assert data.rewards.dtype == np.float32
    rows = np.r_[3:8, 11:20]
    np.testing.assert_allclose(data.rewards, np.clip(rewards, -1, 1)[rows], rtol=1e-6)


@pytest.mark.parametrize("capacity", [24, 13], ids=["one file", "cut within the blank rows"])
def test_black_screens_are_steps(logs: Path, capacity: int) -> None:
    """Only the three rows before an episode are left out: the game may show nothing."""
    episode = Played.random(9, 0)
    for array in (episode.observations, episode.actions, episode.rewards):
        array[:2] = 0
        array[4:8] = 0
    recorder = Recorder(logs, capacity)
    for _ in range(3):
        recorder.play(episode)
    _assert_equal(load_trajectories(logs), [episode, episode])


class TestEpisodesThatStraddleFiles:
    """Rows 27 to 40 are episode 3 and 40 begins file 2; the padding of episode 6 is 58 to 60."""

    def test_without_the_file_before(self, logs: Path) -> None:
        played = _record(logs)
        _assert_equal(load_trajectories(logs, checkpoints=[2]), [played[4], played[5]])
        kept = load_trajectories(logs, checkpoints=[2], keep_headless=True)
        tail = _cut(played[3], 13, 14, terminated=True)
        _assert_equal(kept, [tail, played[4], played[5]])

    def test_across_a_file_that_is_not_there(self, logs: Path) -> None:
        played = _record(logs)
        data = load_trajectories(logs, checkpoints=[1, 3])
        # File 3 begins with the last blank row of episode 6's, so its beginning is there.
        _assert_equal(data, [played[2], _cut(played[3], 0, 13), played[6], _cut(played[7], 0, 4)])
        assert data.cut.tolist() == [False, True, False, True]

    def test_without_counters(self, logs: Path) -> None:
        played = _record(logs)
        for path in logs.glob("add_count*"):
            path.unlink()
        _assert_equal(load_trajectories(logs), [*played[:7], _cut(played[7], 0, 4)])
        _assert_equal(load_trajectories(logs, checkpoints=[0], n_steps=9), played[:2])

    def test_a_file_that_adds_nothing(self, logs: Path) -> None:
        recorder = Recorder(logs, 20, log_at=-1)
        played = [Played.random(length, seed) for seed, length in enumerate([9, 14])]
        recorder.play(played[0])
        recorder.write()
        recorder.write()  # with the same counter
        recorder.play(played[1])
        recorder.write()
        recorder.write()
        _assert_equal(load_trajectories(logs), played)

    def test_a_replay_that_was_begun_again(self, logs: Path) -> None:
        first, second = Played.random(9, 0), Played.random(7, 1)
        for number, episode in enumerate((first, second)):
            recorder = Recorder(logs, 20, log_at=-1, number=number)
            recorder.play(episode)
            recorder.write()
        error = refusal(logs)
        assert (error.path, error.setting, error.value) == (str(logs), "checkpoints", (0, 1))
        _assert_equal(load_trajectories(logs, checkpoints=[0]), [first])
        _assert_equal(load_trajectories(logs, checkpoints=[1]), [second])

    def test_rows_that_no_file_has(self, logs: Path) -> None:
        recorder = Recorder(logs, 10, log_at=-1)
        played = [Played.random(length, seed) for seed, length in enumerate([4, 30])]
        for episode in played:
            recorder.play(episode)
            recorder.write()  # the last ten rows of the long one are in its file
        _assert_equal(load_trajectories(logs), [played[0]])
        tail = _cut(played[1], 20, 30, terminated=True)
        _assert_equal(load_trajectories(logs, keep_headless=True), [played[0], tail])


class TestRecipe:
    def test_visits(self, logs: Path) -> None:
        """Each visit takes the next whole episodes of a file; halves are left out."""
        recorder = Recorder(logs, 100)
        played = [Played.random(7 + seed % 3, seed) for seed in range(60)]
        for episode in played:
            recorder.play(episode)
        assert recorder.number == 6
        inside: dict[int, list[Played]] = {number: [] for number in range(6)}
        row = 0
        for episode in played:
            first, row = row, row + 3 + len(episode.actions)
            # Without a blank row before it, nobody can tell that an episode begins with a file.
            if (first + 2) // 100 == (row - 1) // 100 and row <= 600:
                inside[(first + 2) // 100].append(episode)
        data = load_trajectories(logs, n_buffers=4, trajectories_per_buffer=2, n_steps=100, seed=7)
        order = np.random.RandomState(7)
        expected: list[Played] = []
        queues = {number: list(inside[number]) for number in (2, 3, 4, 5)}
        while sum(len(episode.actions) for episode in expected) < 100:
            queue = queues[int(order.choice(np.arange(2, 6), 1)[0])]
            expected += [queue.pop(0) for _ in range(min(2, len(queue)))]
        _assert_equal(data, expected)
        assert 100 <= data.n_steps < 100 + 2 * 9
        name = f"dqn-replay:Breakout/1 (4 checkpoints, 2 to 5, {data.n_steps} steps, seed 7)"
        assert data.n_steps != 100  # which was asked for
        assert data.source == name

    def test_only_what_is_needed_is_read(self, logs: Path) -> None:
        """The end of the files may be missing, where the recipe never comes there."""
        played = _record(logs, [60] * 40, capacity=1000)
        for number in (0, 1):
            path = member_path(logs, "observation", number)
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        data = load_trajectories(logs, trajectories_per_buffer=1, n_steps=100)
        assert {len(episode) for episode in data} == {60}
        found = [episode.observations.tobytes() for episode in data]
        assert set(found) <= {episode.observations.tobytes() for episode in played}

    def test_a_last_row_that_is_older_than_the_first(self, logs: Path) -> None:
        """In file order: what is behind the newest row belongs to the pass before."""
        recorder = Recorder(logs, 20, log_at=14)
        played = [Played.random(6, seed) for seed in range(8)]  # rows 9 k + 3 to 9 k + 8
        for episode in played:
            recorder.play(episode)
        # File 1 has rows 20 to 33 and behind them 14 to 19: the end of one episode must not become
        # that of another.
        data = load_trajectories(logs, checkpoints=[1], n_steps=6, trajectories_per_buffer=9)
        _assert_equal(data, [played[2]])
        assert "have 6 steps" in str(refusal(logs, checkpoints=[1], n_steps=7))

    def test_too_few_steps(self, logs: Path) -> None:
        _record(logs)
        for n_steps, found in ((81, "80 rows"), (70, "38 steps in whole episodes")):
            error = refusal(logs, n_steps=n_steps)
            assert not unlike(n_steps, error, {"setting": "n_steps", "said": found})

    def test_bad_numbers(self, logs: Path) -> None:
        _record(logs)
        options: dict[str, Any] = {
            "n_steps": 0,
            "n_buffers": True,
            "seed": None,
            "frame_stack": 2.0,
            "trajectories_per_buffer": 3,  # without n_steps
        }
        for name, value in options.items():
            error = refusal(logs, ConfigError, **{name: value})
            assert (error.setting, error.value) == (name, value)


class TestWhereItGoes:
    def test_into_a_store(self, logs: Path, tmp_path: Path) -> None:
        _record(logs)
        in_memory = load_trajectories(logs)
        for data in (
            load_trajectories(logs, store=tmp_path / "s"),
            load_trajectories(tmp_path / "s"),
        ):
            assert isinstance(data.observations, np.memmap)
            assert_same(data, in_memory)
        refusal(logs, store=tmp_path / "s")
        again = convert_trajectories(logs, tmp_path / "s", overwrite=True, checkpoints=[0])
        assert again.n_steps < in_memory.n_steps


def _with(array: np.ndarray) -> Callable[[Path], None]:
    def replace(path: Path) -> None:
        with gzip.open(path, "wb") as file:
            np.save(file, array)

    return replace


def _edit(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(change(path.read_bytes()))


DAMAGE: list[tuple[str, Callable[[Path], object], dict[str, Any]]] = [
    *((member, Path.unlink, {"setting": "checkpoints"}) for member in MEMBERS),
    ("observation", _edit(lambda whole: whole[:-12]), {"said": "gzip is cut or damaged after row"}),
    ("action", _edit(lambda whole: whole[:-12]), {"said": "gzip is cut or damaged"}),
    ("observation", _edit(lambda whole: whole[:-6] + b"?" + whole[-5:]), {"said": "after row 20"}),
    ("reward", _edit(lambda whole: b""), {"said": "not an array"}),
    ("terminal", _edit(lambda whole: b"hello" * 9), {"said": "gzip is cut or damaged"}),
    ("terminal", _edit(lambda whole: gzip.compress(b"hello")), {"said": "not an array as np.save"}),
    ("observation", _edit(lambda whole: whole + gzip.compress(b"more")), {"said": "goes on after"}),
    ("observation", _with(np.ones((20, *FRAME), np.float32)), {"said": "uint8, got float32"}),
    ("action", _with(np.zeros(20)), {"said": "expected integer or unsigned, got float64"}),
    ("reward", _with(np.array([{}] * 20, dtype=object)), {"said": "got object"}),
    ("observation", _with(np.ones((20, 30), np.uint8)), {"value": (20, 30)}),
    ("reward", _with(np.ones((20, 1))), {"value": (20, 1)}),
    ("observation", _with(np.ones((20, *FRAME), np.uint8, order="F")), {"said": "Fortran order"}),
    ("observation", _with(np.ones((20, 3, 3), np.uint8)), {"value": (3, 3), "choices": (FRAME,)}),
    ("action", _with(np.full(20, 4)), {"index": 0, "value": 4}),
    ("reward", _with(np.where(np.arange(20) == 7, np.nan, 0)), {"index": 7, "value": np.nan}),
    ("terminal", _with(np.full(20, 2, np.uint8)), {"index": 0, "value": 2}),
]


class TestDamage:
    def test_names_the_file(self, logs: Path) -> None:
        wrong = []
        for number, (member, damage, expected) in enumerate(DAMAGE):
            _record(logs)
            path = member_path(logs, member, 1)
            damage(path)
            wrong += unlike(f"{number}: {member}", refusal(logs), {**expected, "path": path})
        assert not wrong, "\n".join(wrong)

    def test_lengths_that_differ(self, logs: Path) -> None:
        _record(logs)
        _with(np.zeros(19))(member_path(logs, "reward", 2))
        said = "observation 20, action 20, reward 19, terminal 20"
        assert not unlike("lengths", refusal(logs), {"path": logs, "said": said})

    def test_fewer_rows_than_promised(self, logs: Path) -> None:
        _record(logs)
        path = member_path(logs, "observation", 0)
        path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-45]))
        assert not unlike("rows", refusal(logs), {"path": path, "said": "it has less"})

    def test_a_header_that_would_fill_the_memory(self, logs: Path) -> None:
        _record(logs)
        path = member_path(logs, "action", 0)
        content = gzip.decompress(path.read_bytes())
        path.write_bytes(gzip.compress(content.replace(b"(20,)", b"(10**12,)"[:5])))
        assert not unlike("no number", refusal(logs), {"path": path, "said": "not an array"})
        huge = content.replace(b"(20,), }            ", b"(20000000000000,), }")
        assert huge != content
        path.write_bytes(gzip.compress(huge))
        assert not unlike("huge", refusal(logs), {"path": path, "said": "holds as many"})

    def test_a_checksum_behind_rows_that_are_not_read(self, logs: Path) -> None:
        _record(logs, LENGTHS[:2], capacity=25, log_at=20)
        path = member_path(logs, "observation", 0)
        whole = bytearray(path.read_bytes())
        whole[-8] ^= 1
        path.write_bytes(whole)
        assert not unlike("checksum", refusal(logs), {"path": path, "said": "CRC"})

    def test_no_end_anywhere(self, logs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        _record(logs)
        monkeypatch.setattr(dqn_replay, "_LONGEST_EPISODE", 30)
        for number in range(4):
            _with(np.zeros(20, np.uint8))(member_path(logs, "terminal", number))
        assert "no episode ends in" in str(refusal(logs))

    def test_a_counter_that_is_none(self, logs: Path) -> None:
        _record(logs)
        path = logs / "add_count_ckpt.0.gz"
        for content in (np.zeros(3, np.int64), np.array(1.5)):
            _with(content)(path)
            assert refusal(logs).path == str(path)


class TestWhere:
    def test_runs(self, tmp_path: Path) -> None:
        lengths = {1: [4, 9], 2: [6, 7], 3: [3, 10]}
        for run, each in lengths.items():
            _record(tmp_path / "pong" / str(run) / "replay_logs", each, capacity=19)
        game = tmp_path / "pong"
        assert load_trajectories(game).lengths.tolist() == [4, 9]
        assert load_trajectories(game, run=3).lengths.tolist() == [3, 10]
        error = refusal(game, run=4)
        assert (error.setting, error.value, error.choices) == ("run", 4, (1, 2, 3))
        for folder in (game / "1", game / "1" / "replay_logs"):
            assert load_trajectories(folder, run=1).lengths.tolist() == [4, 9]
            assert refusal(folder, run=2).value == 2

    def test_a_game_that_the_folder_does_not_tell(self, tmp_path: Path) -> None:
        _record(tmp_path / "breakoud")
        assert "Breakout" in str(refusal(tmp_path / "breakoud", DecisionMambaError))
        data = load_trajectories(tmp_path / "breakoud", game="space_invaders")
        assert (data.env_kwargs["game"], data.action_space) == ("SpaceInvaders", spaces.Discrete(6))
        assert data.source.startswith("dqn-replay:SpaceInvaders (4 checkpoints")

    def test_checkpoints_that_are_not_there(self, logs: Path) -> None:
        _record(logs)
        error = refusal(logs, checkpoints=[9])
        assert (error.setting, error.value, error.choices) == ("checkpoints", [9], (0, 1, 2, 3))
        assert refusal(logs, n_buffers=5).setting == "n_buffers"


class TestSharedReplay:
    """The recorded replay, against the table of episodes beside it."""

    def test_every_episode(self, shared_data: Path) -> None:
        data = load_trajectories(shared_data / "dqn-replay" / "Breakout")
        info = shared_data / "dqn-replay" / "Breakout" / "1" / "info.json"
        table: list[dict[str, Any]] = json.loads(info.read_text())["episodes"]
        assert data.lengths.tolist() == [episode["steps"] for episode in table]
        assert data.returns.tolist() == [episode["return_clipped"] for episode in table]
        assert data.terminated.tolist() == [episode["complete"] for episode in table]
        assert data.env_kwargs["sticky_actions"] == 0.0
        assert data.observations[data.episode_offsets[:-1]].any(axis=(1, 2)).all()
