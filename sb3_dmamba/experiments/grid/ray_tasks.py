"""Cells as tasks of Ray, on one machine or on a cluster whose nodes share the cells' folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sb3_dmamba.errors import MissingDependencyError
from sb3_dmamba.experiments.grid.folder import CellFolder
from sb3_dmamba.experiments.grid.process import run_cell_process

__all__ = ["run_with_ray"]

_MAX_RETRIES = 3  # of a task whose node was lost; the cell goes on from its checkpoint


def run_with_ray(
    folders: Sequence[CellFolder],
    threads: int,
    device: str,
    on_end: Callable[[CellFolder, str | None], None],
) -> None:
    """Run cells as Ray decides; a cluster that is connected already is used as it is.

    Args:
        folders: The cells.
        threads: Threads of each, and the CPUs that each asks for.
        device: Where each computes; one that begins with ``"cuda"`` asks for a GPU.
        on_end: Called with each cell, and with what went wrong or None.

    Raises:
        MissingDependencyError: Ray is not installed.
        KeyboardInterrupt: Ctrl-C; the tasks are cancelled first.
    """
    try:
        import ray
    except ImportError as error:
        raise MissingDependencyError("ray", "run cells with --ray", "ray") from error
    is_ours = not ray.is_initialized()
    if is_ours:
        ray.init(log_to_driver=False)
    needs = {"num_cpus": threads, "num_gpus": 1 if device.startswith("cuda") else 0}
    task = ray.remote(**needs, max_retries=_MAX_RETRIES)(run_cell_process)
    pending = {
        task.remote(str(folder.path.resolve()), device, threads): folder for folder in folders
    }
    try:
        while pending:
            finished, _ = ray.wait(list(pending), num_returns=1)
            for reference in finished:
                folder = pending.pop(reference)
                try:
                    on_end(folder, ray.get(reference))
                except ray.exceptions.RayError as error:
                    on_end(folder, f"Ray lost it: {str(error).splitlines()[0]}")
    except KeyboardInterrupt:
        for reference in pending:
            ray.cancel(reference, force=True)
        raise
    finally:
        if is_ours:
            ray.shutdown()
