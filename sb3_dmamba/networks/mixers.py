"""Token mixers: Mamba, causal self-attention and causal convolution.

Each mixer has the same four methods: ``initial_state``, ``forward`` over whole sequences,
``resume`` over sequences that continue from a state, and ``step`` for acting. Of shapes, B is the
batch, L the tokens, H the width, D the channels inside a Mamba mixer, and M the tokens read out.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sb3_dmamba.config import DecisionMambaConfig
from sb3_dmamba.ops import MambaWeights, causal_conv1d, mamba_step, selective_scan

_STEP_SIZE_MIN, _STEP_SIZE_MAX, _STEP_SIZE_FLOOR = 1e-3, 1e-1, 1e-4  # mamba_ssm's


class MambaMixer(nn.Module):
    """Mamba: projection, causal convolution, selective scan, gate, projection.

    Parameter names, shapes and initialisation are those of ``mamba_ssm.Mamba``, so that weights
    can be exchanged with it.

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
        """Return the state before the first token: zeros."""
        weight = self.D
        return {
            "convolution": weight.new_zeros(batch_size, self.n_taps - 1, self.inner),
            "scan": weight.new_zeros(batch_size, self.inner, self.n_states),
        }

    def forward(
        self, tokens: Float[Tensor, "B L H"], readout: slice | None = None
    ) -> Float[Tensor, "B M H"]:
        """Mix whole sequences, starting from the initial state.

        Args:
            tokens: Normalised input of the block.
            readout: Tokens whose output is needed; None is all. The last block's output is read
                at the state tokens alone, which saves the others' gate and output projection.

        Returns:
            The mixed tokens at ``readout``.
        """
        weights = self._make_weights()
        inputs, gate = self._project(tokens, weights, readout)
        convolved = causal_conv1d(
            inputs, weights.conv1d, weights.conv1d_bias, activation="silu", backend=self.backend
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
        """Mix sequences that continue from a state, with gradients.

        Args:
            tokens: Normalised input of the block; the first one is the first of its step.
            state: Result of :meth:`initial_state` or of the last call. Gradients flow into it.
            readout: Tokens whose output is needed; None is all.
            real: False in the padding on the left of a sequence, whose state is then still the
                initial one. Outputs there are meaningless. None is True everywhere.

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
        if real is not None:  # the bias makes padding nonzero
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
        """Return the input of the convolution, and the gate of the tokens at ``readout``."""
        # Two products instead of one and a split: their gradients need no concatenation.
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
        """Apply the gate, if the scan has not, and the output projection."""
        if readout is not None:
            mixed = mixed[:, readout] * F.silu(gate)
        return F.linear(mixed, weights.out_proj)

    def step(
        self, tokens: Float[Tensor, "B L H"], state: dict[str, Tensor]
    ) -> tuple[Float[Tensor, "B L H"], dict[str, Tensor]]:
        """Mix the next few tokens of each sequence, without gradients.

        Returns:
            The mixed tokens and the state after them; ``state`` itself is unchanged.
        """
        with torch.no_grad():
            mixed, convolution, scan = mamba_step(
                tokens, self._kept(), state["convolution"], state["scan"], backend=self.backend
            )
        return mixed, {"convolution": convolution, "scan": scan}

    def train(self, mode: bool = True) -> MambaMixer:
        """Set the mode; training drops the weights that :meth:`step` has cached."""
        if mode:
            self.forget_kept_weights()
        return super().train(mode)

    def forget_kept_weights(self) -> None:
        """Drop the weights cached by :meth:`step`.

        Only changes that torch does not count need this: through ``parameter.data``, or by a
        fused optimiser.
        """
        self._kept_weights = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept_weights": None}  # which hold addresses

    def _kept(self) -> MambaWeights:
        """Return the weights for :func:`mamba_step`, cached until one of them changes."""
        weights = [
            weight
            for module in (self, *self.children())
            for weight in module._parameters.values()  # parameters() takes ten times as long
            if weight is not None
        ]
        if (
            self.backend == "traceable"  # cached tensors would be constants of the trace
            or len(weights) != self._n_weights  # changes of parametrized weights cannot be seen
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
    """Drop the weights that the Mamba mixers of a model have cached for acting."""
    for module in model.modules():
        if isinstance(module, MambaMixer):
            module.forget_kept_weights()


class AttentionMixer(nn.Module):
    """Causal multi-head self-attention, as in GPT-2.

    Args:
        config: ``hidden_size``, ``n_heads``, ``dropout`` (of the attention weights, in training),
            ``context_length`` (steps remembered by ``step`` and ``resume``) and ``conditioning``.

    Source: Radford et al. 2019; Chen et al. 2021 (arXiv:2106.01345).
    """

    def __init__(self, config: DecisionMambaConfig) -> None:
        super().__init__()
        self.n_heads = config.n_heads
        self.head_size = config.hidden_size // config.n_heads
        self.dropout = config.dropout
        self.n_remembered = config.tokens_per_step * config.context_length
        self.in_proj = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def initial_state(self, batch_size: int) -> dict[str, Tensor]:
        """Return an empty cache of keys and values, right-aligned."""
        weight = self.out_proj.weight
        shape = (batch_size, self.n_heads, self.n_remembered, self.head_size)
        return {
            "keys": weight.new_zeros(shape),
            "values": weight.new_zeros(shape),
            "n_tokens": torch.zeros(batch_size, dtype=torch.int64, device=weight.device),
        }

    def forward(
        self, tokens: Float[Tensor, "B L H"], readout: slice | None = None
    ) -> Float[Tensor, "B M H"]:
        """Mix whole sequences; see :meth:`MambaMixer.forward`."""
        if readout is None:
            query, key, value = map(self._split_heads, self.in_proj(tokens).chunk(3, dim=-1))
            return self._attend(query, key, value, None)
        width = tokens.shape[-1]
        weight_query, weight_rest = self.in_proj.weight.split([width, 2 * width])
        bias_query, bias_rest = self.in_proj.bias.split([width, 2 * width])
        query = self._split_heads(F.linear(tokens[:, readout], weight_query, bias_query))
        key, value = map(
            self._split_heads, F.linear(tokens, weight_rest, bias_rest).chunk(2, dim=-1)
        )
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        return self._attend(query, key, value, positions[readout, None] >= positions)

    def step(
        self, tokens: Float[Tensor, "B L H"], state: dict[str, Tensor]
    ) -> tuple[Float[Tensor, "B L H"], dict[str, Tensor]]:
        """Mix the next few tokens, attending to those of the last ``context_length`` steps.

        Each token costs the same however long the episode is. Cached keys and values depend on
        tokens that have left the cache, so the result differs from re-encoding a window.
        """
        return self.resume(tokens, state)

    def resume(
        self,
        tokens: Float[Tensor, "B L H"],
        state: dict[str, Tensor],
        readout: slice | None = None,
        real: Bool[Tensor, "B L"] | None = None,
    ) -> tuple[Float[Tensor, "B M H"], dict[str, Tensor]]:
        """Mix sequences that continue from a state, as :meth:`step`; see :meth:`MambaMixer.resume`.

        Source: Dai et al. 2019 (arXiv:1901.02860), which train with such a cache.
        """
        n_new = tokens.shape[1]
        query, key, value = map(self._split_heads, self.in_proj(tokens).chunk(3, dim=-1))
        keys = torch.cat([state["keys"], key], dim=2)  # (B, heads, cache + L, head_size)
        values = torch.cat([state["values"], value], dim=2)
        slot = torch.arange(keys.shape[2], device=tokens.device)
        newest = slot[self.n_remembered :, None]  # each new token's own slot
        n_padded = 0 if real is None else n_new - real.sum(dim=1)
        oldest = self.n_remembered - state["n_tokens"] + n_padded  # first slot with a token
        in_reach = (slot <= newest) & (slot > newest - self.n_remembered)  # (L, cache + L)
        # Padding attends to itself: a softmax over no tokens is NaN.
        visible = in_reach & ((slot >= oldest[:, None, None]) | (slot == newest))
        if readout is not None:
            query, visible = query[:, :, readout], visible[:, readout]
        mixed = self._attend(query, keys, values, visible.unsqueeze(1))
        return mixed, {
            "keys": keys[:, :, n_new:],
            "values": values[:, :, n_new:],
            "n_tokens": (state["n_tokens"] + n_new - n_padded).clamp_max(self.n_remembered),
        }

    def _split_heads(self, projected: Float[Tensor, "B L H"]) -> Float[Tensor, "B heads L size"]:
        heads = projected.view(*projected.shape[:2], self.n_heads, self.head_size)
        return heads.transpose(1, 2)  # (B, heads, L, size)

    def _attend(
        self,
        query: Float[Tensor, "B heads M size"],
        key: Float[Tensor, "B heads L size"],
        value: Float[Tensor, "B heads L size"],
        visible: Bool[Tensor, "..."] | None,
    ) -> Float[Tensor, "B M H"]:
        """Attend where ``visible`` is True; None is the causal mask."""
        mixed = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=visible,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=visible is None,
        )
        output: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))  # heads joined: (B, M, H)
        return output


class ConvolutionMixer(nn.Module):
    """Causal depthwise filters over the last few tokens, one set for each kind of token.

    Return-to-go, state and action tokens each have their own filters. Channels are not mixed:
    the channel mixing that follows does that.

    Args:
        config: ``hidden_size``, ``filter_length``, ``conditioning`` and ``backend``.

    Source: Kim et al. 2024, "Decision ConvFormer" (arXiv:2310.03022).
    """

    def __init__(self, config: DecisionMambaConfig) -> None:
        super().__init__()
        self.n_taps = config.filter_length
        self.backend = config.backend
        self.n_kinds = config.tokens_per_step
        bound = self.n_taps**-0.5  # torch's start of a depthwise convolution
        shape = (self.n_kinds, config.hidden_size)
        self.filters = nn.Parameter(torch.empty(*shape, self.n_taps).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(shape).uniform_(-bound, bound))

    def initial_state(self, batch_size: int) -> dict[str, Tensor]:
        """Return the state before the first token of the first step: zeros."""
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
        """Mix sequences that continue from a state; see :meth:`MambaMixer.resume`."""
        if real is not None:
            tokens = tokens * real.unsqueeze(-1)
        n_new = tokens.shape[1]
        inputs = torch.cat([state["inputs"], tokens], dim=1)[:, n_new:]
        kind = (state["kind"] + n_new) % self.n_kinds
        return self._mix(tokens, state["inputs"], readout), {"inputs": inputs, "kind": kind}

    def _mix(
        self,
        tokens: Float[Tensor, "B L H"],
        before: Float[Tensor, "B before H"] | None,
        readout: slice | None,
    ) -> Float[Tensor, "B M H"]:
        """Filter sequences that start with the first token of a step."""
        if readout is not None and readout.step == self.n_kinds:  # one kind of token
            return self._filter(tokens, before, (readout.start or 0) % self.n_kinds)[:, readout]
        kinds = torch.arange(tokens.shape[1], device=tokens.device) % self.n_kinds
        mixed = self._filter(tokens, before, 0)
        for kind in range(1, self.n_kinds):
            is_of_kind = (kinds == kind).unsqueeze(-1)  # (L, 1)
            mixed = torch.where(is_of_kind, self._filter(tokens, before, kind), mixed)
        return mixed if readout is None else mixed[:, readout]

    def _filter(
        self, tokens: Float[Tensor, "B L H"], before: Float[Tensor, "B before H"] | None, kind: int
    ) -> Float[Tensor, "B L H"]:
        """Filter every token by the filters of one kind."""
        return causal_conv1d(
            tokens, self.filters[kind], self.bias[kind], initial_state=before, backend=self.backend
        )

    def step(
        self, tokens: Float[Tensor, "B L H"], state: dict[str, Tensor]
    ) -> tuple[Float[Tensor, "B L H"], dict[str, Tensor]]:
        """Mix the next few tokens of each sequence, whose first token may be of any kind."""
        n_new = tokens.shape[1]
        inputs = torch.cat([state["inputs"], tokens], dim=1)  # (B, W - 1 + L, H)
        offset = torch.arange(n_new, device=tokens.device)
        kinds = (state["kind"].unsqueeze(1) + offset) % self.n_kinds  # (B, L)
        mixed = self.bias[kinds]
        for tap in range(self.n_taps):
            mixed = mixed + inputs[:, tap : tap + n_new] * self.filters[kinds, :, tap]
        kind = (state["kind"] + n_new) % self.n_kinds
        return mixed, {"inputs": inputs[:, n_new:], "kind": kind}
