from __future__ import annotations

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tencentpretrain.batch import Batch
from tencentpretrain.config import ModelConfig
from tencentpretrain.layers.masks import MASKS
from tencentpretrain.layers.norm import make_norm
from tencentpretrain.layers.transformer import TransformerLayer
from tencentpretrain.registry import ENCODERS


@ENCODERS.register("transformer")
class TransformerEncoder(nn.Module):
    """A stack of transformer layers: [B, S, emb_size] to [B, S, D].

    `parameter_sharing` repeats one layer, `factorized_embedding_parameterization` projects the embeddings
    first (both ALBERT, Lan et al. 2020, §3.1); "pre" normalisation adds one norm at the end.
    """

    reads = ("segment_ids",)

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.mask = MASKS[config.mask]
        self.layers_num = config.layers_num
        self.activation_checkpointing = False
        self.linear: nn.Linear | None = None
        if config.factorized_embedding_parameterization:
            self.linear = nn.Linear(config.emb_size, config.hidden_size)
        self.transformer: nn.Module
        if config.parameter_sharing:
            self.transformer = TransformerLayer(config)
        else:
            self.transformer = nn.ModuleList(TransformerLayer(config) for _ in range(config.layers_num))
        self.layer_norm = make_norm(config) if config.layernorm_positioning == "pre" else None

    def forward(self, hidden: Tensor, batch: Batch, outputs: int | None = None) -> Tensor:
        """With `outputs`, that many leading positions of the last layer are computed: [B, outputs, D]."""
        mask = self.mask(batch.get("segment_ids"))
        if self.linear is not None:
            hidden = self.linear(hidden)
        one = self.transformer
        layers = list(one) if isinstance(one, nn.ModuleList) else [one] * self.layers_num
        for number, layer in enumerate(layers, start=1):
            needed = outputs if number == self.layers_num else None
            if self.activation_checkpointing and self.training:
                hidden = checkpoint(layer, hidden, mask, needed, use_reentrant=False)
            else:
                hidden = layer(hidden, mask, needed)
        return hidden if self.layer_norm is None else self.layer_norm(hidden)
