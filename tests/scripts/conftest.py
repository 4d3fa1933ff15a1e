from __future__ import annotations

from pathlib import Path

import pytest
import torch
from word_list import WORDS

from tencentpretrain.config import ModelConfig, TokenizerConfig
from tencentpretrain.description import make_description
from tencentpretrain.model import build_model
from tencentpretrain.tokenizers import build_tokenizer
from tencentpretrain.weights import publish_weights


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A tiny random BERT with its description and tokenizer; no parameter is as it began."""
    vocabulary = tmp_path / "vocab.txt"
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    vocabulary.write_text("\n".join(tokens) + "\n", encoding="utf-8")
    tokenizer = build_tokenizer(TokenizerConfig(vocab_path=str(vocabulary)))
    config = ModelConfig(
        embedding=("word", "pos", "seg"),
        hidden_size=16,
        emb_size=16,
        feedforward_size=24,
        heads_num=2,
        layers_num=2,
        max_seq_length=24,
        pooling="mean",
    )
    torch.manual_seed(0)
    model = build_model(config, tokenizer.vocab_size)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    publish_weights(
        model.state_dict(),
        tmp_path / "model.bin",
        make_description(tmp_path / "model.bin", config, tokenizer),
    )
    return tmp_path / "model.bin"
