"""Networks to time: ours, the same with peers' blocks, and their check against the reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.contenders import Agreement, Contender, UnavailableError
from benchmarks.request import Request
from sb3_dmamba import DecisionMambaConfig, Trajectories
from sb3_dmamba.data import WindowSampler
from sb3_dmamba.errors import BackendError
from sb3_dmamba.experiments.efficiency import make_inputs, make_policy, step_through
from sb3_dmamba.machine import tf32_products
from sb3_dmamba.networks import DecisionMambaPolicy
from sb3_dmamba.ops import resolve_backend
from sb3_dmamba.training.updater import Updater

# Of outputs and of each parameter's gradient: the norm of the difference over the norm.
TOLERANCES = {"fp32": 1e-3, "tf32": 1e-2, "bf16": 5e-2}
_MOST_STEPS = 40  # of the windows that networks are compared on


@dataclass(frozen=True)
class Network:
    """A network in an update.

    Args:
        settings: Fields of ``DecisionMambaConfig``.
        blocks: Whose Mamba block stands in the place of ours: a key of ``BLOCKS``, or None.
    """

    settings: Mapping[str, Any]
    blocks: str | None = None


def make_config(request: Request, **settings: Any) -> DecisionMambaConfig:
    """Return the settings of a network of the request's size."""
    shape = request.shape
    config = DecisionMambaConfig.from_recipe(
        "paper",
        hidden_size=shape.width,
        n_layers=shape.n_layers,
        context_length=shape.context,
        batch_size=shape.batch_size,
    )
    return config.replace(**settings)


class PeerMixer(nn.Module):
    """A peer's Mamba block in the place of ours.

    Args:
        block: Takes and returns tokens (B, L, H); its parameters have ``mamba_ssm.Mamba``'s names.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, tokens: Tensor, readout: slice | None = None) -> Tensor:
        """Mix whole sequences, and return the tokens that are wanted."""
        mixed: Tensor = self.block(tokens)
        return mixed if readout is None else mixed[:, readout]


def _make_mambapy(config: DecisionMambaConfig, device: str) -> nn.Module:
    try:
        from mambapy.mamba import MambaBlock, MambaConfig
    except ImportError as error:
        raise UnavailableError("mambapy is not installed: pip install mambapy") from error
    block: nn.Module = MambaBlock(
        MambaConfig(
            d_model=config.hidden_size,
            n_layers=1,
            d_state=config.d_state,
            d_conv=config.d_conv,
            expand_factor=config.expand,
            dt_rank=config.resolved_dt_rank,
        )
    )
    return block


def _make_mamba_ssm(config: DecisionMambaConfig, device: str) -> nn.Module:
    try:
        resolve_backend("cuda", device)
    except BackendError as error:
        raise UnavailableError(
            str(error).removeprefix("backend='cuda' does not work here: ")
        ) from error
    from mamba_ssm import Mamba

    block: nn.Module = Mamba(
        d_model=config.hidden_size,
        d_state=config.d_state,
        d_conv=config.d_conv,
        expand=config.expand,
        dt_rank=config.resolved_dt_rank,
    )
    return block


BLOCKS: dict[str, Callable[[DecisionMambaConfig, str], nn.Module]] = {
    "mambapy": _make_mambapy,
    "mamba_ssm": _make_mamba_ssm,
}


def with_blocks(policy: DecisionMambaPolicy, peer: str) -> DecisionMambaPolicy:
    """Put a peer's blocks with our weights into a policy, and return it.

    Raises:
        UnavailableError: The peer does not work here.
    """
    device = policy.device
    for block in policy.model.layers:
        theirs = BLOCKS[peer](policy.config, str(device)).to(device)
        theirs.load_state_dict(block.mixer.state_dict())
        block.mixer = PeerMixer(theirs)  # type: ignore[assignment]
    return policy


def make_network(network: Network, request: Request, **settings: Any) -> DecisionMambaPolicy:
    """Return a network with the weights that every network of its shape has here.

    Raises:
        UnavailableError: A backend or a peer does not work here.
    """
    config = make_config(request, **{**network.settings, **settings})
    try:
        resolve_backend(config.backend, request.device)
    except BackendError as error:
        raise UnavailableError(str(error)) from error
    policy = make_policy(config, request.device)
    return policy if network.blocks is None else with_blocks(policy, network.blocks)


def check_network(policy: DecisionMambaPolicy, has_steps: bool = True) -> Agreement:
    """Compare outputs and all gradients with the reference's, and steps with windows.

    Args:
        policy: Ours, or with a peer's blocks; left in evaluation mode, without gradients.
        has_steps: Whether it can also be shown one step at a time.
    """
    config, device = policy.config, str(policy.device)
    n_steps = min(config.context_length, _MOST_STEPS)
    reference = make_policy(config.replace(backend="reference", precision="fp32"), device)
    reference.load_state_dict(
        {name.replace(".block.", "."): each for name, each in policy.state_dict().items()}
    )
    inputs = make_inputs(n_steps, device)
    pairs = list(zip(_evaluate(policy, inputs), _evaluate(reference, inputs), strict=True))
    what = "outputs and gradients"
    if has_steps and config.precision == "fp32" and config.time_encoding != "global":
        pairs.append((step_through(policy, inputs), pairs[0][1]))
        what = "outputs, gradients and single steps"
    errors = [float((own - other).norm() / other.norm().clamp_min(1e-12)) for own, other in pairs]
    error = float(np.max(errors))  # NaN where one is
    return Agreement(what, error, TOLERANCES[config.precision])


def _evaluate(policy: DecisionMambaPolicy, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Return outputs and the gradients of their mean square, by the names of our parameters."""
    policy.set_training_mode(False)
    policy.zero_grad()
    precision = policy.config.precision
    with tf32_products(precision):
        with torch.autocast(policy.device.type, torch.bfloat16, enabled=precision == "bf16"):
            outputs = policy.model(*inputs)
        outputs.float().square().mean().backward()
    gradients = {
        name.replace(".block.", "."): each.grad.detach().clone()
        for name, each in policy.named_parameters()
        if each.grad is not None
    }
    policy.zero_grad()
    return [outputs.detach().float(), *(gradients[name] for name in sorted(gradients))]


def make_contender(
    network: Network, data: Trajectories, request: Request, **settings: Any
) -> Contender:
    """Return whole updates of a network, the drawing of the batch included.

    Raises:
        UnavailableError: As :func:`make_network`.
    """
    policy = make_network(network, request, **settings)
    config = policy.config
    updater = Updater(policy, config, seed=0)
    sampler = WindowSampler(data, config.context_length, config.batch_size, seed=0)
    n_done = 0

    def update() -> object:
        nonlocal n_done
        n_done += 1
        return updater.update(sampler, n_done - 1, n_done - 1, request.updates)

    return Contender(
        update,
        lambda: check_network(policy, has_steps=network.blocks is None),
        {
            "parameters": sum(each.numel() for each in policy.parameters()),
            "tokens": (3 * config.context_length - 1) * config.batch_size,
        },
    )
