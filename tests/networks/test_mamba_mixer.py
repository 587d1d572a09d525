"""The Mamba mixer against mamba_ssm's names and start, and against mambapy's numbers."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from sb3_dmamba.config import DecisionMambaConfig
from sb3_dmamba.networks import MambaMixer
from sb3_dmamba.networks.initialization import initialize

CONFIG = DecisionMambaConfig(hidden_size=24, d_state=5, d_conv=3, expand=2, dt_rank=4)


def test_parameters_are_named_and_shaped_as_mamba_ssm_names_and_shapes_them() -> None:
    shapes = {name: tuple(p.shape) for name, p in MambaMixer(CONFIG).named_parameters()}
    assert shapes == {  # mamba_ssm/modules/mamba_simple.py: d_inner 48
        "A_log": (48, 5),
        "D": (48,),
        "in_proj.weight": (96, 24),
        "conv1d.weight": (48, 1, 3),
        "conv1d.bias": (48,),
        "x_proj.weight": (14, 48),
        "dt_proj.weight": (48, 4),
        "dt_proj.bias": (48,),
        "out_proj.weight": (24, 48),
    }


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


@pytest.mark.parametrize("chunks", [[13], [1] * 13, [4, 1, 8]])
def test_steps_equal_the_whole(chunks: list[int]) -> None:
    torch.manual_seed(0)
    mixer = MambaMixer(CONFIG)
    tokens = torch.randn(2, 13, 24)
    state = mixer.initial_state(2)
    outputs = []
    for chunk in tokens.split(chunks, dim=1):
        output, state = mixer.step(chunk, state)
        outputs.append(output)
    torch.testing.assert_close(torch.cat(outputs, dim=1), mixer(tokens), rtol=1e-5, atol=1e-6)
