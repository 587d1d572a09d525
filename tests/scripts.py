"""Scripts outside of any package, as modules."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

__all__ = ["load_script", "run_python"]


def load_script(path: Path) -> ModuleType:
    """Run a script's definitions, and return the module that they make."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_python(*arguments: str, **options: Any) -> str:
    """Run Python in a process of its own, which has to succeed; return what it printed."""
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == 0, done.stderr
    stdout: str = done.stdout
    return stdout
