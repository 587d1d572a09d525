"""The report of what the mixers cost."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sb3_dmamba.config import DecisionMambaConfig
from sb3_dmamba.errors import ConfigError
from sb3_dmamba.experiments.efficiency.gate import check_variant
from sb3_dmamba.experiments.efficiency.timing import Cost, describe_clock, measure_cost
from sb3_dmamba.experiments.grid.accounting import describe_versions
from sb3_dmamba.experiments.grid.folder import write_json, write_text
from sb3_dmamba.experiments.plots import new_figure, save_figure, variant_colour
from sb3_dmamba.experiments.record import FORMAT, read_settings, read_table, to_csv
from sb3_dmamba.experiments.report import format_table
from sb3_dmamba.machine import describe_device

if TYPE_CHECKING:
    from sb3_dmamba.experiments.measuring import Measurement, MeasurementRequest

__all__ = ["measure_efficiency", "rebuild_efficiency"]

LENGTHS = (10, 20, 50, 100, 200, 500)
_COST_FIELDS = tuple(each.name for each in dataclasses.fields(Cost))
_SHAPE = {"hidden_size": 128, "n_layers": 3}

# column: (heading, digits, what the number is multiplied with)
_COLUMNS = {
    "update_us": ("update, µs a token", 1, 1.0),
    "flops": ("forward, kFLOP a token", 0, 1e-3),
    "kept_bytes": ("kept for backward, kB a token", 1, 1e-3),
    "window_ms": ("step of window memory, ms", 2, 1.0),
    "stream_ms": ("step of stream memory, ms", 2, 1.0),
    "window_state_bytes": ("window memory, kB", 1, 1e-3),
    "stream_state_bytes": ("stream memory, kB", 1, 1e-3),
}
_PICTURES = {
    "update": (("update_us",), "µs a token of an update"),
    "acting": (("window_ms", "stream_ms"), "ms a step of acting"),
    "memory": (("kept_bytes",), "bytes a token kept for the backward pass"),
}


def measure_efficiency(
    measurement: Measurement, request: MeasurementRequest, lengths: Sequence[int] = LENGTHS
) -> list[Path]:
    """Measure every variant with every context length, and write a report.

    Args:
        measurement: The variants.
        request: What the user asks for.
        lengths: Context lengths.

    Returns:
        The files written, the report first.

    Raises:
        ConfigError: A variant or a setting is unknown.
        ExperimentError: A variant computes something else than it should.
    """
    for name in request.variants:
        if name not in measurement.variants:
            known = ", ".join(map(repr, measurement.variants))
            raise ConfigError(f"{measurement.name} has no variant {name!r}: it has {known}")
    names = [
        name for name in measurement.variants if not request.variants or name in request.variants
    ]
    device = request.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    threads = torch.get_num_threads()
    torch.set_num_threads(request.threads)
    costs = []
    try:
        for length in lengths:
            for name in names:
                settings = {**_SHAPE, **measurement.variants[name], **request.settings}
                config = DecisionMambaConfig().replace(**settings, context_length=length)
                check_variant(config, device)
                costs.append(measure_cost(name, config, device))
        clock = describe_clock(device)
    finally:
        torch.set_num_threads(threads)
    settings = {
        "format": FORMAT,
        "experiment": measurement.name,
        "title": measurement.title,
        "question": measurement.question,
        "command": request.command,
        "settings": {**_SHAPE, **request.settings},
        "device": device,
        "threads": request.threads,
        "machine": describe_device(device),
        "versions": describe_versions(),
        "clock": clock,
    }
    out = request.out
    table = to_csv(_COST_FIELDS, [dataclasses.asdict(cost) for cost in costs])
    write_text(out / "results.csv", table)
    write_json(out / "settings.json", settings, indent=1)
    return [rebuild_efficiency(out), out / "results.csv", out / "settings.json"]


def rebuild_efficiency(folder: Path) -> Path:
    """Make the report and its pictures again from ``results.csv`` and ``settings.json``.

    Raises:
        ExperimentError: A file is missing or damaged.
    """
    settings = read_settings(folder)
    costs = [_read_cost(row) for row in read_table(folder / "results.csv", _COST_FIELDS)]
    for name, (fields, label) in _PICTURES.items():
        _plot(costs, fields, label, folder / f"{name}.png")
    write_text(folder / "report.md", _compose(settings, costs))
    return folder / "report.md"


def _read_cost(row: Mapping[str, str]) -> Cost:
    whole = ("context_length", "batch_size")
    values: dict[str, Any] = {name: float(row[name]) for name in _COST_FIELDS if name != "variant"}
    values.update({name: int(row[name]) for name in whole})
    return Cost(variant=row["variant"], **values)


def _compose(settings: Mapping[str, Any], costs: Sequence[Cost]) -> str:
    header = ["K", "variant", *(heading for heading, _, _ in _COLUMNS.values())]
    table = [[str(cost.context_length), cost.variant, *_format(cost)] for cost in costs]
    listed = ", ".join(f"{name}={value}" for name, value in settings["settings"].items())
    versions = ", ".join(f"{name} {value}" for name, value in settings["versions"].items())
    threads = f"{settings['threads']} thread{'' if settings['threads'] == 1 else 's'}"
    sections = [
        f"# {settings['title']}",
        settings["question"],
        "## Answer",
        _describe(costs),
        "## Results",
        "An update draws a batch, computes the loss and its gradients, and takes AdamW's step; "
        "batches of every K hold as many steps. A step of acting is one environment's, with a full "
        f"window behind it. Times are medians of {settings['clock']}. Operations are those of the "
        "blocks' forward pass, counted by hand. Before anything was timed, its outputs and "
        "gradients were compared with the reference implementation's, and its steps with its "
        "windows.",
        format_table(header, table),
        *(f"![{name}]({name}.png)" for name in _PICTURES),
        "## What was run",
        f"```bash\n{settings['command']}\n```",
        f"Untrained models in Hopper's shape, {listed}.",
        "## Machine and time",
        f"* {settings['machine']}, device {settings['device']}, {threads}; {versions}",
    ]
    return "\n\n".join(sections) + "\n"


def _format(cost: Cost) -> list[str]:
    cells = []
    for name, (_, digits, factor) in _COLUMNS.items():
        value = factor * getattr(cost, name)
        cells.append("-" if math.isnan(value) else f"{value:,.{digits}f}")
    return cells


def _describe(costs: Sequence[Cost]) -> str:
    """Say how each variant's costs grow from the shortest to the longest context."""
    sentences = []
    for name in dict.fromkeys(cost.variant for cost in costs):
        own = [cost for cost in costs if cost.variant == name]
        first, last = own[0], own[-1]
        grown = {
            "an update": _ratio(first, last, lambda cost: cost.update_us),
            "what is kept for the backward pass": _ratio(first, last, lambda c: c.kept_bytes),
            "a step of window memory": _ratio(first, last, lambda cost: cost.window_ms),
            "a step of stream memory": _ratio(first, last, lambda cost: cost.stream_ms),
        }
        listed = "; ".join(f"{what} {ratio}" for what, ratio in grown.items() if ratio)
        sentences.append(
            f"* `{name}`, from K {first.context_length} to K {last.context_length} "
            f"({last.context_length / first.context_length:g} times as long), by token or step: "
            f"{listed}."
        )
    return "\n".join(sentences) + (
        "\n\nThese are of this implementation on this machine; another device or kernel has "
        "other ratios."
    )


def _ratio(first: Cost, last: Cost, value: Callable[[Cost], float]) -> str:
    ratio = value(last) / value(first)
    return "" if math.isnan(ratio) else f"{ratio:.2f} times"


def _plot(costs: Sequence[Cost], fields: Sequence[str], label: str, path: Path) -> None:
    from matplotlib.ticker import LogLocator

    figure, axes = new_figure()
    names = list(dict.fromkeys(cost.variant for cost in costs))
    for index, name in enumerate(names):
        own = [cost for cost in costs if cost.variant == name]
        for field, style in zip(fields, ("-", "--"), strict=False):
            suffix = f", {field.split('_')[0]}" if len(fields) > 1 else ""
            axes.plot(
                [cost.context_length for cost in own],
                [getattr(cost, field) for cost in own],
                color=variant_colour(index),
                linestyle=style,
                marker="o",
                markersize=4.5,
                markerfacecolor="white" if style == "--" else variant_colour(index),
                label=f"{name}{suffix}",
            )
    axes.set_xscale("log")
    axes.set_yscale("log")
    lengths = sorted({cost.context_length for cost in costs})
    axes.set_xticks(lengths, [str(length) for length in lengths])
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.set_xlabel("steps of context, K")
    axes.set_ylabel(label)
    save_figure(figure, axes, label, path)
