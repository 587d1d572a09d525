"""The causal self-attention token mixer: with it, Decision Mamba is a Decision Transformer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sb3_dmamba.config import DecisionMambaConfig
from sb3_dmamba.networks.embedding import TOKENS_PER_STEP

__all__ = ["AttentionMixer"]


class AttentionMixer(nn.Module):
    """Causal multi-head self-attention, as in GPT-2.

    Args:
        config: ``hidden_size``, ``n_heads``, ``dropout`` (of the attention weights, in training)
            and ``context_length`` (the tokens that ``step`` remembers).

    Source: Radford et al. 2019; Chen et al. 2021 (arXiv:2106.01345).
    """

    def __init__(self, config: DecisionMambaConfig) -> None:
        super().__init__()
        self.n_heads = config.n_heads
        self.head_size = config.hidden_size // config.n_heads
        self.dropout = config.dropout
        self.n_remembered = TOKENS_PER_STEP * config.context_length
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
        """Mix the next few tokens, attending to the last ``3 * context_length`` before them.

        The cost is the same however long the episode is. Cached keys and values were computed
        when their token was new, with all that it then saw: not what re-encoding a window gives.
        """
        return self.resume(tokens, state)

    def resume(
        self,
        tokens: Float[Tensor, "B L H"],
        state: dict[str, Tensor],
        readout: slice | None = None,
        real: Bool[Tensor, "B L"] | None = None,
    ) -> tuple[Float[Tensor, "B M H"], dict[str, Tensor]]:
        """Mix sequences that go on from ``state``, as :meth:`step`; see :meth:`MambaMixer.resume`.

        Source: Dai et al. 2019 (arXiv:1901.02860) train with a cache in this way.
        """
        n_new = tokens.shape[1]
        query, key, value = map(self._split_heads, self.in_proj(tokens).chunk(3, dim=-1))
        keys = torch.cat([state["keys"], key], dim=2)  # (B, heads, cache + L, head_size)
        values = torch.cat([state["values"], value], dim=2)
        slot = torch.arange(keys.shape[2], device=tokens.device)
        newest = slot[self.n_remembered :, None]  # each new token's own slot
        n_padded = 0 if real is None else n_new - real.sum(dim=1)
        oldest = self.n_remembered - state["n_tokens"] + n_padded  # first slot that holds a token
        in_reach = (slot <= newest) & (slot > newest - self.n_remembered)  # (L, cache + L)
        # A token sees itself, also where it is padding: a softmax of nothing is not a number.
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
        return heads.transpose(1, 2)

    def _attend(
        self,
        query: Float[Tensor, "B heads M size"],
        key: Float[Tensor, "B heads L size"],
        value: Float[Tensor, "B heads L size"],
        visible: Bool[Tensor, "..."] | None,
    ) -> Float[Tensor, "B M H"]:
        """Attend where ``visible`` is True; None is the causal triangle."""
        mixed = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=visible,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=visible is None,
        )
        output: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return output
