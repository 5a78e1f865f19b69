"""Reports: one self-contained HTML file from a result."""

from promptflow.report.abstention import write_abstention
from promptflow.report.html import write_report

__all__ = ["write_abstention", "write_report"]
