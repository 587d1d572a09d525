"""Saving so that d3rlpy alone can load: opening the file imports this package."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d3rlpy import __version__ as d3rlpy_version
from d3rlpy.base import LearnableConfigWithShape

from sb3_dmamba.atomic import write_atomically

if TYPE_CHECKING:
    from sb3_dmamba.d3rlpy.algos import SequenceAlgoBase

__all__ = ["plain_text", "save_learnable"]


class _ImportingText(str):
    """A text whose unpickling imports this module, and with it registers our configs.

    d3rlpy reads a file before it looks up the algorithm; without this, its command line and every
    script that only says ``d3rlpy.load_learnable`` would not know ours.
    """

    __slots__ = ()

    def __reduce__(self) -> tuple[Any, ...]:
        return plain_text, (str(self),)


def plain_text(text: str) -> str:
    """Return the text; what files call when they are opened."""
    return text


def save_learnable(algo: SequenceAlgoBase, path: str | os.PathLike[str]) -> None:
    """Write d3rlpy's file of an algorithm; whatever goes wrong, one already there stays whole.

    Args:
        algo: One of our algorithms, built.
        path: Where to write.

    Raises:
        OSError: The place cannot be written to.
    """
    weights = io.BytesIO()
    algo.impl.save_model(weights)
    config = LearnableConfigWithShape(
        observation_shape=algo.impl.observation_shape,
        action_size=algo.impl.action_size,
        config=algo.config,
    )
    content = {
        "torch": weights.getvalue(),
        "config": _ImportingText(config.serialize()),
        "version": d3rlpy_version,
    }
    write_atomically(Path(path), pickle.dumps(content))
