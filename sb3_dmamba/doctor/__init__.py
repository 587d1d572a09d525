"""What works here, what does not and what to do about it, and how fast it is."""

from sb3_dmamba.doctor.examination import Examination, examine

__all__ = ["Examination", "examine"]
