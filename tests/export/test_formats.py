"""Every format, opened without this package, step by step against ``predict``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sb3_dmamba.config import Memory
from sb3_dmamba.export import export_policy
from tests.export.cases import as_step, assert_acts_like, make_policy, open_onnx

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
    files = {"sb3_dmamba.json": ""}  # opened as its users do
    assert_acts_like(
        policy, memory, as_step(torch.export.load(exported.path, extra_files=files).module())
    )
    assert json.loads(files["sb3_dmamba.json"]) == exported.metadata
