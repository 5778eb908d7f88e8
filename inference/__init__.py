"""TODO"""

if not __name__.startswith("fieldguide."):
    raise ImportError(
        "import fieldguide.inference, not inference: install the project first (python -m pip install -c constraints.txt .)"
    )
