"""Machine, date and versions of a measurement."""

from __future__ import annotations

import datetime
import importlib
import os
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from benchmarks.request import Request
from sb3_dmamba.machine import describe_device

_PACKAGES = (
    "sb3-dmamba",
    "torch",
    "numba",
    "triton",
    "d3rlpy",
    "mambapy",
    "mamba-ssm",
    "causal-conv1d",
)


def describe(request: Request) -> dict[str, Any]:
    """Describe the machine that a benchmark runs on.

    The load is that of the minute before: other work on the machine shows there, and makes two
    threads that wait for each other by spinning many times slower than one. The command has them
    wait asleep (OMP_WAIT_POLICY).
    """
    found: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "device": describe_device(request.device),
        "threads": torch.get_num_threads(),
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "not set"),
        "load": round(os.getloadavg()[0], 1),
    }
    if request.on_gpu:
        found["CUDA"] = torch.version.cuda
        found["driver"] = _find_driver()
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    if request.quick:
        found["figures"] = "of a trial at toy size, which mean nothing"
    commit = _find_commit()
    return found | ({"commit": commit} if commit else {})


def _find_driver() -> str:
    """Return the driver's version as nvidia-smi says it, else the CUDA version it supports."""
    if shutil.which("nvidia-smi"):
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        finished = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
        if finished.returncode == 0 and finished.stdout.strip():
            return finished.stdout.split()[0]
    torch_c = importlib.import_module("torch._C")
    return f"for CUDA {torch_c._cuda_getDriverVersion()}"


def _find_commit() -> str | None:
    git = shutil.which("git")
    if git is None:
        return None
    root = Path(__file__).parents[1]
    command = [git, "-C", str(root), "describe", "--always", "--dirty"]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    return finished.stdout.strip() or None
