"""Time, memory and operations of the mixers as the context grows."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from gymnasium import spaces
from torch import Tensor

from sb3_dmamba.config import DecisionMambaConfig, Memory
from sb3_dmamba.data import WindowSampler
from sb3_dmamba.data.trajectories import Trajectories
from sb3_dmamba.errors import ExperimentError
from sb3_dmamba.experiments.catalogue import Measurement, MeasurementRequest, choose_variants
from sb3_dmamba.experiments.grid import describe_versions
from sb3_dmamba.experiments.record import FORMAT, read_settings, read_table, write_table
from sb3_dmamba.experiments.report import compose_title, draw_lines, format_table
from sb3_dmamba.experiments.runs import write_json, write_text
from sb3_dmamba.machine import check_precision, choose_precision, describe_device
from sb3_dmamba.networks import DecisionMambaPolicy
from sb3_dmamba.networks.memory import ActingState
from sb3_dmamba.networks.model import CONDITION_SIZE
from sb3_dmamba.training.updater import Updater, compute_loss

# --- Operations ----------------------------------------------------------------------------------

_MLP_RATIO = 4


def count_flops(config: DecisionMambaConfig) -> float:
    """Count the blocks' operations for a token, averaged over a window: additions, multiplications.

    Norms, activations, embedding and head are left out.
    """
    width = config.hidden_size
    if config.mixer == "mamba":
        inner, states, rank = config.expand * width, config.d_state, config.resolved_dt_rank
        projections = 2 * (width * 2 * inner + inner * (rank + 2 * states) + rank * inner)
        convolution = 2 * inner * config.d_conv
        # per channel and state: step * A and its exponential, step * B * x, a * h + b, C * h summed
        scan = inner * states * (2 + 1 + 2 + 2)
        skip_and_gate = 4 * inner
        mixer: float = projections + convolution + scan + skip_and_gate + 2 * inner * width
    elif config.mixer == "attention":
        n_tokens = config.tokens_per_step * config.context_length
        seen = (n_tokens + 1) / 2  # by a token of a causal window, on average
        scores_and_sums = 2 * 2 * seen * width
        mixer = 2 * width * 3 * width + scores_and_sums + 2 * width**2
    else:
        mixer = 2 * width * config.filter_length
    channel_mixer = 2 * 2 * _MLP_RATIO * width**2 if config.resolved_channel_mixing else 0
    modulation = 0.0
    if config.conditioning == "decoupled":  # three rows, shared by the tokens of a step
        modulation = 2 * CONDITION_SIZE * 3 * width / config.tokens_per_step
    return config.n_layers * (mixer + channel_mixer + modulation)


# --- Check before timing -------------------------------------------------------------------------

# Hopper's
OBSERVATION_SPACE = spaces.Box(-np.inf, np.inf, (11,), np.float32)
ACTION_SPACE = spaces.Box(-1.0, 1.0, (3,), np.float32)

_TOLERANCE = 1e-3  # of outputs and gradients of size 1, in float32
_MAX_STEPS = 40  # of the windows that are compared


def make_policy(config: DecisionMambaConfig, device: str, seed: int = 0) -> DecisionMambaPolicy:
    """Return an untrained policy for Hopper's spaces, the same for the same seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        policy = DecisionMambaPolicy(OBSERVATION_SPACE, ACTION_SPACE, config)
    return policy.to(device)


def make_trajectories(
    n_episodes: int, length: int, space: spaces.Box = OBSERVATION_SPACE
) -> Trajectories:
    """Return noise in Hopper's shape, with actions that follow from the observations."""
    generator = np.random.default_rng(0)
    n_steps = n_episodes * length
    shape, n_actions = (n_steps, *space.shape), ACTION_SPACE.shape[0]
    observations: np.ndarray
    if space.dtype == np.uint8:
        observations = generator.integers(0, 256, shape, dtype=np.uint8)
        actions = generator.uniform(-1, 1, (n_steps, n_actions)).astype(np.float32)
    else:
        observations = generator.standard_normal(shape, dtype=np.float32)
        actions = np.tanh(observations[:, :n_actions])
    ends = np.ones(n_episodes, dtype=bool)
    return Trajectories(
        observations=observations,
        actions=actions,
        rewards=generator.standard_normal(n_steps, dtype=np.float32),
        terminated=ends,
        truncated=~ends,
        episode_offsets=np.arange(0, n_steps + 1, length),
        observation_space=space,
        action_space=ACTION_SPACE,
        source="noise",
    )


def check_variant(config: DecisionMambaConfig, device: str) -> None:
    """Compare a variant with the reference implementation, and its steps with its windows."""
    n_steps = min(config.context_length, _MAX_STEPS)
    config = config.replace(precision="fp32", context_length=n_steps)
    policy = make_policy(config, device)
    policy.set_training_mode(False)
    reference = make_policy(config.replace(backend="reference"), device)
    reference.load_state_dict(policy.state_dict())
    reference.set_training_mode(False)
    inputs = make_inputs(n_steps, device)
    pairs: dict[str, tuple[Tensor, Tensor]] = {
        "outputs": (policy.model(*inputs), reference.model(*inputs)),
        "gradients": (_gradient(policy, inputs), _gradient(reference, inputs)),
        "steps": (step_through(policy, inputs), policy.model(*inputs)),
    }
    for what, (own, expected) in pairs.items():
        scale = max(1e-6, float(expected.detach().abs().max()))
        error = float((own - expected).detach().abs().max()) / scale
        if not error <= _TOLERANCE:
            message = (
                f"mixer={config.mixer!r} on backend={config.backend!r}: its {what} are off by "
                f"{error:.2g} of their size, so it is not timed (allowed: {_TOLERANCE:g})"
            )
            raise ExperimentError(message, setting=what, value=error)


def make_inputs(n_steps: int, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the same two windows each time: observations, actions, returns-to-go, time steps."""
    generator = torch.Generator().manual_seed(1)
    observations = torch.randn(2, n_steps, *OBSERVATION_SPACE.shape, generator=generator)
    actions = torch.rand(2, n_steps, *ACTION_SPACE.shape, generator=generator) * 2 - 1
    returns = torch.rand(2, n_steps, generator=generator) * 3000
    timesteps = torch.arange(n_steps).expand(2, n_steps)
    return tuple(each.to(device) for each in (observations, actions, returns, timesteps))  # type: ignore[return-value]


def _gradient(policy: DecisionMambaPolicy, inputs: tuple[Tensor, ...]) -> Tensor:
    """Return the gradient of the first block's largest weight, which all later ones pass on."""
    policy.zero_grad()
    policy.model(*inputs).square().mean().backward()
    weight = max(policy.model.layers[0].mixer.parameters(), key=torch.numel)
    assert weight.grad is not None
    return weight.grad


@torch.no_grad()
def step_through(policy: DecisionMambaPolicy, inputs: tuple[Tensor, ...]) -> Tensor:
    """Return what a policy predicts at each step of windows when it is shown one step at a time."""
    observations, actions, returns, timesteps = inputs
    layers = policy.model.initial_layers(len(returns))
    predictions = []
    for step in range(returns.shape[1]):
        taken, asked = (actions[:, step - 1], returns[:, step - 1]) if step else (None, None)
        tokens, condition = policy.model.embed_step(
            taken, returns[:, step], observations[:, step], timesteps[:, step], asked
        )
        prediction, layers = policy.model.step(tokens, condition, layers)
        predictions.append(prediction)
    return torch.stack(predictions, dim=1)


# --- Measurements --------------------------------------------------------------------------------

_STEPS_OF_UPDATE = 1280  # 64 windows of 20
_WARM_UPS = 2
_REPEATS = 7
_MIN_SECONDS = 0.02  # of one repeat


@dataclass(frozen=True)
class Cost:
    """Cost of a variant at one context length."""

    variant: str
    context_length: int
    batch_size: int  # windows of an update; batches of every K hold as many steps
    update_us: float  # batch, forward, backward and optimiser, per token
    kept_bytes: float  # by the forward pass for the backward pass, per token
    window_ms: float  # of a step of acting, one environment, full window
    stream_ms: float  # NaN where the variant has no stream memory; so its bytes
    window_state_bytes: float
    stream_state_bytes: float
    flops: float  # of the blocks' forward pass, per token


def describe_clock(device: str) -> str:
    """Describe the clock that times are measured with."""
    own = "processor time of one thread, which other work on the machine does not stretch"
    return own if _is_processor_time(device) else "wall time"


def measure_cost(variant: str, config: DecisionMambaConfig, device: str) -> Cost:
    """Measure a variant of these settings on a device."""
    length = config.context_length
    batch_size = max(1, _STEPS_OF_UPDATE // length)
    config = config.replace(batch_size=batch_size)
    policy = make_policy(config, device)
    sampler = WindowSampler(make_trajectories(4, max(1000, 2 * length)), length, batch_size)
    updater = Updater(policy, config, seed=0)
    n_tokens = 3 * length * batch_size
    kept = count_kept(policy, sampler) / n_tokens
    update_us = 1e6 * _time(lambda: updater.update(sampler, 0, 0, 10), device) / n_tokens
    policy.set_training_mode(False)
    window_ms, window_bytes = _measure_acting(policy, "window", length, device)
    stream_ms, stream_bytes = math.nan, math.nan
    if config.time_encoding != "global":
        stream_ms, stream_bytes = _measure_acting(policy, "stream", length, device)
    times, sizes = (update_us, kept, window_ms, stream_ms), (window_bytes, stream_bytes)
    return Cost(variant, length, batch_size, *times, *sizes, count_flops(config))


def _measure_acting(
    policy: DecisionMambaPolicy, memory: Memory, length: int, device: str
) -> tuple[float, float]:
    """Return the milliseconds of a step once the window is full, and the bytes of the state."""
    observation = np.zeros((1, *OBSERVATION_SPACE.shape), dtype=np.float32)
    target = np.full(1, 1000.0, dtype=np.float32)
    state = policy.initial_state(1, memory)
    if memory == "window":  # as after many steps, of which the window's are all there is
        age = torch.full_like(state.tensors["timestep"], length)
        state = ActingState(memory, {**state.tensors, "timestep": age})
    else:
        for _ in range(length):
            _, state = policy.act(observation, target, state)
    n_bytes = sum(rows.numel() * rows.element_size() for rows in state.tensors.values())
    seconds = _time(lambda: policy.act(observation, target, state), device)
    return 1e3 * seconds, float(n_bytes)


def count_kept(policy: DecisionMambaPolicy, sampler: WindowSampler) -> float:
    """Return the bytes that one forward pass keeps for its backward pass."""
    weights = {each.untyped_storage().data_ptr() for each in policy.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    policy.set_training_mode(True)
    batch = sampler.sample(0).to(policy.device)
    bf16 = policy.config.precision == "bf16"
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast(policy.device.type, torch.bfloat16, enabled=bf16),
    ):
        loss = compute_loss(policy, batch)  # alive until all are counted, so no place is shared
    del loss
    return float(sum(kept.values()))


def _time(run: Callable[[], object], device: str) -> float:
    """Return the median seconds of a call."""
    is_cuda = device.startswith("cuda")
    clock = time.process_time if _is_processor_time(device) else time.perf_counter

    def measure(n: int) -> float:
        if is_cuda:
            torch.cuda.synchronize(device)
        started = clock()
        for _ in range(n):
            run()
        if is_cuda:
            torch.cuda.synchronize(device)
        return clock() - started

    for _ in range(_WARM_UPS):
        once = measure(1)
    n = max(1, int(_MIN_SECONDS / max(once, 1e-6)))
    return float(np.median([measure(n) / n for _ in range(_REPEATS)]))


def _is_processor_time(device: str) -> bool:
    return device == "cpu" and torch.get_num_threads() == 1


# --- Report --------------------------------------------------------------------------------------

LENGTHS = (10, 20, 50, 100, 200, 500)
_COST_FIELDS = tuple(each.name for each in dataclasses.fields(Cost))
_SHAPE = {"hidden_size": 128, "n_layers": 3}

# column: heading, digits, factor
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
    """Measure every variant with every context length, and write a report."""
    variants = choose_variants(measurement.name, measurement.variants, request.variants)
    device = request.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    threads = torch.get_num_threads()
    torch.set_num_threads(request.threads)
    costs = []
    try:
        for length in lengths:
            for name, own in variants.items():
                settings = {**_SHAPE, **own, **request.settings}
                config = DecisionMambaConfig.from_recipe("paper", **settings, context_length=length)
                precision = choose_precision(config.precision, torch.device(device))
                check_precision(precision, torch.device(device))
                config = config.replace(precision=precision)
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
    write_table(out / "results.csv", pd.DataFrame(costs, columns=_COST_FIELDS))
    write_json(out / "settings.json", settings, indent=1)
    return [rebuild_efficiency(out), out / "results.csv", out / "settings.json"]


def rebuild_efficiency(folder: Path) -> Path:
    """Make the report and its pictures again from ``results.csv`` and ``settings.json``."""
    settings = read_settings(folder)
    whole = dict.fromkeys(("context_length", "batch_size"), int)
    types = {**dict.fromkeys(_COST_FIELDS[1:], float), **whole}
    table = read_table(folder / "results.csv", _COST_FIELDS).astype(types)
    costs = [Cost(*row) for row in table[list(_COST_FIELDS)].itertuples(index=False)]
    for name, (fields, label) in _PICTURES.items():
        _plot(costs, fields, label, folder / f"{name}.png")
    write_text(folder / "report.md", _compose(settings, costs))
    return folder / "report.md"


def _compose(settings: Mapping[str, Any], costs: Sequence[Cost]) -> str:
    header = ["K", "variant", *(heading for heading, _, _ in _COLUMNS.values())]
    table = [[str(cost.context_length), cost.variant, *_format(cost)] for cost in costs]
    listed = ", ".join(f"{name}={value}" for name, value in settings["settings"].items())
    versions = ", ".join(f"{name} {value}" for name, value in settings["versions"].items())
    threads = f"{settings['threads']} thread{'' if settings['threads'] == 1 else 's'}"
    sections = [
        f"# {compose_title(settings)}",
        f"**{settings['title']}.** {settings['question']}",
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
    values = [(f * getattr(cost, name), digits) for name, (_, digits, f) in _COLUMNS.items()]
    return ["-" if math.isnan(value) else f"{value:,.{digits}f}" for value, digits in values]


def _describe(costs: Sequence[Cost]) -> str:
    """Describe how each variant's costs grow from the shortest to the longest context."""
    names = {
        "update_us": "an update",
        "kept_bytes": "what is kept for the backward pass",
        "window_ms": "a step of window memory",
        "stream_ms": "a step of stream memory",
    }
    lines = []
    for variant in dict.fromkeys(cost.variant for cost in costs):
        own = [cost for cost in costs if cost.variant == variant]
        first, last = own[0], own[-1]
        ratios = {what: getattr(last, name) / getattr(first, name) for name, what in names.items()}
        listed = "; ".join(f"{what} {r:.2f} times" for what, r in ratios.items() if r == r)
        short, long = first.context_length, last.context_length
        lines.append(
            f"* `{variant}`, from K {short} to K {long} ({long / short:g} times as long), by token "
            f"or step: {listed}."
        )
    end = "These are of this implementation on this machine; another device or kernel has other "
    return "\n".join(lines) + f"\n\n{end}ratios."


def _plot(costs: Sequence[Cost], fields: Sequence[str], label: str, path: Path) -> None:
    lines = {}
    for variant in dict.fromkeys(cost.variant for cost in costs):
        own = [cost for cost in costs if cost.variant == variant]
        lengths = [cost.context_length for cost in own]
        for field in fields:
            name = f"{variant}, {field.split('_')[0]}" if len(fields) > 1 else variant
            lines[name] = lengths, [getattr(cost, field) for cost in own]
    draw_lines(path, label, ("steps of context, K", label), lines, len(fields))
