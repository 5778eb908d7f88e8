"""Tables of the command line: CSV, parquet and feather files, whose rows have names; and tables in the terminal."""

import bz2
import csv
import gzip
import lzma
import math
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from io import BytesIO, StringIO
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

ARROW = (".parquet", ".feather")
"""Endings of the files that pyarrow reads and writes; whatever else is a CSV file."""
PACKED = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
"""Endings of CSV files that are packed, and what reads them."""
WRITTEN = ("", ".csv", ".CSV", ".gz", *ARROW)
"""Endings of tables that are written; another one would say that the file is what it is not."""
SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}
"""What may stand between the fields of files that are no CSV files, and what it is called."""
NAMELESS = "Unnamed: 0"
"""What pandas calls a first column without a heading, as an index is written."""
HEADINGS = ("id", "name", "index", "row", "customer", "user", "cell", "barcode", "context", "key")
"""Headings of columns that hold names, whatever other file has one of that heading too."""
MISSING = ("", "NA", "N/A", "n/a", "#N/A", "NaN", "nan", "NULL", "null", "None", "<NA>")
"""What a missing number is written as, in the columns of a CSV file that hold no names."""
IdColumn = Annotated[
    str | None,
    arg(metavar="COLUMN", help="Column with the names of the rows, in each file that has it; else the first one."),
]


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


def check_written(path: Path | None) -> None:
    """Raise before the work where the ending of a table that is written is none of those that a table has."""
    if path is not None and path.suffix not in WRITTEN:
        raise ValueError(f"{path}: tables are written as .csv, .csv.gz, .parquet or .feather, not as {path.suffix}")
    check_table(path)


def read_table(path: Path, text: Collection[str] = (), column: str | None = None) -> Table:
    """Read a table; columns of ``text``, and the one with the names, stay as they are written ("01", "None").

    Raises
    ------
    FileNotFoundError, ValueError
        Naming the file, and the line where it has not as many fields as the headings.
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
            content = _content(path)
            _check_lines(path, content)
            names = [str(name) for name in pd.read_csv(StringIO(content), nrows=0).columns]
            written = {names[0], column, *text} & set(names)
            missing = {name: MISSING for name in names if name not in written}
            types = dict.fromkeys(written, str)
            frame = pd.read_csv(StringIO(content), dtype=types, keep_default_na=False, na_values=missing)
    except NotATable:
        raise
    except Exception as error:
        kind = path.suffix[1:] if path.suffix in ARROW else "CSV"
        raise ValueError(f"{path} cannot be read as a {kind} file: {' '.join(str(error).split())}") from error
    if not frame.shape[1]:
        raise ValueError(f"{path} has no columns")
    for names, what in ((frame.index, "rows"), (frame.columns, "columns")):
        if isinstance(names, pd.MultiIndex):
            raise ValueError(f"{path}: its {what} have names of several levels (MultiIndex): join them into one")
    frame.columns = frame.columns.astype(str)
    return Table(path, frame)


class NotATable(ValueError):
    """A file that is no CSV file; the message says what it is, and where."""


def _content(path: Path) -> str:
    """The text of a CSV file, unpacked."""
    with PACKED.get(path.suffix, open)(path, "rb") as file:
        raw = file.read()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise NotATable(
            f"{path} is no text in UTF-8 (line {line}): save it as CSV, with the encoding UTF-8; files that are packed "
            f"end in {', '.join(PACKED)}"
        ) from None


def _check_lines(path: Path, content: str) -> None:
    """Raise where a line has not as many fields as the headings, for pandas would then shift or fill its columns."""
    csv.field_size_limit(max(csv.field_size_limit(), len(content) + 1))  # a field may be long text
    reader = csv.reader(StringIO(content, newline=""))
    filled = (fields for fields in reader if len(fields) > 1 or "".join(fields).strip())
    headings = next(filled, [])
    first, width = reader.line_num, len(headings)
    odd = next((fields for fields in filled if len(fields) != width), None)
    if odd is None and width > 1:
        twice = sorted(name for name, number in Counter(headings).items() if name and number > 1)
        if twice:
            raise NotATable(f"{path} has several columns {twice[0]!r}: their headings must differ")
        return
    comment = bool(headings) and headings[0].lstrip().startswith("#")
    for mark, called in SEPARATORS.items():
        if not comment and ",".join(headings).count(mark) >= width > 0:
            raise NotATable(f"{path} is separated by {called}: write it with commas (CSV), and with decimal points")
    if odd is None:
        return
    if comment:
        raise NotATable(f"{path} begins with a comment: its first line must be the headings of the columns")
    counts = "1 field" if len(odd) == 1 else f"{len(odd)} fields"
    if width == 1:
        why = f"headings come first, so remove what stands above them in line {first}"
    elif len(odd) > width:
        why = "decimal commas, a trailing comma, or no heading for the names?"
    else:
        why = "is something missing?"
    raise NotATable(f"{path}, line {reader.line_num} has {counts} and the header {width}: {why}")


def check_id(column: str | None, *tables: Table) -> None:
    """Raise where no table has the column that names the rows."""
    if column is not None and not any(column in t.columns or column == t.frame.index.name for t in tables):
        first = tables[0]
        raise ValueError(f"{first.path} has no column {column!r} for --id; there are {_listed(first.frame.columns)}")


def with_names(table: Table, column: str | None = None, options: Collection[str] = (), whole: bool = False) -> Any:
    """Return the data of a table, indexed by the names of its rows.

    Parameters
    ----------
    table : Table
    column : str, optional
        That holds the names. Where it is not given, or the file has none: the index of a parquet file, or else the
        first column.
    options : collection of str
        Columns that another file says are no names: a first column that is one of them is data.
    whole : bool
        Whether a single row may stand for all, and then needs no name.

    Raises
    ------
    ValueError
        Where a name is missing, or the first column is an option of another file.
    """
    import pandas as pd

    frame, path = table.frame, table.path
    if column not in frame:
        if not isinstance(frame.index, pd.RangeIndex):
            return _checked(frame, frame.index, path)
        column = frame.columns[0]
        if column in options and column != NAMELESS and not _names_rows(frame[column]):
            if whole and len(frame) == 1:
                return _as_numbers(frame)
            raise ValueError(
                f"the first column of {path}, {column!r}, is one of the options, so its rows have no names: "
                "write them as the first column, or say which column they are with --id COLUMN"
            )
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
    import pandas as pd

    named = column in table.frame or not isinstance(table.frame.index, pd.RangeIndex)
    return table.frame if not named and table.frame.columns[0] in columns else with_names(table, column)


def spelled(what: str, names: Any, known: Iterable[str]) -> list[Any]:
    """Return names as another file spells them: 1, "1" and 1.0 are one; what it does not have stays as it is written.

    Examples
    --------
    >>> spelled("row", ["1.0", "b"], ["a", "1"])
    ['1', 'b']
    """
    from fieldguide.inference.checks.labels import label_codes, label_texts

    known = list(known)
    pairs = zip(label_codes(what, names, known), label_texts(names), strict=True)
    return [known[code] if code >= 0 else text for code, text in pairs]


def in_order(names: Iterable[str]) -> list[str]:
    """Return names in an order that no file decides: numbers by size, then text.

    Examples
    --------
    >>> in_order(["b", "10", "9", "a"])
    ['9', '10', 'a', 'b']
    """

    def key(name: str) -> tuple[float, str]:
        try:
            value = float(name)
        except ValueError:
            value = math.inf
        return (value if math.isfinite(value) else math.inf, name)

    return sorted(names, key=key)


def rows_like(table: Any, names: Any, path: Path) -> Any:
    """Return the rows of a table that have these names, in their order.

    Raises
    ------
    ValueError
        Naming the file, and a row that is missing or that it has several times.
    """
    table = table.set_axis(spelled(str(path), table.index, names), axis=0)
    twice = table.index[table.index.duplicated()].intersection(names)
    if len(twice):
        raise ValueError(f"{path} has several rows {twice[0]!r}")
    missing = names[~names.isin(table.index)]
    if len(missing):
        raise ValueError(f"{path} has no row {missing[0]!r}; names of rows are its first column, or --id COLUMN")
    return table.loc[names]


def _listed(names: Any) -> str:
    return ", ".join(map(str, names))


def write_table(table: Any, path: Path) -> None:
    """Write a table whole, as the ending of the file says: parquet, feather, or else CSV (.gz: packed)."""
    from fieldguide.inference.checks.files import write_bytes

    check_written(path)
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
