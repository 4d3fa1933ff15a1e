"""Fine-tuned models of theirs with heads that are none of a family's: the body is converted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers

from tencentpretrain.conversion import huggingface

BERT_LIKE = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
    "num_attention_heads": 2,
}  # fmt: skip
T5_LIKE = {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
SIZES: dict[str, dict[str, Any]] = {
    "Albert": BERT_LIKE | {"embedding_size": 8},
    "FNet": BERT_LIKE,
    "GPT2": {"vocab_size": 40, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16},
    "Llama": BERT_LIKE,
    "Qwen2": BERT_LIKE | {"num_key_value_heads": 2},
    "Bloom": {"vocab_size": 40, "hidden_size": 16, "n_layer": 1, "n_head": 2},
    "T5": T5_LIKE,
    "MT5": T5_LIKE,
    "Bart": {
        "vocab_size": 40, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 24,
        "encoder_attention_heads": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 24,
    },
}  # fmt: skip
TASKS = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForMultipleChoice",
         "DoubleHeadsModel")  # fmt: skip
MODELS = [family + task for family in SIZES for task in TASKS if hasattr(transformers, family + task)]


@pytest.mark.parametrize("name", MODELS)
def test_the_body_is_converted(name: str, tmp_path: Path) -> None:
    kind = getattr(transformers, name)
    family = next(family for family in SIZES if name.startswith(family))
    theirs = kind(kind.config_class(**SIZES[family]))
    theirs.save_pretrained(tmp_path)
    model = huggingface.read(tmp_path)
    word = theirs.get_input_embeddings().weight
    assert model.tensors["embedding.word.embedding.weight"].equal(word)
    heads = ("score", "classifier", "classification_head", "multiple_choice_head", "qa_outputs")
    there = {name for name in theirs.state_dict() if name.startswith(heads)}
    assert there - set(model.ignored) == set() or model.parts  # told, or converted as a head of the family
