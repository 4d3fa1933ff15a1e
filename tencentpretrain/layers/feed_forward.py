"""Position-wise feed-forward layers."""

from __future__ import annotations

from torch import Tensor, nn

from tencentpretrain.config import ModelConfig
from tencentpretrain.layers.activations import ACTIVATIONS


class FeedForward(nn.Module):
    """Two linear layers, an activation between; "gated" multiplies by a second projection (Shazeer 2020)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        bias = not config.remove_transformer_bias
        self.activation = ACTIVATIONS[config.hidden_act]
        self.linear_gate: nn.Linear | None = None
        if config.feed_forward == "gated":
            self.linear_gate = nn.Linear(config.hidden_size, config.feedforward_size, bias=bias)
        self.linear_1 = nn.Linear(config.hidden_size, config.feedforward_size, bias=bias)
        self.linear_2 = nn.Linear(config.feedforward_size, config.hidden_size, bias=bias)

    def forward(self, hidden: Tensor) -> Tensor:
        if self.linear_gate is None:
            inner = self.activation(self.linear_1(hidden))
        else:
            inner = self.activation(self.linear_gate(hidden)) * self.linear_1(hidden)
        output: Tensor = self.linear_2(inner)
        return output
