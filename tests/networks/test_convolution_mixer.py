"""The convolution mixer against sums written out, and against torch's own convolutions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sb3_dmamba.config import DecisionMambaConfig
from sb3_dmamba.networks import ConvolutionMixer

KINDS = 3


def make_mixer(filter_length: int, width: int = 5) -> ConvolutionMixer:
    torch.manual_seed(0)
    config = DecisionMambaConfig(
        mixer="convolution", hidden_size=width, filter_length=filter_length
    )
    return ConvolutionMixer(config)


def write_out(mixer: ConvolutionMixer, tokens: Tensor) -> Tensor:
    """Add up what each token gathers: its own kind's filter over itself and those before it."""
    rows = []
    for place in range(tokens.shape[1]):
        kind = place % KINDS
        total = mixer.bias[kind].expand(len(tokens), -1)
        for back in range(min(place + 1, mixer.n_taps)):
            total = total + mixer.filters[kind, :, -1 - back] * tokens[:, place - back]
        rows.append(total)
    return torch.stack(rows, dim=1)


@pytest.mark.parametrize("filter_length", [1, 2, 6])
@pytest.mark.parametrize("length", [2, 3, 17])
def test_each_kind_of_token_has_its_own_filter(filter_length: int, length: int) -> None:
    mixer, tokens = make_mixer(filter_length), torch.randn(4, length, 5)
    expected = write_out(mixer, tokens)
    torch.testing.assert_close(mixer(tokens), expected)
    for readout in (slice(1, None, 3), slice(None, None, 3), slice(1, None), slice(0, 0)):
        torch.testing.assert_close(mixer(tokens, readout), expected[:, readout])


def test_a_kinds_filter_is_torchs_depthwise_convolution() -> None:
    mixer, tokens = make_mixer(4), torch.randn(2, 12, 5)
    for kind in range(KINDS):
        torchs = nn.Conv1d(5, 5, 4, groups=5, padding=3)
        torchs.load_state_dict({"weight": mixer.filters[kind, :, None], "bias": mixer.bias[kind]})
        theirs = torchs(tokens.transpose(1, 2)).transpose(1, 2)[:, kind:12:KINDS]
        torch.testing.assert_close(mixer(tokens)[:, kind::KINDS], theirs)


@pytest.mark.parametrize("filter_length", [1, 6])
@pytest.mark.parametrize("cuts", [(1,), (2, 3, 1), (5, 4)])
def test_token_by_token_is_the_whole(filter_length: int, cuts: tuple[int, ...]) -> None:
    mixer, tokens = make_mixer(filter_length), torch.randn(2, 18, 5)
    state, mixed, place, turn = mixer.initial_state(2), [], 0, 0
    while place < 18:
        piece = tokens[:, place : place + cuts[turn % len(cuts)]]
        output, state = mixer.step(piece, state)
        mixed.append(output)
        place, turn = place + piece.shape[1], turn + 1
    torch.testing.assert_close(torch.cat(mixed, dim=1), mixer(tokens))


def test_filters_start_as_torchs_do() -> None:
    mixer = make_mixer(6, width=400)
    torchs = nn.Conv1d(400, 400, 6, groups=400)
    for ours, theirs in ((mixer.filters, torchs.weight), (mixer.bias, torchs.bias)):
        assert theirs is not None
        assert ours.abs().max() <= 6**-0.5
        assert ours.std().item() == pytest.approx(theirs.std().item(), rel=0.1)
