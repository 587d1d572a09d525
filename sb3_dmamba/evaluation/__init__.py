"""Conditioning on a return, rolling out, scoring and reporting."""

from sb3_dmamba.envs.return_to_go import (
    ReturnToGo,
    ReturnToGoEnv,
    ReturnToGoVecEnv,
    ReturnToGoVectorEnv,
)
from sb3_dmamba.evaluation.actors import StatefulActor
from sb3_dmamba.evaluation.report import EvaluationReport, ReportDetails, TargetResult
from sb3_dmamba.evaluation.rollouts import SeedEpisodes, evaluate_targets, split_seeds
from sb3_dmamba.evaluation.statistics import (
    compute_confidence_interval,
    compute_normalized_score,
    compute_standard_error,
)

__all__ = [
    "EvaluationReport",
    "ReportDetails",
    "ReturnToGo",
    "ReturnToGoEnv",
    "ReturnToGoVecEnv",
    "ReturnToGoVectorEnv",
    "SeedEpisodes",
    "StatefulActor",
    "TargetResult",
    "compute_confidence_interval",
    "compute_normalized_score",
    "compute_standard_error",
    "evaluate_targets",
    "split_seeds",
]
