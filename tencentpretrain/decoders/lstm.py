from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tencentpretrain.batch import Batch
from tencentpretrain.config import ModelConfig
from tencentpretrain.encoders.recurrent import recurrent_layers
from tencentpretrain.layers.cache import Cache
from tencentpretrain.layers.dropout import Dropout
from tencentpretrain.registry import DECODERS


@DECODERS.register("lstm")
class LstmDecoder(nn.Module):
    """An LSTM whose states attend to the encoder's (McCann et al. 2017, §3; Luong et al. 2015, §3.1): [B, T,
    emb_size] and [B, S, D] to [B, T, D].

    It begins with zeros and does not read its own output, so that training takes all positions at once.
    """

    reads = ("segment_ids",)
    features = ()

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.rnn = recurrent_layers(nn.LSTM, config, size, config.decoder_depth)
        self.attention = nn.Linear(size, size)
        self.output = nn.Linear(2 * size, size)
        self.dropout = Dropout(config.dropout)

    def forward(self, hidden: Tensor, memory: Tensor, batch: Batch, cache: Cache | None = None) -> Tensor:
        states = self.rnn(hidden)[0]
        seen = (batch["segment_ids"] > 0).unsqueeze(1) if "segment_ids" in batch else None
        context = F.scaled_dot_product_attention(
            self.attention(states), memory, memory, attn_mask=seen, scale=1.0
        )
        output: Tensor = self.dropout(self.output(torch.cat([context, states], -1)).tanh())
        return output
