"""Roll-outs against episodes worked out one after the other, by hand."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sb3_dmamba.errors import ConfigError, EvaluationError, SpaceError
from sb3_dmamba.evaluation import EvaluationReport, evaluate_targets
from sb3_dmamba.tasks import ReferenceScores
from tests.evaluation.toys import SeededEnv, ToyPolicy, episode_length, expected_episode

TARGETS = [30.0, -5.5, 12.25]
SHARED = SeededEnv()


def evaluate(make_env: Any = SeededEnv, n: int = 7, **options: Any) -> EvaluationReport:
    policy = options.pop("policy", None) or ToyPolicy(SeededEnv())
    return evaluate_targets(policy, make_env, TARGETS, n, **{"n_workers": 0, "seed": 3, **options})


def assert_equal(first: EvaluationReport, second: EvaluationReport) -> None:
    for one, other in zip(first.results, second.results, strict=True):
        assert one.target_return == other.target_return
        np.testing.assert_array_equal(one.returns, other.returns)
        np.testing.assert_array_equal(one.lengths, other.lengths)


def test_returns_lengths_seeds_and_order_are_those_of_single_episodes() -> None:
    for n_envs in (None, 1, 2, 5, 21, 50):
        policy = ToyPolicy(SeededEnv())
        report = evaluate(policy=policy, n_envs=n_envs)
        assert [result.target_return for result in report.results] == TARGETS
        expected = {}
        for result in report.results:
            target = result.target_return
            played = {seed: expected_episode(target, seed) for seed in range(3, 10)}
            assert result.returns.tolist() == [total for total, _ in played.values()]
            assert result.lengths.tolist() == [episode_length(seed) for seed in played]
            expected.update({(target, seed): to_go for seed, (_, to_go) in played.items()})
        shown = sorted(
            (float(seed), float(t), float(to_go))
            for observations, returns_to_go in policy.batches
            for (seed, t), to_go in zip(observations, returns_to_go, strict=True)
        )
        assert shown == sorted(
            (float(seed), float(t), to_go)
            for (_, seed), episode in expected.items()
            for t, to_go in enumerate(episode)
        )


@pytest.mark.parametrize("n_workers", [0, 1])
def test_conditioned_on_clipped_rewards_and_scored_by_whole_ones(n_workers: int) -> None:
    report = evaluate(clip_rewards=True, n=3, n_workers=n_workers)
    for result in report.results:
        expected = [expected_episode(result.target_return, s, clip=True)[0] for s in range(3, 6)]
        np.testing.assert_array_equal(result.returns, expected)
    assert report.clip_rewards
    assert EvaluationReport.from_json(report.to_json()).clip_rewards
    assert "clipped to [-1, 1]" in str(report)
    plain = evaluate(n=3)
    assert any(
        one.returns.tolist() != other.returns.tolist()
        for one, other in zip(report.results, plain.results, strict=True)
    )
    assert "clipped" not in str(plain)


def test_finished_rows_leave_the_batch() -> None:
    policy = ToyPolicy(SeededEnv())
    evaluate(policy=policy)
    sizes = [len(returns_to_go) for _, returns_to_go in policy.batches]
    lengths = [episode_length(seed) for _ in TARGETS for seed in range(3, 10)]
    assert sizes == [sum(length > t for length in lengths) for t in range(max(lengths))]


def test_other_observations_are_flattened_or_kept_as_images() -> None:
    for kind in ("dict", "image"):
        policy = ToyPolicy(SeededEnv(kind))
        report = evaluate(lambda kind=kind: SeededEnv(kind), policy=policy, n_envs=4)
        assert_equal(report, evaluate())


def test_discrete_actions_reach_the_environment_as_integers() -> None:
    policy = ToyPolicy(SeededEnv(actions="discrete"))
    report = evaluate(lambda: SeededEnv(actions="discrete"), policy=policy, n_envs=4)
    for result in report.results:
        expected = [
            expected_episode(result.target_return, s, discrete=True)[0] for s in range(3, 10)
        ]
        np.testing.assert_array_equal(result.returns, expected)


def test_workers_change_nothing() -> None:
    closure = {"kind": "dict"}  # make_env is a closure of a test: only cloudpickle can send it
    policy = ToyPolicy(SeededEnv("dict"))
    in_workers = evaluate(lambda: SeededEnv(closure["kind"]), policy=policy, n_workers=2, n_envs=5)
    assert_equal(in_workers, evaluate())
    assert_equal(evaluate(n=1, n_workers=2, n_envs=1), evaluate(n=1))  # one has nothing to do


class BrokenEnv(SeededEnv):
    """Fails in its second step, in the way asked for."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def step(self, action: Any) -> Any:
        if self.t == 1 and self.how == "exit":
            os._exit(7)
        if self.t == 1 and self.how == "raise":
            raise ArithmeticError("the simulation diverged")
        if self.t == 1 and self.how == "unpicklable":
            error = ArithmeticError("cannot travel")
            error.payload = lambda: 0  # type: ignore[attr-defined]
            raise error
        if self.how == "print":
            print("{hello")  # noqa: T201
        shown, reward, *rest = super().step(action)
        return shown, float("nan") if self.t == 2 and self.how == "nan" else reward, *rest


def test_what_goes_wrong_in_a_worker() -> None:
    with pytest.raises(EvaluationError, match=r"exit status 7.*n_workers=0"):
        evaluate(lambda: BrokenEnv("exit"), n_workers=2)
    with pytest.raises(ArithmeticError, match="diverged") as caught:
        evaluate(lambda: BrokenEnv("raise"), n_workers=2)
    assert "in step" in str(caught.value.__cause__)
    with pytest.raises(EvaluationError, match="cannot travel"):
        evaluate(lambda: BrokenEnv("unpicklable"), n_workers=1)
    assert_equal(evaluate(lambda: BrokenEnv("print"), n_workers=1), evaluate())
    with pytest.raises(ConfigError) as made:
        evaluate(lambda: None, n_workers=1)
    assert made.value.setting == "make_env"
    lock = threading.Lock()
    with pytest.raises(EvaluationError) as refused:
        evaluate(lambda: lock, n_workers=1)
    assert refused.value.setting == "make_env"


def test_a_reward_that_is_not_finite_is_an_error() -> None:
    with pytest.raises(EvaluationError, match=r"at step 1 .*seed 3 and target 30, .*reward=nan"):
        evaluate(lambda: BrokenEnv("nan"))


class Interrupting(ToyPolicy):
    def act(self, *arguments: Any, **options: Any) -> Any:
        if len(self.batches) == 2:
            raise KeyboardInterrupt
        return super().act(*arguments, **options)


@pytest.mark.parametrize("n_workers", [0, 2])
def test_an_interrupted_evaluation_leaves_nothing_behind(n_workers: int) -> None:
    made: list[SeededEnv] = []

    def make_env() -> SeededEnv:
        made.append(SeededEnv())
        return made[-1]

    before = _children()
    with pytest.raises(KeyboardInterrupt):
        evaluate(make_env, policy=Interrupting(SeededEnv()), n_workers=n_workers)
    assert _children() == before
    assert len(made) == (21 if n_workers == 0 else 0)
    assert all(env.is_closed for env in made)


def _children() -> set[str]:
    path = Path(f"/proc/self/task/{os.getpid()}/children")
    return set(path.read_text().split()) if path.exists() else set()


def test_environments_are_closed_when_one_cannot_be_made() -> None:
    made: list[SeededEnv] = []

    def make_env() -> SeededEnv:
        if len(made) == 3:
            raise OSError("no display")
        made.append(SeededEnv())
        return made[-1]

    with pytest.raises(OSError, match="no display"):
        evaluate(make_env)
    assert all(env.is_closed for env in made)


def test_the_report_says_how_it_was_made() -> None:
    progress: list[tuple[int, int]] = []
    policy = ToyPolicy(SeededEnv(), memory="stream")
    reference = ReferenceScores(10.0, 30.0, "by hand")
    report = evaluate(
        policy=policy, reference=reference, on_progress=lambda *counts: progress.append(counts)
    )
    assert (report.memory, report.eval_seed, report.deterministic) == ("stream", 3, True)
    assert report.n_episodes == 7
    assert report.seconds > 0
    first = report.results[0]
    assert first.normalized_score == pytest.approx(100 * (first.mean - 10) / 20)
    assert progress[-1] == (21, 21)
    assert progress == sorted(progress)
    assert evaluate(policy=policy, memory="window").memory == "window"
    assert policy.memories_asked == ["stream", "window"]


def test_episodes_can_be_cut() -> None:
    report = evaluate(max_episode_steps=3)
    for result in report.results:
        expected = [min(3, episode_length(seed)) for seed in range(3, 10)]
        np.testing.assert_array_equal(result.lengths, expected)


def test_drawn_actions_repeat_by_seed_and_leave_the_generator_alone() -> None:
    class Drawing(ToyPolicy):
        def act(self, *arguments: Any, **options: Any) -> Any:
            actions, state = super().act(*arguments, **options)
            drawn = (torch.randint(-4, 5, actions.shape) / 4).numpy().astype(np.float32)
            return drawn, state

    before = torch.random.get_rng_state()
    first = evaluate(policy=Drawing(SeededEnv()), deterministic=False)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(99)
    assert_equal(first, evaluate(policy=Drawing(SeededEnv()), deterministic=False))
    assert not first.deterministic


def test_wrong_arguments() -> None:
    wrong: list[tuple[str, Any]] = [
        *(("n_envs", 0), ("n_workers", -1), ("seed", -1), ("max_episode_steps", 0)),
        *(("make_env", "CartPole-v1"), ("make_env", lambda: None), ("make_env", lambda: SHARED)),
    ]
    for setting, value in wrong:
        with pytest.raises(ConfigError) as caught:
            evaluate(**{setting: value})
        assert caught.value.setting == setting


def test_wrong_targets() -> None:
    targets: Any
    for targets in ([], [1.0, float("nan")], float("inf"), "much", [[1.0]], None):
        with pytest.raises(ConfigError) as caught:
            evaluate_targets(ToyPolicy(SeededEnv()), SeededEnv, targets, 2)
        assert caught.value.setting == "target_returns"
    with pytest.raises(ConfigError) as caught:
        evaluate_targets(ToyPolicy(SeededEnv()), SeededEnv, 1.0, 2.0)  # type: ignore[arg-type]
    assert caught.value.setting == "n_episodes"


def test_spaces_that_are_not_the_policys() -> None:
    for setting, make in (
        ("observation_space", lambda: SeededEnv("dict")),
        ("action_space", lambda: SeededEnv(actions="discrete")),
    ):
        with pytest.raises(SpaceError) as caught:
            evaluate(make)
        assert caught.value.setting == setting
