from __future__ import annotations

import errno
import json
import logging
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tencentpretrain.errors import ConfigError, UserError
from tencentpretrain.files import read_json
from tencentpretrain.training import checkpoint
from tencentpretrain.training.checkpoint import MARKER, Checkpoints
from tencentpretrain.training.engines import SingleEngine
from tencentpretrain.training.engines.ranks import Ranks

Make = Callable[..., Checkpoints]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def checkpoints(name: str = "model.bin", keep: int = 2, **options: Any) -> Checkpoints:
        made = Checkpoints(tmp_path / name, {"batch_size": 4} | options, lambda path: {}, keep)
        made.recover()
        made.prepare()
        return made

    return checkpoints


class Held(torch.nn.Module):
    """Weights, and moments of them, of one value."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((1000,), float(value)))


def engine_of(value: float, moments: int = 1) -> SingleEngine:
    engine = SingleEngine("fp32")
    engine.prepare(Held(value), lambda model: torch.optim.SGD(model.parameters()))
    engine.optimizer.state[engine.model.weight] = {"momentum_buffer": torch.full((moments,), float(value))}
    return engine


def save(checkpoints: Checkpoints, *steps: int, moments: int = 1) -> None:
    for step in steps:
        engine = engine_of(step, moments)
        checkpoints.save(step, engine.save_state, {"step": step}, engine.ranks)


def found(checkpoints: Checkpoints, resume: str = "auto") -> int | None:
    state = checkpoints.find(resume)
    if state is None:
        return None
    engine, training = engine_of(0), checkpoints.load(state)
    engine.load_state(state.path, training)
    (moments,) = engine.optimizer.state[engine.model.weight].values()
    assert engine.model.weight[0] == moments[0] == training["step"] == state.step
    return state.step


class TwoRanks(Ranks):
    """Two threads of this process."""

    world_size = 2

    def __init__(self, rank: int, barrier: threading.Barrier, said: list[str]) -> None:
        self.rank, self._barrier, self._said = rank, barrier, said

    def gather(self, text: str) -> list[str]:
        self._said[self.rank] = text
        self._barrier.wait(10)
        everything = list(self._said)
        self._barrier.wait(10)
        return everything


def both(work: Callable[[Ranks], Any]) -> list[Any]:
    """What two ranks come to, or the UserError that they raise."""
    barrier, said = threading.Barrier(2), ["", ""]

    def one(rank: int) -> Any:
        try:
            return work(TwoRanks(rank, barrier, said))
        except UserError as error:
            return error

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(one, range(2)))


def test_ranks_share_the_work_of_comparing_digests(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(make(), 5, 10)
    read, fingerprint = [], checkpoint._fingerprint
    monkeypatch.setattr(checkpoint, "_fingerprint", lambda path: [read.append(path), fingerprint(path)][1])
    checkpoints = make()
    assert [state.step for state in both(lambda ranks: checkpoints.find("auto", ranks))] == [10, 10]
    assert sorted(path.name for path in read) == ["model.pt", "training.pt"]
    with (tmp_path / "model.bin.states/10/training.pt").open("ab") as file:
        file.write(b"x")  # what one of them reads
    assert [state.step for state in both(lambda ranks: checkpoints.find("auto", ranks))] == [5, 5]


def test_ranks_that_find_different_states_are_told_why(make: Make) -> None:
    save(make("one.bin"), 5)
    seen = [make("one.bin"), make("other.bin")]
    for error in both(lambda ranks: seen[ranks.rank].find("auto", ranks)):
        assert "must be on a file system that all machines share" in str(error)


def names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


@pytest.mark.parametrize("name", ["model.bin", "model.safetensors"])
def test_save_and_find(make: Make, tmp_path: Path, name: str) -> None:
    checkpoints = make(name)
    assert found(checkpoints) is None
    save(checkpoints, 5, 10, 15)
    checkpoints.publish(checkpoints.output)
    assert names(tmp_path / f"{name}.states") == ["10", "15"]
    steps = [f"{name}-{step}" for step in (10, 15, 5)]
    assert names(tmp_path) == sorted(
        [name, *steps, f"{name}.json", *(f"{step}.json" for step in steps), f"{name}.states"]
    )
    assert (tmp_path / name).samefile(tmp_path / f"{name}-15")  # no disk space for a second copy
    assert found(make(name)) == 15
    assert found(make(name), str(tmp_path / f"{name}.states/10")) == 10
    assert found(make(name), "never") is None


@pytest.mark.parametrize("damage", ["no marker", "marker cut", "weights cut", "bit", "missing"])
def test_damaged_states_are_passed_over(make: Make, tmp_path: Path, damage: str) -> None:
    save(make(), 5, 10)
    state = tmp_path / "model.bin.states/10"
    if damage == "no marker":
        (state / MARKER).unlink()
    elif damage == "marker cut":
        (state / MARKER).write_text((state / MARKER).read_text()[:40])
    elif damage == "weights cut":
        os.truncate(state / "model.pt", 2000)
    elif damage == "bit":
        content = bytearray((state / "training.pt").read_bytes())
        content[len(content) // 2] ^= 1
        (state / "training.pt").write_bytes(content)
    else:
        (state / "training.pt").unlink()
    assert found(make()) == 5
    with pytest.raises(
        UserError, match="not a complete training state; expected auto, never, or a directory"
    ):
        make().find(str(state))


def test_any_changed_byte_is_noticed(make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever a reader of the file would make of it."""
    caplog.set_level(logging.INFO)
    save(make(), 5, 10)
    checkpoints = make()
    for path in (tmp_path / "model.bin.states/10").iterdir():
        content = path.read_bytes()
        step = 1 if path.name == MARKER else len(content) // 20
        for place in (*range(0, len(content), step), len(content) - 1):
            path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
            caplog.clear()
            state = checkpoints.find("auto")
            assert state is not None
            if state.step == 10:  # the name of the marker's own digest; all it says is still right
                assert path.name == MARKER
                changed, right = json.loads(path.read_bytes()), json.loads(content)
                assert {name: changed[name] for name in right if name != "digest"} | {
                    "digest": right["digest"]
                } == right
            else:
                assert state.step == 5
                assert re.search(r"resume: .*/10 is damaged \(.*\) and is passed over", caplog.text)
        path.write_bytes(content)
    assert found(make()) == 10


OPERATIONS = {
    "open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree", "os.chmod",
}  # fmt: skip


def killed_at(number: int, below: Path, action: Callable[[], None]) -> bool:
    """Run `action` in a process that kills itself before its operation `number` on files; whether it did."""
    process = os.fork()
    if process == 0:
        count = 0

        def watch(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal count
            if event in OPERATIONS and str(arguments[0]).startswith(str(below)):
                count += 1
                if count == number:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.addaudithook(watch)
            action()
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    assert status in (0, -signal.SIGKILL)
    return status != 0


def test_killed_between_any_two_operations_of_a_save(tmp_path: Path) -> None:
    """Whatever is there under its name is complete, and the next run goes on from it."""

    def at(place: Path) -> Checkpoints:
        checkpoints = Checkpoints(place / "model.bin", {}, lambda path: {}, keep=2)
        checkpoints.recover()
        checkpoints.prepare()
        return checkpoints

    save(at(tmp_path / "before"), 5, 10)
    steps, number, killed = [], 0, True
    while killed:
        number += 1
        place = tmp_path / str(number)
        shutil.copytree(tmp_path / "before", place)
        checkpoints = at(place)
        killed = killed_at(number, place, partial(save, checkpoints, 15))
        for weights in place.glob("model.bin-*[0-9]"):
            assert len(torch.load(weights, weights_only=True)["weight"]) == 1000
            assert Path(f"{weights}.json").exists()
        for state in (place / "model.bin.states").glob("[0-9]*"):
            assert checkpoints.find(str(state)) is not None
        after = at(place)
        steps.append(found(after))
        assert not list(place.rglob(".*")) and (place / f"model.bin-{steps[-1]}").exists()
        complete = names(place / "model.bin.states")
        assert complete[-2:] in (["10", "5"], ["15", "5"], ["10", "15"]) or complete == ["10", "15", "5"]
        save(after, 20)
        assert found(at(place)) == 20
        shutil.rmtree(place)
    before = steps.index(15)
    assert steps == [10] * before + [15] * (len(steps) - before) and before > 8 and len(steps) - before > 8


def test_other_options_are_refused_by_name(make: Make) -> None:
    save(make(hidden_size=8), 5)
    with pytest.raises(ConfigError) as error:
        make(batch_size=8, hidden_size=16).find("auto")
    assert error.value.problems[1:] == ["batch_size: 4 there, 8 now", "hidden_size: 8 there, 16 now"]
    assert make(batch_size=8, hidden_size=16).find("never") is None


def test_a_new_start_is_newer_than_what_it_replaces(make: Make) -> None:
    save(make(), 50, 100)
    anew = make()
    assert anew.find("never") is None
    save(anew, 10)
    assert found(make()) == 10  # and not 100
    save(anew, 50, 100)
    assert found(make()) == 100


@pytest.mark.parametrize("moment", ["model", "training", "marker", "weights"])
def test_a_full_disk_loses_nothing(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    save(make(), 5)
    before = names(tmp_path)
    checkpoints = make()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    module = "tencentpretrain.training.checkpoint"
    engine = "tencentpretrain.training.engines.base"
    with monkeypatch.context() as patch:
        if moment == "model":
            patch.setattr(f"{engine}.save_weights", full)
        elif moment == "training":
            patch.setattr(f"{module}.torch.save", full)
        elif moment == "marker":
            patch.setattr(f"{module}.write_json", full)
        else:
            patch.setattr(f"{module}.os.link", full)
            patch.setattr(f"{module}.shutil.copyfile", full)
        with pytest.raises(
            UserError, match=r"No space left on device; the newest complete is of step \d+\. Free space"
        ):
            save(checkpoints, 10)
    after = make()
    if moment == "weights":  # the state was complete already; its weights follow when the run goes on
        assert found(after) == 10 and (tmp_path / "model.bin-10").exists()
    else:
        assert names(tmp_path) == before and found(after) == 5
    save(after, 15)
    assert found(make()) == 15


@pytest.mark.parametrize("name", ["model.bin", "model.safetensors"])
@pytest.mark.parametrize("limit", [500, 3000, 5300])
def test_really_full_disk(make: Make, tmp_path: Path, name: str, limit: int) -> None:
    """The limit on file size fails a write as a full disk does, inside torch.save."""
    checkpoints = make(name)
    save(checkpoints, 5)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(
            UserError, match=r"cannot save the training state .*/10: .*the newest complete is of step 5"
        ):
            save(checkpoints, 10, moments=10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path / f"{name}.states") == ["5"] and not (tmp_path / f"{name}-10").exists()


def test_leftovers_of_killed_runs_go(make: Make, tmp_path: Path) -> None:
    save(make(), 5)
    states = tmp_path / "model.bin.states"
    gone = "4194999"  # no process has this number
    shutil.copytree(states / "5", states / f".10.{gone}.tmp")
    (tmp_path / f".model.bin-10.{gone}.tmp").write_bytes(b"half")
    (tmp_path / f".model.bin-10.json.{gone}.tmp").write_bytes(b"half")
    others = {f".model.bin{end}" for end in ("-other", f"_large-10.{gone}.tmp", f"-10-10.{gone}.tmp")}
    for name in others:
        (tmp_path / name).write_bytes(b"not ours")
    make()
    assert names(states) == ["5"]
    assert {name for name in names(tmp_path) if name.startswith(".")} == others


def test_a_damaged_state_does_not_count_among_those_kept(make: Make, tmp_path: Path) -> None:
    save(make(), 5, 10)
    states = tmp_path / "model.bin.states"
    os.truncate(states / "10" / "training.pt", 40)
    checkpoints = make()
    assert found(checkpoints) == 5
    save(checkpoints, 8)
    assert names(states) == ["5", "8"]
    os.truncate(states / "8" / "training.pt", 40)
    checkpoints = make()
    assert found(checkpoints) == 5
    save(checkpoints, 8, 12)  # written anew it is no longer damaged
    assert names(states) == ["12", "8"]


@pytest.mark.parametrize("damage", ["contents", "marker"])
def test_where_all_states_are_damaged_none_is_written_over(make: Make, tmp_path: Path, damage: str) -> None:
    save(make(), 5, 10)
    states = tmp_path / "model.bin.states"
    for step in ("5", "10"):
        os.truncate(states / step / ("training.pt" if damage == "contents" else MARKER), 40)
    checkpoints = make()
    for error in both(lambda ranks: checkpoints.find("auto", ranks)):
        assert isinstance(error, UserError)
        assert f"{states}/10, {states}/5" in str(error) and "--resume never" in str(error)
    assert found(make(), "never") is None and names(states) == ["10", "5"]


def test_what_is_incomplete_is_told_once_and_by_find_only(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    save(make(), 5, 10)
    (tmp_path / "model.bin.states/10" / MARKER).unlink()
    checkpoints = make()
    checkpoints.find("auto")
    assert [message for message in caplog.messages if "passed over" in message] == [
        f"resume: {tmp_path / 'model.bin.states/10'} is incomplete and is passed over"
    ]
    caplog.clear()
    save(checkpoints, 15)
    assert not caplog.messages


def test_killed_between_state_and_weights(make: Make, tmp_path: Path) -> None:
    save(make(), 5)
    (tmp_path / "model.bin-5").unlink()
    (tmp_path / "model.bin-5.json").unlink()
    assert found(make()) == 5
    assert (tmp_path / "model.bin-5").exists() and (tmp_path / "model.bin-5.json").exists()


def test_a_place_that_cannot_be_written_is_known_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError, match=r"--output_model_path .*file/model.bin: cannot write there \(Not a directory"
    ):
        Checkpoints(tmp_path / "file/model.bin", {}, lambda path: None).prepare()
    (tmp_path / "directory").mkdir()
    with pytest.raises(UserError, match="is a directory; give the name of a file"):
        Checkpoints(tmp_path / "directory", {}, lambda path: None).prepare()
    assert names(tmp_path) == ["directory", "file"]


def test_the_marker_lists_every_file(make: Make, tmp_path: Path) -> None:
    save(make(), 5)
    state = tmp_path / "model.bin.states/5"
    assert sorted([*read_json(state / MARKER)["files"], MARKER]) == names(state)


def test_a_second_run_to_the_same_place_is_refused(make: Make, tmp_path: Path) -> None:
    make()
    code = (
        "import sys; from pathlib import Path; from tencentpretrain.training.checkpoint import Checkpoints\n"
        "Checkpoints(Path(sys.argv[1]), {}, lambda path: {}).prepare()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "model.bin")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert "another run is writing to --output_model_path" in result.stderr
