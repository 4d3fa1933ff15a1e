"""scripts/plot_runs.py"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from tencentpretrain.errors import ConfigError, DataError, UserError
from tencentpretrain.training.curves import PlotConfig, plot_runs


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were saved."""
    figures: list[Figure] = []
    savefig = Figure.savefig

    def noted(figure: Figure, *arguments: Any, **options: Any) -> None:
        figures.append(figure)
        savefig(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", noted)
    return figures


def write(log_dir: Path, targets: list[str], offset: float) -> Path:
    log_dir.mkdir(parents=True)
    lines = []
    for step in (10, 20, 30):
        record = {"step": step, "loss": offset + 1 / step, "learning_rate": 1e-3, "tokens": 100 * step,
                  "tokens_per_second": 50.0, "time": 5000.0 + 360 * step}  # fmt: skip
        lines.append(json.dumps(record | {f"loss_{target}": offset / 2 for target in targets}))
    lines.append(json.dumps({"step": 30, "eval_loss": 2.0, "time": 5000.0 + 360 * 30}))
    (log_dir / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 40, "lo')
    return log_dir


def test_panels_names_and_places(tmp_path: Path, drawn: list[Figure]) -> None:
    write(tmp_path / "one/model.bin.logs", ["mlm", "sp"], 1.0)
    logs = write(tmp_path / "two/model.bin.logs", ["mlm"], 2.0)
    runs = (str(tmp_path / "one/model.bin"), str(logs))
    for against, last in (("steps", 30), ("tokens", 3000), ("time", 2.0)):
        output = tmp_path / f"{against}.png"
        plot_runs(PlotConfig(runs, str(output), against))
        assert output.read_bytes().startswith(b"\x89PNG")
        panels = {axes.get_title(): axes for axes in drawn[-1].axes}
        assert list(panels) == [
            "loss", "eval_loss", "loss_mlm", "loss_sp", "learning_rate", "tokens_per_second",
        ]  # fmt: skip
        one, two = panels["loss"].lines
        assert one.get_xdata()[-1] == two.get_xdata()[-1] == last
        assert one.get_ydata()[0] == pytest.approx(1.1) and two.get_ydata()[0] == pytest.approx(2.1)
        assert panels["eval_loss"].lines[1].get_xdata()[-1] == last
        assert len(panels["loss_sp"].lines[1].get_xdata()) == 0  # it has no such target
        (legend,) = drawn[-1].legends
        assert [text.get_text() for text in legend.get_texts()] == ["one/model.bin", "two/model.bin"]


def test_what_is_no_run(tmp_path: Path) -> None:
    logs = write(tmp_path / "model.bin.logs", ["lm"], 1.0)
    with pytest.raises(DataError, match=r"other: there is no .*other/metrics.jsonl and no .*other.logs"):
        plot_runs(PlotConfig((str(tmp_path / "other"),), str(tmp_path / "x.png")))
    with pytest.raises(ConfigError, match="twice"):
        plot_runs(PlotConfig((str(logs), str(tmp_path / "model.bin")), str(tmp_path / "x.png")))
    (logs / "metrics.jsonl").write_text("")
    with pytest.raises(DataError, match="no report"):
        plot_runs(PlotConfig((str(logs),), str(tmp_path / "x.png")))
    assert not (tmp_path / "x.png").exists()


def test_the_metrics_are_never_replaced(tmp_path: Path) -> None:
    logs = write(tmp_path / "model.bin.logs", ["lm"], 1.0)
    before = (logs / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"--output_path .* is what --runs names too"):
        plot_runs(PlotConfig((str(tmp_path / "model.bin"),), str(logs / "metrics.jsonl")))
    assert (logs / "metrics.jsonl").read_bytes() == before


def test_any_name_of_a_run_can_be_drawn(tmp_path: Path) -> None:
    runs = tuple(str(write(tmp_path / name, ["lm"], 1.0)) for name in (os.fsdecode(b"d\xff"), "a$b_{$c"))
    plot_runs(PlotConfig(runs, str(tmp_path / "x.png")))
    assert (tmp_path / "x.png").exists()
