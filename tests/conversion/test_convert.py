"""scripts/convert.py: the family is found out, what does not fit is told, both models are run."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_bert

from tencentpretrain import build_model, load_config
from tencentpretrain.config import ModelConfig, options_of
from tencentpretrain.conversion import huggingface
from tencentpretrain.conversion.family import Family
from tencentpretrain.conversion.huggingface import writing
from tencentpretrain.conversion.maps import BERT, FAMILIES, families_of
from tencentpretrain.conversion.program import from_huggingface
from tencentpretrain.errors import ConfigError, WeightsError
from tencentpretrain.weights import read_state_dict, save_weights, write_description

SIZES: dict[str, Any] = {
    "hidden_size": 16, "emb_size": 16, "feedforward_size": 24, "heads_num": 2, "layers_num": 2,
    "max_seq_length": 10,
}  # fmt: skip
BERT_LIKE: dict[str, Any] = {**SIZES, "embedding": ("word", "pos", "seg"), "target": ("mlm", "sp")}
LLAMA_LIKE: dict[str, Any] = {
    **SIZES, "embedding": ("word",), "target": ("lm",), "mask": "causal", "layernorm": "rms",
    "layernorm_positioning": "pre", "feed_forward": "gated", "hidden_act": "silu",
    "remove_embedding_layernorm": True, "remove_transformer_bias": True, "rotary_position_embedding": True,
}  # fmt: skip
SIZES_OF_THEIRS = {"hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 24}


def ours(path: Path, **values: Any) -> Path:
    config = ModelConfig(**values)
    path.parent.mkdir(exist_ok=True)
    save_weights(build_model(config, 30).state_dict(), path)
    write_description(path, config, None, vocab_size=30)
    return path


@pytest.mark.parametrize(
    ("values", "said", "options"),
    [
        (BERT_LIKE, "back: bert,", ()),
        (LLAMA_LIKE, "taken as llama; ", ()),
        (LLAMA_LIKE, "back: mistral,", ("--family", "mistral")),
        ({**LLAMA_LIKE, "sliding_window": 4}, "back: mistral,", ()),
        ({**LLAMA_LIKE, "has_qkv_bias": True}, "back: qwen2,", ()),
    ],
)
def test_family_of_ours_is_found(
    run_convert, tmp_path: Path, values: dict[str, Any], said: str, options: tuple[str, ...]
) -> None:
    source = ours(tmp_path / "ours.bin", **values)
    printed = run_convert("huggingface", source, tmp_path / "back", "--verify", *options)
    assert said in printed and "hidden states: largest difference" in printed
    # And back, with what lies beside it, by the stable interface.
    again = tmp_path / "again.bin"
    run_convert("tencentpretrain", tmp_path / "back", again)
    first, second = load_config(f"{source}.json"), load_config(f"{again}.json")
    changed = {name for name in options_of(ModelConfig) if getattr(first, name) != getattr(second, name)} - {
        "dropout",
        "attention_head_size",
        "local_kv_heads_num",
    }  # said where nothing was said; the same
    assert not changed
    assert second.head_size == first.head_size and second.kv_heads_num == first.kv_heads_num
    before, after = read_state_dict(source), read_state_dict(again)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        kept = slice(1, None) if name == "embedding.seg.embedding.weight" else slice(None)
        assert torch.equal(tensor[kept], after[name][kept]), name


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_option_that_shapes_the_network_is_decided(family: Family) -> None:
    """Changed, it is refused, where no setting carries it; options that matter not are not."""
    config = _of(family)
    parts = next(iter(family.types.values()))
    assert not list(writing.misfits(family, config, parts))
    mapped = {name for setting in family.settings for name in setting.options}
    others = {
        "has_residual_attention": True, "alibi_position_embedding": True, "has_qk_norm": True,
        "parameter_sharing": True, "remove_attention_scale": True, "sliding_window": 3, "layernorm": "t5",
    }  # fmt: skip
    for name, value in others.items():
        given = getattr(config, name)
        if name not in mapped:
            value = (not given) if isinstance(given, bool) else "rms" if given == value else value
            misfits = _misfits(family, config, parts, **{name: value})
            assert any(misfit.startswith(f"`{name}` is {value}, only {given} ") for misfit in misfits), name
    neutral = {"label_smoothing": 0.1, "dropout": 0.7, "ignore_index": True, "layer_number_scale": True}
    assert not list(_misfits(family, config, parts, **neutral))


def _of(family: Family) -> ModelConfig:
    """What the table alone makes of a configuration of theirs that says next to nothing."""
    said = {
        "t5-v1_1": {"feed_forward_proj": "gated-gelu"},
        "pegasus": {"scale_embedding": True},
        "marian": {"scale_embedding": True},
    }
    theirs = said.get(family.name.removesuffix("-encoder"), {})
    values = huggingface.our_values(family, theirs, Path("config.json"))
    known = {name: value for name, value in values.items() if value is not None}
    known = {name: tuple(value) if isinstance(value, list) else value for name, value in known.items()}
    return ModelConfig(**known, target=next(iter(family.types.values())))


def _misfits(family: Family, config: ModelConfig, parts: Any, **changes: Any) -> list[str]:
    """Without the checks of a configuration: any option is changed alone."""
    changed = ModelConfig.__new__(ModelConfig)
    values = {name: getattr(config, name) for name in options_of(ModelConfig)}
    for name, value in (values | changes).items():
        object.__setattr__(changed, name, value)
    return list(writing.misfits(family, changed, parts))


def test_every_problem_is_told(run_convert, tmp_path: Path) -> None:
    source = ours(
        tmp_path / "ours.bin", **BERT_LIKE, remove_attention_scale=True, rotary_position_embedding=True,
        has_residual_attention=True, hidden_act="gelu",
    )  # fmt: skip
    with pytest.raises(WeightsError) as caught:
        run_convert("huggingface", source, tmp_path / "back")
    for name in ("remove_attention_scale", "rotary_position_embedding", "has_residual_attention"):
        assert f"`{name}` is " in str(caught.value)
    assert "not a bert model" in str(caught.value) and not (tmp_path / "back").exists()


def test_options_of_parts_that_are_not_there_are_neutral(run_convert, tmp_path: Path) -> None:
    source = ours(
        tmp_path / "ours.bin", **{**BERT_LIKE, "target": ("mlm",)}, pooling="mean", has_lmtarget_bias=True,
        attention_head_size=8,
    )  # fmt: skip
    run_convert("huggingface", source, tmp_path / "back", "--verify")


def test_model_type_decides_between_equal_names() -> None:
    names = [f"model.layers.0.self_attn.{part}_proj.weight" for part in "qkvo"]
    assert [family.name for family in families_of(names)][:2] == ["llama", "mistral"]
    assert [family.name for family in families_of(names, "mistral")] == ["mistral"]
    assert families_of(names, "reformer") == [] and families_of([]) == []
    gated = ["decoder.block.0.layer.2.DenseReluDense.wi_0.weight"]
    assert [family.name for family in families_of(gated, "t5")] == ["t5-v1_1"]


def test_models_that_differ_are_an_error(
    run_convert, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_bert().save_pretrained(tmp_path / "theirs")
    config = json.loads((tmp_path / "theirs" / "config.json").read_text(encoding="utf-8"))
    run_convert("tencentpretrain", tmp_path / "theirs", tmp_path / "ours.bin", "--verify")
    from tencentpretrain.conversion.verification import verify

    (tmp_path / "theirs" / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    with pytest.raises(SystemExit) as caught:
        verify(tmp_path / "ours.bin", tmp_path / "theirs")
    assert caught.value.code == 1 and "differ by more than 1e-04" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        # Its forward takes token types, which it reads as words.
        ("GPT2LMHeadModel", {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 20}),
        # Mixes padding in.
        ("FNetForPreTraining", {"hidden_size": 8, "num_hidden_layers": 1, "intermediate_size": 8}),
        # A head of theirs alone, whose forward wants texts in groups.
        ("BertForMultipleChoice", {**SIZES_OF_THEIRS, "num_attention_heads": 2}),
    ],
)
def test_verify_is_of_the_same_input(run_convert, tmp_path: Path, kind: str, sizes: dict[str, Any]) -> None:
    import transformers

    torch.manual_seed(0)
    model = getattr(transformers, kind)
    config = model.config_class(vocab_size=40, bos_token_id=1, eos_token_id=1, **sizes)
    randomised = model(config)
    for parameter in randomised.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    randomised.save_pretrained(tmp_path / "theirs")
    printed = run_convert("tencentpretrain", tmp_path / "theirs", tmp_path / "ours.bin", "--verify")
    assert "hidden states: largest difference" in printed


def test_options_of_the_other_direction_are_refused(run_convert, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--max_seq_length is for --to huggingface"):
        run_convert("tencentpretrain", tmp_path / "theirs", tmp_path / "ours.bin", "--max_seq_length", "5")


@pytest.mark.parametrize(
    "changes",
    [
        {"architectures": 5},
        {"id2label": ["a", "b"], "architectures": ["BertForSequenceClassification"]},
        {"num_labels": "x", "id2label": None, "architectures": ["BertForSequenceClassification"]},
    ],
)
def test_malformed_configurations_are_named(run_convert, tmp_path: Path, changes: dict[str, Any]) -> None:
    tiny_bert().save_pretrained(tmp_path / "theirs")
    path = tmp_path / "theirs" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(WeightsError, match=r"config\.json: `"):
        run_convert("tencentpretrain", tmp_path / "theirs", tmp_path / "ours.bin")


@pytest.mark.parametrize("kept", ["notes.txt", "pytorch_model.bin", "ours.bin"])
def test_nothing_but_its_own_work_is_replaced(run_convert, tmp_path: Path, kept: str) -> None:
    source = ours(tmp_path / "models" / "ours.bin", **BERT_LIKE)
    target = tmp_path / "theirs"
    run_convert("huggingface", source, target)
    run_convert("huggingface", source, target)  # its own work is
    (target / kept).write_text("mine")
    with pytest.raises(ConfigError, match=rf"theirs is a directory that holds '{kept}'.*not overwritten"):
        run_convert("huggingface", source, target)
    with pytest.raises(ConfigError, match=r"models is a directory that holds 'ours\.bin'"):
        run_convert("huggingface", source, tmp_path / "models")
    assert (target / kept).read_text() == "mine" and source.is_file()
    (target / kept).unlink()
    config = json.loads((target / "config.json").read_text(encoding="utf-8"))
    del config["written_by"]  # as theirs
    (target / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ConfigError, match="was not written by this program, so it is not overwritten"):
        run_convert("huggingface", source, target)
    with pytest.raises(ConfigError, match="would lie in a Hugging Face directory"):
        run_convert("tencentpretrain", target, target / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        # GPT-2 with a bias too many.
        (
            {
                **SIZES, "target": ("lm",), "mask": "causal", "layernorm_positioning": "pre",
                "embedding": ("word", "pos"), "remove_embedding_layernorm": True, "has_lmtarget_bias": True,
            },
            "not a gpt2 model.*: 1 of .* such as target.lm.output_layer.bias",
        ),
        # Nothing of theirs.
        (
            {**SIZES, "embedding": ("word",), "encoder": "bilstm", "target": ("cls",)},
            r"ours\.bin: `encoder` is bilstm, which no family .* \(theirs: transformer, fnet\); only the",
        ),
        (
            {
                **SIZES, "embedding": ("word",), "decoder": "lstm", "tgt_embedding": ("word",),
                "target": ("lm",),
            },
            r"`decoder` is lstm, which no family .* \(theirs: transformer\); only the programs",
        ),
    ],
)  # fmt: skip
def test_what_keeps_from_the_nearest_family(
    run_convert, tmp_path: Path, values: dict[str, Any], said: str
) -> None:
    config = ModelConfig(**values)
    save_weights(build_model(config, 30, 2).state_dict(), tmp_path / "ours.bin")
    write_description(tmp_path / "ours.bin", config, None, vocab_size=30, labels_num=2)
    with pytest.raises(WeightsError, match=said):
        run_convert("huggingface", tmp_path / "ours.bin", tmp_path / "theirs")


@pytest.mark.parametrize(
    ("came_from", "named"),
    [
        (None, ["bert or roberta or xlm-roberta"]),
        ("albert", ["albert", "bert or roberta or xlm-roberta"]),
    ],
)
def test_the_nearest_families_are_named(
    run_convert, tmp_path: Path, came_from: str | None, named: list[str]
) -> None:
    source = ours(tmp_path / "ours.bin", **{**BERT_LIKE, "target": ("mlm",)}, has_residual_attention=True)
    beside = source.with_name("ours.bin.json")
    description = json.loads(beside.read_text(encoding="utf-8")) | {"family": came_from}
    beside.write_text(json.dumps(description), encoding="utf-8")
    with pytest.raises(WeightsError) as caught:
        run_convert("huggingface", source, tmp_path / "theirs")
    assert "no family fits; the nearest:" in str(caught.value)
    assert re.findall(r"not a (?:complete )?(.+?) model", str(caught.value)) == named
    assert "`has_residual_attention` is True, only False is possible" in str(caught.value)


def test_a_family_without_decoder_says_what_it_has_no_place_for(run_convert, tmp_path: Path) -> None:
    decoder = {"decoder": "transformer", "tgt_embedding": ("word",), "target": ("lm",)}
    source = ours(tmp_path / "ours.bin", **SIZES, embedding=("word",), **decoder)
    with pytest.raises(WeightsError, match=r"not a bert model, .* have no place"):
        run_convert("huggingface", source, tmp_path / "theirs", "--family", "bert")


def test_messages_name_the_path(run_convert, tmp_path: Path) -> None:
    tiny_bert().save_pretrained(tmp_path / "theirs")
    with pytest.raises(ConfigError, match=r"models is a directory; name a file, as .*models/model\.bin"):
        (tmp_path / "models").mkdir()
        run_convert("tencentpretrain", tmp_path / "theirs", tmp_path / "models")
    config = json.loads((tmp_path / "theirs" / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(config | {"num_attention_heads": 5}))
    with pytest.raises(
        WeightsError, match=r"theirs/config\.json: `num_attention_heads` must divide `hidden_s"
    ):
        run_convert("tencentpretrain", tmp_path / "theirs", tmp_path / "ours.bin")


@pytest.mark.parametrize(("kind", "positions"), [("Bert", 2), ("Bert", 1), ("Roberta", 3)])
def test_verify_of_few_positions(run_convert, tmp_path: Path, kind: str, positions: int) -> None:
    """Of RoBERTa's positions no text has the first two."""
    import transformers

    sizes = {"vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 12, "max_position_embeddings": positions}
    model = getattr(transformers, f"{kind}ForMaskedLM")(getattr(transformers, f"{kind}Config")(**sizes))
    model.save_pretrained(tmp_path / "theirs")
    for to, *paths in (("tencentpretrain", "theirs", "ours.bin"), ("huggingface", "ours.bin", "back")):
        said = run_convert(to, *(tmp_path / path for path in paths), "--verify")
        assert "logits of mlm: largest difference" in said


def test_verify_without_transformers_or_a_directory(run_convert, tmp_path: Path, monkeypatch) -> None:
    torch.save(tiny_bert().state_dict(), tmp_path / "theirs.bin")
    with pytest.raises(ConfigError, match=r"--verify needs a Hugging Face directory.*theirs\.bin"):
        run_convert("tencentpretrain", tmp_path / "theirs.bin", tmp_path / "ours.bin", "--verify")
    tiny_bert().save_pretrained(tmp_path / "theirs")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match="pip install transformers"):
        run_convert("tencentpretrain", tmp_path / "theirs", tmp_path / "ours.bin", "--verify")
    assert not list(tmp_path.glob("ours*"))


def test_verify_on_the_way_there_fails_before_anything_is_written(
    run_convert, tmp_path: Path, monkeypatch
) -> None:
    source = ours(tmp_path / "ours.bin", **BERT_LIKE)
    with pytest.raises(
        ConfigError, match=r"--verify needs a Hugging Face directory.*theirs\.bin will not be"
    ):
        run_convert("huggingface", source, tmp_path / "theirs.bin", "--verify")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match="pip install transformers"):
        run_convert("huggingface", source, tmp_path / "theirs", "--verify")
    assert not list(tmp_path.glob("theirs*"))


def test_file_without_description(run_convert, tmp_path: Path) -> None:
    save_weights(build_model(ModelConfig(**BERT_LIKE), 30).state_dict(), tmp_path / "ours.bin")
    assert "theirs.bin: bert," in run_convert("huggingface", tmp_path / "ours.bin", tmp_path / "theirs.bin")
    assert families_of(torch.load(tmp_path / "theirs.bin", weights_only=True))[0] is BERT


def test_decoder_layers_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    sizes = {"vocab_size": 20, "d_model": 8, "d_kv": 4, "d_ff": 16, "num_heads": 2, "num_layers": 1}
    config = transformers.T5Config(**sizes, num_decoder_layers=2)
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path / "theirs")
    families = [family for family in FAMILIES if "t5" in family.known_as]
    files = ["--input_model_path", str(tmp_path / "theirs"), "--output_model_path", str(tmp_path / "a.bin")]
    monkeypatch.setattr(sys, "argv", ["program", *files, "--layers_num", "1", "--decoder_layers_num", "3"])
    with pytest.raises(ConfigError, match=r"`decoder_layers_num` is 3, but .* has 2 layers"):
        from_huggingface(*families)
    monkeypatch.setattr(sys, "argv", ["program", *files, "--layers_num", "1", "--decoder_layers_num", "2"])
    from_huggingface(*families)
    assert (tmp_path / "a.bin.json").exists()
