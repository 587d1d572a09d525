"""What each of two processes does in test_distributed.py: every scenario, one after the other."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback
from stable_baselines3.common.logger import configure

from sb3_dmamba.algorithm import DecisionMamba
from sb3_dmamba.data import Trajectories
from sb3_dmamba.errors import DecisionMambaError
from sb3_dmamba.training.distributed import join_processes
from tests.models import Recorder, tiny_model
from tests.toys import random_trajectories

RANK = int(os.environ.get("RANK", "0"))
ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
DATA = random_trajectories(tuple(range(2, 40)))
N_UPDATES = 12
SETTINGS: dict[str, dict[str, Any]] = {
    "mamba": {},
    "attention": {"mixer": "attention"},
    "burn-in": {"burn_in": 4},
    "carried": {"carry_state": True},
    "bf16": {"precision": "bf16"},
    "one step": {"context_length": 1},
}


def environment(rank: int, port: int) -> dict[str, str]:
    """What torchrun sets, and one thread each."""
    launched = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_PORT": port}
    return {
        **os.environ,
        **{name: str(value) for name, value in launched.items()},
        "MASTER_ADDR": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }


def make_model(name: str = "mamba", **settings: Any) -> DecisionMamba:
    """A model without dropout, whose learning rate lets differences grow."""
    defaults = {"dropout": 0.0, "learning_rate": 1e-2, "backend": "reference"}
    return tiny_model(**{**defaults, **SETTINGS[name], **settings})


def train(model: DecisionMamba, n_updates: int = N_UPDATES) -> list[float]:
    """Train on, and return the loss of each update that a callback has seen."""
    recorder = Recorder()
    model.fit(DATA, n_updates, callback=recorder, log_interval=4)
    return recorder.losses


def train_and_save(name: str, folder: Path) -> list[float]:
    """Train, with a checkpoint in the middle, and save what comes of it."""
    model = make_model(name)
    checkpoints = CheckpointCallback(N_UPDATES // 2, str(folder), name_prefix=f"{name}-{RANK}")
    recorder = Recorder()
    model.fit(DATA, N_UPDATES, callback=[checkpoints, recorder])
    model.save(folder / f"{name}-end-{RANK}")
    return recorder.losses


def go_on(folder: Path) -> list[float]:
    """Go on from a checkpoint of a single process."""
    model = DecisionMamba.load(folder / "carried-single")
    losses = train(model, N_UPDATES // 2)
    model.save(folder / f"carried-on-{RANK}")
    return losses


def log(folder: Path) -> list[str]:
    """Give every process a logger, a progress bar and TensorBoard; see what they write."""
    own = folder / f"log-{RANK}"
    model = make_model(tensorboard_log=str(own / "board"), verbose=1)
    model.fit(DATA, 2, progress_bar=True)
    model.set_logger(configure(str(own), ["csv"]))
    model.fit(DATA, 2)
    return sorted(str(path.name) for path in own.rglob("*") if path.stat().st_size)


def draw_seeds(folder: Path) -> list[Any]:
    """Name no seed: the processes must end up with one, and with the same weights."""
    model = make_model(seed=None).fit(DATA, 3)
    weights = torch.cat([each.detach().flatten() for each in model.policy.parameters()])
    return [model.seed, weights.double().sum().item()]


def mix_up(folder: Path) -> float:
    """Start from other weights and moments in one process: rank 0's are taken."""
    model = make_model()
    model.fit(DATA, 3)
    if RANK == 1:
        for parameter in model.policy.parameters():
            parameter.data.mul_(2.0)
            model.policy.optimizer.state[parameter]["exp_avg"].mul_(2.0)
    model.fit(DATA, 3)
    return torch.cat([p.detach().flatten() for p in model.policy.parameters()]).sum().item()


def drop_out(folder: Path) -> list[float]:
    """Train with dropout, whose masks are each process's own."""
    return train(make_model(dropout=0.5), 3)


def split_badly(folder: Path) -> None:
    """Ask for a batch of seven."""
    make_model(batch_size=7).fit(DATA, 1)


def record(folder: Path) -> None:
    """Ask for CUDA graphs by name."""
    make_model(cuda_graph="on").fit(DATA, 1)


def differ(folder: Path) -> None:
    """Train another number of layers in each process."""
    make_model(n_layers=1 + RANK).fit(DATA, 1)


def differ_in_data(folder: Path) -> None:
    """Train on other data in each process."""
    data: Trajectories = random_trajectories((30, 30), seed=RANK)
    make_model().fit(data, 1)


def diverge(folder: Path) -> None:
    """Let the loss become infinite, which every process must notice."""
    make_model(learning_rate=1e30, max_grad_norm=1e30, warmup_updates=0).fit(DATA, 50)


class Failing(BaseCallback):
    """Fails at the second update."""

    def _on_step(self) -> bool:
        if self.n_calls == 2:
            raise ZeroDivisionError("in a callback")
        return True


def fail(folder: Path) -> None:
    """Fail in the first process, which lives on; the other must not wait for it."""
    make_model().fit(DATA, 50, callback=Failing())


def stop(folder: Path) -> int:
    """Stop in a callback of the first process; the second one's would stop elsewhere."""
    model = make_model()
    model.fit(DATA, 50, callback=Recorder(stop_at=3 if RANK == 0 else 1))
    return model.num_timesteps


def come_first(folder: Path) -> bool:
    """Let the first process write what the other one finds."""
    found = folder / "found"
    with join_processes(CPU) as processes, processes.leader_first():
        if processes.is_leader:
            time.sleep(0.2)
            found.touch()
        return found.exists()


SCENARIOS = [
    log, draw_seeds, mix_up, drop_out, split_badly, record, differ, differ_in_data, diverge, stop,
    come_first, go_on, fail,
]  # fmt: skip


def run(scenario: Any, *arguments: Any) -> Any:
    """Run a scenario, and return what it returned or the error that it raised."""
    try:
        return scenario(*arguments)
    except (DecisionMambaError, ZeroDivisionError) as error:
        return f"{type(error).__name__}: {error}"


def main() -> None:
    """Run every scenario and write what came of it."""
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    results = {name: run(train_and_save, name, folder) for name in SETTINGS}
    results |= {scenario.__name__: run(scenario, folder) for scenario in SCENARIOS}
    results["group"] = dist.is_initialized() and dist.get_world_size()
    (folder / f"results-{RANK}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main()
