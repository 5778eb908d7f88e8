"""The command ``fieldguide``, built from the signatures of its commands: the arguments of a function are those of its
command.

This file and the commands stand above the rooms and import them only inside functions, so that ``--help`` answers at
once.
"""

import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import tyro

from fieldguide import __version__
from fieldguide.arguments import EntryName, UsageError, in_one_line, print_warning
from fieldguide.decision_commands import de, impute, join
from fieldguide.fit_commands import compare, fit
from fieldguide.policy_commands import POLICY, allocate
from fieldguide.screen_commands import contexts, salient, targets
from fieldguide.tables import show_table

DESCRIPTION = (
    "Probabilistic models in Pyro, inference objectives that can be swapped, and decisions from posteriors. "
    "`fieldguide compare` without arguments compares objectives on 700 real blood cells. "
    "Any command with --debug shows the traceback of an error; --version prints the version. "
    "Exit codes: 0 done, 1 an error in files or values, 2 words that make no command, 130 interrupted (143 by SIGTERM)."
)
USER_ERRORS = (ValueError, KeyError, TypeError, OSError, FloatingPointError, ImportError, MemoryError)
DONE, ERROR, USAGE, INTERRUPTED = 0, 1, 2, 128 + signal.SIGINT


def list_() -> None:
    """List the catalog: models, what they read, objectives and citation keys."""
    from fieldguide.catalog import entries

    show_table(entries().reset_index())


def cite(name: EntryName) -> None:
    """Print the BibTeX entry of the publication behind a model.

    Args:
        name: Name of the catalog entry.
    """
    from fieldguide.catalog import citation

    print(citation(name))


def policy() -> None:
    """Learn policies from logs, and evaluate them: fieldguide policy evaluate, fieldguide policy learn (--help)."""
    raise UsageError("fieldguide policy takes evaluate or learn; --help says what each needs")


FUNCTIONS = (compare, fit, de, targets, contexts, salient, join, impute, policy, allocate)
COMMANDS = {function.__name__: function for function in FUNCTIONS}
COMMANDS |= {"list": list_, "cite": cite}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code.

    0: done. 1: an error in files, values or on the disk, said in one line. 2: words that make no command. 130:
    interrupted from the keyboard; 143: by SIGTERM.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["--version"]:
        print(f"fieldguide {__version__}")
        return DONE
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"] or ["--help"]
    with warnings.catch_warnings(), interruptions() as received:
        warnings.showwarning = print_warning
        try:
            _run(words)
            sys.stdout.flush()
        except BrokenPipeError:  # who reads the output has enough of it, as head has
            _drop_output()
            return 128 + signal.SIGPIPE if hasattr(signal, "SIGPIPE") else ERROR
        except KeyboardInterrupt as interrupt:
            return _interrupted(received, str(interrupt))
        except Exception as error:
            if received:  # what stood in the way of the interrupt, inside another library
                return _interrupted(received)
            if debug:
                raise
            return _failed(error)
    return _interrupted(received) if received else DONE


def _run(words: list[str]) -> None:
    commands, name = COMMANDS, "fieldguide"
    if words[0] == "policy" and len(words) > 1:
        commands, name, words = POLICY, "fieldguide policy", words[1:]
    tyro.extras.subcommand_cli_from_dict(commands, prog=name, description=DESCRIPTION, args=words)


def _interrupted(received: list[int], where: str = "") -> int:
    _say(f"interrupted {where}".rstrip())
    return 128 + received[0] if received else INTERRUPTED


def _failed(error: Exception) -> int:
    """Say what is wrong in one line, whatever it is."""
    with suppress(OSError, ValueError):
        sys.stdout.flush()
    if isinstance(error, OSError) and error.errno is not None:
        _drop_output()  # where the output itself cannot be written, not at the end again
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        _say(f"error: out of memory: {in_one_line(error)}")
    elif isinstance(error, USER_ERRORS):
        _say(f"error: {in_one_line(error)}")
    else:
        _say(f"unexpected error: {type(error).__name__}: {in_one_line(error)}; --debug shows where")
    return USAGE if isinstance(error, UsageError) else ERROR


def _say(text: str) -> None:
    with suppress(OSError, ValueError):
        print(f"fieldguide: {text}", file=sys.stderr, flush=True)


def _drop_output() -> None:
    """Send what is left in the buffer nowhere, if it cannot be written, so that Python does not try at its end."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def interruptions() -> Iterator[list[int]]:
    """Give the list of signals that were received; each raises KeyboardInterrupt, SIGTERM as Ctrl-C.

    A library may turn the exception into another one, or drop it; the list remembers.
    """
    received: list[int] = []

    def interrupt(number: int, frame: object) -> None:
        received.append(number)
        raise KeyboardInterrupt

    def drop(unraisable: Any) -> None:  # what a finaliser cannot pass on is remembered, and said once, at the end
        if not (received and unraisable.exc_type is KeyboardInterrupt):
            hook(unraisable)

    before, hook = {}, sys.unraisablehook
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                before[number] = signal.signal(number, interrupt)
    sys.unraisablehook = drop
    try:
        yield received
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)
