"""TODO"""

if not __name__.startswith("fieldguide."):
    raise ImportError(
        "import fieldguide.decisions, not decisions: install the project first (python -m pip install -c constraints.txt .)"
    )
