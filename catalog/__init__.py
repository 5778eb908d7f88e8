"""TODO"""

if not __name__.startswith("fieldguide."):
    raise ImportError(
        "import fieldguide.catalog, not catalog: install the project first (python -m pip install -c constraints.txt .)"
    )
