from __future__ import annotations

import pytest
import torch

from tencentpretrain.errors import ConfigError
from tencentpretrain.training.engine import SingleEngine, choose_precision

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
