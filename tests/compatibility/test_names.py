"""Names that version 0.1.0's files, pickles and documentation hold can still be imported.

The lists are what pickletools and a search of the documentation found at 0.1.0. They only grow.
"""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest

from tests.compatibility.acting import run_python

Names = dict[str, str]  # a module, and what is asked of it, separated by spaces

# What files hold: Gymnasium's entry points in Minari's env specs, d3rlpy's files, pickles of data
# and of acting states.
RECORDED: Names = {
    "sb3_dmamba.atari.game": "AtariGame",
    "sb3_dmamba.d3rlpy.files": "plain_text",
    "sb3_dmamba.data.mapping.pickling": "MappedReference",
    "sb3_dmamba.data.trajectories": "Episode Trajectories",
    "sb3_dmamba.memory_tasks.tmaze": "TMaze",
    "sb3_dmamba.networks.state": "ActingState",
}

# What pickles of small objects hold: reports, settings, descriptions, errors.
PICKLED: Names = {
    "sb3_dmamba.config": "DecisionMambaConfig",
    "sb3_dmamba.d3rlpy.config": "DecisionMambaConfig DiscreteDecisionMambaConfig",
    "sb3_dmamba.data.info": "DatasetInfo",
    "sb3_dmamba.data.inspection.oddities": "Oddity",
    "sb3_dmamba.data.inspection.report": "DatasetReport Histogram",
    "sb3_dmamba.data.summary": "Spread TrajectoriesSummary",
    "sb3_dmamba.errors": "ConfigError",
    "sb3_dmamba.evaluation.report": "EvaluationReport",
    "sb3_dmamba.evaluation.results": "TargetResult",
    "sb3_dmamba.tasks.task": "Task",
}

# What the README, docs/ (without docs/contributing) and examples/ import or describe.
DOCUMENTED: Names = {
    "sb3_dmamba": (
        "DecisionMamba DecisionMambaConfig EvaluationReport ReturnToGo Trajectories __version__ "
        "collect list_tasks load_trajectories"
    ),
    "sb3_dmamba.config": "DecisionMambaConfig",
    "sb3_dmamba.d3rlpy": (
        "DecisionMamba DecisionMambaAdamWFactory DecisionMambaConfig DecisionMambaEncoderFactory "
        "DecisionMambaLRFactory DiscreteDecisionMamba DiscreteDecisionMambaConfig "
        "StreamTransformerWrapper WindowReplayBuffer as_replay_buffer from_sb3 to_sb3"
    ),
    "sb3_dmamba.data": (
        "ConsecutiveSampler DatasetInfo DatasetReport Episode ObservationStatistics Spread "
        "Trajectories TrajectoriesSummary TrajectoriesWriter WindowBatch WindowSampler "
        "compute_observation_statistics compute_returns compute_returns_to_go "
        "convert_trajectories inspect_dataset join_trajectories load_trajectories"
    ),
    "sb3_dmamba.data.inspection": "Histogram Oddity",
    "sb3_dmamba.data.sources": "Opened Source",
    "sb3_dmamba.errors": (
        "BackendError CheckoutError ConditioningError ConfigError DatasetError DecisionMambaError "
        "DistributedError DivergenceError EvaluationError ExperimentError ExportError "
        "MissingDependencyError ModelFileError NotFittedError SpaceError UnknownTaskError"
    ),
    "sb3_dmamba.evaluation": (
        "EvaluationReport ReportDetails ReturnToGo SeedEpisodes StatefulActor TargetResult "
        "compute_confidence_interval compute_normalized_score compute_standard_error split_seeds"
    ),
    "sb3_dmamba.evaluation.protocols": "ActingPolicy ActingState ReferenceScore",
    "sb3_dmamba.experiments.catalogue": "Experiment Variant get_experiment list_experiments",
    "sb3_dmamba.experiments.efficiency.gate": "check_variant",
    "sb3_dmamba.experiments.efficiency.timing": "describe_clock measure_cost",
    "sb3_dmamba.experiments.grid": "Engine",
    "sb3_dmamba.experiments.measuring": "Measurement MeasurementRequest",
    "sb3_dmamba.experiments.planning": "Request",
    "sb3_dmamba.experiments.run": "run_experiment",
    "sb3_dmamba.experiments.statistics": (
        "Estimate compute_interquartile_mean compute_probability_of_improvement "
        "compute_rank_correlation"
    ),
    "sb3_dmamba.export": "ExportedPolicy export_policy",
    "sb3_dmamba.hub": "make_folder",
    "sb3_dmamba.memory_tasks.tmaze": "DOWN FORWARD UP",
    "sb3_dmamba.networks": (
        "ActingState AttentionMixer ConvolutionMixer DecisionMambaPolicy ExtractorEncoder "
        "MambaMixer SequenceModel"
    ),
    "sb3_dmamba.ops": (
        "MambaWeights available_backends causal_conv1d mamba_step resolve_backend selective_scan"
    ),
    "sb3_dmamba.tasks": "ReferenceScores Task get_reference_scores get_task list_tasks",
    "sb3_dmamba.training.callbacks": (
        "Evaluations as_callbacks explain_missing_environment start_callbacks"
    ),
    "sb3_dmamba.training.optimizer": "make_optimizer set_learning_rate split_by_decay",
    "sb3_dmamba.training.schedule": "compute_learning_rate plan_schedule",
    "sb3_dmamba.cli": "main",  # the command's entry point
}

# What scripts run as ``python -m``: SLURM's of 0.1.0 hold the second.
RUN = ("sb3_dmamba", "sb3_dmamba.experiments.grid", "sb3_dmamba.experiments.no_history")

_CODE = """
import importlib, json, sys, warnings
warnings.simplefilter("ignore")
missing = {}
for module, names in json.load(sys.stdin):
    for name in names:
        try:
            getattr(importlib.import_module(module), name)
        except Exception as error:
            missing[f"{module}.{name}"] = f"{type(error).__name__}: {error}"
print(json.dumps(missing))
"""
_LISTS = {"recorded": RECORDED, "pickled": PICKLED, "documented": DOCUMENTED}


@pytest.fixture(scope="module")
def missing() -> dict[str, str]:
    """What cannot be imported of all lists, and why; d3rlpy's part only where d3rlpy is."""
    has_d3rlpy = find_spec("d3rlpy") is not None
    asked = [
        (module, names.split())
        for each in _LISTS.values()
        for module, names in each.items()
        if has_d3rlpy or ".d3rlpy" not in module
    ]
    printed = run_python("-c", _CODE, stdin=json.dumps(asked))
    found: dict[str, str] = json.loads(printed.splitlines()[-1])
    return found


@pytest.mark.parametrize("which", _LISTS)
def test_names_are_there(which: str, missing: dict[str, str]) -> None:
    names = {f"{module}.{name}" for module, some in _LISTS[which].items() for name in some.split()}
    assert {name: why for name, why in missing.items() if name in names} == {}


@pytest.mark.parametrize("module", RUN)
def test_modules_run(module: str) -> None:
    assert "usage" in run_python("-m", module, "--help").lower()
