"""Which room may import which, and what importing the package leaves alone."""

from __future__ import annotations

import ast
import graphlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import sb3_dmamba

PACKAGE = Path(sb3_dmamba.__file__).parent

# The packages and modules of sb3_dmamba/, lowest first: each imports earlier ones only.
ORDER = (
    *("errors", "checks", "io", "machine", "moved", "config", "d4rl", "spaces"),
    *("envs", "tasks", "data", "ops", "networks", "training", "evaluation", "context"),
    *("model_file", "export", "algorithm", "hub", "doctor", "d3rlpy", "experiments", "cli"),
)


def _imported_modules(path: Path) -> Iterator[str]:
    package = ["sb3_dmamba", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def _top(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


MODULES = sorted(PACKAGE.rglob("*.py"))


def test_imports_follow_the_order() -> None:
    """The package front and ``__main__`` aside, nothing imports what comes later."""
    violations = []
    for path in MODULES:
        if (top := _top(path)) in ("__init__", "__main__"):
            continue
        for name in _imported_modules(path):
            package, _, rest = name.partition(".")
            other = rest.partition(".")[0]
            if package != "sb3_dmamba" or other in (top, "", "__version__"):
                continue
            if other not in ORDER or ORDER.index(other) > ORDER.index(top):
                violations.append(f"{path.relative_to(PACKAGE)} imports {name}")
    assert not violations


def test_the_order_lists_what_there_is() -> None:
    assert set(ORDER) == {_top(path) for path in MODULES} - {"__init__", "__main__"}


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Imports inside functions and for type checking count as well."""
    names = {".".join(["sb3_dmamba", *_parts(path)]): path for path in MODULES}
    graph = {}
    for name, path in names.items():
        found = (
            other if other in names else other.rpartition(".")[0]
            for other in _imported_modules(path)
        )
        graph[name] = {other for other in found if other in names} - {name, "sb3_dmamba"}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the modules


def _parts(path: Path) -> list[str]:
    parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
    return parts[:-1] if parts[-1] == "__init__" else parts


def _run(code: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, stdout=-1, text=True, timeout=120, check=True).stdout


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
