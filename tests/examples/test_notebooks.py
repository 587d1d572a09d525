"""The committed notebooks show what they do: run in order, whole, clean, for a reader."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest

from examples import execute_notebooks as tool

NOTEBOOKS = tool.list_notebooks()
FIRST_WORDS = re.compile(r"\*\*For ")


def test_the_notebooks() -> None:
    assert [each.name[:2] for each in NOTEBOOKS] == [f"{number:02d}" for number in range(1, 9)]
    for path in NOTEBOOKS:
        check_notebook(path)
        assert f"({path.name})" in (path.parent / "README.md").read_text(encoding="utf-8")


def check_notebook(path: Path) -> None:
    """Check that it was run, is clean, opens with a title and its parameters, links and code."""
    notebook = nbformat.read(path, as_version=4)
    before = nbformat.writes(notebook)
    tool.tidy(notebook)
    assert nbformat.writes(notebook) == before, path
    assert list(tool.find_faults(notebook)) == [], path
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), path
    outputs = [output for cell in code for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs), path
    source = "\n".join(cell.source for cell in code)
    assert not re.search(r"^\s*[!%]", source.replace("%%writefile", ""), re.MULTILINE), path
    assert '"pip"' not in source, path
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert notebook.cells[0].source.startswith("# "), path
    assert len(re.findall(r"^# ", text, re.MULTILINE)) == 1, path
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (path.parent / link).is_file(), link
    for program in re.findall(r"`(examples/[^`]+)`", text):
        assert (path.parents[1] / program).is_file(), program
    tool.inject_fast_parameters(notebook)  # raises where there is not one cell of parameters
    tags = [tool.PARAMETERS in cell.metadata.get("tags", []) for cell in notebook.cells]
    assert FIRST_WORDS.match(notebook.cells[tags.index(True) + 2].source), path


def _notebook(*sources: str, fast: dict[str, Any] | None = None) -> Any:
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell(source) for source in sources]
    notebook.cells[0].metadata["tags"] = [tool.PARAMETERS]
    notebook.metadata[tool.FAST] = fast or {}
    return notebook


def test_running_injects_parameters_and_keeps_outputs() -> None:
    notebook = _notebook("N = 100\nNAME = 'a'", "print(N, NAME)", fast={"N": 2})
    tool.inject_fast_parameters(notebook)
    tool.execute(notebook)
    assert [cell.execution_count for cell in notebook.cells] == [1, 2, 3]
    assert notebook.cells[2].outputs[0].text == "2 a\n"
    assert all("execution" not in cell.metadata for cell in notebook.cells)


def test_a_cell_that_raises_is_an_error() -> None:
    with pytest.raises(tool.NotebookError, match="ZeroDivisionError"):
        tool.execute(_notebook("1 / 0"))


def test_a_fast_parameter_is_one_that_is_there() -> None:
    for name in ("M", "print"):
        with pytest.raises(tool.NotebookError, match=f"'{name}'"):
            tool.inject_fast_parameters(_notebook("N = 1\nprint(N)", fast={name: 1}))
    notebook = _notebook("N = 1")
    notebook.cells.append(notebook.cells[0].copy())
    with pytest.raises(tool.NotebookError, match="2 cells are tagged"):
        tool.inject_fast_parameters(notebook)


def test_faults_of_outputs_are_found() -> None:
    for name, text, fault in (
        ("stderr", "UserWarning: something", "cell 0 wrote to stderr: UserWarning"),
        ("stdout", "saved to /home/me/runs/model.zip", "a path of this machine: /home/me/runs"),
        ("stdout", "see https://example.org/home/me, 3/4 and runs/tmp/a", None),
    ):
        notebook = _notebook("")
        notebook.cells[0].outputs = [nbformat.v4.new_output("stream", name=name, text=text)]
        faults = list(tool.find_faults(notebook))
        assert (faults == []) if fault is None else fault in faults[0]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_all_run_with_tiny_parameters() -> None:
    tool.main(["--fast"])
