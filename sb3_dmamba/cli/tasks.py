"""``dmamba tasks``: what ``DecisionMamba`` and ``dmamba train`` know by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sb3_dmamba.cli.output import DebugOption, JsonOption, command_output

if TYPE_CHECKING:
    from rich.table import Table

    from sb3_dmamba.tasks import Task

__all__ = ["tasks"]


def tasks(as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """List the named tasks with their environments, targets and recipes."""
    from sb3_dmamba.tasks import list_tasks

    with command_output(as_json, debug) as output:
        named = list_tasks()
        if as_json:
            output.emit([task.to_dict() for task in named])
            return
        output.console.print(_table(named))
        output.console.print(
            "Any Minari id (hopper/medium-v0) and any registered Gymnasium id (Hopper-v5) "
            "is a task too."
        )


def _table(named: list[Task]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(
        title="Named tasks",
        caption="0 and 100: the returns with these normalised scores",
        box=box.SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
    )
    for name in ("task", "environment"):
        table.add_column(name, no_wrap=True)
    for name in ("targets", "width", "K", "updates", "lr", "0 and 100"):
        table.add_column(name, justify="right")
    for task in named:
        config = task.config()
        reference = task.reference
        table.add_row(
            task.name,
            task.env_id,
            " ".join(f"{target:g}" for target in task.target_returns),
            str(config.hidden_size),
            str(config.context_length),
            f"{config.n_updates:,}",
            f"{config.learning_rate:g}",
            f"{reference.minimum:.1f} {reference.maximum:.1f}" if reference else "-",
        )
    return table
