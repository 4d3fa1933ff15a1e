"""curves.png: what metrics.jsonl says, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tencentpretrain.files import complete_file

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
