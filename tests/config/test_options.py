"""Options: strict, all errors at once, one precedence."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tencentpretrain import ConfigError, load_config
from tencentpretrain.config import (
    CONCERNS,
    DataConfig,
    ModelConfig,
    OptimizationConfig,
    Options,
    PretrainConfig,
    RunConfig,
    TokenizerConfig,
    as_json,
    json_options,
    options_of,
)
from tencentpretrain.registry import ENCODERS

PRETRAIN = (ModelConfig, TokenizerConfig, DataConfig, OptimizationConfig, RunConfig, PretrainConfig)


def write(path: Path, values: object) -> Path:
    path.write_text(values if isinstance(values, str) else json.dumps(values), encoding="utf-8")
    return path


def parse(*arguments: str, **layers: dict[str, object]) -> Options:
    options = Options("test", *PRETRAIN, arguments=["--output_model_path", "m.bin", *arguments])
    for origin, values in layers.items():
        options.add_layer(origin, values)
    return options


def test_precedence_command_line_over_json_over_dataset_over_default() -> None:
    options = parse(
        "--seq_length=64", json={"seq_length": 32, "heads_num": 6}, dataset={"heads_num": 4, "seed": 3}
    )
    model, data = options.build(ModelConfig, DataConfig)
    assert (data.seq_length, model.heads_num, data.seed, data.short_seq_prob) == (64, 6, 3, 0.1)


def test_equals_sign_and_space_mean_the_same() -> None:
    for arguments in (["--batch_size=8"], ["--batch_size", "8"]):
        (run,) = parse(*arguments).build(RunConfig)
        assert run.batch_size == 8


def test_all_problems_are_reported_together_with_their_places(tmp_path: Path) -> None:
    path = write(
        tmp_path / "c.json", {"hidden_sise": 3, "heads_num": "x", "scheduler": "lineer", "layers_num": 0}
    )
    options = parse("--learning_rate", "fast", "--bach_size", "3")
    options.add_json(path, json_options())
    with pytest.raises(ConfigError) as error:
        options.build(*PRETRAIN)
    text = str(error.value)
    assert "c.json: hidden_sise: unknown key (did you mean 'hidden_size'?)" in text
    assert "c.json: heads_num: expected a whole number from 1 to 16777216, but is 'x' instead" in text
    assert "c.json: layers_num: expected a whole number of at least 1, but is 0 instead" in text
    assert "(did you mean 'linear'?)" in text
    assert "--learning_rate: expected a number of at least 0, but is 'fast' instead" in text
    assert "--bach_size: unknown option (did you mean 'batch_size'?)" in text
    assert len(error.value.problems) == 6


def test_impossible_combinations_are_named_with_both_values() -> None:
    with pytest.raises(ConfigError) as error:
        ModelConfig(hidden_size=768, heads_num=7, emb_size=128, target_weights={"sp": 1.0})
    assert "`heads_num` must divide `hidden_size` (768), but is 7 instead." in str(error.value)
    assert len(error.value.problems) == 3


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"decoder_layers_num": 3}, "a decoder"),
        ({"tgt_embedding": ("word", "pos")}, "a decoder"),
        ({"rope_theta": 5e5}, "`rotary_position_embedding`"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "`rotary_position_embedding`"),
        ({"relative_attention_max_distance": 64}, "`relative_position_embedding`"),
        ({"label_smoothing": 0.1}, "target lm"),
        ({"encoder": "lstm", "parameter_sharing": True}, "an encoder of transformer layers"),
        ({"encoder": "lstm", "feed_forward": "gated"}, "transformer layers"),
        ({"encoder": "gatedcnn", "layernorm_positioning": "pre"}, "transformer layers"),
        ({"encoder": "lstm", "local_kv_heads_num": 2}, "attention"),
        ({"bidirectional": True}, "encoder rnn, lstm or gru"),
        ({"encoder": "bilstm", "bidirectional": True}, "encoder rnn, lstm or gru"),
        ({"encoder": "gru", "kernel_size": 3}, "encoder gatedcnn"),
        ({"sinusoidal_variant": "marian"}, "embedding sinusoidalpos"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(values: dict[str, Any], what: str) -> None:
    with pytest.raises(ConfigError) as error:
        ModelConfig(**values)
    name = list(values)[-1]
    default = options_of(ModelConfig)[name].default
    remedy = (
        f", or give --{name} {str(default).lower()}" if isinstance(default, bool | int | float | str) else ""
    )
    assert error.value.problems == [
        f"`{name}` is about {what}, which the model does not have; leave it out{remedy}."
    ]
    assert name in options_of(ModelConfig) and ModelConfig(**{name: options_of(ModelConfig)[name].default})


def test_an_option_of_the_file_that_would_do_nothing_can_be_overridden(tmp_path: Path) -> None:
    path = write(tmp_path / "c.json", {"layernorm_positioning": "pre", "remove_transformer_bias": True})
    remedies = ["--layernorm_positioning post", "--remove_transformer_bias false"]
    options = Options("test", ModelConfig, arguments=["--encoder", "gru"])
    options.add_json(path, json_options())
    with pytest.raises(ConfigError) as error:
        options.build(ModelConfig)
    assert len(error.value.problems) == 2
    assert all(f"or give {words}." in str(error.value) for words in remedies)
    options = Options("test", ModelConfig, arguments=["--encoder", "gru", *" ".join(remedies).split()])
    options.add_json(path, json_options())
    assert options.build(ModelConfig)


def test_options_do_something_wherever_a_module_may_read_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's own modules say nothing of it; a target may follow later, as when fine-tuning."""
    ModelConfig(target=(), label_smoothing=0.1)
    ModelConfig(encoder="fnet", parameter_sharing=True, feed_forward="gated", layernorm_positioning="pre")
    both = {"encoder": "lstm", "decoder": "transformer", "target": ("lm",), "rotary_position_embedding": True}
    whole = ModelConfig(**both, rope_theta=5e5, decoder_layers_num=3, label_smoothing=0.1, pooling="last")
    assert whole.encoder_alone() == ModelConfig(encoder="lstm", pooling="last")
    monkeypatch.setitem(ENCODERS._entries, "own", type("OwnEncoder", (), {}))
    ModelConfig(encoder="own", bidirectional=True, kernel_size=9, feed_forward="gated", has_qk_norm=True)


def test_abbreviations_are_refused() -> None:
    with pytest.raises(ConfigError, match="--batch: unknown option"):
        parse("--batch", "3").build(RunConfig)


def test_a_missing_required_option_says_what_it_is_for() -> None:
    with pytest.raises(ConfigError, match="--output_model_path is required: Weights are written here"):
        Options("test", *PRETRAIN, arguments=[]).build(*PRETRAIN)


def test_an_option_without_its_value_is_an_error_of_the_user() -> None:
    with pytest.raises(ConfigError, match="batch_size"):
        parse("--batch_size")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{\n "hidden_size": 64,\n "heads_num": 4,\n}', "line 3: trailing comma"),
        ('{"embedding": ["word",]}', "line 1: trailing comma"),
        ('{"hidden_size": }', "line 1, column 17"),
        ('{"heads_num": 2, "heads_num": 4}', "key 'heads_num' is given twice"),
        ("[1]", "expected an object of options"),
        ("", "line 1, column 1"),
    ],
)
def test_damaged_json_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path / "c.json", text))


def test_no_file_a_directory_and_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name, message in (("absent", "no such file"), ("", "is a directory"), ("binary", "not UTF-8")):
        with pytest.raises(ConfigError, match=message):
            load_config(tmp_path / name)


def test_load_config_takes_overrides_and_refuses_what_is_not_of_the_model(tmp_path: Path) -> None:
    path = write(
        tmp_path / "c.json", {"hidden_size": 64, "emb_size": 64, "heads_num": 4, "data_processor": "bert"}
    )
    assert load_config(path, heads_num=2).heads_num == 2
    with pytest.raises(ConfigError, match="learning_rate: not an option of the model"):
        load_config(path, learning_rate=1.0)
    with pytest.raises(ConfigError, match="did you mean 'heads_num'"):
        load_config(path, head_num=1)


def test_values_of_other_programs_are_checked_too(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="learning_rate: expected a number"):
        load_config(write(tmp_path / "c.json", {"learning_rate": "x"}))


def test_every_shipped_configuration_loads_and_says_what_it_is() -> None:
    paths = sorted(Path("models").glob("*/*config.json"))
    assert len(paths) >= 12
    for path in paths:
        load_config(path)
        assert json.loads(path.read_text(encoding="utf-8"))["about"]


def test_flags_take_true_and_false_and_published_spellings() -> None:
    model, tokenizer = parse("--tie_weights", "--mask", "prefix", "--do_lower_case", "false").build(
        ModelConfig, TokenizerConfig
    )
    assert model.tie_weights and model.mask == "causal_with_prefix" and tokenizer.do_lower_case is False
    (model,) = parse("--tie_weights=false", json={"tie_weights": True}).build(ModelConfig)
    assert model.tie_weights is False


def test_options_without_a_meaning_are_accepted_with_the_reason() -> None:
    options = parse("--instances_buffer_size", "25600", "--dynamic_masking")
    options.build(*PRETRAIN)
    assert len(options.notes) == 2 and "--instances_buffer_size has no effect: " in options.notes[0]


def test_help_shows_every_option_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        Options("Pre-train a model.", *PRETRAIN, arguments=["--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for concern in PRETRAIN:
        for name, option in options_of(concern).items():
            assert f"--{name} " in text
            assert option.metadata["help"][:40] in text
    assert "Default: 0.0001" not in text and "Default: 2e-05" in text


def test_a_name_belongs_to_one_type_wherever_it_is_declared() -> None:
    for name, option in json_options().items():
        for concern in CONCERNS:
            other = options_of(concern).get(name)
            if other is None or name == "dataset_path":  # preprocess.py writes one, and reads no JSON file
                continue
            assert (other.kind, other.many) == (option.kind, option.many), name


@given(
    heads=st.integers(1, 8),
    size=st.integers(1, 16),
    mask=st.sampled_from(["causal", "causal_with_prefix"]),
    target=st.lists(st.sampled_from(["mlm", "sp", "lm"]), min_size=1, unique=True),
    dropout=st.floats(0, 1),
)
def test_a_configuration_survives_being_written_and_read(
    heads: int, size: int, mask: str, target: list[str], dropout: float
) -> None:
    config = ModelConfig(
        hidden_size=heads * size, emb_size=heads * size, heads_num=heads, mask=mask, target=tuple(target),
        dropout=dropout, target_weights={target[0]: 0.5}, pooling="mean",
    )  # fmt: skip
    options = Options("", ModelConfig, arguments=[])
    options.add_layer("file", json.loads(json.dumps(as_json(config))))
    assert options.build(ModelConfig) == (config,)


def test_nothing_can_write_to_a_configuration() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ModelConfig().hidden_size = 3  # type: ignore[misc]


def test_a_wrong_value_is_not_followed_by_complaints_about_a_value_nobody_gave() -> None:
    with pytest.raises(ConfigError) as error:
        parse("--hidden_size", "abc", "--heads_num", "7").build(*PRETRAIN)
    assert len(error.value.problems) == 1


@pytest.mark.parametrize(
    "text", ['{"layers_num": 1e999}', '{"a": ' + "[" * 100_000, '{"layers_num": ' + "9" * 5000 + "}"]
)
def test_monstrous_json_is_an_error_of_the_user(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError):
        load_config(write(tmp_path / "c.json", text))


def test_plugins_of_a_file_may_be_one_name(tmp_path: Path) -> None:
    path = write(tmp_path / "c.json", {"plugins": "no_such_plugin"})
    with pytest.raises(ConfigError, match="'no_such_plugin'"):
        load_config(path)


def test_the_published_name_of_an_option_means_the_same() -> None:
    given = (
        "--deepspeed_checkpoint_activations --deepspeed_checkpoint_layers_num 2 --resume_from_checkpoint s"
    )
    (config,) = parse(*given.split()).build(PretrainConfig)
    assert config.activation_checkpointing and config.checkpointed_layers == 2 and config.resume == "s"


def test_what_lies_beside_weights_is_a_configuration(tmp_path: Path) -> None:
    beside = as_json(ModelConfig()) | {
        "tokenizer": "bert", "tokenizer_path": "m.bin.tokenizer", "tokenizer_fingerprint": "0",
        "vocab_size": 9, "special_tokens": {"pad": "[PAD]"}, "labels": ["0", "1"], "labels_num": 2,
        "tgt_tokenizer": "bpe", "tgt_tokenizer_path": "m.bin.tgt_tokenizer", "tgt_tokenizer_fingerprint": "1",
        "tgt_vocab_size": 8, "tgt_special_tokens": {},
        "plugins": [],
    }  # fmt: skip
    assert load_config(write(tmp_path / "m.bin.json", beside)) == ModelConfig()


def test_what_weights_had_and_would_do_nothing_here_is_left_out() -> None:
    had = ModelConfig(
        target=("lm",), mask="causal", label_smoothing=0.1, rotary_position_embedding=True, rope_theta=5e5
    )

    def built(*arguments: str) -> ModelConfig:
        options = Options("", ModelConfig, arguments=arguments)
        options.add_description("weights.bin.json", as_json(had))
        (config,) = options.build(ModelConfig)
        assert isinstance(config, ModelConfig)
        return config

    assert built() == had
    assert built("--target", "mlm").label_smoothing == 0.0
    recurrent = built("--encoder", "lstm")
    assert (recurrent.rotary_position_embedding, recurrent.rope_theta) == (False, 10000.0)
    with pytest.raises(ConfigError, match="`label_smoothing` is about target lm"):
        built("--target", "mlm", "--label_smoothing", "0.2")
