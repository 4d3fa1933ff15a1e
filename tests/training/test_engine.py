from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tencentpretrain.errors import ConfigError
from tencentpretrain.training.engines import SingleEngine, choose_precision

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("bf16", "amx", "expected"), [(False, False, "fp32"), (True, False, "bf16"), (False, True, "bf16")]
)
def test_automatic_precision_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch, bf16: bool, amx: bool, expected: str
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert choose_precision("auto", CPU)[0] == expected


@pytest.mark.parametrize("native", [True, False])
def test_automatic_precision_on_a_gpu(monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    assert choose_precision("auto", GPU)[0] == ("bf16" if native else "fp32")


def test_precision_as_asked() -> None:
    assert [choose_precision(name, GPU)[0] for name in ("fp32", "bf16", "fp16")] == ["fp32", "bf16", "fp16"]
    with pytest.raises(
        ConfigError, match="fp16 needs a GPU, but the device is the CPU; use fp32, bf16 or auto"
    ):
        choose_precision("fp16", CPU)


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_decisions_are_told() -> None:
    lines = SingleEngine("fp32").decisions()
    assert lines == [
        f"device: cpu ({torch.get_num_threads()} threads)",
        "engine: single",
        "precision: fp32 (as asked)",
    ]
    assert SingleEngine("fp32", compile=True).decisions()[1] == "engine: single, compiled"
    assert SingleEngine("bf16").peak_flops is None
    assert SingleEngine("fp32", gpu_ranks=(3,)).decisions()[-1] == "gpu_ranks 3: there is no GPU"


def test_the_gpu_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    engine = SingleEngine("fp32", gpu_ranks=(3,))
    assert chosen == [engine.device] == [torch.device("cuda", 3)]
    assert engine.decisions()[0] == "device: cuda:3 (NVIDIA H200)"
    assert SingleEngine("fp32").device == torch.device("cuda") and len(chosen) == 1
    with pytest.raises(ConfigError, match="--gpu_ranks 4: there are 4 GPUs, numbered from 0"):
        SingleEngine("fp32", gpu_ranks=(4,))


def test_random_numbers_are_a_function_of_the_seed() -> None:
    engine = SingleEngine("fp32")
    engine.seed(5)
    first = torch.rand(3)
    torch.rand(100)
    engine.seed(5)
    assert torch.equal(torch.rand(3), first)


def test_autocast_computes_in_bf16_over_fp32_weights() -> None:
    engine = SingleEngine("bf16")
    seen = []

    class Probe(torch.nn.Linear):
        def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:  # type: ignore[override]
            output = super().forward(batch["features"])
            seen.append((output.dtype, self.weight.dtype))
            return output

    engine.prepare(Probe(2, 2))
    engine.forward({"features": torch.ones(1, 2)})
    assert seen == [(torch.bfloat16, torch.float32)]


class Line(torch.nn.Linear):
    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:  # type: ignore[override]
        return super().forward(batch["features"])


@pytest.fixture
def fp16_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> SingleEngine:
    monkeypatch.setattr(
        "tencentpretrain.training.engines.base.choose_precision", lambda *_: ("fp16", "for tests")
    )
    return SingleEngine("fp16")


def test_an_update_that_overflows_is_left_out(fp16_on_a_cpu: SingleEngine) -> None:
    engine = fp16_on_a_cpu
    engine.prepare(Line(2, 2), lambda model: torch.optim.AdamW(model.parameters(), fused=True))
    weights, scale = engine.model.weight.detach().clone(), engine._scaler.get_scale()
    for size, updated in ((torch.inf, False), (1.0, True)):
        engine.backward(engine.forward({"features": torch.full((1, 2), size)}).sum())  # type: ignore[attr-defined]
        norm = engine.clip(1.0)
        engine.step(0.1)
        assert bool(norm.isfinite()) is updated
        assert torch.equal(engine.model.weight, weights) is not updated
        assert engine.model.weight.isfinite().all() and engine._scaler.get_scale() == scale / 2


def test_what_is_asked_of_the_optimizer_holds_after_loading(tmp_path: Path) -> None:
    def prepared(**options: object) -> SingleEngine:
        engine = SingleEngine("fp32")
        make = lambda model: torch.optim.AdamW(model.parameters(), fused=True, **options)  # noqa: E731
        engine.prepare(Line(2, 2), make)
        return engine

    old = prepared(weight_decay=0.5, betas=(0.8, 0.9), eps=1e-3)
    old.backward(old.forward({"features": torch.ones(1, 2)}).sum())  # type: ignore[attr-defined]
    old.clip(0)
    old.step(0.1)
    new = prepared(weight_decay=0.25, betas=(0.5, 0.6), eps=1e-5)
    new.load_state(tmp_path, old.save_state(tmp_path, "model.pt"))
    (group,) = new.optimizer.param_groups
    assert (group["weight_decay"], group["betas"], group["eps"]) == (0.25, (0.5, 0.6), 1e-5)
    assert group["params"] == list(new.model.parameters())
    moments = [engine.optimizer.state[engine.model.weight]["exp_avg"] for engine in (old, new)]
    assert torch.equal(*moments) and moments[0].any()
