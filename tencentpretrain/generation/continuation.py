"""Texts that grow by a token at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from tencentpretrain.batch import DECODER_SIDE, Batch
from tencentpretrain.errors import ConfigError, DataError
from tencentpretrain.layers.cache import Cache
from tencentpretrain.model import Model
from tencentpretrain.targets.lm import LmTarget

FIRST, SECOND = 1, 2  # segments


class Continuation:
    """Prompts, what was appended to them, and what the model expects next.

    A causal model continues `input_ids`; with mask causal_with_prefix the prompt is the first segment unless
    the batch says otherwise, and what follows is the second. A decoder continues `decoder_input_ids`, or
    `start_id` in every row. Prompts may differ in length; each row's result is that of the row alone.

    An encoder or decoder whose class says `caches = True` is given the new tokens only, and a cache; others
    compute the whole text at every step.

    Raises:
        ConfigError: the model has no target 'lm'.
        DataError: a prompt is empty, or there is none.
    """

    def __init__(self, model: Model, batch: Batch, start_id: int | None = None) -> None:
        config = model.config
        if "lm" not in config.target:
            raise ConfigError(f"generation needs the target 'lm', but `target` is {' '.join(config.target)}.")
        self.model, self.source = model, batch
        self.memory: Tensor | None = None
        named = {name: name for name in DECODER_SIDE}
        grows, layers_num = model.encoder, config.layers_num
        if model.decoder is not None:
            named, grows, layers_num = DECODER_SIDE, model.decoder, config.decoder_depth
            self.memory = model.encoder(model.embedding(batch), batch)
            if named["input_ids"] not in batch and start_id is not None:
                starts = torch.full_like(batch["input_ids"][:, :1], start_id)
                batch = batch | {named["input_ids"]: starts}
        self.cache = Cache(layers_num) if getattr(grows, "caches", False) else None
        self.named = named
        if named["input_ids"] not in batch:
            raise DataError("generation with a decoder needs a start_id, or decoder_input_ids in the batch.")
        tokens = batch[named["input_ids"]]
        segments = batch.get(named["segment_ids"], torch.full_like(tokens, FIRST))
        if not tokens.numel() or not bool(segments.any(1).all()):
            raise DataError(
                "generation needs at least one token in every row to continue from, but one is empty."
            )
        # Padding goes to the left, so that every row ends in the last column.
        order = (segments > 0).byte().argsort(dim=1, stable=True)
        segments = segments.gather(1, order)
        positions = batch.get(named["position_ids"])
        self.fields = {
            "input_ids": tokens.gather(1, order),
            "segment_ids": segments,
            "position_ids": ((segments > 0).cumsum(1) - 1).clamp(min=0)
            if positions is None
            else positions.expand_as(tokens).gather(1, order),
        }

    @property
    def length(self) -> int:
        """Tokens of the longest row."""
        return self.fields["input_ids"].shape[1]

    def logits(self) -> Tensor:
        """Of the next token of every row: [B, V]."""
        segments = self.fields["segment_ids"]
        if self.cache is not None:
            self.cache.segment_ids = segments
            fed = {name: tensor[:, self.cache.length :] for name, tensor in self.fields.items()}
            last = torch.full_like(segments[:, 0], -1)
        else:
            order = (segments == 0).byte().argsort(dim=1, stable=True)
            fed = {name: tensor.gather(1, order) for name, tensor in self.fields.items()}
            last = (segments > 0).sum(1) - 1
        hidden = self._hidden(self.source | {self.named[name]: tensor for name, tensor in fed.items()})
        target = self.model.target["lm"]
        assert isinstance(target, LmTarget)
        return target.logits(hidden[torch.arange(len(hidden), device=hidden.device), last])

    def _hidden(self, batch: Batch) -> Tensor:
        if self.memory is not None:
            return self.model.decode(self.memory, batch, self.cache)
        if self.cache is None:
            return self.model.encode(batch)
        hidden: Tensor = self.model.encoder(self.model.embedding(batch), batch, None, self.cache)
        return hidden

    def append(self, tokens: Tensor) -> None:
        """One token to every row: [B]."""
        fields = self.fields
        segments = fields["segment_ids"][:, -1]
        if self.memory is None and self.model.config.mask == "causal_with_prefix":
            segments = torch.full_like(segments, SECOND)
        new = {
            "input_ids": tokens,
            "segment_ids": segments,
            "position_ids": fields["position_ids"][:, -1] + 1,
        }
        self.fields = {name: torch.cat([old, new[name][:, None]], 1) for name, old in fields.items()}
