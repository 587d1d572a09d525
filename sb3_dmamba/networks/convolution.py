"""The convolutional token mixer: with it, Decision Mamba is a Decision ConvFormer."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sb3_dmamba.config import DecisionMambaConfig
from sb3_dmamba.networks.embedding import TOKENS_PER_STEP
from sb3_dmamba.ops import causal_conv1d

__all__ = ["ConvolutionMixer"]


class ConvolutionMixer(nn.Module):
    """Causal depthwise filters over the last few tokens, one set for each kind of token.

    Return-to-go, state and action tokens each gather what went before by their own filters.
    Nothing here mixes channels: the channel mixing that follows does.

    Args:
        config: ``hidden_size``, ``filter_length`` and ``backend``.

    Source: Kim et al. 2024, "Decision ConvFormer" (arXiv:2310.03022).
    """

    def __init__(self, config: DecisionMambaConfig) -> None:
        super().__init__()
        self.n_taps = config.filter_length
        self.backend = config.backend
        bound = self.n_taps**-0.5  # torch's start of a depthwise convolution
        shape = (TOKENS_PER_STEP, config.hidden_size)
        self.filters = nn.Parameter(torch.empty(*shape, self.n_taps).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(shape).uniform_(-bound, bound))

    def initial_state(self, batch_size: int) -> dict[str, Tensor]:
        """Return the state before the first token: nothing to filter, a return-to-go is next."""
        weight = self.filters
        return {
            "inputs": weight.new_zeros(batch_size, self.n_taps - 1, weight.shape[1]),
            "kind": torch.zeros(batch_size, dtype=torch.int64, device=weight.device),
        }

    def forward(
        self, tokens: Float[Tensor, "B L H"], readout: slice | None = None
    ) -> Float[Tensor, "B M H"]:
        """Mix whole sequences; see :meth:`MambaMixer.forward`."""
        return self._mix(tokens, None, readout)

    def resume(
        self,
        tokens: Float[Tensor, "B L H"],
        state: dict[str, Tensor],
        readout: slice | None = None,
        real: Bool[Tensor, "B L"] | None = None,
    ) -> tuple[Float[Tensor, "B M H"], dict[str, Tensor]]:
        """Mix sequences that go on from ``state``; see :meth:`MambaMixer.resume`."""
        if real is not None:
            tokens = tokens * real.unsqueeze(-1)
        n_new = tokens.shape[1]
        inputs = torch.cat([state["inputs"], tokens], dim=1)[:, n_new:]
        kind = (state["kind"] + n_new) % TOKENS_PER_STEP
        return self._mix(tokens, state["inputs"], readout), {"inputs": inputs, "kind": kind}

    def _mix(
        self,
        tokens: Float[Tensor, "B L H"],
        before: Float[Tensor, "B before H"] | None,
        readout: slice | None,
    ) -> Float[Tensor, "B M H"]:
        """Filter sequences that start with a return-to-go."""
        kinds = torch.arange(tokens.shape[1], device=tokens.device) % TOKENS_PER_STEP
        if readout is not None and readout.step == TOKENS_PER_STEP:  # one kind of token
            return self._filter(tokens, before, (readout.start or 0) % TOKENS_PER_STEP)[:, readout]
        mixed = self._filter(tokens, before, 0)
        for kind in range(1, TOKENS_PER_STEP):
            is_of_kind = (kinds == kind).unsqueeze(-1)  # (L, 1)
            mixed = torch.where(is_of_kind, self._filter(tokens, before, kind), mixed)
        return mixed if readout is None else mixed[:, readout]

    def _filter(
        self, tokens: Float[Tensor, "B L H"], before: Float[Tensor, "B before H"] | None, kind: int
    ) -> Float[Tensor, "B L H"]:
        """Filter every token as if it were of one kind."""
        return causal_conv1d(
            tokens,
            self.filters[kind],
            self.bias[kind],
            initial_state=before,
            backend=self.backend,
        )

    def step(
        self, tokens: Float[Tensor, "B L H"], state: dict[str, Tensor]
    ) -> tuple[Float[Tensor, "B L H"], dict[str, Tensor]]:
        """Mix the next few tokens; a few taps are remembered, however long the episode is."""
        n_new = tokens.shape[1]
        inputs = torch.cat([state["inputs"], tokens], dim=1)  # (B, W - 1 + L, H)
        offset = torch.arange(n_new, device=tokens.device)
        kinds = (state["kind"].unsqueeze(1) + offset) % TOKENS_PER_STEP  # (B, L)
        mixed = self.bias[kinds]
        for tap in range(self.n_taps):
            mixed = mixed + inputs[:, tap : tap + n_new] * self.filters[kinds, :, tap]
        kind = (state["kind"] + n_new) % TOKENS_PER_STEP
        return mixed, {"inputs": inputs[:, n_new:], "kind": kind}
