"""What a source refuses, by the attributes of its error."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sb3_dmamba.data import load_trajectories
from sb3_dmamba.errors import DatasetError, DecisionMambaError


def refusal(source: Any, kind: type[DecisionMambaError] = DatasetError, /, **options: Any) -> Any:
    """Return the error that loading a source gets."""
    with pytest.raises(kind) as caught:
        load_trajectories(source, **options)
    return caught.value


def unlike(case: object, error: DecisionMambaError, expected: Mapping[str, Any]) -> list[str]:
    """Return how an error differs; ``path`` may be its end, ``said`` is a part of its message."""
    wrong = []
    for name, value in expected.items():
        found = str(error) if name == "said" else getattr(error, name)
        if name == "said":
            fits = value in found
        elif name == "path":
            fits = Path(found or "").parts[-len(Path(value).parts) :] == Path(value).parts
        else:
            fits = found == value or (np.isscalar(value) and value != value and found != found)
        if not fits:
            wrong.append(f"{case}: {name} is {found!r}, not {value!r}: {error}")
    return wrong
