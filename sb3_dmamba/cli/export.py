"""``dmamba export``: a saved model as a file that acts without this package."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sb3_dmamba.cli.options import (
    BackendOption,
    MemoryOption,
    ModelArgument,
    backend_settings,
)
from sb3_dmamba.cli.output import (
    DebugOption,
    JsonOption,
    check_device,
    command_output,
    import_algorithm,
    print_files,
)

if TYPE_CHECKING:
    from rich.console import Console

    from sb3_dmamba.config import Memory
    from sb3_dmamba.export import ExportedPolicy

__all__ = ["export"]


def export(
    model: ModelArgument,
    output: Annotated[
        Path | None,
        typer.Argument(
            help="File to write: .onnx or .pt2 (torch.export).",
            show_default="the model's name with .onnx",
        ),
    ] = None,
    memory: MemoryOption = None,
    device: Annotated[
        str, typer.Option(metavar="NAME", help="Where a .pt2 file is to run: cpu, cuda.")
    ] = "cpu",
    backend: BackendOption = None,
    verify: Annotated[
        bool, typer.Option(help="Run the result beside the model before it is written.")
    ] = True,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Write a model's policy as a graph, with the state going in and coming out."""
    with command_output(as_json, debug) as out:
        chosen: Memory | None = None if memory is None else memory.value
        where = check_device(device)
        exported = (
            import_algorithm()
            .load(model, device="cpu", **backend_settings(backend))
            .export(
                output or model.with_suffix(".onnx"), memory=chosen, device=where, verify=verify
            )
        )
        _print_interface(out.console, exported)
        print_files(out, [exported.path])
        out.emit(
            {
                "path": str(exported.path),
                "max_error": exported.max_error,
                "metadata": exported.metadata,
            }
        )


def _print_interface(console: Console, exported: ExportedPolicy) -> None:
    """Print what goes in and comes out, and whether it was checked."""
    from rich.table import Table

    about = exported.metadata
    table = Table("tensor", "type", "of each environment", title=f"memory: {about['memory']}")
    state = {f"state.{name}": rows for name, rows in about["state"].items()}
    for name, rows in {**about["inputs"], **state}.items():
        table.add_row(name, rows["dtype"], _describe_shape(rows))
    console.print(table)
    outputs = ", ".join(about["outputs"])
    console.print(f"out come {outputs} and each next_state", highlight=False)
    if exported.max_error is None:
        console.print("not run beside the model (ONNX needs onnxruntime for that)")
    else:
        console.print(f"differs from the model by at most {exported.max_error:.1e}")


def _describe_shape(rows: dict[str, Any]) -> str:
    return " x ".join(map(str, rows["shape"])) or "one"
