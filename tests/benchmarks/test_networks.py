"""The gate lets through what computes the same, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from gymnasium import spaces
from torch import nn

from benchmarks.contenders import UnavailableError
from benchmarks.networks import Network, PeerMixer, check_network, make_network
from benchmarks.request import Request
from benchmarks.suites.data import check_windows
from sb3_dmamba.data import WindowSampler
from sb3_dmamba.experiments.efficiency import make_trajectories
from sb3_dmamba.networks import DecisionMambaPolicy

QUICK = Request(quick=True)
BARE = Network({"channel_mixing": False})


@pytest.mark.parametrize(
    "network",
    [
        BARE,
        Network({"channel_mixing": False, "precision": "bf16"}),
        Network({"mixer": "attention"}),
        Network({"mixer": "convolution"}),
        Network({"channel_mixing": False}, "mambapy"),
    ],
    ids=["mamba", "bf16", "attention", "convolution", "mambapy"],
)
def test_what_is_timed_agrees_with_the_reference(network: Network) -> None:
    if network.blocks:
        pytest.importorskip(network.blocks, reason="the peer is not installed")
    agreement = check_network(make_network(network, QUICK), has_steps=network.blocks is None)
    assert agreement.holds
    assert ("steps" in agreement.what) == (
        not network.blocks and "precision" not in network.settings
    )


def test_what_computes_something_else_is_refused() -> None:
    def scale_output(policy: DecisionMambaPolicy) -> None:
        policy.model.head.register_forward_hook(lambda module, inputs, output: output * 1.01)

    def lose_a_gradient(policy: DecisionMambaPolicy) -> None:
        policy.model.layers[0].mixer.A_log.register_hook(lambda gradient: gradient * 0)  # type: ignore[operator]

    for damage in (scale_output, lose_a_gradient):
        policy = make_network(BARE, QUICK)
        damage(policy)
        assert not check_network(policy, has_steps=False).holds
    policy.model.layers[1].mixer = PeerMixer(nn.Identity())  # type: ignore[assignment]
    with pytest.raises(RuntimeError, match="Missing key"):  # it has not our weights
        check_network(policy, has_steps=False)


def test_what_does_not_work_here_says_why() -> None:
    with pytest.raises(UnavailableError, match="CUDA devices"):
        make_network(Network({"channel_mixing": False}, "mamba_ssm"), QUICK)
    with pytest.raises(UnavailableError, match="'cuda' does not work here"):
        make_network(Network({"backend": "cuda"}), QUICK)


def test_windows_are_compared_with_their_episodes() -> None:
    images = spaces.Box(0, 255, (2, 5, 5), np.uint8)
    for space in (spaces.Box(0, 1, (3,), np.float32), images):
        data, other = make_trajectories(3, 9, space), make_trajectories(3, 9, space)
        assert check_windows(WindowSampler(data, 4, 2), data).holds
        other.observations[13:] += 1
        assert not check_windows(WindowSampler(other, 4, 2), data).holds
