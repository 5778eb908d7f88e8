"""Decisions on labels: classes, the option to reject, labels that may be wrong."""
