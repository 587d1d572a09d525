"""Only what computes the right thing is worth timing."""

from __future__ import annotations

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from sb3_dmamba.config import DecisionMambaConfig
from sb3_dmamba.errors import ExperimentError
from sb3_dmamba.networks import DecisionMambaPolicy

__all__ = [
    "ACTION_SPACE",
    "OBSERVATION_SPACE",
    "check_variant",
    "make_inputs",
    "make_policy",
    "step_through",
]

# Hopper's
OBSERVATION_SPACE = spaces.Box(-np.inf, np.inf, (11,), np.float32)
ACTION_SPACE = spaces.Box(-1.0, 1.0, (3,), np.float32)

_TOLERANCE = 1e-3  # of outputs and gradients of size 1, in float32
_MOST_STEPS = 40


def make_policy(config: DecisionMambaConfig, device: str, seed: int = 0) -> DecisionMambaPolicy:
    """Return an untrained policy, the same for the same seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        policy = DecisionMambaPolicy(OBSERVATION_SPACE, ACTION_SPACE, config)
    return policy.to(device)


def check_variant(config: DecisionMambaConfig, device: str) -> None:
    """Check a variant before it is timed.

    Its outputs and gradients must be those of the reference implementation, and acting step by
    step over a window must give what the window gives at once.

    Args:
        config: The variant.
        device: Where it will be timed.

    Raises:
        ExperimentError: They are not; says by how much.
    """
    n_steps = min(config.context_length, _MOST_STEPS)
    config = config.replace(precision="fp32", context_length=n_steps)
    policy = make_policy(config, device)
    policy.set_training_mode(False)
    reference = make_policy(config.replace(backend="reference"), device)
    reference.load_state_dict(policy.state_dict())
    reference.set_training_mode(False)
    inputs = make_inputs(n_steps, device)
    pairs: dict[str, tuple[Tensor, Tensor]] = {
        "outputs": (policy.model(*inputs), reference.model(*inputs)),
        "gradients": (_gradient(policy, inputs), _gradient(reference, inputs)),
        "steps": (step_through(policy, inputs), policy.model(*inputs)),
    }
    for what, (own, expected) in pairs.items():
        scale = max(1e-6, float(expected.detach().abs().max()))
        error = float((own - expected).detach().abs().max()) / scale
        if not error <= _TOLERANCE:
            raise ExperimentError(
                f"mixer={config.mixer!r} on backend={config.backend!r}: its {what} are off by "
                f"{error:.2g} of their size, so it is not timed (allowed: {_TOLERANCE:g})"
            )


def make_inputs(n_steps: int, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the same two windows each time: observations, actions, returns-to-go, time steps."""
    generator = torch.Generator().manual_seed(1)
    observations = torch.randn(2, n_steps, *OBSERVATION_SPACE.shape, generator=generator)
    actions = torch.rand(2, n_steps, *ACTION_SPACE.shape, generator=generator) * 2 - 1
    returns = torch.rand(2, n_steps, generator=generator) * 3000
    timesteps = torch.arange(n_steps).expand(2, n_steps)
    return tuple(each.to(device) for each in (observations, actions, returns, timesteps))  # type: ignore[return-value]


def _gradient(policy: DecisionMambaPolicy, inputs: tuple[Tensor, ...]) -> Tensor:
    """Return the gradient of the first block's largest weight, which all later ones pass on."""
    policy.zero_grad()
    policy.model(*inputs).square().mean().backward()
    block = policy.model.layers[0]
    weight = max(block.mixer.parameters(), key=lambda each: each.numel())
    assert weight.grad is not None
    return weight.grad


@torch.no_grad()
def step_through(policy: DecisionMambaPolicy, inputs: tuple[Tensor, ...]) -> Tensor:
    """Return what a policy predicts at each step of windows when it is shown one step at a time."""
    observations, actions, returns, timesteps = inputs
    layers = policy.model.initial_layers(len(returns))
    predictions = []
    for step in range(returns.shape[1]):
        previous = actions[:, step - 1] if step else None
        tokens = policy.model.embed_step(
            previous, returns[:, step], observations[:, step], timesteps[:, step]
        )
        prediction, layers = policy.model.step(tokens, layers)
        predictions.append(prediction)
    return torch.stack(predictions, dim=1)
