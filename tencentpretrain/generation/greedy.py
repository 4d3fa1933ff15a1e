"""Generation: one loop, and the choices of the next token."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tencentpretrain.batch import Batch
from tencentpretrain.errors import DataError
from tencentpretrain.generation.continuation import Continuation
from tencentpretrain.model import Model


def generate(
    model: Model,
    batch: Batch,
    max_new_tokens: int,
    choose: Callable[[Tensor], Tensor],
    eos_id: int | None = None,
    start_id: int | None = None,
    pad_id: int = 0,
) -> Tensor:
    """Continue every row until it ends: [B, new] with new ≤ max_new_tokens, without the prompts.

    Args:
        batch: prompts, see `Continuation`; on the model's device.
        choose: logits [B, V] to the next tokens [B].
        eos_id: the token that ends a row; None: none does.
        start_id: what a decoder starts from, where the batch has no decoder_input_ids.
        pad_id: what fills a row after its end.

    Raises:
        ConfigError, DataError: see `Continuation`; and where the text would outgrow the position embeddings.
    """
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            text = Continuation(model, batch, start_id)
            _check_length(model, text.length, max_new_tokens)
            new = torch.full(
                (len(batch["input_ids"]), max_new_tokens), pad_id, device=batch["input_ids"].device
            )
            ended = torch.zeros(len(new), dtype=torch.bool, device=new.device)
            for step in range(max_new_tokens):
                tokens = choose(text.logits()).masked_fill(ended, pad_id)
                new[:, step] = tokens
                if eos_id is not None:
                    ended |= tokens == eos_id
                    if bool(ended.all()):
                        return new[:, : step + 1]
                text.append(tokens)
            return new
    finally:
        model.train(training)


def greedy(
    model: Model,
    batch: Batch,
    max_new_tokens: int,
    eos_id: int | None = None,
    start_id: int | None = None,
    pad_id: int = 0,
) -> Tensor:
    """`generate` with the most probable token at every step."""
    return generate(model, batch, max_new_tokens, lambda logits: logits.argmax(-1), eos_id, start_id, pad_id)


def _check_length(model: Model, prompt: int, new: int) -> None:
    config = model.config
    embeddings = config.embedding if config.decoder is None else config.tgt_embedding
    # The last token is not read any more.
    if "pos" in embeddings and prompt + new - 1 > config.max_seq_length:
        raise DataError(
            f"prompts of up to {prompt} tokens and {new} new ones do not fit into the model's "
            f"{config.max_seq_length} positions (max_seq_length); shorten the prompts, or generate fewer."
        )
