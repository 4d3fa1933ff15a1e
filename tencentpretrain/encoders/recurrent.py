from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor, nn

from tencentpretrain.batch import Batch
from tencentpretrain.config import ModelConfig
from tencentpretrain.encoders.no_attention import mask_problems
from tencentpretrain.layers.cache import Cache
from tencentpretrain.layers.dropout import Dropout, dropout
from tencentpretrain.registry import ENCODERS

Cell: TypeAlias = type[nn.RNN] | type[nn.LSTM] | type[nn.GRU]
# By nn.RNNBase.mode.
FUNCTIONS: dict[str, Callable[..., tuple[Tensor, ...]]] = {
    "RNN_TANH": torch.rnn_tanh,
    "LSTM": torch.lstm,
    "GRU": torch.gru,
}


def recurrent_layers(
    cell: Cell, config: ModelConfig, width: int, depth: int, bidirectional: bool = False
) -> nn.RNNBase:
    """torch's module, with dropout between its layers."""
    between = config.dropout if depth > 1 else 0.0
    return cell(config.emb_size, width, depth, batch_first=True, dropout=between, bidirectional=bidirectional)


def _even_width(name: str, config: ModelConfig) -> Iterator[str]:
    if config.hidden_size % 2:
        yield f"{name} needs an even `hidden_size`, half for each direction, but it is {config.hidden_size}."


class RecurrentEncoder(nn.Module):
    """Recurrent layers: [B, S, emb_size] to [B, S, D].

    With `bidirectional`, every layer reads in both directions and gives the next one both halves; the
    backward direction begins at the last token that is not padding.
    """

    any_width = True
    features = ("directions",)
    reads = ("segment_ids",)
    cell: ClassVar[Cell]

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.hidden_size // 2 if config.bidirectional else config.hidden_size
        self.rnn = recurrent_layers(self.cell, config, width, config.layers_num, config.bidirectional)
        self.dropout = Dropout(config.dropout)

    @staticmethod
    def problems(config: ModelConfig) -> Iterator[str]:
        yield from _even_width("`bidirectional`", config) if config.bidirectional else ()
        yield from mask_problems(config, causal=not config.bidirectional)

    @staticmethod
    def is_causal(config: ModelConfig) -> bool:
        return not config.bidirectional

    def forward(
        self, hidden: Tensor, batch: Batch, outputs: int | None = None, cache: Cache | None = None
    ) -> Tensor:
        # What comes later, padding too, is not seen by those that go one way.
        states = self._both_ways(hidden, batch) if self.rnn.bidirectional else self.rnn(hidden)[0]
        dropped: Tensor = self.dropout(states)
        return dropped

    def _both_ways(self, hidden: Tensor, batch: Batch) -> Tensor:
        """Direction by direction: torch's own begins at the padding, or is several times slower on the CPU
        with packed sequences."""
        for layer in range(self.rnn.num_layers):
            if layer:
                hidden = dropout(hidden, self.rnn.dropout, self.training)
            ahead, back = self.rnn.all_weights[2 * layer : 2 * layer + 2]
            turned = reverse(self._read(reverse(hidden, batch), back), batch)
            hidden = torch.cat([self._read(hidden, ahead), turned], -1)
        return hidden

    def _read(self, hidden: Tensor, weights: Sequence[Tensor]) -> Tensor:
        start = hidden.new_zeros(1, len(hidden), self.rnn.hidden_size)
        state = (start, start) if self.rnn.mode == "LSTM" else start
        read = FUNCTIONS[self.rnn.mode]
        return read(hidden, state, weights, True, 1, 0.0, self.training, False, True)[0]


class TwoWayEncoder(nn.Module):
    """Two stacks of recurrent layers that never see each other, one for each direction (Peters et al. 2018,
    §3.1): [B, S, emb_size] to [B, S, D], of which the first half has read up to its position, the second half
    from the last token that is not padding down to its position.
    """

    any_width = True
    features = ()
    reads = ("segment_ids",)
    separate_directions = True
    cell: ClassVar[Cell]

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, depth = config.hidden_size // 2, config.layers_num
        self.rnn_forward = recurrent_layers(self.cell, config, width, depth)
        self.rnn_backward = recurrent_layers(self.cell, config, width, depth)
        self.dropout = Dropout(config.dropout)

    @staticmethod
    def problems(config: ModelConfig) -> Iterator[str]:
        yield from _even_width(f"encoder '{config.encoder}'", config)
        yield from mask_problems(config, causal=False)

    def forward(
        self, hidden: Tensor, batch: Batch, outputs: int | None = None, cache: Cache | None = None
    ) -> Tensor:
        turned = reverse(self.rnn_backward(reverse(hidden, batch))[0], batch)
        states: Tensor = self.dropout(torch.cat([self.rnn_forward(hidden)[0], turned], -1))
        return states


def reverse(hidden: Tensor, batch: Batch) -> Tensor:
    """The real tokens of each row of [B, S, D] in reverse order, padding where it was."""
    if "segment_ids" not in batch:
        return hidden.flip(1)
    positions = torch.arange(hidden.shape[1], device=hidden.device)
    lengths = (batch["segment_ids"] > 0).sum(1, keepdim=True)
    order = torch.where(positions < lengths, lengths - 1 - positions, positions)
    return hidden.take_along_dim(order.unsqueeze(-1), 1)


@ENCODERS.register("rnn")
class RnnEncoder(RecurrentEncoder):
    cell = nn.RNN


@ENCODERS.register("lstm")
class LstmEncoder(RecurrentEncoder):
    cell = nn.LSTM


@ENCODERS.register("gru")
class GruEncoder(RecurrentEncoder):
    cell = nn.GRU


@ENCODERS.register("birnn")
class BirnnEncoder(TwoWayEncoder):
    cell = nn.RNN


@ENCODERS.register("bilstm")
class BilstmEncoder(TwoWayEncoder):
    cell = nn.LSTM


@ENCODERS.register("bigru")
class BigruEncoder(TwoWayEncoder):
    cell = nn.GRU
