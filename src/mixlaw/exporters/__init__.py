"""Mixtures for training frameworks: one file per framework, read back to make sure."""

from mixlaw.exporters.export import FRAMEWORKS, ExportResult, check_export, export_mixture
from mixlaw.exporters.plan import write_plan

__all__ = ["FRAMEWORKS", "ExportResult", "check_export", "export_mixture", "write_plan"]
