"""Values of a wrong type in files of other libraries end in one message that names the file and the key."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny_models  # noqa: F401  keeps Transformers off the network
import transformers

from tencentpretrain.conversion import huggingface
from tencentpretrain.conversion.maps import FAMILIES
from tencentpretrain.errors import UserError
from tencentpretrain.tokenizers import load_tokenizer
from tencentpretrain.weights import read_description

WRONG: list[Any] = ["x", "3", -1, 2.5, float("nan"), 10**30, [], [1], {"a": 1}]
YARN = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 20, "rope_theta": 10000.0}
CONFIGS: dict[str, dict[str, Any]] = {
    "BertForSequenceClassification": {"id2label": {"0": "good", "1": "bad"}},
    "AlbertForMaskedLM": {},
    "GPT2LMHeadModel": {},
    "LlamaForCausalLM": {"rope_parameters": YARN},
    "MistralForCausalLM": {},
    "Qwen2ForCausalLM": {"use_sliding_window": True, "max_window_layers": 0, "layer_types": None},
    "BloomForCausalLM": {},
    "BartForConditionalGeneration": {},
}


def config_of(name: str) -> dict[str, Any]:
    made = getattr(transformers, name).config_class(architectures=[name], **CONFIGS[name])
    config: dict[str, Any] = json.loads(made.to_json_string(use_diff=False))
    return config | CONFIGS[name]


def write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


@pytest.mark.parametrize("name", CONFIGS)
def test_config(name: str, tmp_path: Path) -> None:
    """Every key that a family reads, with values that it cannot have; null means the default."""
    config = config_of(name)
    write(tmp_path / "config.json", config)
    assert read_description(tmp_path) is not None
    (family,) = (one for one in FAMILIES if one.name == config["model_type"])
    keys = {one.theirs for one in family.settings if one.theirs in config} | {"vocab_size"}
    for key in sorted(keys - {None}):
        refused = 0
        for value in WRONG:
            write(tmp_path / "config.json", config | {key: value})
            try:
                huggingface.describe(tmp_path)
            except UserError as error:
                assert "config.json: " in str(error) and f"`{key}`" in str(error), (key, value)
                refused += 1
        assert refused >= len(WRONG) - 4, key  # a size of 3 may do, a slow rotation, no window of any layer


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        (
            "Qwen2ForCausalLM",
            {"layer_types": "full_attention"},
            "`layer_types` is 'full_attention', expected",
        ),
        ("LlamaForCausalLM", {"quantization_config": {"bits": 4}}, "quantized weights are not read"),
        ("LlamaForCausalLM", {"rope_parameters": "yarn"}, "`rope_parameters` is 'yarn', expected an object"),
        ("LlamaForCausalLM", {"rope_parameters": YARN | {"factor": "2"}}, "`factor` above 0, but it is '2'"),
        ("LlamaForCausalLM", {"rope_parameters": YARN | {"rope_theta": "x"}}, "`rope_theta`"),
        (
            "BertForSequenceClassification",
            {"architectures": "Bert"},
            "`architectures` is Bert, expected a list",
        ),
        ("BertForSequenceClassification", {"id2label": ["good", "bad"]}, "`id2label` must give each number"),
        ("BertForSequenceClassification", {"id2label": {"1": "a"}}, "`id2label` must give each number"),
        ("BertForSequenceClassification", {"id2label": {"0": []}}, "`id2label` must give each number"),
        ("BertForSequenceClassification", {"id2label": {}, "num_labels": 10**12}, "`num_labels` is 10000000"),
        ("BertForSequenceClassification", {"model_type": 3}, "`model_type` is 3, expected a name"),
        (
            "BertForSequenceClassification",
            {"num_attention_heads": 5},
            "`num_attention_heads` must divide `hid",
        ),
    ],
)
def test_nested_values_of_config(name: str, changes: Mapping[str, Any], said: str, tmp_path: Path) -> None:
    write(tmp_path / "config.json", config_of(name) | changes)
    with pytest.raises(UserError) as caught:
        read_description(tmp_path)
    assert "config.json: " in str(caught.value) and said in str(caught.value)


def test_a_configuration_that_is_no_object(tmp_path: Path) -> None:
    write(tmp_path / "config.json", [])
    with pytest.raises(UserError, match=r"config.json: expected an object \(\{…\}\), but is list instead"):
        huggingface.is_model_directory(tmp_path)


MODULES = [
    {"path": "", "type": "sentence_transformers.models.Transformer"},
    {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
]
SENTENCES: dict[str, Any] = {
    "modules.json": MODULES,
    "1_Pooling/config.json": {"pooling_mode_mean_tokens": True},
    "sentence_bert_config.json": {"max_seq_length": 128},
    "tokenizer_config.json": {"model_max_length": 512},
}


@pytest.mark.parametrize(
    ("file", "value"),
    [
        *(("modules.json", value) for value in (3, {}, [3], [{"type": 1, "path": ""}], [{"type": "a"}])),
        ("modules.json", [MODULES[0] | {"path": 1}, MODULES[1]]),
        *(
            ("1_Pooling/config.json", value)
            for value in ([], {"pooling_mode": ["mean"]}, {"pooling_mode": 1})
        ),
        *(("sentence_bert_config.json", value) for value in ([], {"max_seq_length": "x"})),
        *(("sentence_bert_config.json", {"max_seq_length": value}) for value in (-1, [], True, 0)),
        ("tokenizer_config.json", []),
    ],
)
def test_sentence_transformers(file: str, value: Any, tmp_path: Path) -> None:
    write(tmp_path / "config.json", config_of("BertForSequenceClassification") | {"architectures": []})
    (tmp_path / "1_Pooling").mkdir()
    for name, content in SENTENCES.items():
        write(tmp_path / name, content)
    assert huggingface.describe(tmp_path)["seq_length"] == 128
    write(tmp_path / file, value)
    with pytest.raises(UserError) as caught:
        huggingface.describe(tmp_path)
    assert str(tmp_path / file) in str(caught.value)


TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]
ADDED = [{"id": 1, "content": "[UNK]", "special": True}]
PARTS: dict[str, Any] = {
    "added_tokens": ADDED,
    "model": {
        "type": "WordPiece",
        "unk_token": "[UNK]",
        "vocab": {name: id for id, name in enumerate(TOKENS)},
    },
}


@pytest.mark.parametrize("value", [4_000_000_000, -1, "5", 5.0, None, True, [5]])
def test_ids_of_a_tokenizer(value: Any, tmp_path: Path) -> None:
    model = PARTS["model"]
    for parts, key in (
        (PARTS | {"model": model | {"vocab": model["vocab"] | {"a": value}}}, "model.vocab.a"),
        (PARTS | {"added_tokens": [ADDED[0] | {"id": value}]}, "added_tokens.0"),
    ):
        write(tmp_path / "tokenizer.json", parts)
        with pytest.raises(
            UserError, match=rf"tokenizer\.json: `{key}` is .*{value}.*, expected .*from 0 to"
        ):
            load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("model", {"model": "WordPiece"}),
        ("model.vocab", {"model": {"type": "WordPiece", "vocab": 3}}),
        ("model.vocab.0", {"model": {"type": "Unigram", "vocab": [["a"]]}}),
        ("model.merges", {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": {"a": "b"}}}),
        ("model.merges.0", {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", 1]]}}),
        ("normalizer", {"normalizer": True}),
        ("pre_tokenizer", {"pre_tokenizer": []}),
        ("added_tokens.0", {"added_tokens": {"a": 1}}),
        ("added_tokens.1", {"added_tokens": [*ADDED, {"id": 2}]}),
    ],
)
def test_parts_of_a_tokenizer(key: str, changes: Mapping[str, Any], tmp_path: Path) -> None:
    write(tmp_path / "tokenizer.json", PARTS | changes)
    with pytest.raises(UserError, match=rf"tokenizer\.json: `{key}` is "):
        load_tokenizer(tmp_path)


def test_tokenizer_without_an_unknown_token(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordPiece({"a": 0}, unk_token="[UNK]")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(
        UserError, match=r"tokenizer\.json is no tokenizer\.json \(.*UNK.* token from the voc"
    ):
        load_tokenizer(tmp_path)
