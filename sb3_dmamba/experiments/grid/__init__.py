"""Trainings with their evaluations, run where there is room, each at most once."""

from sb3_dmamba.experiments.grid.cell import Cell, DataSource, EvaluationPlan
from sb3_dmamba.experiments.grid.folder import CellFolder, CellResult, Evaluation
from sb3_dmamba.experiments.grid.runner import Engine, explain_failures, run_cells

__all__ = [
    "Cell",
    "CellFolder",
    "CellResult",
    "DataSource",
    "Engine",
    "Evaluation",
    "EvaluationPlan",
    "explain_failures",
    "run_cells",
]
