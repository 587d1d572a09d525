"""Cells as processes of this machine."""

from __future__ import annotations

import concurrent.futures
import os
import subprocess
import threading
from collections.abc import Callable, Sequence

from sb3_dmamba.experiments.grid.folder import CellFolder
from sb3_dmamba.experiments.grid.process import cell_command, cell_environment, describe_failure

__all__ = ["run_locally"]


def run_locally(
    folders: Sequence[CellFolder],
    jobs: int,
    threads: int,
    device: str,
    on_end: Callable[[CellFolder, str | None], None],
) -> None:
    """Run cells side by side, a process each: one that dies takes no other with it.

    Args:
        folders: The cells.
        jobs: Cells at once.
        threads: Threads of each.
        device: Where each computes.
        on_end: Called with each cell, and with what went wrong or None.

    Raises:
        KeyboardInterrupt: Ctrl-C; the processes are ended first.
    """
    running = _Running()
    pool = concurrent.futures.ThreadPoolExecutor(jobs)
    try:
        futures = {
            pool.submit(running.execute, folder, threads, device): folder for folder in folders
        }
        for future in concurrent.futures.as_completed(futures):
            on_end(futures[future], future.result())
    except BaseException:
        running.stop()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class _Running:
    """The processes that run now."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._is_stopped = False

    def execute(self, folder: CellFolder, threads: int, device: str) -> str | None:
        """Run a cell and wait for it; return what went wrong."""
        with folder.log.open("ab") as log:
            with self._lock:
                if self._is_stopped:
                    return "interrupted before it began"
                process = subprocess.Popen(
                    [*cell_command(folder.path, device, threads), "--parent", str(os.getpid())],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=cell_environment(threads),
                )
                self._processes.add(process)
            status = process.wait()
            with self._lock:
                self._processes.discard(process)
        return describe_failure(folder, status)

    def stop(self) -> None:
        """End every process, and let none begin."""
        with self._lock:
            self._is_stopped = True
            for process in self._processes:
                process.terminate()
