"""The wrapper that adds the return-to-go to an environment's observations, one class a kind."""

from sb3_dmamba.evaluation.wrappers.base import ReturnToGo
from sb3_dmamba.evaluation.wrappers.gym_env import ReturnToGoEnv
from sb3_dmamba.evaluation.wrappers.gym_vector import ReturnToGoVectorEnv
from sb3_dmamba.evaluation.wrappers.sb3_vec_env import ReturnToGoVecEnv

__all__ = ["ReturnToGo", "ReturnToGoEnv", "ReturnToGoVecEnv", "ReturnToGoVectorEnv"]
