"""Encoders with decoders: what the tables do beside the numbers, which the parity tests compare."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tencentpretrain import build_model, load_weights
from tencentpretrain.conversion import huggingface
from tencentpretrain.conversion.engine import to_ours, to_theirs
from tencentpretrain.conversion.huggingface import OurModel
from tencentpretrain.conversion.maps import BART, MARIAN, PEGASUS, T5, T5_V1_1
from tencentpretrain.conversion.maps.bart import sinusoidal_table
from tencentpretrain.errors import WeightsError
from tencentpretrain.weights import described_config, read_description, read_state_dict

T5_SIZES = {"vocab_size": 31, "d_model": 8, "d_kv": 3, "d_ff": 12, "num_layers": 2, "num_heads": 2}
SIZES = {
    "vocab_size": 31,
    "d_model": 8,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 12,
    "decoder_ffn_dim": 12,
    "max_position_embeddings": 20,
    "pad_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": 2,
}


def t5(**changes: Any) -> Any:
    return transformers.T5ForConditionalGeneration(transformers.T5Config(**T5_SIZES | changes)).eval()


def bart(kind: str = "BartForConditionalGeneration", **changes: Any) -> Any:
    family = kind.removesuffix("MTModel").removesuffix("ForConditionalGeneration").removesuffix("Model")
    config = getattr(transformers, f"{family}Config")(**SIZES | changes)
    return getattr(transformers, kind)(config).eval()


def ours_of(directory: Path) -> Any:
    description = read_description(directory)
    assert description is not None
    config = described_config(directory, description)
    sizes = {"tgt_vocab_size": description.get("tgt_vocab_size")}
    model = build_model(config, description["vocab_size"], **sizes).eval()
    assert load_weights(model, directory).missing == []
    return model


def test_relative_positions_with_and_without_copies_per_layer() -> None:
    state = dict(t5().state_dict())
    ours = dict(to_ours(T5, state).tensors)
    layer = "encoder.transformer.{}.relative_pos_emb.relative_attention_bias.weight"
    whole = "encoder.relative_pos_emb.relative_attention_bias.weight"
    for number in range(2):
        assert torch.equal(ours[layer.format(number)], ours[whole])
    for missing in ([layer.format(0), layer.format(1)], [whole]):
        few = {name: tensor for name, tensor in ours.items() if name not in missing}
        back = to_theirs(T5, few).tensors
        assert back.keys() == state.keys() and all(torch.equal(back[name], state[name]) for name in state)
    with pytest.raises(WeightsError, match=r"1\.relative_pos_emb.* differs"):
        to_theirs(T5, ours | {layer.format(1): ours[whole] + 1})


def test_configuration_decides_on_scaling(tmp_path: Path) -> None:
    """A configuration of v1.1 from the time when it said that nothing is tied, and one of today."""
    t5(feed_forward_proj="gated-gelu").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    for changes, scaled in (
        ({"tie_word_embeddings": False}, False),
        ({"tie_word_embeddings": True}, True),
        ({}, True),
        ({"tie_word_embeddings": True, "scale_decoder_outputs": False}, False),
    ):
        plain = {
            name: value
            for name, value in config.items()
            if name not in ("tie_word_embeddings", "scale_decoder_outputs")
        }
        (tmp_path / "config.json").write_text(json.dumps(plain | changes), encoding="utf-8")
        model = ours_of(tmp_path)
        assert model.config.scale_tied_output is scaled and model.config.tie_weights
        assert (model.config.feed_forward, model.config.hidden_act) == ("gated", "gelu_fast")
        theirs = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path).eval()
        ids = torch.arange(3, 9)[None]
        batch = {"input_ids": ids, "decoder_input_ids": ids}
        logits = model.target["lm"].logits(model.encode(batch))
        torch.testing.assert_close(logits, theirs(**batch).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: bart(scale_embedding=True), "`scale_embedding` is True"),
        (lambda: bart(decoder_attention_heads=4), "`encoder_attention_heads` is 2 and"),
        (lambda: bart("PegasusForConditionalGeneration"), "`scale_embedding` is False"),
        (
            lambda: transformers.UMT5ForConditionalGeneration(transformers.UMT5Config(**T5_SIZES)),
            "umt5 model: every layer has relative positions of its own",
        ),
    ],
)
def test_refused(tmp_path: Path, make: Any, message: str) -> None:
    make().save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match=message):
        huggingface.read(tmp_path)


def test_bare_models() -> None:
    for family, theirs in ((BART, bart("BartModel")), (PEGASUS, bart("PegasusModel", scale_embedding=True))):
        done = to_ours(family, theirs.state_dict())
        assert done.parts == () and done.layers == {
            "encoder.transformer": 2,
            "decoder.transformer_decoder": 1,
        }
    # Of a word embedding alone nobody can tell whether there was a head: it is tied.
    assert to_ours(T5, transformers.T5Model(transformers.T5Config(**T5_SIZES)).state_dict()).parts == ("lm",)


@pytest.mark.parametrize(
    ("kind", "family", "changes"),
    [
        ("T5EncoderModel", "t5-encoder", {}),
        ("T5EncoderModel", "t5-v1_1-encoder", {"feed_forward_proj": "gated-gelu"}),
        ("MT5EncoderModel", "mt5-encoder", {}),
    ],
)
def test_encoders_alone(run_convert: Any, tmp_path: Path, kind: str, family: str, changes: Any) -> None:
    model = getattr(transformers, kind)
    theirs = model(model.config_class(**T5_SIZES, **changes))
    theirs.save_pretrained(tmp_path / "theirs")
    ours = tmp_path / "ours.bin"
    assert "hidden states: " in run_convert("tencentpretrain", tmp_path / "theirs", ours, "--verify")
    assert f"back: {family}, " in run_convert("huggingface", ours, tmp_path / "back", "--verify")
    back = model.from_pretrained(tmp_path / "back").state_dict()
    state = theirs.state_dict()
    assert back.keys() == state.keys() and all(torch.equal(back[name], state[name]) for name in state)


def test_positions_that_were_trained_are_not_dropped() -> None:
    state = dict(bart("MarianMTModel", scale_embedding=True).state_dict())
    name = "model.encoder.embed_positions.weight"
    to_ours(MARIAN, state, {"max_seq_length": len(state[name])})
    with pytest.raises(WeightsError, match=r"embed_positions.* was trained"):
        to_ours(MARIAN, state | {name: state[name] + 0.1}, {"max_seq_length": len(state[name])})


@pytest.mark.parametrize("zeros", [True, False])
def test_rows_of_no_position_are_told(run_convert: Any, tmp_path: Path, zeros: bool) -> None:
    theirs = bart()
    if zeros:
        with torch.no_grad():
            for side in (theirs.model.encoder, theirs.model.decoder):
                side.embed_positions.weight[:2] = 0
    theirs.save_pretrained(tmp_path / "theirs")
    told = run_convert("tencentpretrain", tmp_path / "theirs", tmp_path / "ours.bin")
    for side in ("encoder", "decoder"):
        said = f"rows 0 and 1 of model.{side}.embed_positions.weight, which no text here reads, are left out"
        assert (said in told) is not zeros


def test_another_epsilon_is_told(run_convert: Any, tmp_path: Path) -> None:
    bart().save_pretrained(tmp_path / "theirs")
    run_convert("tencentpretrain", tmp_path / "theirs", tmp_path / "ours.bin")
    assert "outputs differ" not in run_convert("huggingface", tmp_path / "ours.bin", tmp_path / "back")
    path = tmp_path / "ours.bin.json"
    values = json.loads(path.read_text(encoding="utf-8")) | {"layernorm_eps": 1e-6}
    path.write_text(json.dumps(values), encoding="utf-8")
    told = run_convert("huggingface", tmp_path / "ours.bin", tmp_path / "back")
    assert "`layernorm_eps` is 1e-06 here and always 1e-05 there" in told


def test_bias_that_is_missing_is_zero() -> None:
    state = dict(bart().state_dict())
    del state["final_logits_bias"]
    done = to_ours(BART, state)
    assert done.parts == ("lm",) and not done.tensors["target.lm.output_layer.bias"].any()
    ours = {name: tensor for name, tensor in done.tensors.items() if name != "target.lm.output_layer.bias"}
    assert to_theirs(BART, ours).tensors["final_logits_bias"].shape == (1, 31)


def test_one_embedding_but_another_vocabulary_layer(tmp_path: Path) -> None:
    """Their model that ties nothing must find every embedding in the file."""
    theirs = bart()
    theirs.save_pretrained(tmp_path / "tied")
    model = huggingface.read(tmp_path / "tied")
    head = "target.lm.output_layer.weight"
    tensors = dict(model.tensors) | {head: model.tensors[head] + 1}
    config = ours_of(tmp_path / "tied").config
    huggingface.write(tmp_path / "untied", BART, OurModel(tensors, config), ("lm",))
    kind = transformers.BartForConditionalGeneration
    loaded, info = kind.from_pretrained(tmp_path / "untied", output_loading_info=True)
    assert not any(info.values())
    word = theirs.model.shared.weight
    assert torch.equal(loaded.model.encoder.embed_tokens.weight, word)
    assert torch.equal(loaded.model.decoder.embed_tokens.weight, word)
    assert torch.equal(loaded.lm_head.weight, word + 1)
    again = ours_of(tmp_path / "untied").config
    assert again.share_embedding and not again.tie_weights


def test_two_vocabularies(run_script: Any, tmp_path: Path) -> None:
    theirs = bart(
        "MarianMTModel",
        share_encoder_decoder_embeddings=False,
        decoder_vocab_size=23,
        scale_embedding=True,
        activation_function="relu",
    )
    theirs.save_pretrained(tmp_path / "theirs")
    script = "convert_marian_from_huggingface_to_tencentpretrain"
    done = run_script(script, tmp_path / "theirs", tmp_path / "ours.bin", "--verify")
    assert done.code == 0 and "logits of lm" in done.stdout, done.stderr
    model = ours_of(tmp_path / "ours.bin")
    assert model.target["lm"].output_layer.weight.shape == (23, 8) and not model.config.share_embedding
    script = "convert_marian_from_tencentpretrain_to_huggingface"
    done = run_script(script, tmp_path / "ours.bin", tmp_path / "back")
    assert done.code == 0, done.stderr
    kind = transformers.MarianMTModel
    loaded, info = kind.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(info.values()) and loaded.config.decoder_vocab_size == 23
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_positions_that_are_computed(run_script: Any, tmp_path: Path) -> None:
    """As many as asked for, and to the last digit those that their model makes."""
    theirs = bart("PegasusForConditionalGeneration", scale_embedding=True, max_position_embeddings=1500)
    table = theirs.model.encoder.embed_positions.weight
    assert torch.equal(sinusoidal_table(1500, 8), table)
    torch.save(theirs.state_dict(), tmp_path / "theirs.bin")
    name = "convert_pegasus_from_{}_to_{}"
    sizes = ("--layers_num", "2", "--decoder_layers_num", "1")
    there = name.format("huggingface", "tencentpretrain")
    done = run_script(there, tmp_path / "theirs.bin", tmp_path / "ours.bin", *sizes)
    assert done.code == 0, done.stderr
    assert not any("positions" in name or ".pos." in name for name in read_state_dict(tmp_path / "ours.bin"))
    back = name.format("tencentpretrain", "huggingface")
    options = (*sizes, "--max_seq_length", "1500")
    done = run_script(back, tmp_path / "ours.bin", tmp_path / "back.bin", *options)
    assert done.code == 0, done.stderr
    written = torch.load(tmp_path / "back.bin", weights_only=True)
    state = theirs.state_dict()
    assert written.keys() == state.keys() and all(torch.equal(written[name], state[name]) for name in state)
    wrong = run_script(there, tmp_path / "theirs.bin", tmp_path / "x.bin", "--decoder_layers_num", "3")
    assert wrong.code != 0 and "`decoder_layers_num` is 3" in wrong.stderr


def test_far_positions_are_exact(tmp_path: Path) -> None:
    bart("MarianMTModel", scale_embedding=True, max_position_embeddings=6000).save_pretrained(tmp_path)
    embedding = ours_of(tmp_path).embedding.sinusoidalpos
    made = embedding({"input_ids": torch.zeros(1, 6000, dtype=torch.int64)})[0]
    torch.testing.assert_close(made, sinusoidal_table(6000, 8), rtol=0, atol=1e-6)


def test_type_chooses_between_dense_and_gated(run_script: Any, tmp_path: Path) -> None:
    t5(feed_forward_proj="gated-gelu").save_pretrained(tmp_path / "theirs")
    script = "convert_t5_from_huggingface_to_tencentpretrain"
    done = run_script(script, tmp_path / "theirs", tmp_path / "ours.bin", "--type", "t5-v1_1")
    assert done.code == 0, done.stderr
    wrong = run_script(script, tmp_path / "theirs", tmp_path / "x.bin")
    assert wrong.code != 0 and "t5-v1_1" in wrong.stderr
    ours = read_state_dict(tmp_path / "ours.bin")
    assert to_theirs(T5_V1_1, ours).parts == ("lm",)


def test_published_transformer_is_not_marian(tmp_path: Path) -> None:
    """Marian normalises no embeddings and has its own layout of sinusoids."""
    bart("MarianMTModel", scale_embedding=True).save_pretrained(tmp_path / "theirs")
    model = ours_of(tmp_path / "theirs")
    assert model.config.remove_embedding_layernorm and model.config.sinusoidal_variant == "marian"
    published = dataclasses.replace(model.config, sinusoidal_variant="auto")
    with pytest.raises(WeightsError, match="`sinusoidal_variant` is auto"):
        huggingface.write(tmp_path / "x", MARIAN, OurModel(model.state_dict(), published), ("lm",))
