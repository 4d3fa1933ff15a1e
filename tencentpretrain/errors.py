"""The one family of errors a user can cause, and how programs end."""

from __future__ import annotations

import contextlib
import difflib
import io
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import FrameType


class UserError(ValueError):
    """Something the user gave cannot be used; the message says what, what was expected, what to do."""


class ConfigError(UserError):
    """Options or a configuration file are wrong.

    Args:
        problems: every problem found, each a complete sentence; they are reported together.
    """

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n  ".join(self.problems))


class WeightsError(UserError):
    """A weights file cannot be read, or does not fit the model."""


class DataError(UserError):
    """A corpus, a dataset or a token store cannot be used."""


class SharedError(UserError):
    """A UserError that came upon every process of a group, of which another one tells it."""


class GroupLostError(Exception):
    """Another process of the group has ended, so that this one cannot go on."""


class Terminated(Exception):  # noqa: N818  an event, like KeyboardInterrupt
    """SIGTERM arrived; raised where the program can still save its work."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """' (did you mean …?)' with the nearest known name, or nothing."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.75)
    return f" (did you mean '{near[0]}'?)" if near else ""


@contextlib.contextmanager
def weights_of(path: Path) -> Iterator[None]:
    """Begin the message of a WeightsError from inside with the path that it is about."""
    try:
        yield
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None


def run_program(main: Callable[[], None]) -> None:
    """Run a program's `main` and exit: 0 done, 2 wrong input, 1 our failure, 130 Ctrl-C, 143 SIGTERM.

    Of several processes the first one tells what all of them know.
    """

    def terminate(signum: int, frame: FrameType | None) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, terminate)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be no Unicode
    try:
        main()
        sys.stdout.flush()
    except SharedError:
        sys.exit(2)
    except UserError as error:
        code, message = 2, str(error)
    except GroupLostError as error:
        code, message = 1, str(error)
    except BrokenPipeError:
        # Who read our output has enough (`… --help | head`); Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        # An operation on the user's files failed (permission, full disk, a directory instead of a file).
        if error.errno is None:
            traceback.print_exc()
            sys.exit(1)
        code, message = 2, f"{error.strerror}: {error.filename}" if error.filename else str(error)
    except KeyboardInterrupt:
        code, message = 130, "interrupted"
    except Terminated:
        code, message = 143, "terminated"
    else:
        return
    if code <= 2 or os.environ.get("RANK", "0") == "0":
        print(f"error: {message}" if code <= 2 else message, file=sys.stderr, flush=True)
    sys.exit(code)
