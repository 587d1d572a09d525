"""What a dataset holds, and what is odd about it, in bounded memory."""

from sb3_dmamba.data.inspection.oddities import Oddity
from sb3_dmamba.data.inspection.report import DatasetReport, Histogram, inspect_dataset

__all__ = ["DatasetReport", "Histogram", "Oddity", "inspect_dataset"]
