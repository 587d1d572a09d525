"""Conditioning on a return, rolling out, scoring and reporting."""

from sb3_dmamba.evaluation.report import EvaluationReport, ReportDetails
from sb3_dmamba.evaluation.results import TargetResult
from sb3_dmamba.evaluation.rollouts import evaluate_targets
from sb3_dmamba.evaluation.seeding import SeedEpisodes, split_seeds
from sb3_dmamba.evaluation.stateful import StatefulActor
from sb3_dmamba.evaluation.statistics import (
    compute_confidence_interval,
    compute_normalized_score,
    compute_standard_error,
)
from sb3_dmamba.evaluation.wrappers import (
    ReturnToGo,
    ReturnToGoEnv,
    ReturnToGoVecEnv,
    ReturnToGoVectorEnv,
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
