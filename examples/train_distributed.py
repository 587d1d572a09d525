"""Train with several processes, each on its rows of every batch.

Start it with torchrun; with plain Python it trains in one process, to the same result up to
rounding (dropout is 0 here):

    torchrun --nproc-per-node=2 examples/train_distributed.py --updates 2000
    python examples/train_distributed.py --updates 2000
"""

from __future__ import annotations

import argparse
import os

from stable_baselines3.common.callbacks import CheckpointCallback

from sb3_dmamba import DecisionMamba


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="halfcheetah-bundled")
    parser.add_argument("--updates", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=64, help="of all processes together")
    parser.add_argument("--output", default="runs/distributed")
    arguments = parser.parse_args()

    is_first = os.environ.get("RANK", "0") == "0"
    model = DecisionMamba(
        arguments.task, seed=0, verbose=int(is_first), batch_size=arguments.batch_size, dropout=0.0
    )
    # Callbacks, log and progress bar are the first process's; the others' are not used.
    checkpoints = CheckpointCallback(1000, arguments.output, name_prefix="model")
    model.fit(n_steps=arguments.updates, callback=checkpoints, progress_bar=True)
    if is_first:
        model.save(f"{arguments.output}/model")
        print(f"wrote {arguments.output}/model.zip")


if __name__ == "__main__":
    main()
