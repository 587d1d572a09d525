"""Which room may import which, and what importing the package leaves alone."""

from __future__ import annotations

import ast
import graphlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sb3_dmamba

PACKAGE = Path(sb3_dmamba.__file__).parent

# Room -> the rooms it imports directly, as design.md's table has it, plus what these already use
# (the container of data is known to whatever takes or names one). Nothing points the other way.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "atomic": set(),
    "folders": set(),
    "machine": set(),
    "checks": {"errors"},
    "config": {"checks", "errors"},
    "atari": {"checks", "errors"},
    "d4rl": {"checks", "errors"},
    "memory_tasks": {"checks", "errors"},
    "compatibility": {"atari", "memory_tasks", "errors"},
    "tasks": {
        *("atari", "checks", "compatibility", "config", "d4rl", "folders", "memory_tasks"),
        "errors",
    },
    "data": {
        *("atari", "checks", "compatibility", "config", "d4rl", "folders", "memory_tasks"),
        "errors",
    },
    "ops": {"errors"},
    "networks": {"ops", "config", "data", "errors"},
    "training": {"networks", "data", "config", "atomic", "errors"},
    "evaluation": {"networks", "tasks", "data", "config", "checks", "errors"},
    "environments": {"evaluation", "tasks", "data", "atari", "checks", "compatibility", "errors"},
    "export": {"training", "networks", "ops", "data", "config", "atomic", "errors"},
    "files": {"training", "tasks", "data", "config", "networks", "errors"},
}
MAY_IMPORT["algorithm"] = set(MAY_IMPORT) - {"ops", "d3rlpy", "machine"}
MAY_IMPORT["d3rlpy"] = set(MAY_IMPORT)
MAY_IMPORT["hub"] = {"algorithm", "environments", "evaluation", "data", "config", "errors"}
MAY_IMPORT["doctor"] = {
    *("algorithm", "ops", "tasks", "data", "d4rl", "folders", "machine", "config", "errors")
}
for _room in ("__init__", "experiments", "cli", "__main__"):  # each may use everything before it
    MAY_IMPORT[_room] = set(MAY_IMPORT)


def _imported_modules(path: Path) -> Iterator[str]:
    package = ["sb3_dmamba", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def _rooms_imported(path: Path) -> set[str]:
    names = (name.split(".") for name in _imported_modules(path))
    rooms = {parts[1] for parts in names if parts[0] == "sb3_dmamba" and len(parts) > 1}
    public = rooms & set(sb3_dmamba.__all__) - {"__version__"}
    return rooms - set(sb3_dmamba.__all__) | ({"__init__"} if public else set())


def _room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


MODULES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_rooms_import_only_what_they_may(path: Path) -> None:
    room = _room_of(path)
    assert room in MAY_IMPORT, f"{room} is not a room of the design"
    forbidden = _rooms_imported(path) - MAY_IMPORT[room] - {room}
    assert not forbidden, f"{room} imports {sorted(forbidden)}"


def test_the_scan_sees_imports() -> None:
    assert "tasks" in _rooms_imported(PACKAGE / "cli" / "tasks.py")
    assert "errors" in _rooms_imported(PACKAGE / "config.py")


def test_the_directions_have_no_cycle() -> None:
    order = graphlib.TopologicalSorter(
        {room: others - {room} for room, others in MAY_IMPORT.items()}
    )
    order.prepare()  # raises where there is one


def _run(code: str) -> str:
    finished = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


OPTIONAL = (
    "mujoco", "d3rlpy", "numba", "minari", "h5py", "tensorboard", "matplotlib", "ale_py", "cv2",
    "triton", "mamba_ssm", "causal_conv1d", "mambapy", "imageio", "tqdm", "typer", "onnx",
    "onnxruntime", "huggingface_hub",
)  # fmt: skip


def test_importing_loads_no_optional_package() -> None:
    # Other packages import some of these on their own: only what we add on top counts.
    code = f"""
import json, sys
import gymnasium, stable_baselines3, stable_baselines3.common.callbacks, torch
before = set(sys.modules)
import sb3_dmamba
for name in sb3_dmamba.__all__:
    getattr(sb3_dmamba, name)
print(json.dumps([name for name in {OPTIONAL} if name in set(sys.modules) - before]))
"""
    assert json.loads(_run(code)) == []


def test_importing_changes_no_global_state() -> None:
    code = """
import locale, logging, os, random, signal, sys, warnings
import gymnasium, numpy as np, stable_baselines3, stable_baselines3.common.callbacks, torch

def state():
    return {
        "threads": torch.get_num_threads(),
        "interop": torch.get_num_interop_threads(),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "precision": torch.get_float32_matmul_precision(),
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "torch": torch.get_rng_state().sum().item(),
        "numpy": np.random.get_state()[1].tolist(),
        "errors": np.geterr(),
        "printing": np.get_printoptions(),
        "random": random.getstate(),
        "environ": dict(os.environ),
        "environments": sorted(e for e in gymnasium.registry if not e.startswith("sb3_dmamba/")),
        "filters": list(warnings.filters),
        "handlers": list(logging.getLogger().handlers),
        "level": logging.getLogger().level,
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "hook": sys.excepthook,
        "recursion": sys.getrecursionlimit(),
        "locale": locale.setlocale(locale.LC_ALL),
    }

before = state()
import sb3_dmamba
for name in sb3_dmamba.__all__:
    getattr(sb3_dmamba, name)
after = state()
changed = [name for name in before if before[name] != after[name]]
print(*changed)
"""
    assert _run(code).split() == []


def test_the_command_line_starts_without_torch() -> None:
    code = """
import sys
import sb3_dmamba.cli
print(*[name for name in ("torch", "gymnasium", "stable_baselines3") if name in sys.modules])
"""
    assert _run(code).split() == []
