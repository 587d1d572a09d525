"""``dmamba doctor`` and ``dmamba tasks``: what this installation has."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sb3_dmamba.cli import output as cli

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from sb3_dmamba.doctor import Backend, Examination, Package, Place, Speed
    from sb3_dmamba.machine import Machine


def doctor(
    seconds: Annotated[
        float, cli.number("Seconds of the speed check; 0 leaves it out.", least=0)
    ] = 10.0,
    device: cli.DeviceOption = "auto",
    as_json: cli.JsonOption = False,
    debug: cli.DebugOption = False,
) -> None:
    """Say what works here, what does not and what to do about it, and how fast it is.

    Ends with 1 where something is broken. An extra that is not installed is nothing broken.
    """
    with cli.command_output(as_json, debug) as out:
        where = cli.check_device(device)
        found = cli.import_quietly("sb3_dmamba.doctor").examine(seconds, where)
        _print(out.console, found)
        out.emit(found.to_dict())
    if found.problems:
        raise typer.Exit(cli.EXIT_ERROR)


def _print(console: Console, found: Examination) -> None:
    console.print(f"sb3_dmamba {found.version}", style="bold", highlight=False)
    console.print(_machine_table(found.machine))
    console.print(_package_table(found.packages))
    console.print(_backend_table(found.backends))
    console.print(_place_table(found.places))
    if found.speed is not None:
        console.print(_speed_table(found.speed))
    if not found.problems:
        console.print("Nothing is broken.", style="green")
    for problem in found.problems:
        console.print(f"Broken: {problem}", style="red", highlight=False, markup=False)


def _make_table(title: str, *columns: str) -> Table:
    table = cli.make_table(title=title, collapse_padding=True, show_header=any(columns))
    for column in columns:
        table.add_column(column, overflow="fold")
    table.columns[0].no_wrap = True
    return table


def _machine_table(machine: Machine) -> Table:
    table = _make_table("Machine", "", "")
    load = "" if machine.load is None else f", {machine.load:.1f} busy in the last minute"
    table.add_row("system", machine.system)
    table.add_row("CPU", f"{machine.processor}, {machine.cores:g} cores{load}")
    table.add_row("", machine.kind)
    table.add_row("threads", f"{machine.threads}: {machine.advice}")
    built = f"torch is built for CUDA {machine.cuda}" if machine.cuda else "torch is built for CPUs"
    if not machine.gpus:
        table.add_row("GPU", f"none found ({built})")
    for gpu in machine.gpus:
        bf16 = "bf16" if gpu["bf16"] else "no bf16"
        table.add_row(
            "GPU",
            f"{gpu['name']}, capability {gpu['capability']}, {bf16}, {gpu['free_gib']} of "
            f"{gpu['memory_gib']} GiB free ({built})",
        )
    return table


def _package_table(packages: list[Package]) -> Table:
    table = _make_table("Packages", "for", "here", "missing")
    for extra, group in itertools.groupby(packages, key=lambda package: package.extra):
        members = list(group)
        here = ", ".join(f"{each.name} {each.version}" for each in members if each.version)
        lacks = [f"{each.name} {each.lack}:" for each in members if each.lack is not None]
        remedies = dict.fromkeys(each.remedy for each in members if each.remedy is not None)
        table.add_row(extra or "everything", here or "-", _escape("\n".join([*lacks, *remedies])))
    return table


def _backend_table(backends: list[Backend]) -> Table:
    table = _make_table("Backends of the operations", "device", "backend", "works", "")
    for device, group in itertools.groupby(backends, key=lambda backend: backend.device):
        rows = list(group)
        reasons = {row.reason for row in rows}
        if len(reasons) == 1 and None not in reasons:  # no such device
            table.add_row(device, "all", "no", _escape(str(rows[0].reason)))
            continue
        for row in rows:
            checked = "" if row.max_error is None else f"within {row.max_error:.0e} of reference"
            is_auto = ', what "auto" means' if row.is_auto else ""
            works = "yes" if row.reason is None else "no"
            text = f"{checked}{is_auto}" if row.reason is None else row.reason
            table.add_row(device, row.name, works, _escape(text))
    return table


def _place_table(places: list[Place]) -> Table:
    table = _make_table("Datasets", "of", "here", "room", "folder")
    for place in places:
        room = f"{place.free_gib:g} GiB" if place.is_writable else "not writable"
        folder = f"{place.path} ({place.setting} names another)"
        table.add_row(place.what, str(place.n_datasets), room, _escape(folder))
    return table


def _speed_table(speed: Speed) -> Table:
    title = f"Speed of {speed.task} on {speed.device}, threads: {speed.threads}"
    table = _make_table(title, "a second", "")
    first = f"{speed.first_update_seconds:.1f} s, getting kernels ready included"
    table.add_row(f"{speed.updates:,.1f}", f"updates (the first took {first})")
    if speed.updates_on_one_thread is not None:
        ratio = speed.updates / speed.updates_on_one_thread
        alone = f"updates on one thread: {speed.threads} are {ratio:.2f} times as fast"
        if ratio < 1:
            alone += ", so set OMP_NUM_THREADS=1 while the machine is as busy as now"
        table.add_row(f"{speed.updates_on_one_thread:,.1f}", alone)
    table.add_row(f"{speed.window_steps:,.0f}", "steps of acting, memory window, one environment")
    ratio = speed.stream_steps / speed.window_steps
    stream = f"steps of acting, memory stream: {ratio:.1f} times as fast"
    table.add_row(f"{speed.stream_steps:,.0f}", stream)
    ratio = speed.products["bf16"] / speed.products["fp32"]
    for name, text in (("fp32", ""), ("bf16", f": {ratio:.2g} times as fast")):
        rate = f"GFLOP of matrix products on the CPU in {name}{text}"
        table.add_row(f"{speed.products[name]:,.3g}", rate)
    return table


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def tasks(as_json: cli.JsonOption = False, debug: cli.DebugOption = False) -> None:
    """List the named tasks with their environments, targets and recipes."""
    from sb3_dmamba.tasks import list_tasks

    with cli.command_output(as_json, debug) as output:
        named = list_tasks()
        if as_json:
            output.emit([task.to_dict() for task in named])
            return
        caption = "dmamba tasks --json has every setting, and where it is from"
        layout = {"caption_justify": "left", "collapse_padding": True}
        table = cli.make_table(title="Named tasks", caption=caption, **layout)
        for name in ("task", "environment", "targets", "width", "updates"):
            justify: Any = "left" if name in ("task", "environment") else "right"
            table.add_column(name, justify=justify, no_wrap=name != "targets")
        for task in named:
            config, targets = task.config(), [f"{target:g}" for target in task.target_returns]
            asked = targets[0] if len(targets) == 1 else f"{targets[0]}..{targets[-1]}"
            width, updates = str(config.hidden_size), "by the data"
            if config.n_updates is not None:
                updates = f"{config.n_updates:,}"
            table.add_row(task.name, task.env_id, asked, width, updates)
        output.console.print(table)
        output.console.print(
            "Every other Gym-MuJoCo name of D4RL (hopper-expert-v2, ant-medium-v1), any Minari id "
            "(hopper/medium-v0) and any registered Gymnasium id (Hopper-v5) is a task too."
        )
