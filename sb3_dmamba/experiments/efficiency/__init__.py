"""Time, memory and operations of the mixers, as the context grows."""

from sb3_dmamba.experiments.efficiency.counts import count_flops
from sb3_dmamba.experiments.efficiency.gate import check_variant
from sb3_dmamba.experiments.efficiency.report import measure_efficiency, rebuild_efficiency
from sb3_dmamba.experiments.efficiency.timing import Cost, measure_cost

__all__ = [
    "Cost",
    "check_variant",
    "count_flops",
    "measure_cost",
    "measure_efficiency",
    "rebuild_efficiency",
]
