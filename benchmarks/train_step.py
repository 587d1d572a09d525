"""One update beside its peers: python -m benchmarks.train_step.

Width 128, 3 layers, K 20, batch 64, Hopper's shapes, fp32, one process: forward, backward and
AdamW; ours draws its batch too. The contenders take turns in one run, a few updates each, and
medians are compared: ratios count, not milliseconds. Then the time a token takes as the context
grows, and how much of an update the matrix products alone would take at the speed that this machine
reaches.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable

import d3rlpy
import numpy as np
import torch
from d3rlpy.dataset import create_infinite_replay_buffer
from mambapy.mamba import MambaBlock, MambaConfig
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from sb3_dmamba.config import DecisionMambaConfig
from sb3_dmamba.data import Trajectories, WindowSampler
from sb3_dmamba.networks import DecisionMambaPolicy
from sb3_dmamba.training.updater import Updater
from tests.toys import random_trajectories

BATCH_SIZE, CONTEXT = 64, 20
BLOCK = 6  # updates of one contender before the next has its turn
CONTEXTS = (20, 50, 100, 200, 500)
PAPER = DecisionMambaConfig(batch_size=BATCH_SIZE, context_length=CONTEXT, channel_mixing=False)

Update = Callable[[], object]


class MambapyMixer(nn.Module):
    """mambapy's block in the place of ours, its scan parallel as it is by default."""

    def __init__(self, config: DecisionMambaConfig) -> None:
        super().__init__()
        self.block = MambaBlock(MambaConfig(d_model=config.hidden_size, n_layers=1))

    def forward(self, tokens: Tensor, readout: slice | None = None) -> Tensor:
        """Mix whole sequences, and return the tokens that are wanted."""
        mixed: Tensor = self.block(tokens)
        return mixed if readout is None else mixed[:, readout]


def make_update(
    data: Trajectories, config: DecisionMambaConfig, *, mambapy: bool = False
) -> tuple[Update, int]:
    """Return one of our updates, and the number of the model's parameters."""
    torch.manual_seed(0)
    policy = DecisionMambaPolicy(data.observation_space, data.action_space, config)
    if mambapy:
        for block in policy.model.layers:
            block.mixer = MambapyMixer(config)  # type: ignore[assignment]
    updater = Updater(policy, config, seed=0)
    sampler = WindowSampler(data, config.context_length, config.batch_size, seed=0)
    n_parameters = sum(parameter.numel() for parameter in policy.parameters())
    return lambda: updater.update(sampler, 0, 0, 1), n_parameters


def make_peer_update(data: Trajectories) -> tuple[Update, int]:
    """Return d3rlpy's update of a Decision Transformer of the same width, layers and context."""
    peer = d3rlpy.algos.DecisionTransformerConfig(
        batch_size=BATCH_SIZE,
        context_size=CONTEXT,
        num_layers=PAPER.n_layers,
        encoder_factory=d3rlpy.models.VectorEncoderFactory([PAPER.hidden_size]),
    ).create(device="cpu:0")
    episodes = [
        d3rlpy.dataset.Episode(e.observations, e.actions, e.rewards[:, None], e.terminated)
        for e in (data[index] for index in range(len(data)))
    ]
    buffer = create_infinite_replay_buffer(episodes)
    batch = buffer.sample_trajectory_batch(BATCH_SIZE, CONTEXT)
    peer.build_with_dataset(buffer)
    assert peer.impl is not None
    modules = vars(peer.impl.modules).values()
    n_parameters = sum(
        p.numel() for m in modules if isinstance(m, nn.Module) for p in m.parameters()
    )
    return lambda: peer.update(batch), n_parameters


def measure(updates: dict[str, Update], rounds: int, block: int = BLOCK) -> dict[str, float]:
    """Return the median seconds of each: blocks in turn, the first of a block not counted.

    In training one model's updates follow each other: an update after another model's finds
    neither its weights in the cache nor its memory with the allocator.
    """
    seconds: dict[str, list[float]] = {name: [] for name in updates}
    for _ in range(rounds):
        for name, update in updates.items():
            for place in range(block):
                started = time.perf_counter()
                update()
                if place or block == 1:
                    seconds[name].append(time.perf_counter() - started)
    return {name: float(np.median(times)) for name, times in seconds.items()}


def count_products(config: DecisionMambaConfig) -> float:
    """Count the floating-point operations of a Mamba model's matrix products in one update."""
    width, inner = config.hidden_size, config.expand * config.hidden_size
    n_projected = config.resolved_dt_rank + 2 * config.d_state
    every_token = width * inner + inner * n_projected + config.resolved_dt_rank * inner
    some_tokens = 2 * width * inner  # gate and output; in the last block at state tokens alone
    per_token = config.n_layers * every_token + (config.n_layers - 1 + 1 / 3) * some_tokens
    n_tokens = (3 * config.context_length - 1) * config.batch_size
    return 3 * 2 * n_tokens * per_token  # forward, and two products each backward


def measure_peak(rounds: int = 30) -> float:
    """Return the floating-point operations a second of the products a layer makes, at best."""
    n_tokens, width = 3 * CONTEXT * BATCH_SIZE, 2 * PAPER.hidden_size
    tokens, weight = torch.randn(n_tokens, width), torch.randn(width, width)
    product: dict[str, Update] = {"mm": lambda: torch.mm(tokens, weight)}
    best = min(measure(product, 1, block=1)["mm"] for _ in range(rounds))
    return 2 * n_tokens * width * width / best


def compare(data: Trajectories, rounds: int, block: int) -> Table:
    contenders = {
        "sb3_dmamba, Mamba": make_update(data, PAPER),
        "sb3_dmamba, Mamba, bf16": make_update(data, PAPER.replace(precision="bf16")),
        "sb3_dmamba, Mamba + MLP": make_update(data, PAPER.replace(channel_mixing=True)),
        "sb3_dmamba, attention + MLP": make_update(
            data, PAPER.replace(mixer="attention", channel_mixing=True)
        ),
        "d3rlpy DecisionTransformer": make_peer_update(data),
    }
    times = measure({name: update for name, (update, _) in contenders.items()}, rounds, block)
    slow, n_slow = make_update(data, PAPER, mambapy=True)
    contenders["the same on mambapy's blocks"] = (slow, n_slow)
    times["the same on mambapy's blocks"] = measure({"slow": slow}, 1, block=3)["slow"]
    ours, peer = times["sb3_dmamba, Mamba"], times["d3rlpy DecisionTransformer"]
    table = Table(title=f"One update: width 128, 3 layers, K {CONTEXT}, batch {BATCH_SIZE}")
    for heading in ("", "parameters", "ms", "against d3rlpy", "against ours"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, seconds in times.items():
        n_parameters = contenders[name][1]
        table.add_row(
            name,
            f"{n_parameters:,}",
            f"{1e3 * seconds:.1f}",
            f"{seconds / peer:.2f}x",
            f"{seconds / ours:.2f}x",
        )
    peak = measure_peak()
    share = count_products(PAPER) / peak / ours
    table.caption = (
        f"matrix products: {count_products(PAPER) / 1e9:.2f} GFLOP an update, {share:.0%} of it at "
        f"the {peak / 1e9:.0f} GFLOP/s measured here"
    )
    return table


def sweep_contexts(data: Trajectories, rounds: int) -> Table:
    updates = {}
    for context in CONTEXTS:
        batch_size = max(1, BATCH_SIZE * CONTEXT // context)  # as many tokens, or nearly
        config = PAPER.replace(context_length=context, batch_size=batch_size)
        updates[context] = (make_update(data, config)[0], 3 * context * batch_size)
    times = measure({str(k): update for k, (update, _) in updates.items()}, rounds)
    table = Table(title="Time a token as the context grows, as many tokens a batch")
    for heading in ("K", "tokens", "ms", "us a token", "against K 20"):
        table.add_column(heading, justify="right")
    first = times[str(CONTEXT)] / updates[CONTEXT][1]
    for context, (_, n_tokens) in updates.items():
        seconds = times[str(context)]
        table.add_row(
            str(context),
            str(n_tokens),
            f"{1e3 * seconds:.1f}",
            f"{1e6 * seconds / n_tokens:.1f}",
            f"{seconds / n_tokens / first:.2f}x",
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender")
    parser.add_argument("--block", type=int, default=BLOCK, help="updates a turn; 1 alternates")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = random_trajectories((1000,) * 20, (11,), action_size=3)
    console = Console()
    console.print(
        f"{platform.processor() or platform.machine()}, {options.threads} threads, "
        f"torch {torch.__version__}, d3rlpy {d3rlpy.__version__}"
    )
    console.print(compare(data, options.rounds, options.block))
    console.print(sweep_contexts(data, options.rounds))


if __name__ == "__main__":
    main()
