"""Episodes made from other episodes, without a second copy in memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from sb3_dmamba.data.trajectories import Trajectories

__all__ = ["assemble"]


def assemble(fields: Mapping[str, Any]) -> Trajectories:
    """Make ``Trajectories`` of fields that were checked before, without looking at the steps."""
    names = [field.name for field in dataclasses.fields(Trajectories)]
    assert set(fields) == set(names)
    trajectories = object.__new__(Trajectories)
    for name in names:
        object.__setattr__(trajectories, name, fields[name])
    return trajectories
