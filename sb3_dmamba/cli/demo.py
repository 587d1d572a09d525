"""``dmamba demo``: train and evaluate on the bundled dataset, in minutes on a laptop CPU."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from sb3_dmamba.cli import output as cli

if TYPE_CHECKING:
    from sb3_dmamba.algorithm import DecisionMamba
    from sb3_dmamba.evaluation import EvaluationReport

_TASK = "halfcheetah-bundled"
_EPISODES = 50  # of each target
_QUICK_UPDATES, _QUICK_EPISODES = 100, 3
_QUICK_WARNING = (
    "--quick is a smoke test: it shows that all of it works, and its scores mean nothing"
)


def demo(
    quick: Annotated[
        bool, cli.flag("A minute, to see that it works; scores mean nothing.", "--quick")
    ] = False,
    updates: Annotated[
        int | None, cli.number("Optimiser steps.", f"the task's, or {_QUICK_UPDATES} with --quick")
    ] = None,
    episodes: Annotated[
        int | None,
        cli.number("Episodes of each target.", f"{_EPISODES}, or {_QUICK_EPISODES} with --quick"),
    ] = None,
    seed: Annotated[int, cli.number("Of weights, batches, dropout and episodes.", least=0)] = 0,
    output: Annotated[
        Path | None,
        cli.value(
            "Folder for model, plot, report and log; files there are replaced.",
            "FOLDER",
            "runs/demo, or runs/demo-quick",
            panel="Output",
        ),
    ] = None,
    as_json: cli.JsonOption = False,
    debug: cli.DebugOption = False,
) -> None:
    """Train on the data inside this package, evaluate, plot: a few minutes on two cores."""
    with cli.command_output(as_json, debug) as out:
        if quick:
            out.console.print(_QUICK_WARNING, style="yellow")
            updates, episodes = updates or _QUICK_UPDATES, episodes or _QUICK_EPISODES
        folder = output or Path("runs/demo-quick" if quick else "runs/demo")
        document = _run(out, updates, episodes or _EPISODES, seed, folder)
        if quick:
            out.console.print(_QUICK_WARNING, style="yellow")
        out.emit({"quick": quick, **document})


def _run(
    out: cli.Output, updates: int | None, episodes: int, seed: int, folder: Path
) -> dict[str, Any]:
    """Train, evaluate and write the files; return the JSON document."""
    decision_mamba = cli.import_algorithm()
    from sb3_dmamba.data import load_trajectories
    from sb3_dmamba.tasks import get_task

    task = get_task(_TASK)
    if task.env_id is not None:
        with task.make_env():  # before training: it may need an extra
            pass
    overrides: dict[str, Any] = {} if updates is None else {"n_updates": updates}
    model = decision_mamba(_TASK, seed=seed, **overrides)
    model._compile_ahead()
    trajectories = load_trajectories(task.dataset)
    summary = trajectories.summary()
    out.console.print(summary)

    model.set_logger(cli.make_csv_logger(folder))
    start = time.perf_counter()
    model.fit(trajectories, progress_bar=True)
    model.logger.close()
    seconds = time.perf_counter() - start
    out.console.print(f"trained {model.num_timesteps:,} updates in {seconds:.0f} s")

    names = {"model": "model.zip", "plot": "returns.png", "report": "report.json"}
    files = {each: folder / name for each, name in {**names, "progress": "progress.csv"}.items()}
    model.save(files["model"])
    report = model.evaluate(n_episodes=episodes)
    out.console.print(report)
    report.plot(files["plot"])
    report.to_json(files["report"])
    if (why_not := _draw_frames(model, report, folder / "frames.png")) is None:
        files["frames"] = folder / "frames.png"
    else:
        out.console.print(f"no pictures of the runner: {why_not}", style="yellow")
    out.files(files.values())
    out.console.print(_conclude(report, summary.returns.mean), highlight=False)
    return {
        "dataset": summary.to_dict(),
        "config": model.config.to_dict(),
        "training_seconds": seconds,
        "gain": report.best.mean - summary.returns.mean,
        "files": {name: str(path) for name, path in files.items()},
        "report": json.loads(report.to_json()),
    }


_GROUND = slice(100, 230)  # rows of a frame, without the sky
_FRAME_STEPS = (10, 30, 50, 70, 90, 110)  # of the environment, 0.05 s each


def _draw_frames(model: DecisionMamba, report: EvaluationReport, path: Path) -> str | None:
    """Draw moments of an episode for each target, in rows; return why that is not possible."""
    if sys.platform == "linux" and not os.environ.get("DISPLAY"):
        os.environ.setdefault("MUJOCO_GL", "egl")
    targets = [result.target_return for result in report.results]
    try:
        rows = [_record_moments(model, target) for target in targets]
    except Exception as error:  # whatever a driver raises
        return f"{type(error).__name__}: {error}"
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.2 * len(_FRAME_STEPS), 1.2 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), len(_FRAME_STEPS), squeeze=False)
    for target, row, row_axes in zip(targets, rows, axes, strict=True):
        for step, (frame, place), cell in zip(_FRAME_STEPS, row, row_axes, strict=True):
            cell.imshow(frame[_GROUND])
            cell.set_xticks([])
            cell.set_yticks([])
            cell.set_title(f"{0.05 * step:.1f} s: {place:.1f} m", fontsize=8)
        row_axes[0].set_ylabel(f"asked {target:,.0f}", fontsize=9)
    figure.savefig(path, dpi=110)
    return None


def _record_moments(model: DecisionMamba, target: float) -> list[tuple[Any, float]]:
    """Act in an episode; return the frames at ``_FRAME_STEPS`` and how far the runner has come."""
    assert model.task is not None
    actor = model.as_stateful_wrapper(target)
    moments = []
    with model.task.make_env(render_mode="rgb_array", width=320, height=240) as env:
        observation, _ = env.reset(seed=0)
        reward = 0.0
        for step in range(1, _FRAME_STEPS[-1] + 1):
            action = actor.predict(observation, reward)
            observation, reward, _, _, info = env.step(action)
            if step in _FRAME_STEPS:
                moments.append((env.render(), float(info["x_position"])))
    return moments


def _conclude(report: EvaluationReport, data_mean: float) -> str:
    best = report.best
    difference = best.mean - data_mean
    return (
        f"Asked for {best.target_return:,.0f}, it reaches {best.mean:,.0f} ± "
        f"{best.standard_error:,.0f} (mean ± standard error of {best.n_episodes} episodes): "
        f"{abs(difference):,.0f} {'above' if difference >= 0 else 'below'} the data's mean return "
        f"of {data_mean:,.0f}."
    )
