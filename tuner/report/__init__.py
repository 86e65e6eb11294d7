"""What a study found, as one HTML file that a person can read, send and keep."""

from tuner.report.page import write_figures, write_report, write_retention, write_scaling

__all__ = ["write_figures", "write_report", "write_retention", "write_scaling"]
