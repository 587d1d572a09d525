"""Every format, opened as its users open it, step by step against ``predict``."""

from __future__ import annotations

import io
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
    *(("window", kind) for kind in ("mamba", "attention", "convolution", "image", "bytes")),
    *(("window", kind) for kind in ("matrices", "global time", "one step")),
    *(("stream", kind) for kind in ("mamba", "attention", "convolution", "image", "one action")),
]
TORCHSCRIPT: list[tuple[Memory, str]] = [
    ("window", "mamba"),
    ("stream", "mamba"),
    ("window", "image"),
    ("stream", "attention"),
]


def open_module(path: Path, device: str = "cpu") -> tuple[Any, Step]:
    """Open a file of torch's; return its module, and its step."""
    module: Any
    if path.suffix == ".pt":
        module = torch.jit.load(path, map_location=device)
    else:
        module = torch.export.load(path).module()

    def step(
        observation: np.ndarray, return_to_go: np.ndarray, state: Arrays
    ) -> tuple[Arrays, Arrays]:
        rows = {name: torch.as_tensor(each) for name, each in state.items()}
        found = module(torch.as_tensor(observation), torch.as_tensor(return_to_go), rows)
        outputs, after = ({name: each.numpy() for name, each in part.items()} for part in found)
        return outputs, after

    return module, step


@pytest.mark.parametrize(("memory", "kind"), ONNX)
def test_onnx(memory: Memory, kind: str, tmp_path: Path) -> None:
    policy = make_policy(kind, n_layers=2 if kind == "mamba" else 1)
    exported = export_policy(policy, tmp_path / "policy.onnx", memory=memory, verify=False)
    _, step = open_onnx(exported.path)
    assert_acts_like(policy, memory, step)


@pytest.mark.filterwarnings("ignore:`torch.jit.load` is deprecated:DeprecationWarning")
@pytest.mark.parametrize(("memory", "kind"), TORCHSCRIPT)
def test_torchscript(memory: Memory, kind: str, tmp_path: Path) -> None:
    policy = make_policy(kind)
    path = tmp_path / "policy.pt"
    exported = export_policy(policy, path, memory=memory, verify=False)
    module, step = open_module(path)
    assert_acts_like(policy, memory, step)
    state = module.initial_state(2)
    expected = policy.initial_state(2, memory).tensors
    assert {name: (rows.shape, rows.dtype) for name, rows in state.items()} == {
        name: (rows.shape, rows.dtype) for name, rows in expected.items()
    }
    assert not any(rows.any() for rows in state.values())
    files = {"sb3_dmamba.json": ""}
    torch.jit.load(io.BytesIO(path.read_bytes()), _extra_files=files)
    assert json.loads(files["sb3_dmamba.json"]) == exported.metadata


def test_exported_program(tmp_path: Path) -> None:
    # The smallest: torch.export takes seconds a layer.
    policy = make_policy("mamba", n_layers=1, channel_mixing=False, context_length=2)
    path = tmp_path / "policy.pt2"
    exported = export_policy(policy, path, memory="window", verify=False)
    _, step = open_module(path)
    assert_acts_like(policy, "window", step)
    files = {"sb3_dmamba.json": ""}
    torch.export.load(path, extra_files=files)
    assert json.loads(files["sb3_dmamba.json"]) == exported.metadata
