"""From a policy to a file that acts without this package."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sb3_dmamba.atomic import write_atomically
from sb3_dmamba.config import Memory
from sb3_dmamba.errors import ConfigError
from sb3_dmamba.export.description import describe_policy
from sb3_dmamba.export.graph import PolicyGraph
from sb3_dmamba.export.onnx import to_onnx
from sb3_dmamba.export.torchscript import to_exported_program, to_torchscript
from sb3_dmamba.export.verification import can_run, measure_error
from sb3_dmamba.networks import DecisionMambaPolicy

__all__ = ["FORMATS", "ExportedPolicy", "export_policy"]

FORMATS: dict[str, Callable[[PolicyGraph, dict[str, Any]], bytes]] = {
    ".onnx": to_onnx,
    ".pt": to_torchscript,
    ".pt2": to_exported_program,
}


@dataclass(frozen=True)
class ExportedPolicy:
    """A file that :func:`export_policy` wrote.

    Args:
        path: The file.
        metadata: What it says about itself.
        max_error: The largest relative difference from the policy that was found in it; None
            where nothing here can run it.
    """

    path: Path
    metadata: dict[str, Any]
    max_error: float | None


def export_policy(
    policy: DecisionMambaPolicy,
    path: str | os.PathLike[str],
    *,
    memory: Memory | None = None,
    about: Mapping[str, Any] | None = None,
    device: torch.device | str = "cpu",
    verify: bool = True,
) -> ExportedPolicy:
    """Write a policy's step as a graph with the state going in and coming out.

    Args:
        policy: The policy; it stays as it is.
        path: File to write, atomically: ``.onnx``, ``.pt`` (TorchScript) or ``.pt2``
            (``torch.export``).
        memory: ``"window"`` or ``"stream"``; None is the policy's own.
        about: What else the file should say about itself, as JSON values.
        device: Where a ``.pt`` or ``.pt2`` is to run; ONNX decides that when it is opened.
        verify: Whether to run the result beside the policy before it is written.

    Returns:
        What was written.

    Raises:
        ConfigError: The suffix is none of these, or the memory cannot be used.
        MissingDependencyError: onnx is not installed.
        ExportError: What was written does not act as the policy does.
        OSError: The file cannot be written; one that was there is as it was.
    """
    target = Path(path)
    suffix = target.suffix.lower()
    if suffix not in FORMATS:
        raise ConfigError(
            f"path={os.fspath(path)!r}: end it in .onnx, .pt (TorchScript) or .pt2 (torch.export)"
        )
    where = torch.device("cpu" if suffix == ".onnx" else device)
    graph = PolicyGraph(policy, policy.memory if memory is None else memory, where)
    metadata = describe_policy(policy, graph, {} if about is None else about)
    content = FORMATS[suffix](graph, metadata)
    error = None
    if verify and can_run(suffix):
        error = measure_error(policy, graph, content, suffix)
    write_atomically(target, content)
    return ExportedPolicy(target, metadata, error)
