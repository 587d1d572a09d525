"""From d3rlpy's windows to ours.

d3rlpy pads on the left and counts timesteps from 1; ours are padded on the right, where a causal
model cannot see it, and count from 0.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sb3_dmamba.d3rlpy.network import pack_observations
from sb3_dmamba.data import WindowBatch

__all__ = ["find_real_steps", "to_windows"]


def to_windows(inputs: Any, *, is_discrete: bool, may_look: bool = False) -> WindowBatch:
    """Move the real steps of every window to its front.

    Args:
        inputs: d3rlpy's ``TorchTrajectoryMiniBatch`` or ``TorchTransformerInput``: observations
            (B, K, *obs) or a sequence of such, actions (B, K, A) or (B, K, 1), returns_to_go
            (B, K, 1), timesteps (B, K), masks (B, K), 1 where the step is real.
        is_discrete: Whether actions are numbers of actions.
        may_look: Whether the masks may be read to see that nothing has to move. That waits for a
            GPU, and cannot be traced.

    Returns:
        The windows; timesteps from 0, padding last.
    """
    real = inputs.masks.reshape(inputs.timesteps.shape) > 0  # (B, K)
    observations = pack_observations(inputs.observations)
    actions = inputs.actions
    if is_discrete:
        actions = actions.reshape(real.shape).long()
    windows = WindowBatch(
        observations=observations,
        actions=actions,
        returns_to_go=inputs.returns_to_go.reshape(real.shape),
        timesteps=(inputs.timesteps.reshape(real.shape) - 1).clamp_min(0),
        padding_mask=real,
    )
    if may_look and bool(real.all()):
        return windows
    n_steps = real.shape[1]
    place = torch.arange(n_steps, device=real.device)
    # No two keys are equal, so that the order is kept however the sort works.
    order = torch.argsort(place + n_steps * (~real).long(), dim=1)
    row = torch.arange(real.shape[0], device=real.device).unsqueeze(1)  # (B, 1)

    def move(tensor: Tensor) -> Tensor:
        return tensor[row, order]

    return WindowBatch(
        observations=move(windows.observations),
        actions=move(windows.actions),
        returns_to_go=move(windows.returns_to_go),
        timesteps=move(windows.timesteps),
        padding_mask=move(windows.padding_mask),
    )


def find_real_steps(masks: Tensor, timesteps: Tensor) -> Tensor:
    """Return masks (B, K) of steps to act on, where d3rlpy may have passed none.

    The function that d3rlpy exports calls the algorithm with masks of zeros; padding is then told
    by its timestep, which is 0. Where that leaves none, the newest step is.

    Args:
        masks: (B, K), 1 where the step is real; or all zero.
        timesteps: (B, K), from 1 where the step is real.
    """
    given = masks.reshape(timesteps.shape) > 0
    # Not torch.where, which onnxruntime does not have for booleans.
    real = given | ((timesteps > 0) & ~given.any(dim=1, keepdim=True))
    newest = real[:, -1:] | ~real.any(dim=1, keepdim=True)
    return torch.cat([real[:, :-1], newest], dim=1).to(masks.dtype)
