"""What to do with a posterior: calls that carry their uncertainty and a diagnostic, and never see the model."""

if not __name__.startswith("fieldguide."):
    raise ImportError(
        "import fieldguide.decisions, not decisions: install the project first "
        "(python -m pip install -c constraints.txt .)"
    )
