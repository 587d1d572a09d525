"""The experiments: what each asks, and what it varies."""

from sb3_dmamba.experiments.catalogue.experiment import Experiment, Variant
from sb3_dmamba.experiments.catalogue.registry import (
    get_experiment,
    list_experiments,
    list_measurements,
)

__all__ = ["Experiment", "Variant", "get_experiment", "list_experiments", "list_measurements"]
