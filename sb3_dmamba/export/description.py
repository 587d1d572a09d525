"""What an exported policy says about itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

import sb3_dmamba
from sb3_dmamba.data.space_json import space_to_json
from sb3_dmamba.export.graph import PolicyGraph
from sb3_dmamba.networks import DecisionMambaPolicy

__all__ = ["describe_policy", "describe_tensors"]

_FORMAT_VERSION = 1


def describe_policy(
    policy: DecisionMambaPolicy, graph: PolicyGraph, about: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what somebody who has only the file needs to know, in what JSON can hold.

    Args:
        policy: The policy.
        graph: Its step.
        about: What is known of task, dataset and returns besides.
    """
    config = policy.config
    observation, return_to_go, state = graph.make_example(1)
    return {
        "format_version": _FORMAT_VERSION,
        "memory": graph.memory_name,
        "context_length": config.context_length,
        "mixer": config.mixer,
        "observation_space": space_to_json(policy.observation_space),
        "action_space": space_to_json(policy.action_space),
        **about,
        "inputs": describe_tensors({"observation": observation, "return_to_go": return_to_go}),
        "state": describe_tensors(state),
        "outputs": graph.output_names,
        "versions": {"sb3_dmamba": sb3_dmamba.__version__, "torch": torch.__version__},
    }


def describe_tensors(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Return the type of each, and the shape of one environment's row."""
    return {
        name: {"dtype": str(rows.dtype).removeprefix("torch."), "shape": list(rows.shape[1:])}
        for name, rows in tensors.items()
    }
