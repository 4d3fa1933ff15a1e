from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tencentpretrain.config import RunConfig
from tencentpretrain.errors import UserError
from tencentpretrain.training.curves import draw_curves
from tencentpretrain.training.report import Report, duration, report_line, start_logging
from tencentpretrain.training.settings import read_settings

RECORD: dict[str, Any] = {
    "step": 100, "loss": 7.125, "loss_mlm": 7.125, "acc_mlm": 0.25, "learning_rate": 1e-4, "grad_norm": 1.5,
    "tokens": 4000, "tokens_per_second": 1234.5, "mfu": None, "memory_gb": 1.0, "data_wait": 0.01, "time": 1,
}  # fmt: skip


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    yield
    log = logging.getLogger("tencentpretrain")
    for handler in log.handlers[:]:
        handler.close()
        log.removeHandler(handler)
    log.propagate = True


def test_the_published_line_stays_recognisable() -> None:
    line = report_line(RECORD, 1000, 3725)
    assert re.search(r"\|\s+100/\s*1000 steps\|\s+[\d.]+ tokens/s\| loss\s+7\.1\d\| acc: 0\.250", line)
    assert line.endswith("| lr 0.0001| grad norm 1.500| 1.00 GB| waiting for data 1.0%| 1:02:05 left")
    several = report_line(RECORD | {"loss_sp": 0.5, "acc_sp": 0.75, "mfu": 0.456}, 1000, 1)
    assert "| acc: 0.250| loss_mlm: 7.125| loss_sp: 0.500| acc_mlm: 0.250| acc_sp: 0.750|" in several
    assert "| mfu 45.6%|" in several


def test_a_perplexity_stays_short(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "tencentpretrain")
    for perplexity, words in ((403.416, "403.42"), (1.5e300, "1.5e+300"), (float("inf"), "inf")):
        Report(None, 0).validation({"step": 1, "eval_loss": 6.0, "eval_perplexity": perplexity}, {})
        assert caplog.messages[-1] == f"| step 1| validation: loss 6.0000| perplexity {words}"


def test_duration() -> None:
    assert duration(59.6) == "0:01:00" and duration(90061) == "25:01:01"


def test_levels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "logs/run.log"
    start_logging(RunConfig(log_path=str(path), log_level="ERROR", log_file_level="DEBUG"))
    log = logging.getLogger("tencentpretrain")
    for write, word in ((log.debug, "one"), (log.info, "two"), (log.error, "three")):
        write(word)
    assert re.fullmatch(r"\[[-\d]+ [\d:,]+ ERROR\] three\n", capsys.readouterr().out)
    assert [line.split("] ")[1] for line in path.read_text().splitlines()] == ["one", "two", "three"]
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--log_path .*file/run.log: cannot write there"):
        start_logging(RunConfig(log_path=str(tmp_path / "file/run.log")))


@pytest.mark.parametrize("output", ["output_model_path", "log_path"])
@pytest.mark.parametrize("read", ["config_path", "pretrained_model_path", "vocab_path", "tgt_vocab_path"])
def test_weights_and_log_never_replace_an_input(
    output: str, read: str, arguments: Callable[..., list[str]], workplace: Path
) -> None:
    path = workplace / "config.json"
    before = path.read_bytes()
    with pytest.raises(UserError, match=f"--{output} .* is what --{read} names too"):
        read_settings(arguments(**{"config_path": None, read: path, output: path}))
    with pytest.raises(UserError, match=r"--log_path .* is what --output_model_path names too"):
        read_settings(arguments(output_model_path=workplace / "x", log_path=workplace / "x"))
    assert path.read_bytes() == before


def test_metrics_of_a_continued_run(tmp_path: Path) -> None:
    report = Report(tmp_path, 1000)
    for step in (100, 200, 300):
        report.training(RECORD | {"step": step}, 1)
    report.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 400, "lo')
    report = Report(tmp_path, 1000, first_step=250)
    report.training(RECORD | {"step": 300}, 1)
    report.close()
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == [100, 200, 300]


def test_another_run_moves_the_metrics_aside(tmp_path: Path) -> None:
    for loss in (1.0, 2.0, 3.0):
        report = Report(tmp_path, 1000)
        report.training(RECORD | {"loss": loss}, 1)
        report.close()
    Report(tmp_path, 1000).close()
    Report(tmp_path, 1000).close()  # nothing to move
    files = {path.name: json.loads(path.read_text() or "{}") for path in tmp_path.glob("*.jsonl")}
    losses = {name: record.get("loss") for name, record in files.items()}
    assert losses == {"metrics-1.jsonl": 1, "metrics-2.jsonl": 2, "metrics-3.jsonl": 3, "metrics.jsonl": None}


def test_a_rank_that_does_not_report_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    report = Report(None, 1000)
    report.training(RECORD, 1)
    report.close()
    assert not list(tmp_path.iterdir())


def test_nobody_reads_the_output_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", closed)
        start_logging(RunConfig(log_path=str(tmp_path / "run.log")))
        for word in ("one", "two"):
            logging.getLogger("tencentpretrain").info(word)
        closed.flush()  # as at the end of the program
    assert (tmp_path / "run.log").read_text().count("\n") == 2


def test_tensorboard_events(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    report = Report(tmp_path, 1000)
    report.training(RECORD, 1)
    report.validation(
        {"step": 100, "eval_loss": 6.0, "eval_perplexity": 403.4, "time": 2.0}, {"eval_acc_mlm": 0.5}
    )
    report.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert tags == (RECORD.keys() | {"eval_loss", "eval_perplexity", "eval_acc_mlm"}) - {
        "step",
        "time",
        "mfu",
    }
    (value,) = events.Scalars("loss")
    assert value.step == 100 and value.value == 7.125


def test_a_log_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--log_dir .*file/logs: cannot write there \(Not a directory\)"):
        Report(tmp_path / "file/logs", 1000)


def test_a_full_disk_does_not_stop_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    report = Report(tmp_path, 1000)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    report._write = full  # type: ignore[method-assign]
    report.training(RECORD, 1)
    assert f"cannot write reports to {tmp_path}: No space left on device" in caplog.text
    report.close()


def test_curves(tmp_path: Path) -> None:
    draw_curves([], tmp_path / "nothing.png")
    assert not (tmp_path / "nothing.png").exists()
    validation = {"step": 100, "eval_loss": 6.0, "eval_perplexity": 403.4, "time": 2.0}
    draw_curves([RECORD, validation, RECORD | {"step": 200}], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
