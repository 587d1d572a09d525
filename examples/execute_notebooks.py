"""Run the notebooks top to bottom, and keep what they show.

    python -m examples.execute_notebooks              # all of them, outputs written into the files
    python -m examples.execute_notebooks 01 06        # those whose names begin so
    python -m examples.execute_notebooks --fast       # tiny parameters, nothing written: for CI

A notebook fails where a cell raises, where anything is written to stderr (a warning, say), and
where an output names a folder of this machine. Each runs in an empty folder that is removed.

``--fast`` puts a cell behind the one tagged ``parameters``, as papermill does, which assigns what
the notebook's metadata has under ``fast_parameters``.
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

FOLDER = Path(__file__).parent
PARAMETERS = "parameters"  # the tag of the one cell that a reader changes
FAST = "fast_parameters"  # in the notebook's metadata
SECONDS_PER_CELL = 900  # on a busy machine
# d3rlpy requires gym, which prints this once it is imported, whatever imports it.
_NOTICE = re.compile(r"Gym has been unmaintained since 2022.*\n(?:.*\n)*?See the migration .*\n")
_MACHINE_PATH = re.compile(r"(?<![\w.:/])(/(?:home|root|tmp|Users|work|usr|opt|var)/[^\s'\"<>]*)")


class NotebookError(Exception):
    """A notebook that does not run, or shows what it should not."""


def list_notebooks(names: Sequence[str] = ()) -> list[Path]:
    """Return the notebooks whose names begin with one of ``names``, or all, in order.

    Raises:
        NotebookError: No notebook's name begins so.
    """
    found = sorted(FOLDER.glob("*.ipynb"))
    for name in names:
        if not any(path.name.startswith(name) for path in found):
            known = ", ".join(path.stem for path in found)
            raise NotebookError(f"no notebook's name begins with {name!r}: there are {known}")
    return [path for path in found if not names or path.name.startswith(tuple(names))]


def inject_fast_parameters(notebook: NotebookNode) -> None:
    """Put the fast parameters behind the cell of parameters.

    Raises:
        NotebookError: There is not one such cell, or a fast parameter is not assigned there.
    """
    places = [
        place
        for place, cell in enumerate(notebook.cells)
        if PARAMETERS in cell.metadata.get("tags", [])
    ]
    if len(places) != 1:
        raise NotebookError(f"{len(places)} cells are tagged {PARAMETERS!r}: tag one")
    source = notebook.cells[places[0]].source
    for name in notebook.metadata.get(FAST, {}):
        if not re.search(rf"^{name} = ", source, flags=re.MULTILINE):
            raise NotebookError(f"{name!r} of {FAST} is not assigned in the cell of parameters")
    lines = [f"{name} = {value!r}" for name, value in notebook.metadata.get(FAST, {}).items()]
    notebook.cells.insert(places[0] + 1, nbformat.v4.new_code_cell("\n".join(lines)))


def find_faults(notebook: NotebookNode) -> Iterator[str]:
    """Yield what is wrong with the outputs of a notebook that has run."""
    for number, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                yield f"cell {number} raised {output.ename}: {output.evalue}"
            if output.output_type == "stream" and output.name == "stderr":
                yield f"cell {number} wrote to stderr: {output.text.strip()[:300]}"
            for path in _MACHINE_PATH.findall(_text(output)):
                yield f"cell {number} shows a path of this machine: {path}"


def _text(output: NotebookNode) -> str:
    if output.output_type == "stream":
        return str(output.text)
    data = output.get("data", {})
    return "\n".join(str(value) for kind, value in data.items() if kind.startswith("text/"))


def tidy(notebook: NotebookNode) -> None:
    """Take out what differs from run to run and says nothing; join pieces of one text."""
    notebook.metadata.pop("widgets", None)
    notebook.metadata["language_info"] = {"name": "python"}
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        kept = []
        for output in cell.get("outputs", []):
            if output.output_type == "stream" and output.name == "stderr":
                output.text = _NOTICE.sub("", output.text)
                if not output.text.strip():
                    continue
            if kept and _is_stream(output) and kept[-1].get("name") == output.name:
                kept[-1].text += output.text
            else:
                kept.append(output)
        if "outputs" in cell:
            cell.outputs = kept


def _is_stream(output: NotebookNode) -> bool:
    return bool(output.output_type == "stream")


def execute(notebook: NotebookNode) -> None:
    """Run a notebook in an empty folder, with its outputs written into it.

    Raises:
        NotebookError: A cell fails, or an output is faulty.
    """
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            timeout=SECONDS_PER_CELL,
            kernel_name="python3",
            extra_arguments=["--IPKernelApp.log_level=ERROR"],  # about its own connection
            resources={"metadata": {"path": folder}},
        )
        try:
            client.execute()
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            raise NotebookError(str(error)) from error
    tidy(notebook)
    faults = list(find_faults(notebook))
    if faults:
        raise NotebookError("\n".join(faults))


def _processor_seconds() -> float:
    """Return what child processes that have ended used, as kernels are; 0 on Windows."""
    times = os.times()
    return times.children_user + times.children_system


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="how their names begin; default: all")
    parser.add_argument("--fast", action="store_true", help="tiny parameters, nothing written")
    options = parser.parse_args(arguments)
    try:
        paths = list_notebooks(options.names)
    except NotebookError as error:
        parser.error(str(error))
    failed = []
    for path in paths:
        notebook = nbformat.read(path, as_version=4)
        started, used = time.perf_counter(), _processor_seconds()
        try:
            if options.fast:
                inject_fast_parameters(notebook)
            execute(notebook)
            if not options.fast:
                nbformat.write(notebook, path)
        except NotebookError as error:
            failed.append(path.stem)
            print(error)
        seconds, used = time.perf_counter() - started, _processor_seconds() - used
        print(f"{path.stem}: {seconds:.0f} s, {used:.0f} s of processor time", flush=True)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
