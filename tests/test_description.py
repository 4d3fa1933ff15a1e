"""What lies beside weights: written, read, and defended against options that contradict it."""

from __future__ import annotations

import dataclasses
import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tencentpretrain.config import ModelConfig, TokenizerConfig, as_json, options_of
from tencentpretrain.description import (
    CHANGEABLE,
    OF_A_DECODER,
    check_against_description,
    described_config,
    read_description,
    write_description,
)
from tencentpretrain.errors import ConfigError, DataError, UserError
from tencentpretrain.tokenizers import Tokenizer, build_tokenizer, load_tokenizer

CONFIG = ModelConfig(
    hidden_size=16, emb_size=16, heads_num=2, layers_num=2, target=("mlm", "sp"), layernorm_eps=1e-12
)
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b")


def tokenizer_of(directory: Path, *words: str) -> Tokenizer:
    directory.mkdir(exist_ok=True)
    (directory / "vocab.txt").write_text("\n".join((*WORDS, *words)), encoding="utf-8")
    return build_tokenizer(TokenizerConfig(vocab_path=str(directory / "vocab.txt")))


def test_all_that_was_written_is_read(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(tmp_path / "vocabulary")
    write_description(tmp_path / "model.bin", CONFIG, tokenizer, ["no", "yes"], ["my_module"])
    description = read_description(tmp_path / "model.bin")
    assert description is not None
    assert described_config(tmp_path / "model.bin", description) == CONFIG
    assert description["labels"] == ["no", "yes"] and description["labels_num"] == 2
    assert description["plugins"] == ["my_module"]
    assert description["vocab_size"] == len(WORDS) and description["special_tokens"]["mask"] == "[MASK]"
    assert load_tokenizer(tmp_path / "model.bin").fingerprint == tokenizer.fingerprint
    check_against_description(CONFIG, description, "model.bin", tokenizer=tokenizer, labels_num=2)


def test_steps_share_a_tokenizer_and_runs_do_not(tmp_path: Path) -> None:
    first = tokenizer_of(tmp_path / "one")
    for name in ("model.bin-100", "model.bin-200", "model.bin"):
        write_description(tmp_path / name, CONFIG, first)
    assert [path.name for path in tmp_path.glob("*.tokenizer*")] == ["model.bin.tokenizer"]
    second = tokenizer_of(tmp_path / "two", "c")
    for _ in range(2):
        write_description(tmp_path / "model.bin", CONFIG, second)
    assert len(list(tmp_path.glob("*.tokenizer*"))) == 2
    assert load_tokenizer(tmp_path / "model.bin").vocab_size == len(WORDS) + 1
    assert load_tokenizer(tmp_path / "model.bin-100").vocab_size == len(WORDS)


def test_the_decoder_may_have_a_tokenizer_of_its_own(tmp_path: Path) -> None:
    source, target = tokenizer_of(tmp_path / "one"), tokenizer_of(tmp_path / "two", "c")
    for name in ("model.bin-100", "model.bin"):
        write_description(tmp_path / name, CONFIG, source, tgt_tokenizer=target)
        assert load_tokenizer(tmp_path / name).fingerprint == source.fingerprint
        assert load_tokenizer(tmp_path / name, side="tgt").fingerprint == target.fingerprint
    directories = {path.name for path in tmp_path.glob("*tokenizer*")}
    assert directories == {"model.bin.tokenizer", "model.bin.tgt_tokenizer"}
    two = read_description(tmp_path / "model.bin") or {}
    assert (two["vocab_size"], two["tgt_vocab_size"]) == (len(WORDS), len(WORDS) + 1)

    write_description(tmp_path / "one.bin", CONFIG, source)
    one = read_description(tmp_path / "one.bin") or {}
    assert load_tokenizer(tmp_path / "one.bin", side="tgt").fingerprint == source.fingerprint
    without = {"tokenizer_path": "one", "tgt_vocab_size": 8}  # as converted weights can be
    (tmp_path / "without.bin.json").write_text(json.dumps(without), encoding="utf-8")
    with pytest.raises(DataError, match="'tgt_tokenizer_path'"):
        load_tokenizer(tmp_path / "without.bin", side="tgt")

    for description, tgt_tokenizer in ((two, target), (one, source), (without, source), (without, target)):
        check_against_description(CONFIG, description, "m", tokenizer=source, tgt_tokenizer=tgt_tokenizer)
    for description, tgt_tokenizer in ((two, source), (one, target)):
        with pytest.raises(ConfigError, match="another tokenizer for the decoder's side") as caught:
            check_against_description(CONFIG, description, "m", tokenizer=source, tgt_tokenizer=tgt_tokenizer)
        assert len(caught.value.problems) == 1
    with pytest.raises(ConfigError) as caught:
        check_against_description(CONFIG, one, "m", tokenizer=target, tgt_tokenizer=target)
    assert len(caught.value.problems) == 1


def test_weights_move_with_what_lies_beside_them(tmp_path: Path) -> None:
    write_description(tmp_path / "here" / "model.bin", CONFIG, tokenizer_of(tmp_path / "vocabulary"))
    (tmp_path / "here").rename(tmp_path / "there")
    assert load_tokenizer(tmp_path / "there" / "model.bin").tokens == list(WORDS)


def test_contradictions_are_all_named(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(tmp_path / "vocabulary")
    write_description(tmp_path / "model.bin", CONFIG, tokenizer, labels_num=3)
    description = read_description(tmp_path / "model.bin")
    other = dataclasses.replace(
        CONFIG, heads_num=4, layernorm="rms", mask="causal", layernorm_eps=1e-6, dropout=0.3, pooling="mean"
    )
    another = tokenizer_of(tmp_path / "another", "c")
    with pytest.raises(ConfigError) as caught:
        check_against_description(other, description, "model.bin", tokenizer=another, labels_num=2)
    words = (
        "`heads_num` is 4",
        "`layernorm` is rms",
        "`mask` is causal",
        "`layernorm_eps`",
        "tokenizer",
        "labels_num",
    )
    assert len(caught.value.problems) == len(words)
    assert all(word in str(caught.value) for word in words)


def test_a_contradiction_says_where_both_values_come_from() -> None:
    other = dataclasses.replace(CONFIG, heads_num=4)
    said = r"have 2; leave --config_path c\.json out; it is known from .*bin\.json"
    with pytest.raises(ConfigError, match=said):
        check_against_description(
            other, {"heads_num": 2}, "model.bin", origin=lambda name: "--config_path c.json"
        )


def test_what_belongs_to_the_target_may_change() -> None:
    described = {field.name: getattr(CONFIG, field.name) for field in dataclasses.fields(CONFIG)}
    free = dataclasses.replace(
        CONFIG, target=("cls",), target_weights={"cls": 2.0}, pooling="mean", dropout=0.0, tie_weights=True
    )
    check_against_description(free, described, "model.bin")
    check_against_description(free, None, "model.bin")


def test_nothing_known(tmp_path: Path) -> None:
    assert read_description(tmp_path / "model.bin") is None
    assert read_description(tmp_path) is None


def test_damaged_description(tmp_path: Path) -> None:
    (tmp_path / "model.bin.json").write_text('{"layers_num": 2,}', encoding="utf-8")
    with pytest.raises(UserError, match="line 1: trailing comma"):
        read_description(tmp_path / "model.bin")
    (tmp_path / "model.bin.json").write_text(json.dumps({"layers_num": "two"}), encoding="utf-8")
    with pytest.raises(ConfigError, match="layers_num"):
        described_config(tmp_path / "model.bin", read_description(tmp_path / "model.bin") or {})
    with pytest.raises(ConfigError, match="layers_num"):
        check_against_description(CONFIG, read_description(tmp_path / "model.bin"), tmp_path / "model.bin")


@pytest.mark.parametrize("name", options_of(ModelConfig))
def test_every_option_is_compared_but_those_that_may_change(name: str, tmp_path: Path) -> None:
    """An option that is added later too, unless it is declared to be of training or of the target."""
    changed: Any = SimpleNamespace(**vars(CONFIG) | {name: "another"})
    free = CHANGEABLE | (OF_A_DECODER - {"decoder"})  # without a decoder
    problem = nullcontext() if name in free else pytest.raises(ConfigError, match=f"`{name}` is another, but")
    with problem:
        check_against_description(changed, as_json(CONFIG), tmp_path / "model.bin")
