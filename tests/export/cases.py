"""Policies of every kind, their inputs, and an ONNX file opened without this package."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from sb3_dmamba.config import DecisionMambaConfig, Memory
from sb3_dmamba.networks import DecisionMambaPolicy

K = 4
N_STEPS = 2 * K + 2  # the window is full, and was for a while
N_ENVS = 3

VECTOR = spaces.Box(-np.inf, np.inf, (3,), np.float32)
IMAGE = spaces.Box(0, 255, (2, 36, 36), np.uint8)
BOUNDS = spaces.Box(np.array([-3.0, 0.5], np.float32), np.array([-1.0, 9.0], np.float32))
CHOICES = spaces.Discrete(4, start=5)

Arrays = dict[str, np.ndarray]
Step = Callable[[np.ndarray, np.ndarray, Arrays], tuple[Arrays, Arrays]]

# What an exported step has to get right: settings, observations, actions.
KINDS: dict[str, tuple[dict[str, Any], spaces.Box, spaces.Space[Any]]] = {
    "mamba": ({}, VECTOR, BOUNDS),
    "attention": ({"mixer": "attention", "n_heads": 2}, VECTOR, BOUNDS),
    "convolution": ({"mixer": "convolution"}, VECTOR, CHOICES),
    "discrete": ({}, VECTOR, CHOICES),
    "image": ({"embedding": "tanh", "hidden_size": 16}, IMAGE, CHOICES),
    "no MLP": ({"channel_mixing": False}, VECTOR, BOUNDS),
    "decoupled": ({"conditioning": "decoupled"}, VECTOR, BOUNDS),
    "no time": ({"time_encoding": "none"}, VECTOR, BOUNDS),
    "matrices": (
        {},
        spaces.Box(-1.0, 1.0, (2, 3), np.float64),
        spaces.Box(-1.0, 1.0, (2, 2), np.float32),
    ),
    "bytes": ({}, spaces.Box(0, 255, (5,), np.uint8), BOUNDS),
    "one action": ({"n_layers": 1}, VECTOR, spaces.Box(-2.0, 2.0, (1,), np.float32)),
    "one step": ({"context_length": 1}, VECTOR, BOUNDS),
    "few times": ({"max_timestep": 3}, VECTOR, BOUNDS),
}
GLOBAL_TIME = ({"time_encoding": "global"}, VECTOR, CHOICES)  # for the window alone


def make_policy(kind: str, **overrides: Any) -> DecisionMambaPolicy:
    """A policy with weights, and a normalisation, that matter."""
    settings, observation_space, action_space = {**KINDS, "global time": GLOBAL_TIME}[kind]
    fields = {"hidden_size": 12, "n_layers": 2, "context_length": K, "d_state": 4}
    torch.manual_seed(1)
    config = DecisionMambaConfig(**{**fields, "return_scale": 50.0, **settings, **overrides})
    policy = DecisionMambaPolicy(observation_space, action_space, config)
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            # which start at zero, or at one
            if weight.dim() == 1 or "table" in name or "modulation" in name:
                weight.add_(0.3 * torch.randn_like(weight))
        for name, buffer in policy.named_buffers():
            if name.endswith(("mean", "std")):
                buffer.add_(torch.rand_like(buffer))
    return policy


def all_kinds(memory: Memory) -> list[str]:
    """Names of the kinds that the memory can be combined with."""
    return [*KINDS, "global time"] if memory == "window" else list(KINDS)


def draw_inputs(policy: DecisionMambaPolicy, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Observations and returns-to-go of N_ENVS environments at each of N_STEPS steps."""
    rng = np.random.default_rng(seed)
    space = policy.flat_space
    shape = (N_ENVS, *space.shape)
    steps: list[tuple[np.ndarray, np.ndarray]] = []
    for _ in range(N_STEPS):
        seen: np.ndarray = rng.normal(size=shape).astype(np.float32)
        if space.dtype == np.uint8:
            seen = rng.integers(0, 256, shape, dtype=np.uint8)
        steps.append((seen, rng.uniform(-100.0, 100.0, N_ENVS).astype(np.float32)))
    return steps


def starts_at(step: int) -> np.ndarray:
    """Which environments start an episode: all at first, the middle one again, then the last."""
    return np.array([step == 0, step in (0, 3), step in (0, K + 2)])


def assert_acts_like(policy: DecisionMambaPolicy, memory: Memory, step: Step) -> None:
    """Act with both, each on its own state, through episodes of different ages."""
    state = policy.initial_state(N_ENVS, memory)
    carried: Arrays = {name: rows.numpy() for name, rows in state.tensors.items()}
    for number, (observations, returns_to_go) in enumerate(draw_inputs(policy)):
        starts = starts_at(number)
        for rows in carried.values():
            rows[starts] = 0
        seen = {"observation": observations, "return_to_go": returns_to_go[:, None]}
        expected, state = policy.predict(seen, state, episode_start=starts)
        found, carried = step(observations, returns_to_go, carried)
        carried = {name: rows.copy() for name, rows in carried.items()}
        np.testing.assert_allclose(found["action"], expected, rtol=1e-4, atol=1e-5)
        assert found["action"].dtype == expected.dtype
        if "logits" in found:
            likeliest = found["logits"].argmax(-1) + policy.action_space.start  # type: ignore[attr-defined]
            assert found["action"].tolist() == likeliest.tolist()
        assert carried.keys() == state.tensors.keys()
        for name, rows in carried.items():
            wanted = state.tensors[name].numpy()
            assert rows.dtype == wanted.dtype, name
            np.testing.assert_allclose(rows, wanted, rtol=1e-3, atol=1e-4, err_msg=name)


def as_step(graph: Callable[..., Any]) -> Step:
    """Let a module of tensors take and return arrays."""

    def step(
        observation: np.ndarray, return_to_go: np.ndarray, state: Arrays
    ) -> tuple[Arrays, Arrays]:
        rows = {name: torch.as_tensor(each) for name, each in state.items()}
        with torch.no_grad():
            found = graph(torch.as_tensor(observation), torch.as_tensor(return_to_go), rows)
        outputs, after = ({name: each.numpy() for name, each in part.items()} for part in found)
        return outputs, after

    return step


def open_onnx(path: Any) -> tuple[Any, Step]:
    """Open a file as its users do; return the session, and its step."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    outputs = [output.name for output in session.get_outputs()]

    def step(
        observation: np.ndarray, return_to_go: np.ndarray, state: Arrays
    ) -> tuple[Arrays, Arrays]:
        feed = {f"state.{name}": rows for name, rows in state.items()}
        feed |= {"observation": observation, "return_to_go": return_to_go}
        found = dict(zip(outputs, session.run(None, feed), strict=True))
        after = {name: found.pop(f"next_state.{name}") for name in state}
        return found, after

    return session, step
