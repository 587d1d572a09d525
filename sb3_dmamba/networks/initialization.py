"""How weights start."""

from __future__ import annotations

import math
from typing import Literal

from torch import nn

from sb3_dmamba.networks.attention import AttentionMixer
from sb3_dmamba.networks.block import Block
from sb3_dmamba.networks.mamba import MambaMixer

__all__ = ["initialize"]

_STD = 0.02


def initialize(
    model: nn.Module, scheme: Literal["mamba", "paper"], leave: nn.Module | None = None
) -> None:
    """Initialise every weight of the model in place.

    Args:
        model: The whole model, freshly constructed.
        scheme: ``"paper"`` draws every linear and embedding weight from N(0, 0.02) and zeroes
            every linear bias, Mamba's step-size bias included, as the official code does: the
            step size then starts near softplus(0) = 0.69 in place of 0.001 to 0.1. ``"mamba"``
            keeps Mamba's own start for the Mamba mixer, GPT-2's for attention and channel mixing,
            and torch's for encoders and heads.
        leave: A part of the model that keeps the weights it has; None is none.

    Source: Gu and Dao 2023 (arXiv:2312.00752), section 3.6, and mamba_ssm's scaling of the
    residual projections; the official code of arXiv:2403.19925.
    """
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    left = set() if leave is None else set(leave.modules())
    for module in model.modules():
        if module in left:
            continue
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=_STD)
        elif scheme == "paper" and isinstance(module, nn.Linear):
            _init_linear(module)
    if scheme == "paper":
        return
    for block in blocks:
        if isinstance(block.mixer, MambaMixer):
            _rescale_residual(block.mixer.out_proj, len(blocks))
        elif isinstance(block.mixer, AttentionMixer):
            _init_linear(block.mixer.in_proj)
            _init_linear(block.mixer.out_proj)
        for module in block.channel_mixer or ():
            if isinstance(module, nn.Linear):
                _init_linear(module)


def _init_linear(linear: nn.Linear) -> None:
    nn.init.normal_(linear.weight, std=_STD)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


def _rescale_residual(linear: nn.Linear, n_layers: int) -> None:
    """Keep the residual stream's variance from growing with depth."""
    linear.weight.data.div_(math.sqrt(n_layers))
