"""Files that appear under their final name only when they are complete."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tencentpretrain.errors import UserError

_PIDS = 1 << 22  # there are no more process numbers than that
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_HELD: set[int] = set()  # handles with a lock, see `_held`


def sync_directory(path: Path) -> None:
    """Make renames inside `path` survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def complete_file(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path` to write to; flushed and renamed at the end, removed on failure."""
    with complete_files(path) as (temporary,):
        yield temporary


@contextlib.contextmanager
def complete_files(*paths: Path) -> Iterator[tuple[Path, ...]]:
    """Like `complete_file` for files of one directory that belong together: none is renamed before all are
    complete; the last one is the last to be."""
    directory = paths[0].parent
    directory.mkdir(parents=True, exist_ok=True)
    temporaries = tuple(path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in paths)
    with _final_names(dict(zip(temporaries, paths, strict=True))):
        try:
            yield temporaries
            for temporary in temporaries:
                with temporary.open("rb+") as file:
                    os.fsync(file.fileno())
            for temporary, path in zip(temporaries, paths, strict=True):
                temporary.replace(path)
            sync_directory(directory)
        except BaseException:
            for temporary in temporaries:
                temporary.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def _final_names(finals: Mapping[Path, Path]) -> Iterator[None]:
    """Let an OSError about a temporary file or directory name what it would have become.

    A full disk names nothing; it is told of the last.
    """
    try:
        yield
    except OSError as error:
        for temporary, path in finals.items():
            if error.filename is None and error.errno in _FULL:
                error.filename = str([*finals.values()][-1])
            elif Path(str(error.filename)).is_relative_to(temporary):
                error.filename = str(path / Path(str(error.filename)).relative_to(temporary))
        raise


def check_not_input(output: Path, option: str, inputs: Mapping[str, str | None]) -> None:
    """Refuse an output that would replace what is read.

    Args:
        inputs: paths by the option that names them.

    Raises:
        UserError: two of them are the same.
    """
    for name, path in inputs.items():
        if path is not None and Path(path).resolve() == output.resolve():
            raise UserError(
                f"{option} {output} is what --{name} names too, and would be overwritten; give another path."
            )


@contextlib.contextmanager
def complete_directory(
    path: Path, earlier: Path | None = None, keep_with: str | None = None
) -> Iterator[Path]:
    """Like `complete_file` for a directory; `path` must not exist, or it is replaced as a whole.

    Args:
        earlier: the temporary directory of a run that ended early, to go on with it.
        keep_with: a file in the temporary directory with which a failure leaves it for a later run.

    Raises:
        UserError: another run goes on with `earlier`, or replaces `path` at this moment.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    number = os.getpid()
    while _is_in_use(temporary := path.with_name(f".{path.name}.{number}.tmp"), os.getpid()):
        number += _PIDS  # of a process with the same number in another container
    with _final_names({temporary: path}):
        if earlier != temporary:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir() if earlier is None else earlier.rename(temporary)
        with _held(temporary):
            yield from _completed(path, temporary, keep_with)


def _completed(path: Path, temporary: Path, keep_with: str | None) -> Iterator[Path]:
    """The directory to write; what is left to do when that is done, or has failed."""
    old = temporary.with_suffix(".old")
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with file.open("rb+") as handle:
                    os.fsync(handle.fileno())
        sync_directory(temporary)
        if path.exists():
            # The old one goes only when the new one is complete; between the two renames there is neither.
            with _held(path):
                path.rename(old)
                temporary.rename(path)
                shutil.rmtree(old)
        else:
            temporary.rename(path)
        sync_directory(path.parent)
    except BaseException:
        if old.exists() and not path.exists():
            old.rename(path)
        if keep_with is None or not (temporary / keep_with).is_file():
            shutil.rmtree(temporary, ignore_errors=True)
        raise


def leftovers(path: Path) -> list[Path]:
    """What runs that ended early left beside `path`: '.old' what they replaced, '.tmp' what they made."""
    found = []
    for entry in sorted(path.parent.glob(f".{glob.escape(path.name)}.*")):  # '.old' before '.tmp'
        process = re.fullmatch(r"\.(\d+)\.(old|tmp)", entry.name[len(path.name) + 1 :])
        if process is not None and not _is_in_use(entry, int(process[1])):
            found.append(entry)
    return found


def remove_leftovers(path: Path, keep: Path | None = None) -> None:
    """Remove what killed runs left beside `path`, and put back what one of them was about to replace."""
    for entry in leftovers(path):
        if entry == keep:
            continue
        if entry.suffix == ".old" and not path.exists():
            entry.rename(path)
        elif entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()


@contextlib.contextmanager
def _held(directory: Path) -> Iterator[None]:
    """Hold the lock of a directory, which says that it is in use; a process that is killed loses it.

    Raises:
        UserError: another process holds it.
    """
    handle = os.open(directory, os.O_RDONLY)
    _HELD.add(handle)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another run is writing to {directory}; wait for it.") from None
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        _HELD.discard(handle)
        os.close(handle)


def _let_go() -> None:
    """A child has its parent's locks, but must not keep them when that is killed."""
    for handle in _HELD:
        os.close(handle)
    _HELD.clear()


os.register_at_fork(after_in_child=_let_go)


def _is_in_use(path: Path, process: int) -> bool:
    """Whether a run writes there: of a directory its lock says it, of a file the number of the process."""
    if not path.is_dir():
        return path.exists() and _is_running(process)
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return _is_running(process)
    finally:
        os.close(handle)
    return False


def _is_running(process: int) -> bool:
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def read_json(path: Path) -> Any:
    """Decode a JSON file.

    Raises:
        UserError: no such file, not UTF-8, not JSON (with line and column), or a key given twice.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen = dict(pairs)
        if len(seen) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise UserError(f"{path}: key '{twice}' is given twice.")
        return seen

    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file.") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a directory, expected a JSON file.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 (byte {error.start}), expected a JSON text file.") from None
    try:
        return json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        before = text[: error.pos].rstrip()
        at_close = text[error.pos :].lstrip()[:1] in ("}", "]")
        if (before.endswith(",") and at_close) or text[error.pos : error.pos + 1] == ",":
            comma = len(before) - 1 if before.endswith(",") else error.pos
            line = text.count("\n", 0, comma) + 1
            raise UserError(
                f"{path}, line {line}: trailing comma; JSON allows none before '}}' or ']'."
            ) from None
        raise UserError(f"{path}, line {error.lineno}, column {error.colno}: {error.msg}.") from None
    except (RecursionError, ValueError) as error:  # nested a thousand deep, a number of thousands of digits
        raise UserError(f"{path}: not usable as JSON ({error}).") from None


def read_object(path: Path) -> dict[str, Any]:
    """Decode a JSON file that holds an object; UserError as `read_json`, and where it holds no object."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected an object ({{…}}), but is {type(value).__name__} instead.")
    return value


def write_json(path: Path, value: Any) -> None:
    with complete_file(path) as temporary:
        temporary.write_text(json_text(value), encoding="utf-8")


def json_text(value: Any) -> str:
    """A JSON file's content. Names of files that are no Unicode are escaped, and come back as they were."""
    text = json.dumps(value, ensure_ascii=False, indent=2) + "\n"
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
