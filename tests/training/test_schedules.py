from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tencentpretrain.config import OptimizationConfig
from tencentpretrain.training.schedules import SCHEDULES, make_schedule

TOTAL, WARMUP, PEAK = 100, 10, 2.0


def rate(name: str, step: int, **options: float) -> float:
    config = OptimizationConfig(
        learning_rate=PEAK, warmup=WARMUP / TOTAL, lr_decay=0.4, scheduler=name, **options
    )
    return make_schedule(config, TOTAL)(step)


# The closed forms, written down once more, for steps behind the warm-up; p is the share of the way after it.
CLOSED_FORMS = {
    "linear": lambda step, p: 1 - p,
    "cosine": lambda step, p: (1 + math.cos(math.pi * p)) / 2,
    "cosine_with_restarts": lambda step, p: (1 + math.cos(math.pi * p)) / 2,
    "polynomial": lambda step, p: 1 - p,
    "constant": lambda step, p: 1,
    "constant_with_warmup": lambda step, p: 1,
    "inverse_sqrt": lambda step, p: (WARMUP / step) ** 0.5,
    "tri_stage": lambda step, p: 1 if step < 60 else 0.05 ** ((step - 60) / 40),
    "wsd": lambda step, p: 1 if step < 60 else (100 - step) / 40,
}


def test_every_name_has_a_schedule_and_a_closed_form() -> None:
    assert set(SCHEDULES) == set(CLOSED_FORMS)


@pytest.mark.parametrize("name", list(SCHEDULES))
def test_closed_forms(name: str) -> None:
    for step in range(WARMUP, TOTAL + 1):
        expected = PEAK * CLOSED_FORMS[name](step, (step - WARMUP) / (TOTAL - WARMUP))
        assert rate(name, step) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", list(SCHEDULES))
def test_warmup_is_linear(name: str) -> None:
    start = {"constant": 1.0, "tri_stage": 0.01}.get(name, 0.0)
    for step in range(WARMUP):
        expected = PEAK * (start + (1 - start) * step / WARMUP)
        assert rate(name, step) == pytest.approx(expected, abs=1e-12)


def test_restarts_and_power() -> None:
    restarts = [rate("cosine_with_restarts", step, lr_cycles=3) for step in range(WARMUP, TOTAL + 1)]
    assert [step for step, value in enumerate(restarts) if value == PEAK] == [0, 30, 60]
    assert restarts[15] == pytest.approx(PEAK / 2) and restarts[-1] == 0
    assert rate("polynomial", 55, lr_power=2) == pytest.approx(PEAK / 4)


@pytest.mark.parametrize("name", list(SCHEDULES))
@given(floor=st.floats(0, PEAK), step=st.integers(WARMUP, 3 * TOTAL))
def test_never_below_the_floor_nor_above_the_peak(name: str, floor: float, step: int) -> None:
    assert floor - 1e-12 <= rate(name, step, lr_min=floor) <= PEAK + 1e-12


@pytest.mark.parametrize("name", ["linear", "cosine", "cosine_with_restarts", "polynomial", "wsd"])
def test_falls_to_the_floor(name: str) -> None:
    assert rate(name, TOTAL, lr_min=0.5) == pytest.approx(0.5)
    assert rate(name, 0, lr_min=0.5) == 0


@pytest.mark.parametrize("name", list(SCHEDULES))
@pytest.mark.parametrize("warmup", [0.0, 0.05, 1.0])
def test_extreme_warmup(name: str, warmup: float) -> None:
    decay = min(0.5, 1 - warmup)
    config = OptimizationConfig(learning_rate=PEAK, warmup=warmup, lr_decay=decay, scheduler=name)
    for total in (1, 2, 5):
        values = [make_schedule(config, total)(step) for step in range(total + 2)]
        assert all(0 <= value <= PEAK for value in values)
        if warmup == 0:
            assert values[0] == PEAK
