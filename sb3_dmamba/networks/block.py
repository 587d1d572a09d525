"""One layer of the model: a token mixer and, where wanted, a channel mixer."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor, nn

from sb3_dmamba.config import DecisionMambaConfig
from sb3_dmamba.networks.attention import AttentionMixer
from sb3_dmamba.networks.convolution import ConvolutionMixer
from sb3_dmamba.networks.dropout import Dropout
from sb3_dmamba.networks.mamba import MambaMixer

__all__ = ["Block"]

_Mixer = MambaMixer | AttentionMixer | ConvolutionMixer
_MIXERS: dict[str, type[_Mixer]] = {
    "mamba": MambaMixer,
    "attention": AttentionMixer,
    "convolution": ConvolutionMixer,
}
_CHANNEL_MIXING_RATIO = 4
_ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU}


class Block(nn.Module):
    """Pre-norm residual block: mix the tokens, then (``channel_mixing``) the channels.

    Args:
        config: The mixer and its settings, width, dropout, ``channel_mixing`` and ``activation``.

    Source: Ota 2024 (arXiv:2403.19925), figure 1 and table 3.
    """

    def __init__(self, config: DecisionMambaConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.norm = nn.LayerNorm(width)
        self.mixer: _Mixer = _MIXERS[config.mixer](config)
        self.dropout = Dropout(config.dropout)
        self.channel_mixer: nn.Sequential | None = None
        if config.channel_mixing:
            self.channel_mixer = nn.Sequential(
                nn.LayerNorm(width),
                nn.Linear(width, _CHANNEL_MIXING_RATIO * width),
                _ACTIVATIONS[config.activation](),
                nn.Linear(_CHANNEL_MIXING_RATIO * width, width),
                Dropout(config.dropout),
            )

    def forward(
        self, tokens: Float[Tensor, "B L H"], readout: slice | None = None
    ) -> Float[Tensor, "B M H"]:
        """Apply the block to whole sequences; ``readout`` selects the tokens that are wanted."""
        mixed = self.dropout(self.mixer(self.norm(tokens), readout))
        residual = tokens if readout is None else tokens[:, readout]
        return self._mix_channels(residual + mixed)

    def resume(
        self,
        tokens: Float[Tensor, "B L H"],
        state: dict[str, Tensor],
        readout: slice | None = None,
        real: Bool[Tensor, "B L"] | None = None,
    ) -> tuple[Float[Tensor, "B M H"], dict[str, Tensor]]:
        """Apply the block to sequences that go on from ``state``; see :meth:`MambaMixer.resume`."""
        mixed, new_state = self.mixer.resume(self.norm(tokens), state, readout, real)
        residual = tokens if readout is None else tokens[:, readout]
        return self._mix_channels(residual + self.dropout(mixed)), new_state

    def step(
        self, tokens: Float[Tensor, "B L H"], state: dict[str, Tensor]
    ) -> tuple[Float[Tensor, "B L H"], dict[str, Tensor]]:
        """Apply the block to the next tokens, continuing from the mixer's ``state``."""
        mixed, new_state = self.mixer.step(self.norm(tokens), state)
        return self._mix_channels(tokens + mixed), new_state

    def _mix_channels(self, tokens: Float[Tensor, "B L H"]) -> Float[Tensor, "B L H"]:
        if self.channel_mixer is None:
            return tokens
        mixed: Tensor = tokens + self.channel_mixer(tokens)
        return mixed
