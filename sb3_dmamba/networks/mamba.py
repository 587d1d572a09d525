"""The Mamba token mixer."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from sb3_dmamba.config import DecisionMambaConfig
from sb3_dmamba.ops import causal_conv1d, selective_scan

__all__ = ["MambaMixer"]

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
        self._cached_operands: tuple[tuple[int, int], _Operands] | None = None
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
        # Two products in place of one and a split: the gradients of the halves need no joining.
        weight_in, weight_gate = self.in_proj.weight.chunk(2)
        inputs = F.linear(tokens, weight_in)
        if readout is None:
            mixed, _ = self._mix(inputs, F.linear(tokens, weight_gate), None)
        else:
            mixed, _ = self._mix(inputs, None, None)
            mixed = mixed[:, readout] * F.silu(F.linear(tokens[:, readout], weight_gate))
        output: Tensor = self.out_proj(mixed)
        return output

    def step(
        self, tokens: Float[Tensor, "B L H"], state: dict[str, Tensor]
    ) -> tuple[Float[Tensor, "B L H"], dict[str, Tensor]]:
        """Mix the next few tokens of each sequence, continuing from ``state``.

        Returns:
            The mixed tokens and the state after them; ``state`` itself is left as it was.
        """
        inputs, gate = self.in_proj(tokens).chunk(2, dim=-1)
        mixed, new_state = self._mix(inputs, gate, state)
        return self.out_proj(mixed), new_state

    def _operands(self) -> _Operands:
        """Return the parameters as the operations take them; when only acting, made once.

        All but the rates are views, which follow their parameters; the rates are computed again
        when ``A_log`` has changed.
        """
        a_log: Tensor = self.A_log
        if torch.is_grad_enabled():
            return self._make_operands(a_log)
        version = (a_log._version, a_log.data_ptr())
        if self._cached_operands is None or self._cached_operands[0] != version:
            self._cached_operands = version, self._make_operands(a_log)
        return self._cached_operands[1]

    def _make_operands(self, a_log: Tensor) -> _Operands:
        return _Operands(
            convolution_weight=self.conv1d.weight.squeeze(1),
            convolution_bias=self.conv1d.bias,
            projection=self.x_proj.weight,
            step_weight=self.dt_proj.weight,
            step_bias=self.dt_proj.bias.float(),
            rates=-torch.exp(a_log.float()),
            skip=self.D.float(),
        )

    def _mix(
        self,
        inputs: Float[Tensor, "B L D"],
        gate: Float[Tensor, "B L D"] | None,
        state: dict[str, Tensor] | None,
    ) -> tuple[Float[Tensor, "B L D"], dict[str, Tensor]]:
        operands = self._operands()
        convolved, convolution_state = causal_conv1d(
            inputs,
            operands.convolution_weight,
            operands.convolution_bias,
            activation="silu",
            initial_state=None if state is None else state["convolution"],
            return_final_state=True,
            backend=self.backend,
        )
        # split_with_sizes is what split calls, without the Python in between: acting notices.
        low_rank_step, b, c = F.linear(convolved, operands.projection).split_with_sizes(
            [self.dt_rank, self.n_states, self.n_states], dim=-1
        )
        mixed, scan_state = selective_scan(
            convolved,
            low_rank_step,
            operands.rates,
            b,
            c,
            operands.skip,
            gate,
            operands.step_bias,
            delta_weight=operands.step_weight,
            delta_softplus=True,
            initial_state=None if state is None else state["scan"],
            return_final_state=True,
            backend=self.backend,
        )
        return mixed, {"convolution": convolution_state, "scan": scan_state}


class _Operands(NamedTuple):
    convolution_weight: Tensor  # (D, taps)
    convolution_bias: Tensor | None  # (D,)
    projection: Tensor  # (rank + 2N, D)
    step_weight: Tensor  # (D, rank)
    step_bias: Tensor  # (D,)
    rates: Tensor  # (D, N), negative
    skip: Tensor  # (D,)
