"""What metrics.jsonl says, as a picture: curves.png of one run, and several runs in one."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tencentpretrain.config.options import option
from tencentpretrain.errors import ConfigError, DataError
from tencentpretrain.files import check_not_input, complete_file

PANELS = ("loss", "acc", "eval_loss", "learning_rate", "grad_norm", "tokens_per_second")


def draw_curves(records: Sequence[dict[str, Any]], path: Path) -> None:
    """One panel for each quantity that was reported, over the steps; several targets share a panel.

    Args:
        records: the objects of metrics.jsonl.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for record in records for name in record))
    panels = {panel: [name for name in names if f"{name}_".startswith(f"{panel}_")] for panel in PANELS}
    panels["loss"] += panels.pop("eval_loss")  # beside each other, to be compared
    shown = {panel: curves for panel, curves in panels.items() if curves}
    if not shown:
        return
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(4.5 * columns, 3.2 * rows))
    FigureCanvasAgg(figure)
    for place, (panel, curves) in enumerate(shown.items(), start=1):
        axes = figure.add_subplot(rows, columns, place)
        for name in curves:
            points = [(record["step"], record[name]) for record in records if record.get(name) is not None]
            axes.plot(*zip(*points, strict=True), label=name, marker="." if len(points) < 20 else None)
        axes.set_title(panel)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        if len(curves) > 1:
            axes.legend()
    figure.subplots_adjust(0.2 / columns, 0.2 / rows, 1 - 0.05 / columns, 1 - 0.15 / rows, hspace=0.5)
    with complete_file(path) as temporary:
        figure.savefig(temporary, dpi=100, format="png")


@dataclasses.dataclass(frozen=True)
class PlotConfig:
    """Runs to compare."""

    runs: tuple[str, ...] = option(..., "Runs: their --output_model_path, --log_dir or metrics.jsonl.")
    output_path: str = option("runs.png", "The picture.")
    against: str = option(
        "steps", "What the curves are drawn over; time is in hours.", choices=("steps", "tokens", "time")
    )


def plot_runs(config: PlotConfig) -> str:
    """Draw several runs into one picture: a panel for each loss and for learning rate and speed.

    Raises:
        DataError: a run has no metrics.
        ConfigError: a run is named twice.
        UserError: the picture would replace a run's metrics.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    files = [_metrics_of(Path(run)) for run in config.runs]
    output = Path(config.output_path)
    for file in files:
        check_not_input(output, "--output_path", {"runs": str(file)})
    if len(set(files)) < len(files):
        raise ConfigError("--runs names a run twice.")
    runs = dict(zip(_names(files), map(_records, files), strict=True))
    every = [name for records in runs.values() for record in records for name in record]
    losses = [name for name in dict.fromkeys(every) if name.startswith("loss_")]
    wanted = ["loss", "eval_loss", *(losses if len(losses) > 1 else []), "learning_rate", "tokens_per_second"]
    panels = [name for name in wanted if name in every]
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.5 * columns, 3.2 * rows + 0.3 * len(runs)), layout="constrained")
    FigureCanvasAgg(figure)
    for place, panel in enumerate(panels, start=1):
        axes = figure.add_subplot(rows, columns, place)
        for number, records in enumerate(runs.values()):
            points = [
                (x, record[panel])
                for x, record in zip(_places(records, config.against), records, strict=True)
                if record.get(panel) is not None
            ]
            marker = "." if len(points) < 20 else None
            axes.plot(*(zip(*points, strict=True) if points else ([], [])), color=f"C{number}", marker=marker)
        axes.set_title(panel)
        axes.set_xlabel("hours" if config.against == "time" else config.against)
        axes.grid(alpha=0.3)
    # Names of files need not be Unicode, and a dollar in them begins no formula.
    names = [name.encode("utf-8", "backslashreplace").decode("utf-8") for name in runs]
    for text in figure.legend(figure.axes[0].lines, names, loc="outside lower center").get_texts():
        text.set_parse_math(False)
    with complete_file(output) as temporary:
        figure.savefig(temporary, dpi=100, format="png")
    return f"{output}: {len(runs)} runs, {', '.join(panels)}"


def _metrics_of(run: Path) -> Path:
    tried = [run, run / "metrics.jsonl", run.with_name(f"{run.name}.logs") / "metrics.jsonl"]
    for path in tried:
        if path.is_file() and path.suffix == ".jsonl":
            return path.resolve()
    raise DataError(
        f"--runs {run}: there is no {tried[1]} and no {tried[2]}; give a run's --output_model_path, "
        "its --log_dir or its metrics.jsonl."
    )


def _names(files: Sequence[Path]) -> list[str]:
    """As much of the end of each path as tells it from the others; `model.bin.logs` is `model.bin`."""
    parts = [[*file.parent.parts[:-1], file.parent.name.removesuffix(".logs")] for file in files]
    if any(file.name != "metrics.jsonl" for file in files):  # an earlier run of a directory
        parts = [[*own, file.stem] for own, file in zip(parts, files, strict=True)]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(own[-length:]) for own in parts]
        if len(set(names)) == len(names):
            break
    return names


def _records(file: Path) -> list[dict[str, Any]]:
    """The reports of a run, which may still be going on."""
    records = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue  # the last line is not complete yet
        if isinstance(record, dict) and "step" in record:
            records.append(record)
    if not records:
        raise DataError(f"{file} has no report.")
    return records


def _places(records: Sequence[dict[str, Any]], against: str) -> list[float]:
    """Where the records of a run stand; a validation where the report before it does."""
    if against == "steps":
        return [record["step"] for record in records]
    begin = next((record["time"] for record in records if "time" in record), 0.0)
    places, last = [], 0.0
    for record in records:
        if against == "tokens":
            last = record.get("tokens", last)
        else:
            last = (record["time"] - begin) / 3600 if "time" in record else last
        places.append(last)
    return places
