"""Names to tasks: environment, dataset, target returns, reference scores and recipe."""

from sb3_dmamba.tasks.registry import get_reference_scores, get_task, list_tasks
from sb3_dmamba.tasks.task import ReferenceScores, Task

__all__ = ["ReferenceScores", "Task", "get_reference_scores", "get_task", "list_tasks"]
