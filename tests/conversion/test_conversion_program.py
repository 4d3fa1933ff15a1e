"""The conversion scripts, and what Transformers makes of their output."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from tiny_models import SIZES, VOCABULARY, tiny_bert

from tencentpretrain import build_model, load_tokenizer, load_weights
from tencentpretrain.config import ModelConfig
from tencentpretrain.conversion.llama_programs import to_meta
from tencentpretrain.conversion.maps import BERT
from tencentpretrain.conversion.program import from_huggingface, to_huggingface
from tencentpretrain.errors import ConfigError, UserError, WeightsError
from tencentpretrain.weights import described_config, read_description, read_state_dict, save_weights

SMALL_LLAMA = {
    "hidden_size": 16, "emb_size": 16, "feedforward_size": 24, "heads_num": 2, "layers_num": 2,
    "max_seq_length": 10, "embedding": ("word",), "target": ("lm",), "mask": "causal", "layernorm": "rms",
    "layernorm_positioning": "pre", "feed_forward": "gated", "hidden_act": "silu", "has_lmtarget_bias": False,
    "remove_embedding_layernorm": True, "remove_transformer_bias": True, "rotary_position_embedding": True,
}  # fmt: skip


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Call a program as the command line would; returns what it printed."""

    def call(program, source: Path, target: Path, *options: str) -> str:
        arguments = ["--input_model_path", str(source), "--output_model_path", str(target), *options]
        monkeypatch.setattr(sys, "argv", ["program", *arguments])
        program(BERT)
        return capsys.readouterr().out

    return call


def states_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_directory_there_and_back(run, bert_directory: Path, tmp_path: Path) -> None:
    import transformers

    original = transformers.BertForPreTraining.from_pretrained(bert_directory)
    weights, back = tmp_path / "ours.bin", tmp_path / "back"
    assert "targets: mlm sp" in run(from_huggingface, bert_directory, weights, "--layers_num", "3")

    description = read_description(weights)
    assert description is not None
    config = described_config(weights, description)
    assert (config.layernorm_eps, config.hidden_act, config.tie_weights) == (1e-12, "gelu", True)
    assert (config.layers_num, config.heads_num, config.feedforward_size) == (3, 4, 40)
    assert (description["vocab_size"], description["tokenizer"]) == (len(VOCABULARY), "bert")
    assert load_tokenizer(weights).tokens == VOCABULARY
    assert load_weights(build_model(config, description["vocab_size"]), weights).missing == []

    run(to_huggingface, weights, back)
    assert {"config.json", "model.safetensors", "vocab.txt"} <= {file.name for file in back.iterdir()}
    loaded, info = transformers.BertForPreTraining.from_pretrained(back, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert states_equal(loaded.state_dict(), original.state_dict())
    kept = (
        "hidden_act",
        "layer_norm_eps",
        "num_attention_heads",
        "architectures",
        "pad_token_id",
        "model_type",
    )
    for name in (*SIZES, *kept):
        assert getattr(loaded.config, name) == getattr(original.config, name), name
    tokenizer = transformers.AutoTokenizer.from_pretrained(back)
    text = "a hello 你好 bab [MASK]"
    assert tokenizer.encode(text, add_special_tokens=False) == load_tokenizer(weights).encode(text)


@pytest.mark.parametrize("tied", [True, False])
def test_published_single_file(run, tmp_path: Path, tied: bool) -> None:
    model = tiny_bert(tie_word_embeddings=tied)
    with torch.no_grad():
        model.cls.predictions.bias.copy_(model.cls.predictions.decoder.bias)
    source, ours, back = tmp_path / "theirs.bin", tmp_path / "ours.bin", tmp_path / "back.bin"
    torch.save(model.state_dict(), source)
    said = run(from_huggingface, source, ours)
    assert "is not written" in said and not (tmp_path / "ours.bin.json").exists()
    run(to_huggingface, ours, back)
    assert states_equal(torch.load(back, weights_only=True), model.state_dict())
    with pytest.raises(ConfigError, match="--config_path"):
        run(to_huggingface, ours, tmp_path / "directory")


@pytest.mark.parametrize("program", [from_huggingface, to_huggingface, lambda _: to_meta()])
def test_description_of_other_weights_is_removed(run, tmp_path: Path, program) -> None:
    """It would say how many heads the new ones have."""
    theirs, ours, target = tmp_path / "theirs.bin", tmp_path / "ours.bin", tmp_path / "target.bin"
    if program in (from_huggingface, to_huggingface):
        torch.save(tiny_bert().state_dict(), theirs)
        run(from_huggingface, theirs, ours)
    else:
        config = ModelConfig(**SMALL_LLAMA)
        save_weights(build_model(config, 30).state_dict(), ours)
    source = theirs if program is from_huggingface else ours
    before = run(program, source, target)
    plain = target.read_bytes()
    (tmp_path / "target.bin.json").write_text('{"heads_num": 2}', encoding="utf-8")
    said = run(program, source, target)
    assert target.read_bytes() == plain and not (tmp_path / "target.bin.json").exists()
    assert "target.bin.json is removed" in said and "is removed" not in before


def test_configuration_and_vocabulary_from_options(run, tmp_path: Path) -> None:
    import transformers

    model = tiny_bert("BertForMaskedLM", layer_norm_eps=1e-6, tie_word_embeddings=False)
    torch.save(model.state_dict(), tmp_path / "theirs.bin")
    run(from_huggingface, tmp_path / "theirs.bin", tmp_path / "ours.bin", "--type", "mlm")
    sizes = {"hidden_size": 24, "emb_size": 24, "layers_num": 3, "heads_num": 4, "feedforward_size": 40}
    config = {**sizes, "max_seq_length": 20, "embedding": ["word", "pos", "seg"], "target": ["mlm"]}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "words.txt").write_text("\n".join(VOCABULARY), encoding="utf-8")
    options = ("--config_path", str(tmp_path / "config.json"), "--vocab_path", str(tmp_path / "words.txt"))
    run(to_huggingface, tmp_path / "ours.bin", tmp_path / "back", "--type", "mlm", *options)
    loaded, info = transformers.BertForMaskedLM.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert loaded.config.architectures == ["BertForMaskedLM"] and not loaded.config.tie_word_embeddings
    ids = torch.arange(5, 15)[None]
    torch.testing.assert_close(loaded.eval()(ids).logits, model(ids).logits, rtol=0, atol=0)

    config["layernorm_positioning"] = "pre"
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(WeightsError, match="`layernorm_positioning` is pre, only post is possible"):
        run(to_huggingface, tmp_path / "ours.bin", tmp_path / "again", "--type", "mlm", *options)
    config |= {"layernorm_positioning": "post", "layers_num": 4}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(WeightsError, match="has 3 layers"):
        run(to_huggingface, tmp_path / "ours.bin", tmp_path / "again", "--type", "mlm", *options)
    assert not (tmp_path / "again").exists()


def test_base_model_without_heads(run, tmp_path: Path) -> None:
    import transformers

    tiny_bert("BertModel").save_pretrained(tmp_path / "base")
    said = run(from_huggingface, tmp_path / "base", tmp_path / "ours.bin")
    assert "sp is incomplete, without cls.seq_relationship.weight" in said and "no tokenizer files" in said
    description = read_description(tmp_path / "ours.bin")
    assert description is not None and description["target"] == ["mlm"]
    model = build_model(described_config("ours.bin", description), description["vocab_size"])
    report = load_weights(model, tmp_path / "ours.bin")
    assert report.missing and all(name.startswith("target.mlm.") for name in report.missing)
    run(to_huggingface, tmp_path / "ours.bin", tmp_path / "back")
    _, info = transformers.BertModel.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"position_embedding_type": "relative_key"},
            "`position_embedding_type` is relative_key, only absolute",
        ),
        ({"type_vocab_size": 1}, "`type_vocab_size` is 1, only 2"),
        ({"hidden_act": "quick_gelu"}, "`hidden_act` is quick_gelu, only gelu"),
        ({"num_hidden_layers": 5}, "says 5 layers"),
        ({"hidden_size": 48}, "does not fit"),
        ({"model_type": "reformer"}, "model_type 'reformer'; known: bert, "),
    ],
)
def test_configurations_that_are_not_ours(
    run, bert_directory: Path, tmp_path: Path, change, message: str
) -> None:
    config = json.loads((bert_directory / "config.json").read_text(encoding="utf-8"))
    (bert_directory / "config.json").write_text(json.dumps(config | change), encoding="utf-8")
    with pytest.raises(WeightsError, match=message):
        run(from_huggingface, bert_directory, tmp_path / "ours.bin")
    assert not list(tmp_path.glob("ours*"))


def test_weights_of_ours_and_an_output_that_is_the_input(run, bert_directory: Path, tmp_path: Path) -> None:
    save_weights(read_state_dict(bert_directory), tmp_path / "ours.bin")
    with pytest.raises(WeightsError, match=r"ours\.bin is already in this toolkit's format"):
        run(from_huggingface, tmp_path / "ours.bin", tmp_path / "again.bin")
    for program in (from_huggingface, to_huggingface):
        with pytest.raises(UserError, match="is what --input_model_path names too"):
            run(program, bert_directory, bert_directory)
    before = {path.name: path.read_bytes() for path in bert_directory.iterdir()}
    for name in before.keys() - {"model.safetensors", "pytorch_model.bin"}:
        with pytest.raises(UserError, match=f"--output_model_path: .*{name} is a file of --input_model_path"):
            run(from_huggingface, bert_directory, bert_directory / name)
    assert {path.name: path.read_bytes() for path in bert_directory.iterdir()} == before
    for _ in range(2):
        run(from_huggingface, bert_directory, bert_directory / "ours.bin")  # its own work it replaces


def test_wrong_number_of_layers(run, bert_directory: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"`layers_num` is 12, but .* has 3 layers"):
        run(from_huggingface, bert_directory, tmp_path / "ours.bin", "--layers_num", "12")


def test_tokenizer_with_more_tokens_than_the_embedding(run, bert_directory: Path, tmp_path: Path) -> None:
    run(from_huggingface, bert_directory, tmp_path / "ours.bin")
    words, more = bert_directory / "vocab.txt", tmp_path / "more.txt"
    more.write_text("\n".join([*VOCABULARY, "x1", "x2"]), encoding="utf-8")
    rows = len(VOCABULARY)
    with pytest.raises(WeightsError, match=rf"tokenizer has {rows + 2} tokens, .* {rows} rows") as caught:
        run(to_huggingface, tmp_path / "ours.bin", tmp_path / "back", "--vocab_path", str(more))
    assert "--vocab_path" in str(caught.value) and not (tmp_path / "back").exists()
    words.write_text(more.read_text(encoding="utf-8"), encoding="utf-8")
    said = run(from_huggingface, bert_directory, tmp_path / "other.bin")
    assert f"configuration; the tokenizer has {rows + 2} tokens, but the word embedding {rows} rows" in said
    description = read_description(tmp_path / "other.bin")
    assert description is not None and "tokenizer" not in description
    assert not (tmp_path / "other.bin.tokenizer").exists()

    words.write_text("\n".join(VOCABULARY[:-1]), encoding="utf-8")  # rows are often padded
    assert "configuration and tokenizer" in run(from_huggingface, bert_directory, tmp_path / "fewer.bin")
    run(to_huggingface, tmp_path / "fewer.bin", tmp_path / "back")


def test_fine_tuned_weights_are_not_lost_silently(run, bert_directory: Path, tmp_path: Path) -> None:
    tensors = read_state_dict(bert_directory) | {"output_layer_1.weight": torch.ones(2, 2)}
    save_weights(tensors, tmp_path / "ours.bin")
    with pytest.raises(WeightsError, match=r"output_layer_1\.weight"):
        run(to_huggingface, tmp_path / "ours.bin", tmp_path / "back.bin")


def test_as_commands(run_script, bert_directory: Path, tmp_path: Path) -> None:
    output = tmp_path / "ours.safetensors"
    done = run_script(
        "convert_bert_from_huggingface_to_tencentpretrain", bert_directory, output, "--type=mlm"
    )
    assert done.code == 0, done.stderr
    assert not any(name.startswith("target.sp") for name in read_state_dict(output))
    wrong = run_script(
        "convert_bert_from_tencentpretrain_to_huggingface", tmp_path / "nothing.bin", tmp_path / "x"
    )
    assert wrong.code == 2 and "no such file" in wrong.stderr and "Traceback" not in wrong.stderr
