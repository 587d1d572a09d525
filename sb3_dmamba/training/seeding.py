"""Randomness that is a function of (seed, update), so that a resumed run needs no saved state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["DROPOUT_STREAM", "WEIGHT_STREAM", "draw_seed", "local_seed"]

WEIGHT_STREAM, DROPOUT_STREAM = 0, 1  # independent random numbers from one seed


def draw_seed() -> int:
    """Draw a seed from the operating system, for runs that name none."""
    return int(np.random.SeedSequence().generate_state(1)[0])


@contextmanager
def local_seed(device: torch.device, *entropy: int) -> Iterator[None]:
    """Seed torch within the block, and put its global generators back afterwards.

    Args:
        device: The device whose generator is used, besides the CPU's.
        entropy: Non-negative integers; different ones give independent streams.
    """
    devices = [device] if device.type == "cuda" else []
    seed = int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(1))
    with torch.random.fork_rng(devices, device_type="cuda"):
        torch.default_generator.manual_seed(seed)
        if devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
