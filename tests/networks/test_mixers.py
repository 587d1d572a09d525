"""Mixers against the names and numbers of mamba_ssm, mambapy and torch, and written-out sums."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sb3_dmamba.config import DecisionMambaConfig
from sb3_dmamba.networks import ConvolutionMixer, MambaMixer
from sb3_dmamba.networks.model import initialize

CONFIG = DecisionMambaConfig(hidden_size=24, d_state=5, d_conv=3, expand=2, dt_rank=4)


def test_step_sizes_start_between_a_thousandth_and_a_tenth() -> None:
    mixer = MambaMixer(DecisionMambaConfig())
    step_size = F.softplus(mixer.dt_proj.bias)
    assert step_size.min() >= 0.999e-3
    assert step_size.max() <= 1.001e-1
    assert step_size.log().std() > 1.0  # spread over the two decades, not bunched
    assert torch.equal(mixer.A_log.exp().round(), torch.arange(1.0, 17).repeat(256, 1))
    assert torch.equal(mixer.D, torch.ones(256))


def test_the_papers_start_is_the_official_codes() -> None:
    mixer = MambaMixer(DecisionMambaConfig())
    initialize(mixer, "paper")
    assert torch.allclose(F.softplus(mixer.dt_proj.bias), torch.tensor(0.6931), atol=1e-4)
    for linear in (mixer.in_proj, mixer.x_proj, mixer.dt_proj, mixer.out_proj):
        assert abs(linear.weight.std().item() - 0.02) < 0.002


@pytest.mark.parametrize("length", [1, 2, 13])
def test_mambapys_weights_give_mambapys_outputs_and_gradients(length: int) -> None:
    mambapy = pytest.importorskip("mambapy.mamba", reason="mambapy is not installed")
    theirs = mambapy.MambaBlock(
        mambapy.MambaConfig(
            d_model=24, n_layers=1, dt_rank=4, d_state=5, d_conv=3, expand_factor=2, pscan=False
        )
    )
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    ours = MambaMixer(CONFIG)
    ours.load_state_dict(theirs.state_dict())
    tokens = torch.randn(3, length, 24)
    results = {}
    for name, module in (("ours", ours), ("theirs", theirs)):
        inputs = tokens.clone().requires_grad_()
        output = module(inputs)
        output.square().sum().backward()
        assert inputs.grad is not None
        gradients = {key: p.grad for key, p in module.named_parameters()}
        results[name] = SimpleNamespace(output=output, inputs=inputs.grad, gradients=gradients)
    torch.testing.assert_close(
        results["ours"].output, results["theirs"].output, rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        results["ours"].inputs, results["theirs"].inputs, rtol=1e-4, atol=1e-4
    )
    assert results["ours"].gradients.keys() == results["theirs"].gradients.keys()
    for key, gradient in results["ours"].gradients.items():
        expected = results["theirs"].gradients[key]
        scale = float(expected.abs().max())
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5 * max(scale, 1.0))


def _step(mixer: MambaMixer) -> torch.Tensor:
    output, _ = mixer.step(torch.ones(1, 2, 24), mixer.initial_state(1))
    return output


@pytest.mark.parametrize(
    "how", ["optimiser", "fused optimiser", "state_dict", "vector", "parametrized", "dtype"]
)
def test_a_step_sees_every_change_of_the_weights(how: str) -> None:
    torch.manual_seed(0)
    mixer, other = MambaMixer(CONFIG), MambaMixer(CONFIG)
    before = _step(mixer)
    if how == "optimiser":
        mixer(torch.ones(1, 2, 24)).sum().backward()
        torch.optim.SGD(mixer.parameters(), 1.0).step()
    elif how == "fused optimiser":  # torch does not count its changes
        mixer.train()
        mixer(torch.ones(1, 2, 24)).sum().backward()
        torch.optim.AdamW(mixer.parameters(), 0.1, fused=True).step()
    elif how == "state_dict":
        mixer.load_state_dict(other.state_dict())
    elif how == "vector":
        vector = torch.nn.utils.parameters_to_vector(other.parameters()).detach()
        torch.nn.utils.vector_to_parameters(vector, mixer.parameters())
        _step(mixer)
        vector.mul_(1.5)  # in the memory that the parameters share
        mixer.forget_kept_weights()
    elif how == "parametrized":
        torch.nn.utils.parametrizations.weight_norm(mixer.in_proj)
        _step(mixer)
        with torch.no_grad():
            mixer.in_proj.parametrizations.weight.original0.mul_(2.0)  # type: ignore[union-attr,operator]
    else:
        mixer.double().backend = "reference"  # nothing is compiled for float64
        tokens = torch.ones(1, 2, 24, dtype=torch.float64)
        output, _ = mixer.step(tokens, mixer.initial_state(1))
        torch.testing.assert_close(output, mixer(tokens))
        return
    after = _step(mixer)
    assert not torch.allclose(after, before)
    torch.testing.assert_close(after, mixer(torch.ones(1, 2, 24)), rtol=1e-5, atol=1e-6)


def test_a_mixer_made_in_inference_mode_steps() -> None:
    with torch.inference_mode():
        mixer = MambaMixer(CONFIG)
        torch.testing.assert_close(_step(mixer), mixer(torch.ones(1, 2, 24)))


KINDS = 3


def make_convolution(filter_length: int, width: int = 5) -> ConvolutionMixer:
    torch.manual_seed(0)
    config = DecisionMambaConfig(
        mixer="convolution", hidden_size=width, filter_length=filter_length, conditioning="sequence"
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
    mixer, tokens = make_convolution(filter_length), torch.randn(4, length, 5)
    expected = write_out(mixer, tokens)
    torch.testing.assert_close(mixer(tokens), expected)
    for readout in (slice(1, None, 3), slice(None, None, 3), slice(1, None), slice(0, 0)):
        torch.testing.assert_close(mixer(tokens, readout), expected[:, readout])
