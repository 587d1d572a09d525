"""Acting step by step against the model over whole sequences; states and their rows."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from sb3_dmamba.config import DecisionMambaConfig, Memory
from sb3_dmamba.errors import ConditioningError, ConfigError, SpaceError
from sb3_dmamba.networks import ActingState, DecisionMambaPolicy
from sb3_dmamba.networks.model import Modulation
from tests.models import MIXERS
from tests.toys import random_trajectories

K = 5
CONFIG = DecisionMambaConfig(hidden_size=16, n_layers=2, context_length=K, d_state=4, n_heads=2)
T = 12  # longer than the window


class Perceptron(BaseFeaturesExtractor):
    """A features extractor whose result is not a linear function of the observation."""

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, 6)
        self.layers = nn.Sequential(nn.Linear(3, 6), nn.Tanh())

    def forward(self, observations: Tensor) -> Tensor:
        features: Tensor = self.layers(observations)
        return features


ENCODERS: dict[str, dict[str, Any]] = {
    "linear": {},
    "nature_cnn": {"observation_shape": (2, 36, 36)},
    "extractor": {"policy_kwargs": {"features_extractor_class": Perceptron}},
}


def make_policy(
    n_actions: int | None = None,
    observation_shape: tuple[int, ...] = (3,),
    policy_kwargs: dict[str, Any] | None = None,
    **overrides: Any,
) -> DecisionMambaPolicy:
    data = random_trajectories(n_actions=n_actions, observation_shape=observation_shape)
    torch.manual_seed(0)
    policy = DecisionMambaPolicy(
        data.observation_space,
        data.action_space,
        CONFIG.replace(**overrides),
        **(policy_kwargs or {}),
    )
    for module in policy.modules():
        if isinstance(module, Modulation):  # which start without effect
            nn.init.normal_(module.projection.weight, std=0.3)
    policy.set_training_mode(False)
    return policy


def run(
    policy: DecisionMambaPolicy,
    memory: Memory,
    observations: np.ndarray,
    returns_to_go: np.ndarray,
    n_steps: int = T,
) -> np.ndarray:
    """Act along recorded observations; return the actions, (T, n, ...)."""
    state = policy.initial_state(observations.shape[1], memory)
    actions = []
    for step in range(n_steps):
        action, state = policy.act(observations[step], returns_to_go[step], state)
        actions.append(action)
    return np.stack(actions)


def recorded(n_envs: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    observations = rng.normal(size=(T, n_envs, 3)).astype(np.float32)
    return observations, 1000.0 * rng.normal(size=(T, n_envs)).astype(np.float32)


def recorded_for(policy: DecisionMambaPolicy, n_envs: int) -> tuple[np.ndarray, np.ndarray]:
    """As :func:`recorded`, with images where the policy sees images."""
    observations, returns_to_go = recorded(n_envs)
    if policy.flat_space.dtype == np.uint8:
        shape = (T, n_envs, *policy.flat_space.shape)
        observations = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return observations, returns_to_go


def predict_window(
    policy: DecisionMambaPolicy,
    observations: np.ndarray,
    returns_to_go: np.ndarray,
    actions: np.ndarray,
    first: int,
    last: int,
) -> np.ndarray:
    """Run the model over steps first..last at once; return the prediction at the last one."""
    window = slice(first, last + 1)
    n_envs = observations.shape[1]
    with torch.no_grad():
        prediction = policy.model(
            torch.as_tensor(observations[window]).transpose(0, 1),
            torch.as_tensor(actions[window]).transpose(0, 1),
            torch.as_tensor(returns_to_go[window]).transpose(0, 1),
            torch.arange(first, last + 1).repeat(n_envs, 1),
        )[:, -1]
        return np.asarray(policy.model.head.act(prediction, deterministic=True))


@pytest.mark.parametrize(
    "settings",
    [
        *({"mixer": mixer} for mixer in MIXERS),
        *({"mixer": mixer, "conditioning": "decoupled"} for mixer in MIXERS),
        *({**encoder, "time_encoding": "global"} for encoder in ENCODERS.values()),
        *({"n_actions": 4, "mixer": mixer} for mixer in MIXERS),
    ],
    ids=str,
)
def test_window_equals_reencoding_the_last_steps(settings: dict[str, Any]) -> None:
    policy = make_policy(**settings)
    observations, returns_to_go = recorded_for(policy, 3)
    actions = run(policy, "window", observations, returns_to_go)
    for step in range(T):
        first = max(0, step - K + 1)
        expected = predict_window(policy, observations, returns_to_go, actions, first, step)
        np.testing.assert_allclose(actions[step], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("conditioning", ["sequence", "decoupled"])
@pytest.mark.parametrize("mixer", ["mamba", "convolution"])
def test_stream_equals_the_model_over_the_whole_episode(mixer: str, conditioning: str) -> None:
    policy = make_policy(mixer=mixer, conditioning=conditioning)
    observations, returns_to_go = recorded(3)
    actions = run(policy, "stream", observations, returns_to_go)
    for step in range(T):
        expected = predict_window(policy, observations, returns_to_go, actions, 0, step)
        np.testing.assert_allclose(actions[step], expected, rtol=1e-4, atol=1e-5)


def test_stream_of_attention_equals_the_model_while_nothing_is_forgotten() -> None:
    policy = make_policy(mixer="attention")
    observations, returns_to_go = recorded(3)
    actions = run(policy, "stream", observations, returns_to_go)
    for step in range(K):
        expected = predict_window(policy, observations, returns_to_go, actions, 0, step)
        np.testing.assert_allclose(actions[step], expected, rtol=1e-4, atol=1e-5)
    window = run(policy, "window", observations, returns_to_go)
    assert np.abs(actions[K + 1 :] - window[K + 1 :]).max() > 1e-4  # after which the two differ


@pytest.mark.parametrize(
    ("memory", "settings"),
    [
        *((memory, {"mixer": mixer}) for memory in ("window", "stream") for mixer in MIXERS),
        ("window", {"time_encoding": "global"}),
        ("window", ENCODERS["nature_cnn"]),
        ("window", ENCODERS["extractor"]),
    ],
)
def test_environments_of_different_ages_do_not_disturb_each_other(
    memory: Memory, settings: dict[str, Any]
) -> None:
    policy = make_policy(**settings)
    observations, returns_to_go = recorded_for(policy, 3)
    alone = run(policy, memory, observations, returns_to_go)
    # The middle environment starts a new episode at step 4, the others go on.
    state = policy.initial_state(3, memory)
    for step in range(T):
        state = state.reset([False, step == 4, False])
        age = np.array([step, step - 4 if step >= 4 else step, step])
        rows = np.arange(3)
        action, state = policy.act(observations[age, rows], returns_to_go[age, rows], state)
        np.testing.assert_allclose(action, alone[age, rows], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("memory", ["window", "stream"])
def test_states_are_dropped_reordered_joined_and_pickled(memory: Memory, mixer: str) -> None:
    policy = make_policy(mixer=mixer)
    observations, returns_to_go = recorded(3)
    alone = run(policy, memory, observations, returns_to_go)
    state = policy.initial_state(3, memory)
    for step in range(7):
        _, state = policy.act(observations[step], returns_to_go[step], state)
    order = [2, 0]
    parts = [state.take([2]), pickle.loads(pickle.dumps(state.take([0])))]
    state = ActingState.concatenate(parts)
    for step in range(7, T):
        action, state = policy.act(observations[step, order], returns_to_go[step, order], state)
        np.testing.assert_allclose(action, alone[step, order], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("memory", ["window", "stream"])
def test_acting_leaves_the_given_state_alone(memory: Memory, mixer: str) -> None:
    policy = make_policy(mixer=mixer)
    observations, returns_to_go = recorded(2)
    state = policy.initial_state(2, memory)
    for step in range(K + 2):
        first, after = policy.act(observations[step], returns_to_go[step], state)
        second, _ = policy.act(observations[step], returns_to_go[step], state)
        np.testing.assert_array_equal(first, second)
        sizes = [{name: t.shape for name, t in each.tensors.items()} for each in (state, after)]
        assert sizes[0] == sizes[1]  # however long the episode is
        state = after


def test_predict_speaks_stable_baselines3s_protocol() -> None:
    policy = make_policy()
    observations, returns_to_go = recorded(2)
    expected = run(policy, "window", observations, returns_to_go, 4)
    state = None
    for step in range(4):
        seen = {"observation": observations[step], "return_to_go": returns_to_go[step][:, None]}
        start = np.array([step == 0] * 2)
        action, state = policy.predict(seen, state, episode_start=start)
        np.testing.assert_allclose(action, expected[step], rtol=1e-5, atol=1e-6)
    again, _ = policy.predict(
        {"observation": observations[0], "return_to_go": returns_to_go[0]}, state, np.ones(2, bool)
    )
    np.testing.assert_allclose(again, expected[0], rtol=1e-5, atol=1e-6)
    single, _ = policy.predict(
        {"observation": observations[0, 0], "return_to_go": returns_to_go[0, :1]}
    )
    np.testing.assert_allclose(single, expected[0, 0], rtol=1e-5, atol=1e-6)


def test_actions_stay_in_the_space_and_may_start_anywhere() -> None:
    box = spaces.Box(np.array([-2.0, 0.5], np.float32), np.array([-1.0, 0.75], np.float32))
    observed = spaces.Box(-1.0, 1.0, (3,), np.float32)
    policy = DecisionMambaPolicy(observed, box, CONFIG)
    observations, returns_to_go = recorded(2)
    for action in run(policy, "window", observations, returns_to_go).reshape(-1, 2):
        assert box.contains(action)
    discrete = spaces.Discrete(3, start=5)
    policy = DecisionMambaPolicy(observed, discrete, CONFIG)
    chosen = run(policy, "stream", observations, returns_to_go)
    assert chosen.dtype == np.int64
    assert all(discrete.contains(action) for action in chosen.ravel())


def test_a_plain_observation_is_refused_with_the_line_to_write() -> None:
    policy = make_policy()
    with pytest.raises(ConditioningError, match=r"ReturnToGo\(env, target_return\)"):
        policy.predict(np.zeros(3, np.float32))
    with pytest.raises(ConditioningError, match="1 returns-to-go"):
        policy.predict({"observation": np.zeros((2, 3), np.float32), "return_to_go": np.ones(1)})
    seen: dict[str, np.ndarray] = {
        "observation": np.zeros((2, 3), np.float32),
        "return_to_go": np.ones(2),
    }
    of_three = policy.initial_state(3)
    with pytest.raises(ConditioningError, match="state holds 3 environments"):
        policy.predict(seen, of_three)
    with pytest.raises(SpaceError, match=r"\(1, 4\).*\(1, 3\)"):
        policy.predict({"observation": np.zeros((1, 4), np.float32), "return_to_go": np.ones(1)})
    with pytest.raises(ConfigError, match="memory='forever'"):
        policy.initial_state(1, "forever")
    globally_timed = make_policy(time_encoding="global")
    with pytest.raises(ConfigError, match='memory="window"'):
        globally_timed.initial_state(1, "stream")


@pytest.mark.parametrize("memory", ["window", "stream"])
def test_acting_follows_the_weights_as_they_change(memory: Memory) -> None:
    policy = make_policy()
    observations, returns_to_go = recorded(2)
    old = policy.initial_state(2, memory)
    for step in range(2):
        _, old = policy.act(observations[step], returns_to_go[step], old)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    fresh = make_policy()
    fresh.load_state_dict(policy.state_dict())
    expected = run(fresh, memory, observations, returns_to_go, 4)
    np.testing.assert_array_equal(run(policy, memory, observations, returns_to_go, 4), expected)
    # A state is of the weights it was made with; an episode that starts needs none of it.
    again, _ = policy.act(observations[0], returns_to_go[0], old.reset([True, True]))
    np.testing.assert_array_equal(again, expected[0])
    copied = copy.deepcopy(policy)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.zero_()
    np.testing.assert_array_equal(run(copied, memory, observations, returns_to_go, 4), expected)


@pytest.mark.parametrize("n_actions", [None, 4])
@pytest.mark.parametrize("memory", ["window", "stream"])
def test_the_action_taken_is_remembered(memory: Memory, n_actions: int | None) -> None:
    policy = make_policy(n_actions)
    observations, returns_to_go = recorded(2)
    action, state = policy.act(observations[0], returns_to_go[0], policy.initial_state(2, memory))
    chosen = action.copy()
    other = -chosen if n_actions is None else (chosen + 1) % n_actions
    action *= 3  # the caller's array is none of the state's
    changed = state.with_action(other)
    assert changed.tensors["action"].tolist() == other.tolist()
    assert state.tensors["action"].tolist() == chosen.tolist()
    predictions = []
    hook = policy.model.head.register_forward_hook(lambda *args: predictions.append(args[-1]))
    for each in (state, changed):
        policy.act(observations[1], returns_to_go[1], each)
    hook.remove()
    assert (predictions[0] - predictions[1]).abs().max() > 1e-4


def test_actions_of_another_number_or_size_are_refused() -> None:
    state = make_policy().initial_state(2)
    for wrong in (np.zeros((1, 2)), np.zeros((2, 3)), np.zeros((3, 2)), np.zeros(())):
        with pytest.raises(ConditioningError) as raised:
            state.with_action(wrong)
        assert (raised.value.setting, raised.value.value) == ("action", wrong.shape)


def test_images_of_floats_are_no_bytes() -> None:
    space = spaces.Box(0.0, 1.0, (3, 84, 84), np.float32)
    with pytest.raises(SpaceError, match="of bytes"):
        DecisionMambaPolicy(space, spaces.Discrete(2), CONFIG.replace(encoder="nature_cnn"))
