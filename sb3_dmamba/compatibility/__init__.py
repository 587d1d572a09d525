"""Environments by their ids, whichever package and interface they are of.

Imports nothing but Gymnasium until an environment is made.
"""

from sb3_dmamba.compatibility.making import is_known_elsewhere, make_environment, qualify_id
from sb3_dmamba.compatibility.other_interfaces import (
    as_gymnasium,
    import_shimmy,
    make_gymnasium,
    old_gym_arguments,
)

__all__ = [
    "as_gymnasium",
    "import_shimmy",
    "is_known_elsewhere",
    "make_environment",
    "make_gymnasium",
    "old_gym_arguments",
    "qualify_id",
]
