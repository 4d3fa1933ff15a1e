"""Training states: written whole or not at all, found again, and the weights that are published from them."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import glob
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from tencentpretrain.description import complete_weights, description_path
from tencentpretrain.errors import ConfigError, UserError
from tencentpretrain.files import (
    complete_directory,
    complete_file,
    read_json,
    remove_leftovers,
    write_json,
)
from tencentpretrain.state_dict import cause_on_disk
from tencentpretrain.streaming import stream_tensors
from tencentpretrain.training.engines.base import average_name, in_parts, whole_weights
from tencentpretrain.training.engines.ranks import ALONE, Ranks

log = logging.getLogger("tencentpretrain")

MARKER = "COMPLETE"  # the file of a state that is written last; lists the others with size and digest
TRAINING = "training.pt"  # what is the same on all ranks
FORMAT = 1


@dataclasses.dataclass(frozen=True)
class State:
    """A training state on disk.

    Attributes:
        serial: counts the states of an output path; the newest has the largest.
        options: what must be the same to go on from here, by name.
    """

    path: Path
    step: int
    serial: int
    options: dict[str, Any]


class Checkpoints:
    """The training states and weights of one output path.

    A state is a directory that appears complete. Every rank writes its part of it; what is the same on all
    ranks is in `training.pt`; the marker, written last, lists all files.

    Args:
        output: final weights; `<output>-<step>` and `<output>.states/<step>/` lie beside it.
        options: what decides the course of a run, by option name; kept in its states.
        changeable: names of options that may differ when a run continues; all others must not.
        describe: what lies beside a weights file, `<file>.json`.
        keep: states that are kept; weights files all are.
    """

    def __init__(
        self,
        output: Path,
        options: Mapping[str, Any],
        describe: Callable[[Path], dict[str, Any]],
        keep: int = 2,
        changeable: Collection[str] = (),
    ) -> None:
        self.output, self._describe, self._keep = output, describe, keep
        self._options, self._changeable = dict(options), changeable
        self.directory = output.with_name(output.name + ".states")
        self._weights_name = "model.safetensors" if output.suffix == ".safetensors" else "model.pt"
        self._saved: State | None = None  # the newest of this run
        self._damaged: set[Path] = set()  # states that `find` passed over

    def recover(self) -> None:
        """Clear away what killed runs of this output left half-written; put back what one was replacing."""
        name = self.output.name
        own = re.compile(rf"\.({re.escape(name)}((-\d+|-best)?(\.json)?|\.(tgt_)?tokenizer))\.\d+\.(old|tmp)")
        for left_over in self.output.parent.glob(f".{glob.escape(name)}*"):
            if found := own.fullmatch(left_over.name):
                remove_leftovers(left_over.with_name(found[1]))
        for left_over in self.directory.glob(".*"):
            remove_leftovers(left_over.with_name(left_over.name[1:].rsplit(".", 2)[0]))  # see files.py

    def prepare(self) -> None:
        """Make the directories, so that a path that cannot be written is known before hours of training.

        Raises:
            UserError: it cannot, or another run is writing there.
        """
        if self.output.is_dir():
            raise UserError(f"--output_model_path {self.output} is a directory; give the name of a file.")
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with complete_file(self.directory / "probe") as temporary:
                temporary.write_bytes(b"")
            (self.directory / "probe").unlink()
            _lock(self.directory)
        except BlockingIOError:
            raise UserError(
                f"another run is writing to --output_model_path {self.output}; wait for it, or give another."
            ) from None
        except OSError as error:
            raise UserError(
                f"--output_model_path {self.output}: cannot write there ({error.strerror}: {error.filename})."
            ) from None

    def find(self, resume: str, ranks: Ranks = ALONE) -> State | None:
        """The state to continue from. All ranks come here, and each compares a part of its files with their
        digests.

        Args:
            resume: `auto` (the newest complete one, if any), `never`, or the path of a state.

        Raises:
            ConfigError: the state was made with other options.
            UserError: the path given holds no complete state, or no state is intact; or ranks see different
                ones.
        """
        if resume == "never":
            return None
        if resume == "auto":
            states = list(self._states(tell=True))
        else:
            given = self._read(Path(resume), tell=True)
            states = [given] if given is not None else []
        seen = ranks.gather(json.dumps([(state.step, state.serial) for state in states]))
        if len(set(seen)) > 1:
            raise UserError(
                f"processes find different training states; --output_model_path {self.output} must be on a "
                "file system that all machines share."
            )
        state = next((state for state in states if self._intact(state, ranks)), None)
        if state is None and resume != "auto":
            raise UserError(
                f"--resume {resume}: not a complete training state; expected auto, never, or a directory "
                "<output_model_path>.states/<step>."
            )
        if state is None and (damaged := sorted(map(str, self._numbered()))):
            raise UserError(
                f"no training state is intact: {', '.join(damaged)}. Give --resume never to start anew and "
                "write over them, or another --output_model_path."
            )
        if state is not None:
            self._check_options(state)
            self._saved = state
        return state

    def load(self, state: State, publish: bool = True) -> dict[str, Any]:
        """What a state's `training.pt` holds: its tensors are mapped to memory, not read.

        Args:
            publish: give the weights their own name too, if a run was killed before it did.
        """
        published = self._published(state.step)
        if publish and state.path.parent == self.directory and not published.exists():
            self.publish(published)
        return self._training(state.path)

    def _training(self, state: Path) -> dict[str, Any]:
        training: dict[str, Any] = torch.load(
            state / TRAINING, map_location="cpu", weights_only=True, mmap=True
        )
        return training

    def save(
        self,
        step: int,
        write: Callable[[Path, str], Mapping[str, Any]],
        progress: Mapping[str, Any],
        ranks: Ranks,
    ) -> Path:
        """Write a state and its weights file; nothing is there under its name before it is complete.

        All ranks come here.

        Args:
            write: what each rank does in the state's directory, see `Engine.save_state`.
            progress: further content of `training.pt`.

        Raises:
            UserError: the disk is full or cannot be written; what was complete before still is.
        """
        target = self.directory / str(step)
        serial = max((state.serial for state in self._states()), default=0) + 1
        with contextlib.ExitStack() as stack:
            with self._agreed(ranks, target):
                own = stack.enter_context(complete_directory(target)) if ranks.rank == 0 else ""
            directory = Path(ranks.first(str(own)))
            with self._agreed(ranks, target):
                shared = write(directory, self._weights_name)
                if ranks.rank == 0:
                    with (directory / TRAINING).open("wb") as file:
                        torch.save({**shared, **progress}, file)
            with self._agreed(ranks, target):  # each rank reads a part of the files, whoever wrote them
                names = sorted(
                    str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()
                )
                own_names = names[ranks.rank :: ranks.world_size]
                digests = json.dumps({name: _fingerprint(directory / name) for name in own_names})
            files: dict[str, Any] = {}
            for part in ranks.gather(digests):
                files |= json.loads(part)
            with self._agreed(ranks, target):
                if ranks.rank == 0:
                    marker = {"format": FORMAT, "step": step, "serial": serial, "options": self._options}
                    marker |= {"files": files}
                    write_json(directory / MARKER, marker | {"digest": _digest_of(marker)})
                    stack.close()
        self._saved = State(target, step, serial, self._options)
        self._damaged.discard(target)
        with self._agreed(ranks, target):
            if ranks.rank == 0:
                self.publish(self._published(step))
                states = sorted(self._states(), key=lambda state: state.path in self._damaged)
                intact = sum(state.path not in self._damaged for state in states)
                for old in states[min(self._keep, intact) :]:
                    # Half a state is never there under its name; `recover` removes what a killed run leaves.
                    leaving = old.path.with_name(f".{old.path.name}.{os.getpid()}.tmp")
                    old.path.rename(leaving)
                    shutil.rmtree(leaving)
        return target

    @contextlib.contextmanager
    def _agreed(self, ranks: Ranks, target: Path) -> Iterator[None]:
        """As `ranks.agreed`; what the disk refuses becomes a UserError that says what is left."""
        with ranks.agreed():
            try:
                yield
            except Exception as failure:
                error = failure if isinstance(failure, OSError) else cause_on_disk(failure, target)
                if error is None:
                    raise
                newest = next(self._states(), None)
                kept = f"the newest complete is of step {newest.step}" if newest else "there is no earlier"
                raise UserError(
                    f"cannot save the training state {target}: {error.strerror or error}; {kept}. "
                    "Free space or fix the path."
                ) from None

    def _published(self, step: int) -> Path:
        return self.output.with_name(f"{self.output.name}-{step}")

    @property
    def best(self) -> Path:
        """The weights with the lowest validation loss, where that is followed."""
        return self.output.with_name(f"{self.output.name}-best")

    def keep_best(self, step: int, loss: float) -> bool:
        """Name the weights of a step the best, and note their validation loss, unless it is noted already.

        The same steps may be taken more than once, from an earlier state on: weights other than those of the
        newest state are the ones meant if their state gives this loss as the lowest.

        Returns: whether they were there.
        """
        reached, beside = {"step": step, "eval_loss": loss}, description_path(self.best)
        if self.best.exists() and beside.exists() and read_json(beside).get("best") == reached:
            return True
        of_step = self._saved if self._saved is not None and self._saved.step == step else None
        for state in () if of_step else self._states():
            if state.step == step and self._intact(state, ALONE):
                noted = self._training(state.path).get("stopping") or ()
                of_step = state if noted[:2] == (loss, step) else None
        if of_step is not None:
            self.publish(self.best, state=of_step, further={"best": reached})
        return of_step is not None

    def publish(
        self,
        path: Path,
        source: Path | None = None,
        state: State | None = None,
        further: Mapping[str, Any] | None = None,
    ) -> None:
        """Give weights the name `path`, with their description beside them.

        Args:
            source: their file; None: those of the state, or their average if it has one.
            state: default: the newest.
            further: what the description says besides.
        """
        state = state or self._saved
        assert state is not None
        published, directory = self._published(state.step), state.path
        with complete_weights(path, self._describe(path) | dict(further or {})) as temporary:
            if source is None and not in_parts(directory):
                source = whole_weights(directory)
                if (average := source.with_name(average_name(source.name))).exists():
                    source = average
            elif (
                source is None
                and path != published
                and directory.parent == self.directory
                and published.exists()
            ):
                source = published
            elif source is None:
                from tencentpretrain.training.sharded import read_weights

                weights, like = read_weights(directory, self._training(directory)["names"])
                stream_tensors(weights, like, temporary, self.output)  # whose suffix says the format
                return
            try:
                os.link(source, temporary)
            except OSError:  # another file system, or one without links
                shutil.copyfile(source, temporary)

    def withdraw(self, step: int) -> None:
        """Remove the weights file of a step, and what lies beside it."""
        weights = self._published(step)
        for path in (weights, description_path(weights)):
            path.unlink(missing_ok=True)

    @property
    def newest(self) -> State | None:
        """The newest state of this run."""
        return self._saved

    def _states(self, tell: bool = False) -> Iterator[State]:
        """States that claim to be complete, newest first; `tell` the log of others."""
        found = [state for path in self._numbered() if (state := self._read(path, tell))]
        return iter(sorted(found, key=lambda state: -state.serial))

    def _numbered(self) -> list[Path]:
        """What has the name of a state, complete or not."""
        paths = self.directory.iterdir() if self.directory.is_dir() else ()
        return [path for path in paths if path.name.isdigit()]

    def _read(self, path: Path, tell: bool) -> State | None:
        fault = f"damaged ({MARKER} cannot be read)" if (path / MARKER).is_file() else "incomplete"
        try:
            marker = read_json(path / MARKER)
            if marker.pop("digest", None) not in (None, _digest_of(marker)):  # older ones have none
                raise UserError("the marker was changed")
            return State(path, marker["step"], marker["serial"], marker["options"])
        except (UserError, OSError, KeyError, TypeError, AttributeError):
            if tell and path.is_dir():
                log.info(f"resume: {path} is {fault} and is passed over")
            return None

    def _intact(self, state: State, ranks: Ranks) -> bool:
        files = list(read_json(state.path / MARKER)["files"].items())[ranks.rank :: ranks.world_size]
        own = next((name for name, expected in files if not _matches(state.path / name, expected)), "")
        damaged = [name for name in ranks.gather(own) if name]
        if damaged:
            self._damaged.add(state.path)
            log.info(f"resume: {state.path} is damaged ({', '.join(damaged)}) and is passed over")
        return not damaged

    def _check_options(self, state: State) -> None:
        different = {
            name: (state.options.get(name), self._options.get(name))
            for name in sorted(self._options.keys() | state.options.keys())
            if self._options.get(name) != state.options.get(name)
        }
        refused = [
            f"{name}: {there} there, {now} now"
            for name, (there, now) in different.items()
            if name not in self._changeable
        ]
        if refused:
            raise ConfigError(
                [
                    f"the training state {state.path} was made with other options. Give the same, or another "
                    "--output_model_path, or --resume never to start anew:",
                    *refused,
                ]
            )
        for name, (there, now) in different.items():
            log.info(f"resume: {name} was {there} until step {state.step} and is {now} from there on")


_LOCKED: dict[Path, int] = {}  # directories that belong to this process until it ends, however it does


def _lock(directory: Path) -> None:
    """Keep other processes from writing to a directory.

    Raises:
        BlockingIOError: another one has it.
    """
    directory = directory.resolve()
    if directory not in _LOCKED:
        handle = os.open(directory, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _LOCKED[directory] = handle


def _fingerprint(path: Path) -> list[Any]:
    """Size and digest of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    return [path.stat().st_size, digest]


def _matches(path: Path, expected: list[Any]) -> bool:
    try:
        return _fingerprint(path) == expected
    except OSError:  # not there, or the disk cannot read it
        return False


def _digest_of(marker: Mapping[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(marker, sort_keys=True).encode(), digest_size=16).hexdigest()
