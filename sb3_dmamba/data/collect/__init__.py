"""Recording what a policy does in an environment, whatever the kinds of both."""

from sb3_dmamba.data.collect.collecting import collect

__all__ = ["collect"]
