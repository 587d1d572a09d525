"""Export of policies to files that run without this package: ONNX and torch.export."""

from sb3_dmamba.export.exporting import FORMATS, ExportedPolicy, export_policy

__all__ = ["FORMATS", "ExportedPolicy", "export_policy"]
