"""Operations of a forward pass, counted by hand."""

from __future__ import annotations

from sb3_dmamba.config import DecisionMambaConfig

__all__ = ["count_flops"]

_TOKENS_OF_STEP = 3
_MLP_RATIO = 4


def count_flops(config: DecisionMambaConfig) -> float:
    """Count the operations that the blocks spend on a token, in a window of the config's length.

    A multiplication and an addition count one each; norms, activations, embedding and head are
    left out, and so is what the last block saves where only state tokens are read.

    Args:
        config: The architecture; ``context_length`` gives the tokens that attention looks at.

    Returns:
        Operations a token, averaged over the window.
    """
    width = config.hidden_size
    mixer = {
        "mamba": _count_mamba,
        "attention": _count_attention,
        "convolution": _count_convolution,
    }[config.mixer](config)
    channel_mixer = 2 * 2 * _MLP_RATIO * width**2 if config.channel_mixing else 0
    return config.n_layers * (mixer + channel_mixer)


def _count_mamba(config: DecisionMambaConfig) -> float:
    width, inner = config.hidden_size, config.expand * config.hidden_size
    states, rank = config.d_state, config.resolved_dt_rank
    projections = 2 * (width * 2 * inner + inner * (rank + 2 * states) + rank * inner)
    convolution = 2 * inner * config.d_conv
    # per channel and state: step * A and its exponential, step * B * x, a * h + b, C * h summed
    scan = inner * states * (2 + 1 + 2 + 2)
    skip_and_gate = 4 * inner
    return projections + convolution + scan + skip_and_gate + 2 * inner * width


def _count_attention(config: DecisionMambaConfig) -> float:
    width, n_tokens = config.hidden_size, _TOKENS_OF_STEP * config.context_length
    seen = (n_tokens + 1) / 2  # by a token of a causal window, on average
    scores_and_sums = 2 * 2 * seen * width
    return 2 * width * 3 * width + scores_and_sums + 2 * width**2


def _count_convolution(config: DecisionMambaConfig) -> float:
    return 2 * config.hidden_size * config.filter_length
