"""The Mamba token mixer."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sb3_dmamba.config import DecisionMambaConfig
from sb3_dmamba.ops import MambaWeights, causal_conv1d, mamba_step, selective_scan

__all__ = ["MambaMixer", "forget_kept_weights"]

_STEP_SIZE_MIN, _STEP_SIZE_MAX, _STEP_SIZE_FLOOR = 1e-3, 1e-1, 1e-4  # mamba_ssm's


class MambaMixer(nn.Module):
    """A Mamba block: projection, causal convolution, selective scan, gate, projection.

    Parameter names, shapes and initialisation are those of ``mamba_ssm.Mamba``, so that its
    weights load here and ours load there.

    Args:
        config: ``hidden_size``, ``d_state``, ``d_conv``, ``expand``, ``dt_rank``, ``backend``.

    Source: Gu and Dao 2023 (arXiv:2312.00752), section 3.4 and figure 3.
    """

    def __init__(self, config: DecisionMambaConfig) -> None:
        super().__init__()
        width, n_states = config.hidden_size, config.d_state
        inner = config.expand * width
        self.dt_rank = config.resolved_dt_rank
        self.inner, self.n_states, self.n_taps = inner, n_states, config.d_conv
        self.backend = config.backend
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(
            inner, inner, config.d_conv, groups=inner, padding=config.d_conv - 1
        )
        self.x_proj = nn.Linear(inner, self.dt_rank + 2 * n_states, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, inner)
        self.A_log = nn.Parameter(torch.arange(1, n_states + 1.0).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, width, bias=False)
        self._n_weights = len(list(self.parameters()))
        self._kept_weights: tuple[list[tuple[int, int]], MambaWeights] | None = None
        self._init_step_size()

    def _init_step_size(self) -> None:
        """Start ``softplus(dt_proj.bias)`` log-uniformly between 0.001 and 0.1."""
        bound = self.dt_rank**-0.5
        nn.init.uniform_(self.dt_proj.weight, -bound, bound)
        low, high = math.log(_STEP_SIZE_MIN), math.log(_STEP_SIZE_MAX)
        step_size = torch.empty(self.inner).uniform_(low, high).exp().clamp_min(_STEP_SIZE_FLOOR)
        with torch.no_grad():
            self.dt_proj.bias.copy_(step_size + torch.log(-torch.expm1(-step_size)))

    def initial_state(self, batch_size: int) -> dict[str, Tensor]:
        """Return the state before the first token: nothing convolved, nothing accumulated."""
        weight = self.D
        return {
            "convolution": weight.new_zeros(batch_size, self.n_taps - 1, self.inner),
            "scan": weight.new_zeros(batch_size, self.inner, self.n_states),
        }

    def forward(
        self, tokens: Float[Tensor, "B L H"], readout: slice | None = None
    ) -> Float[Tensor, "B M H"]:
        """Mix whole sequences, from an empty state.

        Args:
            tokens: Normalised input of the block.
            readout: The tokens whose output is wanted; None is all of them. The last block's
                output is read at one token in three, and the gate and the output projection
                of the others need not be computed.

        Returns:
            The mixed tokens, at ``readout``.
        """
        weights = self._make_weights()
        inputs, gate = self._project(tokens, weights, readout)
        convolved = causal_conv1d(
            inputs,
            weights.conv1d,
            weights.conv1d_bias,
            activation="silu",
            backend=self.backend,
        )
        mixed = selective_scan(
            *self._scan_inputs(convolved, weights),
            None if readout is not None else gate,
            weights.dt_bias,
            delta_weight=weights.dt_proj,
            delta_softplus=True,
            backend=self.backend,
        )
        return self._read_out(mixed, gate, weights, readout)

    def resume(
        self,
        tokens: Float[Tensor, "B L H"],
        state: dict[str, Tensor],
        readout: slice | None = None,
        real: Bool[Tensor, "B L"] | None = None,
    ) -> tuple[Float[Tensor, "B M H"], dict[str, Tensor]]:
        """Mix sequences that go on from ``state``, with gradients; they start with a return-to-go.

        Args:
            tokens: Normalised input of the block.
            state: What :meth:`initial_state` or the last call returned. Gradients flow into it.
            readout: The tokens whose output is wanted; None is all of them.
            real: False where a sequence has not begun yet, on its left; its state is then the
                initial one, and stays so until it begins. What is returned there is meaningless.

        Returns:
            The mixed tokens at ``readout``, and the state after the last token.
        """
        weights = self._make_weights()
        inputs, gate = self._project(tokens, weights, readout)
        if real is not None:
            inputs = inputs * real.unsqueeze(-1)
        convolved, convolution = causal_conv1d(
            inputs,
            weights.conv1d,
            weights.conv1d_bias,
            activation="silu",
            initial_state=state["convolution"],
            return_final_state=True,
            backend=self.backend,
        )
        if real is not None:  # the bias makes something of nothing
            convolved = convolved * real.unsqueeze(-1)
        mixed, scan = selective_scan(
            *self._scan_inputs(convolved, weights),
            None if readout is not None else gate,
            weights.dt_bias,
            delta_weight=weights.dt_proj,
            delta_softplus=True,
            initial_state=state["scan"],
            return_final_state=True,
            backend=self.backend,
        )
        new_state = {"convolution": convolution, "scan": scan}
        return self._read_out(mixed, gate, weights, readout), new_state

    def _project(
        self, tokens: Float[Tensor, "B L H"], weights: MambaWeights, readout: slice | None
    ) -> tuple[Float[Tensor, "B L D"], Float[Tensor, "B M D"]]:
        """Return what is convolved, and the gate of the tokens whose output is wanted."""
        # Two products in place of one and a split: the gradients of the halves need no joining.
        weight_in, weight_gate = weights.in_proj.chunk(2)
        wanted = tokens if readout is None else tokens[:, readout]
        return F.linear(tokens, weight_in), F.linear(wanted, weight_gate)

    def _scan_inputs(
        self, convolved: Float[Tensor, "B L D"], weights: MambaWeights
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return the selective scan's first six arguments."""
        low_rank_step, b, c = F.linear(convolved, weights.x_proj).split(
            [self.dt_rank, self.n_states, self.n_states], dim=-1
        )
        return convolved, low_rank_step, weights.A, b, c, weights.D

    def _read_out(
        self,
        mixed: Float[Tensor, "B L D"],
        gate: Float[Tensor, "B M D"],
        weights: MambaWeights,
        readout: slice | None,
    ) -> Float[Tensor, "B M H"]:
        """Gate what the scan has not gated yet, and project."""
        if readout is not None:
            mixed = mixed[:, readout] * F.silu(gate)
        return F.linear(mixed, weights.out_proj)

    def step(
        self, tokens: Float[Tensor, "B L H"], state: dict[str, Tensor]
    ) -> tuple[Float[Tensor, "B L H"], dict[str, Tensor]]:
        """Mix the next few tokens of each sequence, continuing from ``state``; without gradients.

        Returns:
            The mixed tokens and the state after them; ``state`` itself is left as it was.
        """
        with torch.no_grad():
            mixed, convolution, scan = mamba_step(
                tokens, self._kept(), state["convolution"], state["scan"], backend=self.backend
            )
        return mixed, {"convolution": convolution, "scan": scan}

    def train(self, mode: bool = True) -> MambaMixer:
        """Set the mode; what changes the weights trains first, so nothing kept outlives it."""
        if mode:
            self.forget_kept_weights()
        return super().train(mode)

    def forget_kept_weights(self) -> None:
        """Take the weights anew at the next step.

        Only changes that torch does not count need this: those through ``parameter.data``, and
        those of a fused optimiser.
        """
        self._kept_weights = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept_weights": None}  # they hold addresses

    def _kept(self) -> MambaWeights:
        """Return the weights as :func:`mamba_step` takes them, made anew when one has changed."""
        weights = [
            weight
            for module in (self, *self.children())
            for weight in module._parameters.values()  # parameters() takes ten times as long
            if weight is not None
        ]
        is_traced = self.backend == "traceable"  # what is kept would be a constant of the trace
        if (
            is_traced
            or len(weights) != self._n_weights  # changes of parametrized ones cannot be seen
            or any(weight.is_inference() for weight in weights)
        ):
            return self._make_weights()
        versions = [(weight._version, weight.data_ptr()) for weight in weights]
        if self._kept_weights is None or self._kept_weights[0] != versions:
            self._kept_weights = versions, self._make_weights()
        return self._kept_weights[1]

    def _make_weights(self) -> MambaWeights:
        return MambaWeights(
            in_proj=self.in_proj.weight,
            conv1d=self.conv1d.weight.squeeze(1),
            conv1d_bias=self.conv1d.bias,
            x_proj=self.x_proj.weight,
            dt_proj=self.dt_proj.weight,
            dt_bias=self.dt_proj.bias.float(),
            A=-torch.exp(self.A_log.float()),
            D=self.D.float(),
            out_proj=self.out_proj.weight,
        )


def forget_kept_weights(model: nn.Module) -> None:
    """Have every Mamba mixer of a model take its weights anew at the next step."""
    for module in model.modules():
        if isinstance(module, MambaMixer):
            module.forget_kept_weights()
