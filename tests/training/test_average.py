"""The moving average of the weights: what it is, where it is kept, who sees it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tencentpretrain.config import OptimizationConfig
from tencentpretrain.training.moving_average import average_in_place, averaged
from tencentpretrain.training.optimizers import make_optimizer
from tencentpretrain.training.trainer import Trainer

Run = Callable[..., Trainer]


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one.keys() | other.keys())


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_closed_form(optimizer: str) -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"used": nn.Linear(3, 2), "unused": nn.Linear(1, 1)})
    made = make_optimizer(model, OptimizationConfig(optimizer=optimizer, ema_decay=0.75, learning_rate=0.1))
    assert averaged(model, made) is None
    expected: dict[str, torch.Tensor] = {}
    for step in range(5):
        for weight in model["used"].parameters():
            weight.grad = torch.randn_like(weight)
        made.step()
        for name, weight in model.state_dict().items():
            before = expected.get(name, weight).double()
            expected[name] = (before if step == 0 else 0.75 * before + 0.25 * weight).clone()
    result = averaged(model, made)
    assert result is not None and result.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(result[name].double(), expected[name], rtol=1e-5, atol=1e-6)
    before, averages = ({n: w.clone() for n, w in each.items()} for each in (model.state_dict(), result))
    with average_in_place(made):
        assert same(dict(model.state_dict()), averages)
    assert same(dict(model.state_dict()), before)


def test_what_is_written_is_the_average_and_the_state_has_both(
    run: Run, tmp_path: Path, workplace: Path
) -> None:
    options: dict[str, Any] = {"total_steps": 6, "save_checkpoint_steps": 3, "learning_rate": 1e-2}
    plain = run("plain.bin", **options)
    seen = []
    trainer = run("average.bin", ema_decay=0.9, eval_dataset_path=workplace / "dev", **options)
    raw = dict(plain.engine.model.state_dict())
    assert same(dict(trainer.engine.model.state_dict()), raw)  # training itself is not touched
    written = weights_of(tmp_path / "average.bin")
    average = averaged(trainer.engine.model, trainer.engine.optimizer)
    assert average is not None and same(written, average) and not same(written, raw)
    assert same(weights_of(tmp_path / "average.bin-6"), written)
    assert same(weights_of(tmp_path / "average.bin.states/6/model.pt"), raw)
    # A validation computes with the average.
    with trainer.engine.averaging():
        seen.append(same(dict(trainer.engine.model.state_dict()), written))
    assert seen == [True]


def test_validation_sees_the_average(run: Run, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    validate = Trainer._validate

    def watched(trainer: Trainer, *arguments: Any) -> None:
        forward = trainer.engine.forward

        def noted(batch: Any, last: bool = True) -> Any:
            seen.append(next(trainer.engine.model.parameters()).detach().clone())
            return forward(batch, last)

        monkeypatch.setattr(trainer.engine, "forward", noted)
        validate(trainer, *arguments)

    monkeypatch.setattr(Trainer, "_validate", watched)
    trainer = run(total_steps=4, eval_dataset_path=workplace / "dev", ema_decay=0.9, learning_rate=1e-2)
    weight = next(iter(trainer.engine.model.parameters()))
    assert seen and torch.equal(seen[-1], trainer.engine.optimizer.state[weight]["average"])
    assert not torch.equal(seen[-1], weight)


@pytest.mark.parametrize("options", [{}, {"async_checkpoint": True}, {"optimizer": "muon"}], ids=str)
def test_a_run_that_is_continued_has_the_same_average(
    run: Run, tmp_path: Path, options: dict[str, Any]
) -> None:
    options = {"ema_decay": 0.8, "learning_rate": 1e-2, "save_checkpoint_steps": 3} | options
    run("whole.bin", total_steps=7, scheduler="constant", **options)
    run("parts.bin", total_steps=3, scheduler="constant", **options)
    run("parts.bin", total_steps=7, scheduler="constant", **options)
    for name in (".bin", ".bin-6", ".bin.states/7/model.pt"):
        assert same(weights_of(tmp_path / f"whole{name}"), weights_of(tmp_path / f"parts{name}")), name


def test_it_may_begin_and_end_where_a_run_is_continued(run: Run, tmp_path: Path) -> None:
    options: dict[str, Any] = {"scheduler": "constant", "learning_rate": 1e-2}
    run("plain.bin", total_steps=6, **options)
    run("other.bin", total_steps=2, **options)
    begun = run("other.bin", total_steps=4, ema_decay=0.9, **options)
    assert not same(weights_of(tmp_path / "other.bin"), dict(begun.engine.model.state_dict()))
    run("other.bin", total_steps=6, **options)
    assert same(weights_of(tmp_path / "other.bin"), weights_of(tmp_path / "plain.bin"))
