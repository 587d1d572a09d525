"""What a user may mean by an environment, and what the model acts in."""

from sb3_dmamba.environments.making import (
    Environment,
    MakeEnv,
    check_dataset,
    check_spaces,
    is_conditioned,
    make_factory,
    set_target_return,
    wrap,
)
from sb3_dmamba.environments.surroundings import Surroundings

__all__ = [
    "Environment",
    "MakeEnv",
    "Surroundings",
    "check_dataset",
    "check_spaces",
    "is_conditioned",
    "make_factory",
    "set_target_return",
    "wrap",
]
