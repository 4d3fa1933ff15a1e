from __future__ import annotations

import torch

from tencentpretrain.config import ModelConfig
from tencentpretrain.model import build_model
from tencentpretrain.training.estimate import measure_cost, parameters_num, state_bytes

ROWS, LENGTH, HIDDEN, INNER, LAYERS, VOCABULARY, PREDICTED = 3, 16, 32, 64, 2, 50, 6


def test_cost_is_that_of_the_matrix_products() -> None:
    config = ModelConfig(
        embedding=("word", "pos"), emb_size=HIDDEN, hidden_size=HIDDEN, feedforward_size=INNER, heads_num=4,
        layers_num=LAYERS, max_seq_length=LENGTH, target=("mlm",),
    )  # fmt: skip
    labels = torch.full((ROWS, LENGTH), -100)
    labels.flatten()[:PREDICTED] = 1
    batch = {
        "input_ids": torch.ones(ROWS, LENGTH, dtype=torch.int64),
        "mlm_labels": labels,
        "mlm_positions": torch.arange(PREDICTED),
    }
    built = []

    def build() -> torch.nn.Module:
        built.append(build_model(config, VOCABULARY))
        return built[0]

    cost = measure_cost(build, batch)
    tokens = ROWS * LENGTH
    layer = tokens * (4 * HIDDEN**2 + 2 * HIDDEN * INNER) + 2 * ROWS * LENGTH**2 * HIDDEN
    head = PREDICTED * (HIDDEN**2 + HIDDEN * VOCABULARY)
    # Two operations a product; the backward pass costs twice the forward pass.
    assert cost.flops == 3 * 2 * (LAYERS * layer + head)
    assert cost.activations > 4 * tokens * HIDDEN * LAYERS
    assert all(weight.is_meta for weight in built[0].parameters())
    assert parameters_num(build_model(config, VOCABULARY)) == parameters_num(built[0])


def test_state() -> None:
    assert state_bytes(10, "adamw") == 160 and state_bytes(10, "adafactor") == 80
