"""An update whose loss or gradient is not finite changes nothing, is counted and told."""

from __future__ import annotations

import copy
import json
import math
import re
import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from tencentpretrain.data.loader import DataPosition
from tencentpretrain.errors import Terminated, UserError
from tencentpretrain.targets.output import TargetOutput
from tencentpretrain.training.sums import Sums, means
from tencentpretrain.training.trainer import Trainer

Run = Callable[..., Trainer]
SHORT = {"total_steps": 6, "report_steps": 2, "batch_size": 4, "accumulation_steps": 2}


def spoilt(run: Run, spoil: Callable[[Trainer, pytest.MonkeyPatch], None], **options: Any) -> Trainer:
    """A run of which `spoil` may disturb every update."""
    update = Trainer._update

    def disturbed(trainer: Trainer, batches: Any) -> None:
        with pytest.MonkeyPatch.context() as patch:
            spoil(trainer, patch)
            update(trainer, batches)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_update", disturbed)
        return run(**SHORT | options)


def infinite_gradient_at(*steps: int) -> Callable[[Trainer, pytest.MonkeyPatch], None]:
    def spoil(trainer: Trainer, patch: pytest.MonkeyPatch) -> None:
        if trainer.step + 1 in steps:
            weight = next(iter(trainer.engine.model.parameters()))
            weight.grad = torch.zeros_like(weight)
            weight.grad[3, 2] = math.inf

    return spoil


def loss_at(value: float, *steps: int) -> Callable[[Trainer, pytest.MonkeyPatch], None]:
    """The loss of the first micro-batch becomes `value`; its gradient stays finite."""

    def spoil(trainer: Trainer, patch: pytest.MonkeyPatch) -> None:
        forward = trainer.engine.forward
        spoiled = iter([trainer.step + 1 in steps])

        def spoilt_forward(*arguments: Any, **options: Any) -> TargetOutput:
            output = forward(*arguments, **options)
            if next(spoiled, False):
                output.parts["mlm"].loss_sum.data.fill_(value)
            return output

        patch.setattr(trainer.engine, "forward", spoilt_forward)

    return spoil


def warnings_in(messages: Iterable[str]) -> list[str]:
    return [message for message in messages if "no update" in message]


def records_of(output: Path) -> list[dict[str, Any]]:
    lines = Path(f"{output}.logs/metrics.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=lambda name: pytest.fail(name)) for line in lines]


@pytest.mark.parametrize("spoil", [infinite_gradient_at, *(
    lambda *steps, value=value: loss_at(value, *steps) for value in (math.nan, math.inf)
)], ids=["gradient", "loss NaN", "loss infinite"])  # fmt: skip
@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_nothing_changes_and_the_samples_are_told(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture, spoil: Any, optimizer: str
) -> None:
    states: list[Any] = []
    disturb = spoil(4, 5)

    def watched(trainer: Trainer, patch: pytest.MonkeyPatch) -> None:
        engine = trainer.engine
        states.append(copy.deepcopy((engine.model.state_dict(), engine.optimizer.state_dict()["state"])))
        disturb(trainer, patch)

    trainer = spoilt(run, watched, optimizer=optimizer)
    for earlier, later in ((3, 4), (3, 5)):
        (weights, optimizer_state), (weights_after, optimizer_state_after) = states[earlier], states[later]
        assert all(torch.equal(weights[name], weights_after[name]) for name in weights)
        for number, entry in optimizer_state.items():
            assert all(torch.as_tensor(value).equal(torch.as_tensor(optimizer_state_after[number][name]))
                       for name, value in entry.items())  # fmt: skip
    name = next(iter(states[5][0]))
    assert not torch.equal(states[5][0][name], trainer.engine.model.state_dict()[name])  # and it goes on
    assert all(weight.isfinite().all() for weight in trainer.engine.model.parameters())

    told = warnings_in(caplog.messages)
    assert [re.findall(r"step (\d+): .*\((\d+) in a row\)", text) for text in told] == [
        [("4", "1")],
        [("5", "2")],
    ]
    for text, numbers in zip(told, (list(range(24, 32)), list(range(32, 40))), strict=True):
        position = DataPosition(0, numbers[0])  # after three updates of 8 samples, and after four
        order = trainer.loader.samples(DataPosition(), 10)[:, numbers]
        assert order.tolist() == trainer.loader.samples(position, 2).tolist()
        samples = " ".join(f"{epoch}:{number}" for epoch, number in order.T.tolist())
        assert text.endswith(f"as epoch:number: of rank 0 {samples}")

    records = records_of(tmp_path / "model.bin")
    assert [record["skipped_steps"] for record in records] == [0, 1, 2]
    assert all(0 < record["loss"] < 10 and 0 < record["grad_norm"] < 10 for record in records)


def test_too_many_in_a_row_end_the_run(run: Run, tmp_path: Path) -> None:
    """No state is saved while updates are skipped, unless the run is stopped; its count is kept."""
    options = {"max_skipped_steps": 3, "save_checkpoint_steps": 2, "total_steps": 20}
    spoil = infinite_gradient_at(1, 2, 4, 6, 7, 8)
    message = (
        r"of 3 updates in a row was not finite, up to step 8 \(--max_skipped_steps\)\. The newest training "
        r"state is of step {}; lower --learning_rate"
    )
    with pytest.raises(UserError, match=message.format(5)):
        spoilt(run, spoil, **options)
    assert sorted(path.name for path in (tmp_path / "model.bin.states").iterdir()) == ["3", "5"]
    with pytest.raises(Terminated):
        spoilt(run, spoil, stop=(7, signal.SIGTERM), **options)
    with pytest.raises(UserError, match=message.format(7)):
        spoilt(run, spoil, **options)


def test_a_run_that_diverges_ends(run: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"of 10 updates in a row was not finite.*Nothing was saved"):
        run(learning_rate=1e30, max_grad_norm=0, scheduler="constant", report_steps=5, total_steps=20)
    last = records_of(tmp_path / "model.bin")[-1]
    assert last["loss"] is None and last["grad_norm"] is None and last["skipped_steps"] > 5
    assert not list((tmp_path / "model.bin.states").iterdir())


def test_fp16_lowers_its_scale(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "tencentpretrain.training.engines.base.choose_precision", lambda *_: ("fp16", "for tests")
    )
    trainer = spoilt(run, infinite_gradient_at(2, 3, 4))
    assert trainer.step == 6 and all(weight.isfinite().all() for weight in trainer.engine.model.parameters())
    records = records_of(tmp_path / "model.bin")
    assert [record["skipped_steps"] for record in records] == [1, 3, 3]
    assert [record["grad_norm"] is None for record in records] == [False, True, False]
    state = torch.load(tmp_path / "model.bin.states/6/training.pt", weights_only=True)
    assert state["scaler"]["scale"] == 65536 / 2**3 and state["skipped"] == (3, 0)


def test_sums_that_are_not_finite_are_left_out_together() -> None:
    sums = Sums()
    for loss in (2.0, math.nan, 4.0):
        update = Sums()
        update.add("loss_mlm", loss)
        update.add("count_mlm", 2)
        sums.add_finite(update)
    assert means(sums.read(), {"mlm": 0.5}) == {"loss": 0.75, "loss_mlm": 1.5}
    assert math.isnan(means({"loss_mlm": 0.0, "count_mlm": 0}, {})["loss"])
