"""The messages that docs/reference/programs.md explains are messages that the code gives."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROW = re.compile(r"^\| `(?P<message>[^`]+)`(?P<whose>[^|]*)\|", re.M)


def explained() -> list[str]:
    page = (ROOT / "docs" / "reference" / "programs.md").read_text(encoding="utf-8")
    rows = ROW.finditer(page[page.index("## Errors") :])
    return [row["message"] for row in rows if not row["whose"].strip()]


def source() -> str:
    """All of inference, with string literals that go on in the next line joined."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "inference").rglob("*.py")))
    return re.sub(r'"\s*\n\s*f?"', "", text)


@pytest.mark.parametrize("message", explained())
def test_an_explained_message_exists(message):
    assert message.split("…")[0].strip(" :") in source()


def test_the_table_is_found():
    assert len(explained()) >= 10
