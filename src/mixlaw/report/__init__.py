"""The report: one HTML file that says what to do, how sure that is, and shows why."""

from mixlaw.report.data import Attribution, ReportData
from mixlaw.report.html import render_report, write_report

__all__ = ["Attribution", "ReportData", "render_report", "write_report"]
