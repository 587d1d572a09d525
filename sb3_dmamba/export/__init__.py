"""Policies as files that act without this package: ONNX or torch.export."""

from sb3_dmamba.export.exporting import FORMATS, ExportedPolicy, export_policy

__all__ = ["FORMATS", "ExportedPolicy", "export_policy"]
