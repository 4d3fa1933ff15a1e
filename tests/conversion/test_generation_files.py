"""What a directory of theirs says for generating texts: special tokens, and byte-level vocabularies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from tiny_models import SIZES

from tencentpretrain import build_model
from tencentpretrain.config import ModelConfig, TokenizerConfig
from tencentpretrain.description import write_description
from tencentpretrain.tokenizers import build_tokenizer
from tencentpretrain.weights import save_weights

T5_LIKE = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2, "vocab_size": 40}
BART_LIKE = {
    "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "vocab_size": 40,
    "max_position_embeddings": 16, "forced_eos_token_id": None,
}  # fmt: skip
IDS = {"pad_token_id": 7, "bos_token_id": 8, "eos_token_id": 9}
STARTING = {"pad_token_id": 7, "eos_token_id": 9, "decoder_start_token_id": 7}
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "GPT2LMHeadModel": (
        {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16, "vocab_size": 40},
        {"bos_token_id": 8, "eos_token_id": 9},
    ),
    "LlamaForCausalLM": (SIZES, IDS | {"eos_token_id": [9, 10]}),
    "BloomForCausalLM": ({"hidden_size": 16, "n_layer": 1, "n_head": 2, "vocab_size": 40}, IDS),
    "T5ForConditionalGeneration": (T5_LIKE, STARTING),
    "BartForConditionalGeneration": (BART_LIKE, IDS | {"decoder_start_token_id": 9}),
    "PegasusForConditionalGeneration": (BART_LIKE | {"scale_embedding": True}, STARTING),
    "MarianMTModel": (BART_LIKE | {"scale_embedding": True}, STARTING),
}


@pytest.mark.parametrize("name", MODELS)
def test_ids_of_the_source_come_back_without_a_tokenizer(run_convert, name: str, tmp_path: Path) -> None:
    sizes, ids = MODELS[name]
    kind = getattr(transformers, name)
    kind(kind.config_class(**sizes | ids)).save_pretrained(tmp_path / "theirs")
    (tmp_path / "theirs" / "generation_config.json").unlink()
    run_convert("tencentpretrain", tmp_path / "theirs", tmp_path / "ours.bin")
    said = run_convert("huggingface", tmp_path / "ours.bin", tmp_path / "back")
    assert "not known without a tokenizer" not in said
    config = json.loads((tmp_path / "back" / "config.json").read_text(encoding="utf-8"))
    generation = json.loads((tmp_path / "back" / "generation_config.json").read_text(encoding="utf-8"))
    assert {name: config[name] for name in ids} == {name: generation[name] for name in ids} == ids
    loaded = kind.from_pretrained(tmp_path / "back")
    assert {name: getattr(loaded.generation_config, name) for name in ids} == ids
    run_convert("huggingface", tmp_path / "ours.bin", tmp_path / "back")  # which replaces what it wrote


def test_ids_that_nothing_says_are_told(run_convert, tmp_path: Path) -> None:
    config = ModelConfig(
        hidden_size=16, emb_size=16, heads_num=2, layers_num=1, feedforward_size=24, target=("lm",),
        embedding=("word", "sinusoidalpos"), tgt_embedding=("word", "sinusoidalpos"), decoder="transformer",
        remove_embedding_layernorm=True, sinusoidal_variant="marian", has_lmtarget_bias=True,
    )  # fmt: skip
    save_weights(build_model(config, 30).state_dict(), tmp_path / "ours.bin")
    write_description(tmp_path / "ours.bin", config, None, vocab_size=30)
    said = run_convert("huggingface", tmp_path / "ours.bin", tmp_path / "back", "--family", "marian")
    assert "not known without a tokenizer, and left at their defaults: pad_token_id, eos_token_id, " in said


@pytest.mark.parametrize("value", ["7", -1.5, [], {"a": 1}, True])
def test_ids_of_a_wrong_type(run_convert, value: Any, tmp_path: Path) -> None:
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**MODELS["GPT2LMHeadModel"][0]))
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(config | {"bos_token_id": value}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"config\.json: `bos_token_id` is .*, expected the id of a token"):
        run_convert("tencentpretrain", tmp_path, tmp_path / "ours.bin")


TEXTS = ("hello world", " hello  there, don't 12345\n\n你好 <|endoftext|>x")


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {}),
        ("mistral", {"sliding_window": 3}),
        ("qwen2", {"has_qkv_bias": True}),
        ("qwen3", {"has_qk_norm": True}),
    ],
)
def test_a_byte_level_vocabulary_gives_the_same_ids(
    run_convert, family: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>", "<|pad|>"]
    trainer = trainers.BpeTrainer(vocab_size=290, special_tokens=special, initial_alphabet=alphabet)
    made.train_from_iterator(["hello world hello there, don't 12345"] * 3, trainer)
    made.model.save(str(tmp_path))
    paths = {"vocab_path": str(tmp_path / "vocab.json"), "merges_path": str(tmp_path / "merges.txt")}
    ours = build_tokenizer(TokenizerConfig("bpe", **paths))
    config = ModelConfig(
        hidden_size=16, emb_size=16, heads_num=2, layers_num=1, feedforward_size=20, mask="causal",
        layernorm="rms", layernorm_positioning="pre", feed_forward="gated", remove_embedding_layernorm=True,
        remove_transformer_bias=True, rotary_position_embedding=True, hidden_act="silu", target=("lm",),
        **changes,
    )  # fmt: skip
    save_weights(build_model(config, ours.vocab_size).state_dict(), tmp_path / "ours.bin")
    write_description(tmp_path / "ours.bin", config, ours)
    said = run_convert("huggingface", tmp_path / "ours.bin", tmp_path / "theirs", "--family", family)
    # Transformers reads this family with its own class, which splits numbers and words otherwise.
    fixed = family == "qwen2"
    assert fixed == ("PreTrainedTokenizerFast loads the tokenizer that is written" in said)
    loader = transformers.PreTrainedTokenizerFast if fixed else transformers.AutoTokenizer
    theirs = loader.from_pretrained(tmp_path / "theirs")
    for text in TEXTS:
        assert theirs(text, add_special_tokens=False)["input_ids"] == list(ours.encode(text))
    assert theirs.eos_token_id == ours.sep_id
