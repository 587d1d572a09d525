"""``python -m sb3_dmamba.experiments.grid FOLDER``: run one cell, as every engine does."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sb3_dmamba.errors import DecisionMambaError

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Run one cell; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m sb3_dmamba.experiments.grid")
    parser.add_argument("folder", type=Path, help="a cell's folder")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--parent", type=int, help="end when this process has ended")
    options = parser.parse_args(arguments)
    import torch

    from sb3_dmamba.experiments.grid.execution import execute_cell

    torch.set_num_threads(options.threads)
    try:
        execute_cell(options.folder, options.device, options.parent)
    except (DecisionMambaError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)  # noqa: T201
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
