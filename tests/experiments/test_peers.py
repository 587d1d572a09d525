"""Peers: trained by d3rlpy, evaluated as Decision Mamba is, beside it in one experiment."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from sb3_dmamba.data.trajectories import Trajectories
from sb3_dmamba.errors import ConfigError, SpaceError
from sb3_dmamba.experiments import report
from sb3_dmamba.experiments.catalogue import D3RLPY_TRANSFORMER, Variant, get_experiment
from sb3_dmamba.experiments.grid import execute_run
from sb3_dmamba.experiments.models import measure_update_seconds
from sb3_dmamba.experiments.plan import Plan
from sb3_dmamba.experiments.runs import Run
from tests.experiments.toys import TINY, TOY, cartpole_data, changed, toy_plan

pytest.importorskip("d3rlpy", reason="the d3rlpy extra is not installed")
peers = pytest.importorskip("sb3_dmamba.experiments.peers")

TARGETS = (-60.0, -20.0)
UNITS = {"type": "vector", "params": {"hidden_units": [8]}}
VARIANTS = {
    "ours": Variant(TINY),
    "BC": Variant({"batch_size": 8, "encoder_factory": UNITS}, algorithm="d3rlpy:BC"),
    "DT": Variant(
        {
            "batch_size": 4,
            "context_size": 3,
            "max_timestep": 10,
            "encoder_factory": UNITS,
            "observation_scaler": {"type": "standard", "params": {}},
            "reward_scaler": {"type": "multiply", "params": {"multiplier": 0.1}},
        },
        algorithm=D3RLPY_TRANSFORMER,
    ),
}


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    from tests.d3rlpy.cases import seeded

    with seeded(0):
        yield


def pendulum_data() -> Trajectories:
    """Noise in Pendulum's shape, whose actions reach from -2 to 2."""
    rng, env = np.random.default_rng(0), gym.make("Pendulum-v1")
    return Trajectories(
        observations=rng.normal(size=(40, 3)).astype(np.float32),
        actions=rng.uniform(-2, 2, size=(40, 1)).astype(np.float32),
        rewards=-rng.uniform(0, 10, size=40).astype(np.float32),
        terminated=np.zeros(4, dtype=bool),
        truncated=np.ones(4, dtype=bool),
        episode_offsets=np.arange(0, 41, 10),
        observation_space=env.observation_space,  # type: ignore[arg-type]
        action_space=env.action_space,  # type: ignore[arg-type]
        env_id="Pendulum-v1",
        source="toy",
    )


def plan_peers(folder: Path, *variants: str, **request: Any) -> Plan:
    if not (folder / "data").exists():
        pendulum_data().save(folder / "data")
    how = {"target_returns": TARGETS, "n_updates": 7, "evaluations": 2, "seeds": (3,), **request}
    experiment = changed(TOY, variants=VARIANTS, settings={}, memories=("window",))
    return toy_plan(folder, experiment, variants=variants, max_episode_steps=8, **how)


def trained(run: Run) -> Any:
    peer = peers.Peer(run, "cpu")
    peer.fit(pendulum_data(), lambda: None)
    return peer


def test_peers_stand_beside_ours_in_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "_PLOTS", {"learning": report._plot_learning})
    plan = plan_peers(tmp_path)
    for planned in plan.runs:
        execute_run(planned.folder.path, "cpu")
    ours, cloned, transformer = (planned.folder.read_result() for planned in plan.runs)
    memories = [{each.memory for each in r.evaluations} for r in (ours, cloned, transformer)]
    assert memories == [{"window"}, {"none"}, {"window"}]
    for result in (cloned, transformer):
        assert [each.update for each in result.evaluations] == [4, 4, 7, 7]
        assert [each.target_return for each in result.evaluations] == [*TARGETS, *TARGETS]
        assert {len(each.returns) for each in result.evaluations} == {3}
        assert result.n_parameters > 0
    for first, second in np.array([each.returns for each in cloned.evaluations]).reshape(2, 2, 3):
        assert first.tolist() == second.tolist()  # it cannot be asked
    (session,) = json.loads(plan.runs[1].folder.machine.read_text())
    assert session["updates"] == 7
    (path, *_) = report.write_report(plan, tmp_path / "out", "dmamba experiment toy")
    text = path.read_text()
    assert "`d3rlpy:BC`, batch_size=8" in text
    assert "| BC | none |" in text
    assert (tmp_path / "out" / "learning-data.png").exists()


def test_an_interrupted_peer_begins_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (whole,), (broken,) = (plan_peers(tmp_path / n, "BC").runs for n in ("whole", "broken"))
    execute_run(whole.folder.path, "cpu")
    evaluate = peers.Peer.evaluate

    def fail(self: Any, *args: Any, **how: Any) -> Any:
        if self.num_timesteps == 7:
            raise KeyboardInterrupt
        return evaluate(self, *args, **how)

    with monkeypatch.context() as patch:
        patch.setattr(peers.Peer, "evaluate", fail)
        with pytest.raises(KeyboardInterrupt):
            execute_run(broken.folder.path, "cpu")
    assert list(broken.folder.evaluations.iterdir())
    execute_run(broken.folder.path, "cpu")
    assert broken.folder.result.read_bytes() == whole.folder.result.read_bytes()
    assert len(json.loads(broken.folder.machine.read_text())) == 1


def test_the_transformer_acts_in_a_batch_as_d3rlpy_s_wrapper_does_alone(tmp_path: Path) -> None:
    peer = trained(plan_peers(tmp_path, "DT").runs[0].run)
    rng = np.random.default_rng(0)
    wrappers = [peer.algo.as_stateful_wrapper(target_return=target) for target in TARGETS]
    state, remaining, rewards = peer.initial_state(2), np.array(TARGETS), np.zeros(2)
    for step in range(13):  # beyond the context of 3 and the timesteps of 10
        if step == 5:  # the second episode ends, and another begins
            state = state.reset(np.array([False, True]))
            wrappers[1].reset()
            remaining[1], rewards[1] = TARGETS[1], 0.0
        shown = rng.normal(size=(2, 3)).astype(np.float32)
        expected = [w.predict(x, r) for w, x, r in zip(wrappers, shown, rewards, strict=True)]
        actions, state = peer.act(shown, remaining.astype(np.float32), state)
        np.testing.assert_allclose(actions, expected, rtol=1e-4, atol=1e-5)
        rewards = rng.uniform(-5, 0, size=2)
        remaining = remaining - rewards
    assert np.ptp(state.take([1]).lengths) == 0
    assert state.lengths.tolist() == [13, 8]


def test_actions_fill_the_space(tmp_path: Path) -> None:
    peer = trained(plan_peers(tmp_path, "BC").runs[0].run)
    scaler = peer.algo.config.action_scaler
    assert (scaler.minimum.tolist(), scaler.maximum.tolist()) == ([-2.0], [2.0])


def test_an_update_of_either_kind_can_be_measured(tmp_path: Path) -> None:
    for planned in plan_peers(tmp_path, "ours", "BC").runs:
        assert 0.0 < measure_update_seconds(planned.run) < 10.0


def test_what_is_no_peer_is_refused(tmp_path: Path) -> None:
    run = plan_peers(tmp_path, "BC").runs[0].run
    mistakes: dict[str, dict[str, Any]] = {
        "algorithm": {"algorithm": "d3rlpy:XYZ"},
        "sise": {"algorithm_settings": {"sise": 1}},
    }
    for setting, changes in mistakes.items():
        with pytest.raises(ConfigError) as caught:
            peers.Peer(changed(run, **changes), "cpu")
        assert caught.value.setting == setting
    with pytest.raises(SpaceError) as refused:
        peers.Peer(run, "cpu").fit(cartpole_data(), lambda: None)
    assert refused.value.setting == "action_space"


def test_every_peer_of_the_catalogue_can_be_made(tmp_path: Path) -> None:
    run = plan_peers(tmp_path, "BC").runs[0].run
    experiment: Any = get_experiment("peers")
    found = [each for each in experiment.variants.values() if each.algorithm]
    assert len(found) == 6
    for each in found:
        relative = each.relative(run.config) if each.relative else {}
        settings = {**each.settings, **relative}
        peer = trained(changed(run, algorithm=each.algorithm, algorithm_settings=settings))
        assert peer.num_timesteps == 7
        assert peer.is_conditioned == (each.algorithm == D3RLPY_TRANSFORMER)
