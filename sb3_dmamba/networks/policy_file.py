"""A policy in a file of its own, as Stable-Baselines3's ``policy.save`` writes one."""

from __future__ import annotations

import json
import os
import pickle
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import torch

from sb3_dmamba.config import DecisionMambaConfig
from sb3_dmamba.data.space_json import space_from_json, space_to_json
from sb3_dmamba.errors import ConfigError, ModelFileError, SpaceError

if TYPE_CHECKING:
    from sb3_dmamba.networks.policy import DecisionMambaPolicy

__all__ = ["load_policy", "save_policy"]

Policy = TypeVar("Policy", bound="DecisionMambaPolicy")

_FORMAT = "sb3_dmamba policy 1"
_DAMAGE = (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, TypeError, ValueError)


def save_policy(policy: DecisionMambaPolicy, path: str | os.PathLike[str] | BinaryIO) -> None:
    """Write weights, normalisation, config and spaces."""
    description = {
        "format": _FORMAT,
        "config": policy.config.to_dict(),
        "observation_space": space_to_json(policy.observation_space),
        "action_space": space_to_json(policy.action_space),
    }
    torch.save({"data": json.dumps(description), "state_dict": policy.state_dict()}, path)


def load_policy(
    kind: type[Policy], path: str | os.PathLike[str] | BinaryIO, device: torch.device
) -> Policy:
    """Read what :func:`save_policy` wrote, and make a policy of class ``kind`` of it.

    Raises:
        ModelFileError: The file is missing, damaged, or something else.
    """
    try:
        saved = torch.load(path, map_location=device, weights_only=True)
        description = json.loads(saved["data"])
        if description["format"] != _FORMAT:
            raise ModelFileError(f"{path} has the format {description['format']!r}, not {_FORMAT}")
        observation_space: Any = space_from_json(description["observation_space"])
        action_space = space_from_json(description["action_space"])
        config = DecisionMambaConfig.from_dict(description["config"])
        with torch.random.fork_rng(devices=[]):  # its first weights are drawn for nothing
            policy = kind(observation_space, action_space, config)
        policy.load_state_dict(saved["state_dict"])
    except FileNotFoundError as error:
        raise ModelFileError(f"there is no policy file at {path}") from error
    except (ConfigError, SpaceError, *_DAMAGE) as error:
        if isinstance(error, ModelFileError):
            raise
        raise ModelFileError(
            f"{path} is not a policy that policy.save wrote ({type(error).__name__}: "
            f"{str(error).splitlines()[0]}): a model that model.save wrote is read by "
            f"DecisionMamba.load(path), whose .policy it is"
        ) from error
    policy.set_training_mode(False)
    return policy.to(device)
