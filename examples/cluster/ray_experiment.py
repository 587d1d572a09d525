"""Train an experiment's runs as tasks of a Ray cluster, a training each.

On one machine Ray is started for it. On a cluster, submit it; every node must see the folder of
runs, and have this package installed::

    python examples/cluster/ray_experiment.py mixers --data hopper/medium-v0 --seeds 0 1 2 3 4
    ray job submit --address http://HEAD:8265 --working-dir . -- \\
        python examples/cluster/ray_experiment.py mixers --data hopper/medium-v0 \\
        --cells /shared/cells --address auto --device cuda

The same command again goes on where it stopped: what is done is kept, and a training whose node was
lost continues from its last checkpoint. ``dmamba experiment NAME --ray`` does the same without a
script; this is for what its options do not reach, such as Ray's own settings.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from sb3_dmamba.errors import DecisionMambaError, MissingDependencyError
from sb3_dmamba.experiments.catalogue import get_experiment
from sb3_dmamba.experiments.engines import Engine, run_experiment
from sb3_dmamba.experiments.plan import Request


def connect(address: str | None) -> None:
    """Join a running cluster; without an address Ray starts on this machine when it is needed.

    Args:
        address: What ``ray.init`` takes, such as ``"auto"``.

    Raises:
        MissingDependencyError: Ray is not installed.
    """
    if address is None:
        return
    try:
        import ray
    except ImportError as error:
        raise MissingDependencyError("ray", "run on a cluster", "ray") from error
    ray.init(address=address, log_to_driver=False)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("experiment", help="one that `dmamba experiment` lists")
    parser.add_argument("--data", nargs="+", default=[], help="default: the experiment's")
    parser.add_argument("--seeds", nargs="+", type=int, default=[])
    parser.add_argument("--updates", type=int, help="of each training")
    parser.add_argument("--episodes", type=int, help="of each target")
    parser.add_argument("--cells", type=Path, default=Path("runs/cells"))
    parser.add_argument(
        "--output", "--out", dest="out", type=Path, help="of the report; default: runs/EXPERIMENT"
    )
    parser.add_argument("--address", help="of a cluster: auto, or ray://HEAD:10001")
    parser.add_argument("--threads", type=int, default=1, help="CPUs of each training")
    parser.add_argument("--device", default="auto", help="cuda asks Ray for a GPU each")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> list[Path]:
    """Train whatever is not done, write the report, and return its files."""
    request = Request(
        cells=options.cells,
        data=tuple(options.data),
        seeds=tuple(options.seeds),
        n_updates=options.updates,
        n_episodes=options.episodes,
    )
    engine = Engine("ray", threads=options.threads, device=options.device)
    finished = run_experiment(
        get_experiment(options.experiment),
        request,
        options.out or Path("runs") / options.experiment,
        " ".join(["python", *sys.argv]),
        engine,
        console=Console(stderr=True),
    )
    return list(finished.files)


def main() -> None:
    options = parse_arguments()
    try:
        connect(options.address)
        for path in run(options):
            print(path)
    except DecisionMambaError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
