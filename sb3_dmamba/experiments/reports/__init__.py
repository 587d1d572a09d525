"""From the cells' results to a report that can be handed on."""

from sb3_dmamba.experiments.reports.build import write_report
from sb3_dmamba.experiments.reports.summary import (
    ArmSummary,
    ExperimentSummary,
    TargetSummary,
    TaskSummary,
    summarize,
)

__all__ = [
    "ArmSummary",
    "ExperimentSummary",
    "TargetSummary",
    "TaskSummary",
    "summarize",
    "write_report",
]
