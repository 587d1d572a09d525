"""Steps of acting as graphs, played on the CPU."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
import pytest
import torch

from sb3_dmamba.config import DecisionMambaConfig
from sb3_dmamba.errors import BackendError
from sb3_dmamba.networks import DecisionMambaPolicy
from sb3_dmamba.networks.acting_graphs import RECORD_AFTER
from sb3_dmamba.networks.recording import RECORDERS
from tests.models import MIXERS, TINY
from tests.toys import random_trajectories
from tests.training.emulation import Recorder

N_STEPS = 9  # windows of 5 fill


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setitem(RECORDERS, "cpu", recorder)
    monkeypatch.setattr("sb3_dmamba.networks.acting_graphs.RECORD_AFTER", 2)
    return recorder


def make_policy(
    n_actions: int | None = None, observation_shape: tuple[int, ...] = (3,), **settings: Any
) -> DecisionMambaPolicy:
    data = random_trajectories(n_actions=n_actions, observation_shape=observation_shape)
    chosen = {**TINY, "backend": "reference", "context_length": 3, **settings}
    config = DecisionMambaConfig().replace(**chosen)
    torch.manual_seed(0)
    return DecisionMambaPolicy(data.observation_space, data.action_space, config).eval()


def act(policy: DecisionMambaPolicy, memory: str, seed: int = 1) -> np.ndarray:
    """Act in environments of different ages, some of which start anew or end on the way."""
    rng = np.random.default_rng(seed)
    state = policy.initial_state(5, memory)
    actions = []
    for step in range(N_STEPS):
        if step == 3:
            state = state.reset([True, False, False, True, False])
        if step == 6:
            state = state.take([0, 2, 4])
        space, shape = policy.observation_space, (len(state), *policy.observation_space.shape)
        observations: np.ndarray = rng.normal(size=shape).astype("f4")
        if space.dtype == np.uint8:
            observations = rng.integers(0, 256, shape, dtype=np.uint8)
        taken, state = policy.act(observations, np.full(len(state), 3.0 - step, "f4"), state)
        actions.append(taken.reshape(-1))
    return np.concatenate(actions)


@pytest.mark.parametrize("memory", ["window", "stream"])
@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("n_actions", [None, 3])
def test_actions_are_the_plain_ones(
    recorder: Recorder, mixer: str, memory: str, n_actions: int | None
) -> None:
    plain = act(make_policy(n_actions, mixer=mixer, cuda_graph="off"), memory)
    found = act(make_policy(n_actions, mixer=mixer, cuda_graph="on"), memory)
    np.testing.assert_allclose(found, plain, rtol=1e-4, atol=1e-5)
    assert recorder.n_recorded == 2  # 5 rows in 8, 3 in 4
    assert recorder.n_replays > 4


@pytest.mark.parametrize("memory", ["window", "stream"])
def test_actions_on_images_are_the_plain_ones(recorder: Recorder, memory: str) -> None:
    plain = act(make_policy(observation_shape=(1, 36, 36), cuda_graph="off"), memory)
    found = act(make_policy(observation_shape=(1, 36, 36), cuda_graph="on"), memory)
    np.testing.assert_allclose(found, plain, rtol=1e-4, atol=1e-5)
    assert recorder.n_replays > 4


@pytest.mark.parametrize("memory", ["window", "stream"])
def test_weights_that_change_are_seen(recorder: Recorder, memory: str) -> None:
    plain, policy = make_policy(cuda_graph="off"), make_policy(cuda_graph="on")
    act(policy, memory)
    for each in (plain, policy):
        with torch.no_grad():
            for parameter in each.parameters():
                parameter.mul_(1.5)
    n_recorded = recorder.n_recorded
    np.testing.assert_allclose(act(policy, memory), act(plain, memory), rtol=1e-4, atol=1e-5)
    assert recorder.n_recorded == n_recorded  # in place: the same graph
    for each in (plain, policy):
        vector = torch.nn.utils.parameters_to_vector(each.parameters())
        each.load_from_vector(vector.detach().numpy() * 0.5)
    np.testing.assert_allclose(act(policy, memory), act(plain, memory), rtol=1e-4, atol=1e-5)
    assert recorder.n_recorded > n_recorded  # elsewhere: other graphs


@pytest.mark.parametrize("memory", ["window", "stream"])
def test_states_stay_as_they_were(recorder: Recorder, memory: str) -> None:
    policy = make_policy(cuda_graph="on")
    observation, target = np.ones((2, 3), "f4"), np.ones(2, "f4")
    state = policy.initial_state(2, memory)
    for _ in range(4):
        _, state = policy.act(observation, target, state)
    kept = copy.deepcopy(state)
    first, _ = policy.act(observation, target, state)
    policy.act(3.0 * observation, target, state)
    assert all(torch.equal(state.tensors[name], kept.tensors[name]) for name in kept.tensors)
    again, _ = policy.act(observation, target, state)
    np.testing.assert_array_equal(first, again)


def test_rare_sizes_are_not_recorded(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sb3_dmamba.networks.acting_graphs.RECORD_AFTER", RECORD_AFTER)
    policy = make_policy(cuda_graph="on")
    for size in (1, 2, 4, 8):
        policy.act(np.ones((size, 3), "f4"), np.ones(size, "f4"), policy.initial_state(size))
    assert recorder.n_recorded == 0


def test_what_acting_keeps_of_the_weights_is_no_graphs(recorder: Recorder) -> None:
    policy = make_policy(cuda_graph="on")
    act(policy, "stream")
    for block in policy.model.layers:
        assert block.mixer._kept_weights is None


@pytest.mark.parametrize("fault", ["capture", "replay"])
def test_a_wrong_graph_is_not_trusted(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    class Wrong(Recorder):
        def __call__(self, run: Any, device: torch.device) -> Any:
            if fault == "capture":
                raise RuntimeError("operation not permitted when stream is capturing")
            _, results = super().__call__(run, device)
            return lambda: None, results

    monkeypatch.setitem(RECORDERS, "cpu", Wrong())
    monkeypatch.setattr("sb3_dmamba.networks.acting_graphs.RECORD_AFTER", 2)
    plain = act(make_policy(cuda_graph="off"), "stream")
    policy = make_policy(cuda_graph="auto")
    with pytest.warns(UserWarning, match="one by one"):
        np.testing.assert_array_equal(act(policy, "stream"), plain)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(act(policy, "stream"), plain)
    with pytest.raises(BackendError, match='use cuda_graph="auto" or'):
        act(make_policy(cuda_graph="on"), "window")


def test_copies_of_a_policy_act(recorder: Recorder) -> None:
    policy = make_policy(cuda_graph="on")
    expected = act(policy, "window")
    np.testing.assert_allclose(act(copy.deepcopy(policy), "window"), expected, rtol=1e-5)
