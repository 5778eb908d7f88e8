"""The progress bar of a fit."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any


class progress_bar(AbstractContextManager):
    """A bar with the current losses; does nothing when switched off."""

    def __init__(self, shown: bool, max_epochs: int) -> None:
        self.bar: Any = nullcontext()
        if shown:
            from rich.progress import MofNCompleteColumn, Progress

            self.bar = Progress(*Progress.get_default_columns(), MofNCompleteColumn(), transient=True)
            self.task = self.bar.add_task("fitting", total=max_epochs)

    def __enter__(self):
        self.bar.__enter__()
        return self.advance

    def __exit__(self, *exception):
        self.bar.__exit__(*exception)

    def advance(self, row: dict[str, Any]) -> None:
        if not isinstance(self.bar, nullcontext):
            shown = f"train {row['train']:.1f}" + (f", held out {row['validation']:.1f}" if "validation" in row else "")
            self.bar.update(self.task, advance=1, description=shown)
