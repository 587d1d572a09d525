"""Every format, opened without this package, step by step against ``predict``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sb3_dmamba.config import Memory
from sb3_dmamba.export import export_policy
from tests.export.cases import Arrays, Step, assert_acts_like, make_policy, open_onnx

# What the formats could get wrong; test_graph has every kind.
ONNX: list[tuple[Memory, str]] = [
    *(("window", kind) for kind in ("mamba", "attention", "image", "bytes", "matrices")),
    *(("window", kind) for kind in ("global time", "one step")),
    *(("stream", kind) for kind in ("mamba", "attention", "convolution", "image", "one action")),
]
# The smallest policies: torch.export takes seconds a layer.
PROGRAMS: list[tuple[Memory, str]] = [
    ("window", "image"),
    ("stream", "mamba"),
    ("stream", "attention"),
]


def open_program(path: Path) -> tuple[Any, Step]:
    """Open a file as its users do; return what it says about itself, and its step."""
    files = {"sb3_dmamba.json": ""}
    module: Any = torch.export.load(path, extra_files=files).module()

    def step(
        observation: np.ndarray, return_to_go: np.ndarray, state: Arrays
    ) -> tuple[Arrays, Arrays]:
        rows = {name: torch.as_tensor(each) for name, each in state.items()}
        found = module(torch.as_tensor(observation), torch.as_tensor(return_to_go), rows)
        outputs, after = ({name: each.numpy() for name, each in part.items()} for part in found)
        return outputs, after

    return json.loads(files["sb3_dmamba.json"]), step


@pytest.mark.parametrize(("memory", "kind"), ONNX)
def test_onnx(memory: Memory, kind: str, tmp_path: Path) -> None:
    policy = make_policy(kind, n_layers=2 if kind == "mamba" else 1)
    exported = export_policy(policy, tmp_path / "policy.onnx", memory=memory, verify=False)
    _, step = open_onnx(exported.path)
    assert_acts_like(policy, memory, step)


@pytest.mark.parametrize(("memory", "kind"), PROGRAMS)
def test_exported_program(memory: Memory, kind: str, tmp_path: Path) -> None:
    policy = make_policy(kind, n_layers=1, channel_mixing=False, context_length=2)
    exported = export_policy(policy, tmp_path / "policy.pt2", memory=memory, verify=False)
    about, step = open_program(exported.path)
    assert_acts_like(policy, memory, step)
    assert about == exported.metadata
