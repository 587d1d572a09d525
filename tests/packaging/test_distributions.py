"""What users install: the wheel's contents, and that it works away from the checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import sb3_dmamba

pytest.importorskip("hatchling", reason="hatchling builds the distributions (the extra dev)")
ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "sb3_dmamba"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with wheel and sdist."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "--directory", str(folder)]
    finished = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert finished.returncode == 0, finished.stderr
    return folder


def find(folder: Path, pattern: str) -> Path:
    (path,) = folder.glob(pattern)
    return path


def test_the_wheel_holds_the_package_and_nothing_else(built: Path) -> None:
    with zipfile.ZipFile(find(built, "*.whl")) as archive:
        names = set(archive.namelist())
    about = f"sb3_dmamba-{sb3_dmamba.__version__}.dist-info/"
    ours = {name for name in names if not name.startswith(about)}
    assert {name.partition("/")[0] for name in ours} == {"sb3_dmamba"}
    assert "sb3_dmamba/py.typed" in ours
    bundled = [path for path in (PACKAGE / "data" / "bundled").rglob("*") if path.is_file()]
    assert bundled
    for path in (*bundled, *PACKAGE.rglob("*.py")):
        assert path.relative_to(ROOT).as_posix() in ours
    kinds = {Path(name).suffix for name in ours}
    assert kinds == {".py", ".typed", ".hdf5", ".json", ".md"}
    assert f"{about}licenses/LICENSE" in names


def test_the_sdist_holds_what_it_takes_to_test_and_to_build(built: Path) -> None:
    with tarfile.open(find(built, "*.tar.gz")) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", "constraints.txt"} <= names
    assert {"CONTRIBUTING.md", "Makefile", "tests/conftest.py", "docs/index.md"} <= names
    assert not [name for name in names if name.startswith(("runs/", ".venv", "site/"))]


def test_the_wheel_works_away_from_the_checkout(built: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(find(built, "*.whl")) as archive:
        archive.extractall(tmp_path / "installed")
    code = "import sys; sys.argv[0] = 'dmamba'; from sb3_dmamba.cli import main; main()"
    command = [sys.executable, "-c", code, "data", "info", "sb3_dmamba/halfcheetah-v0", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    finished = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    assert json.loads(finished.stdout)
    assert not (tmp_path / "runs").exists()
