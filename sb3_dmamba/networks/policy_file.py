"""A policy in a file of its own, as Stable-Baselines3's ``policy.save`` writes one."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from gymnasium import spaces
from torch import Tensor

from sb3_dmamba.config import DecisionMambaConfig
from sb3_dmamba.data.space_json import space_from_json, space_to_json
from sb3_dmamba.errors import ConfigError, ModelFileError, SpaceError
from sb3_dmamba.networks.features import check_extractor

__all__ = ["read_policy", "write_policy"]

_FORMAT = "sb3_dmamba policy 1"
_DAMAGE = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    OSError,
    LookupError,
    TypeError,
    ValueError,
)

MakePolicy = Callable[[Any, Any, DecisionMambaConfig], Any]


def write_policy(
    path: str | os.PathLike[str] | BinaryIO,
    config: DecisionMambaConfig,
    observation_space: spaces.Box,
    action_space: spaces.Space[Any],
    weights: Mapping[str, Tensor],
    extractor: str | None = None,
) -> None:
    """Write all that makes up a policy; spaces and config as JSON, an extractor's class by name."""
    description = {
        "format": _FORMAT,
        "config": config.to_dict(),
        "observation_space": space_to_json(observation_space),
        "action_space": space_to_json(action_space),
        "features_extractor": extractor,
    }
    torch.save({"data": json.dumps(description), "state_dict": dict(weights)}, path)


def read_policy(
    path: str | os.PathLike[str] | BinaryIO,
    device: torch.device,
    make: MakePolicy,
    extractor: str | None = None,
) -> Any:
    """Read what :func:`write_policy` wrote, and make a policy of it.

    Args:
        path: The file.
        device: Where to put the policy.
        make: Makes a policy of an observation space, an action space and a config.
        extractor: Name of the features extractor's class that it makes it with, if any.

    Raises:
        ConfigError: The policy was made with another one.
        ModelFileError: The file is missing, damaged, or something else.
        OSError: The file may not be opened.
    """
    try:
        content = Path(path).read_bytes() if isinstance(path, (str, os.PathLike)) else path.read()
    except FileNotFoundError as error:
        raise ModelFileError(f"there is no policy file at {path}", path=path) from error
    try:
        if not zipfile.is_zipfile(io.BytesIO(content)):
            raise ModelFileError("it is not a zip, or was cut off")
        saved = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
        description = json.loads(saved["data"])
        if description["format"] != _FORMAT:
            raise ModelFileError(
                f"the format is {description['format']!r}, not {_FORMAT!r}",
                path=path,
                setting="format",
                value=description["format"],
                choices=[_FORMAT],
            )
        theirs = description.get("features_extractor")
    except (ModelFileError, *_DAMAGE) as error:
        raise _is_no_policy(path, error) from error
    check_extractor(theirs, extractor, path)
    try:
        observation_space = space_from_json(description["observation_space"])
        action_space = space_from_json(description["action_space"])
        config = DecisionMambaConfig.from_dict(description["config"])
        with torch.random.fork_rng(devices=[]):  # its first weights are drawn for nothing
            policy = make(observation_space, action_space, config)
        policy.load_state_dict(saved["state_dict"])
    except (ConfigError, SpaceError, ModelFileError, *_DAMAGE) as error:
        raise _is_no_policy(path, error) from error
    policy.set_training_mode(False)
    return policy.to(device)


def _is_no_policy(path: Any, error: Exception) -> ModelFileError:
    return ModelFileError(
        f"{path} is not a policy that policy.save wrote ({type(error).__name__}: "
        f"{str(error).splitlines()[0]}): a model that model.save wrote is read by "
        f"DecisionMamba.load(path), whose .policy it is",
        path=path,
    )
