"""Decision Mamba as a d3rlpy algorithm, in place of d3rlpy's Decision Transformer.

Importing this registers the configs with d3rlpy, so that ``d3rlpy.load_learnable`` knows them.
"""

try:
    import d3rlpy as _d3rlpy  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "d3rlpy":
        raise  # d3rlpy is there, and something that it needs is not
    from sb3_dmamba.errors import MissingDependencyError

    raise MissingDependencyError("d3rlpy", "use sb3_dmamba.d3rlpy", "d3rlpy") from error

from sb3_dmamba.d3rlpy.algo import (
    DecisionMamba,
    DecisionMambaConfig,
    DiscreteDecisionMamba,
    DiscreteDecisionMambaConfig,
    StreamTransformerWrapper,
)
from sb3_dmamba.d3rlpy.convert import from_sb3, to_sb3
from sb3_dmamba.d3rlpy.dataset import WindowReplayBuffer, as_replay_buffer
from sb3_dmamba.d3rlpy.factories import (
    DecisionMambaAdamWFactory,
    DecisionMambaEncoderFactory,
    DecisionMambaLRFactory,
)

__all__ = [
    "DecisionMamba",
    "DecisionMambaAdamWFactory",
    "DecisionMambaConfig",
    "DecisionMambaEncoderFactory",
    "DecisionMambaLRFactory",
    "DiscreteDecisionMamba",
    "DiscreteDecisionMambaConfig",
    "StreamTransformerWrapper",
    "WindowReplayBuffer",
    "as_replay_buffer",
    "from_sb3",
    "to_sb3",
]
