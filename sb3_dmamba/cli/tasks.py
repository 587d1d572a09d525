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
            "Every other Gym-MuJoCo name of D4RL (hopper-expert-v2, ant-medium-v1), any Minari id "
            "(hopper/medium-v0) and any registered Gymnasium id (Hopper-v5) is a task too."
        )


def _table(named: list[Task]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(
        title="Named tasks",
        caption="dmamba tasks --json has every setting, and where it is from",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("task", no_wrap=True)
    table.add_column("environment", no_wrap=True)
    table.add_column("targets", justify="right")
    for name in ("width", "updates"):
        table.add_column(name, justify="right", no_wrap=True)
    for task in named:
        config = task.config()
        table.add_row(
            task.name,
            task.env_id,
            _shorten(task.target_returns),
            str(config.hidden_size),
            f"{config.n_updates:,}",
        )
    return table


def _shorten(targets: tuple[float, ...]) -> str:
    texts = [f"{target:g}" for target in targets]
    return texts[0] if len(texts) == 1 else f"{texts[0]}..{texts[-1]}"
