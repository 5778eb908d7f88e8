"""The top room: a study of objectives with its decisions, and what is written for people to read."""

from fieldguide.reports.report_files import report
from fieldguide.reports.study import Study, compare

__all__ = ["Study", "compare", "report"]
