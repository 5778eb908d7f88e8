"""Tables of the command line: CSV, parquet and feather files, whose rows have names; and tables in the terminal."""

import gzip
import sys
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

ARROW = (".parquet", ".feather")
"""Endings of the files that pyarrow reads and writes; whatever else is a CSV file."""
NAMELESS = "Unnamed: 0"
"""What pandas calls a first column without a heading, as an index is written."""
HEADINGS = ("id", "name", "index", "row", "customer", "user", "cell", "barcode", "context", "key")
"""Headings of columns that hold names, whatever other file has one of that heading too."""
MISSING = ("", "NA", "N/A", "n/a", "#N/A", "NaN", "nan", "NULL", "null", "None", "<NA>")
"""What a missing number is written as, in the columns of a CSV file that hold no names."""
IdColumn = Annotated[
    str | None,
    arg(metavar="COLUMN", help="Column with the names of the rows, in each file that has one; by default the first."),
]


COMMENT = "begins with a comment: its first line must be the headings of the columns"


class UnreadableTable(ValueError):
    """A file is no table; the message names it and says why."""


@dataclass
class Table:
    """A table as it was read: its first column may hold the names of its rows, or may be like the others."""

    path: Path
    frame: Any

    @property
    def columns(self) -> set[str]:
        """Names of the columns."""
        return set(self.frame.columns)


def check_table(*paths: Path | None) -> None:
    """Raise before the work where a file asks for pyarrow, and it is not installed."""
    for path in paths:
        if path is not None and path.suffix in ARROW and find_spec("pyarrow") is None:
            raise ImportError(f"{path}: {path.suffix} files need pyarrow: python -m pip install 'fieldguide[tables]'")


def read_table(path: Path, text: Collection[str] = ()) -> Table:
    """Read a table; columns of ``text`` stay as they are written ("01", "None").

    Raises
    ------
    FileNotFoundError, ValueError
        Naming the file.
    """
    import pandas as pd

    check_table(path)
    if not path.exists():
        raise FileNotFoundError(f"no file {path}")
    if not path.is_file():
        raise ValueError(f"{path} is no file")
    try:
        if path.suffix in ARROW:
            frame = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_feather(path)
        else:
            names = _headings(path)
            written = {names[0], *text} & set(names)
            missing = {name: MISSING for name in names if name not in written}
            frame = pd.read_csv(path, dtype=dict.fromkeys(written, str), keep_default_na=False, na_values=missing)
    except UnreadableTable:
        raise
    except Exception as error:
        kind = path.suffix[1:] if path.suffix in ARROW else "CSV"
        raise ValueError(f"{path} cannot be read as a {kind} file: {' '.join(str(error).split())}") from error
    if not frame.shape[1]:
        raise ValueError(f"{path} has no columns")
    if path.suffix not in ARROW and not isinstance(frame.index, pd.RangeIndex) and str(frame.columns[0])[:1] == "#":
        raise UnreadableTable(f"{path} {COMMENT}")
    if isinstance(frame.index, pd.MultiIndex) or isinstance(frame.columns, pd.MultiIndex):
        said = "its rows or columns have names of several levels (MultiIndex)"
        said = said if path.suffix in ARROW else "its rows have more columns than its first line has headings"
        raise UnreadableTable(f"{path}: {said}; write one column of names, and a heading for each column")
    frame.columns = frame.columns.astype(str)
    return Table(path, frame)


def _headings(path: Path) -> list[str]:
    """Names of the columns of a CSV file, by its first line."""
    import pandas as pd

    names = [str(name) for name in pd.read_csv(path, nrows=0).columns]
    if len(names) == 1 and names[0].startswith("#"):
        raise UnreadableTable(f"{path} {COMMENT}")
    for mark, called in ((";", "semicolons"), ("\t", "tabs")):
        if len(names) == 1 and mark in names[0]:
            raise UnreadableTable(f"{path} is separated by {called}: write it with commas (CSV)")
    return names


def with_names(table: Table, column: str | None = None, options: Collection[str] = (), whole: bool = False) -> Any:
    """Return the data of a table, indexed by the names of its rows.

    Parameters
    ----------
    table : Table
    column : str, optional
        That holds the names; by default the index of a parquet file, or else the first column.
    options : collection of str
        Columns that another file says are no names: a first column that is one of them is data.
    whole : bool
        Whether a single row may stand for all, and then needs no name.

    Raises
    ------
    ValueError
        Where the file has no such column, a name is missing, or the first column is an option of another file.
    """
    import pandas as pd

    frame, path = table.frame, table.path
    alone = whole and len(frame) == 1
    if column is not None and column not in frame:
        if not alone:
            raise ValueError(f"{path} has no column {column!r} for --id; there are {_listed(frame.columns)}")
    elif column is None and not isinstance(frame.index, pd.RangeIndex):
        return _checked(frame, frame.index, path)
    if column is None:
        first = frame.columns[0]
        if first not in options or first == NAMELESS or _names_rows(frame[first]):
            column = first
        elif not alone:
            raise ValueError(
                f"the first column of {path}, {first!r}, is one of the options, so its rows have no names: "
                "write them as the first column, or say which column they are with --id COLUMN"
            )
    if column is None or column not in frame:
        return _as_numbers(frame)
    return _checked(_as_numbers(frame.drop(columns=column)), frame[column], path)


def _names_rows(column: Any) -> bool:
    """Whether a column that two files share holds names: by its heading, or because it is no column of numbers."""
    import pandas as pd

    heading = str(column.name).lower()
    if heading in HEADINGS or heading.endswith(("_id", " id", "_name", " name")):
        return True
    return bool(pd.to_numeric(column, errors="coerce").isna().any())


def _checked(frame: Any, names: Any, path: Path) -> Any:
    """The table under these names, as text, none of which may be missing."""
    import pandas as pd

    from fieldguide.inference.checks.labels import label_texts

    if not frame.shape[1]:
        raise ValueError(f"{path} has no columns besides the names of its rows")
    texts = label_texts(pd.Series(names))
    missing = [row for row, text in enumerate(texts) if text is None or text == ""]
    if missing and len(frame) > 1:
        raise ValueError(f"{path}: row {missing[0] + 1} has no name in its column of names")
    return frame.set_axis(pd.Index(texts, dtype=object), axis=0)


def _as_numbers(frame: Any) -> Any:
    """A first column that was read as text, for it might have been names, as the numbers that it holds."""
    import pandas as pd

    frame = frame.copy()
    for first in frame.columns[:1]:
        with suppress(ValueError, TypeError):
            frame[first] = pd.to_numeric(frame[first].where(frame[first] != "", None))
    return frame


def numbers(frame: Any, path: Path) -> Any:
    """Return a table as numbers, float64; ValueError names the row and column of what is none, or is missing."""
    import pandas as pd

    columns = {}
    for name in frame.columns:
        values = pd.to_numeric(frame[name], errors="coerce").astype("float64")
        wrong = values.isna().to_numpy()
        if wrong.any():
            row, value = frame.index[wrong][0], frame[name][wrong].iloc[0]
            said = "is missing" if pd.isna(value) or value == "" else f"is {value!r}, not a number"
            raise ValueError(f"{path}: column {name!r} of row {row!r} {said}")
        columns[name] = values
    return pd.DataFrame(columns, index=frame.index)


def rows_of(table: Table, column: str | None, columns: Sequence[str]) -> Any:
    """Return the data of a log, whose own columns are no names: without others its rows have only numbers."""
    if column is None and table.frame.columns[0] in columns:
        return table.frame
    return with_names(table, column)


def _listed(names: Any) -> str:
    return ", ".join(map(str, names))


def write_table(table: Any, path: Path) -> None:
    """Write a table whole, as the ending of the file says: parquet, feather, or else CSV (.gz: packed)."""
    from fieldguide.inference.checks.files import write_bytes

    check_table(path)
    if path.suffix in ARROW:
        table = table.set_axis(table.columns.astype(str), axis=1)
        file = BytesIO()
        if path.suffix == ".parquet":
            table.to_parquet(file)
        else:
            table.reset_index().to_feather(file)
        write_bytes(path, file.getvalue())
    else:
        content = table.to_csv().encode("utf-8")
        write_bytes(path, gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


def show_table(table: Any, right: bool = False) -> None:
    """Print a table; all but its first column to the right where they are numbers."""
    import pandas as pd
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table as Shown

    shown = Shown(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for number, name in enumerate(table.columns):
        shown.add_column(escape(str(name)), justify="right" if right and number else "left", overflow="fold")
    for row in table.itertuples(index=False):
        shown.add_row(*("nan" if pd.api.types.is_scalar(v) and pd.isna(v) else escape(str(v)) for v in row))
    Console(width=None if sys.stdout.isatty() else 160).print(shown)
