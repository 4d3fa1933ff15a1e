"""LLaMA and its relatives: configuration, files, heads, programs. Outputs are compared in tests/parity."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tencentpretrain import build_model, load_config, load_tokenizer, load_weights
from tencentpretrain.config import ModelConfig
from tencentpretrain.conversion import huggingface, llama_programs
from tencentpretrain.conversion.engine import to_ours, to_theirs
from tencentpretrain.conversion.huggingface import OurModel
from tencentpretrain.conversion.maps.llama import LLAMA, MISTRAL, QWEN2, QWEN3
from tencentpretrain.conversion.meta import META
from tencentpretrain.conversion.meta import read as read_meta
from tencentpretrain.conversion.steps import RotaryPairs
from tencentpretrain.errors import WeightsError
from tencentpretrain.model import Model
from tencentpretrain.weights import described_config, read_description

os.environ.setdefault("HF_HUB_OFFLINE", "1")

ROOT = Path(__file__).parents[2]
HERE = Path("config.json")
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def tiny(kind: str = "Llama", model: str = "ForCausalLM", **changes: Any) -> Any:
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**SIZES, **changes})
    made = getattr(transformers, f"{kind}{model}")(config)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return made.eval()


def ours_of(directory: Path) -> Model:
    description = read_description(directory)
    assert description is not None
    model = build_model(described_config(directory, description), description["vocab_size"]).eval()
    assert load_weights(model, directory).missing == []
    return model


def logits(model: Any) -> Tensor:
    ids = torch.arange(5, 25)[None]
    if not isinstance(model, Model):
        return model(ids).logits
    hidden = model.encode({"input_ids": ids, "segment_ids": torch.ones_like(ids)})
    return model.target["lm"].logits(hidden)


Program = Callable[..., Any]


# How the rotation is written, in files of Transformers 4 and 5.


@pytest.mark.parametrize(
    ("written", "theta", "scaling"),
    [
        ({}, 10000.0, {}),
        ({"rope_theta": 5e5, "rope_scaling": None}, 5e5, {}),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, 1e6, {}),
        (
            {"rope_theta": 2e4, "rope_scaling": {"type": "linear", "factor": 2.0}},
            2e4,
            {"rope_type": "linear", "factor": 2.0},
        ),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 2e4}},
            2e4,
            {"rope_type": "linear", "factor": 2.0},
        ),
        ({"rope_theta": 5e5, "rope_scaling": LLAMA3}, 5e5, LLAMA3),
        ({"rope_parameters": {**LLAMA3, "rope_theta": 5e5}}, 5e5, LLAMA3),
        # Read from the configuration around it, as there.
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "attention_factor": None}},
            10000.0,
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        ),
        (
            {
                "rope_scaling": {"type": "yarn", "factor": 4.0, "finetuned": True},
                "original_max_position_embeddings": 16,
            },
            10000.0,
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
        ),
        (
            {
                "rope_scaling": {
                    "rope_type": "dynamic",
                    "factor": 2.0,
                    "original_max_position_embeddings": 16,
                }
            },
            10000.0,
            {"rope_type": "dynamic", "factor": 2.0},
        ),
    ],
)
def test_rotation_of_a_configuration(written: dict[str, Any], theta: float, scaling: dict[str, Any]) -> None:
    values = huggingface.our_values(LLAMA, {**SIZES, **written}, HERE)
    assert (values["rope_theta"], values["rope_scaling"]) == (theta, scaling)
    described_config(HERE, values)


@pytest.mark.parametrize(
    "scaling",
    [{}, LLAMA3, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}],
    ids=str,
)
def test_rotation_survives_the_way_back(scaling: dict[str, Any], tmp_path: Path) -> None:
    rope = {"rope_theta": 5e5, "rope_type": "default", **scaling}
    theirs = tiny(rope_parameters=rope)
    theirs.save_pretrained(tmp_path / "in")
    model = huggingface.read(tmp_path / "in")
    config = described_config(tmp_path, model.values | {"target": ["lm"]})
    huggingface.write(tmp_path / "out", LLAMA, OurModel(model.tensors, config), model.parts)
    written = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert (written["rope_theta"], written["rope_scaling"]) == (5e5, scaling or None)  # for Transformers 4
    back = type(theirs).from_pretrained(tmp_path / "out")
    assert back.config.rope_parameters == theirs.config.rope_parameters
    assert torch.equal(logits(back), logits(theirs))


# What ours expresses, and what it cannot.


WINDOW = {"use_sliding_window": True, "sliding_window": 8}


@pytest.mark.parametrize(
    ("family", "written", "expected"),
    [
        (LLAMA, {}, {"local_kv_heads_num": None, "attention_head_size": None, "tie_weights": False}),
        (LLAMA, {"head_dim": 12}, {"attention_head_size": 12}),
        (LLAMA, {"num_key_value_heads": 1}, {"local_kv_heads_num": 1}),
        (MISTRAL, {}, {"sliding_window": 4096, "local_kv_heads_num": 8, "max_seq_length": 131072}),
        (MISTRAL, {"sliding_window": None}, {"sliding_window": None}),
        (MISTRAL, {"num_key_value_heads": None}, {"local_kv_heads_num": None}),
        (QWEN2, {"sliding_window": 8}, {"sliding_window": None, "has_qkv_bias": True}),
        (QWEN2, {**WINDOW, "max_window_layers": 0}, {"sliding_window": 8}),
        (QWEN2, {**WINDOW, "num_hidden_layers": 28}, {"sliding_window": None}),
        (QWEN2, {**WINDOW, "sliding_window": None}, {"sliding_window": None}),
        (QWEN2, {**WINDOW, "layer_types": 32 * ["sliding_attention"]}, {"sliding_window": 8}),
        (QWEN3, {}, {"attention_head_size": 128, "has_qk_norm": True, "has_qkv_bias": False}),
    ],
)
def test_values_of_a_configuration(family: Any, written: dict[str, Any], expected: dict[str, Any]) -> None:
    values = huggingface.our_values(family, written, HERE)
    assert {name: values[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("family", "written", "said"),
    [
        (LLAMA, {"attention_bias": True}, "`attention_bias` is True"),
        (LLAMA, {"mlp_bias": True}, "`mlp_bias` is True"),
        (LLAMA, {"hidden_act": "gelu_10"}, "`hidden_act` is gelu_10"),
        (LLAMA, {"rope_parameters": {"partial_rotary_factor": 0.5}}, "`partial_rotary_factor`"),
        (
            QWEN2,
            {**WINDOW, "max_window_layers": 14},
            "in some layers only",
        ),
        (
            QWEN2,
            {**WINDOW, "layer_types": ["full_attention", "sliding_attention"]},
            "in some layers only",
        ),
        (QWEN3, {"attention_bias": True}, "`attention_bias` is True"),
    ],
)
def test_values_that_ours_cannot_express(family: Any, written: dict[str, Any], said: str) -> None:
    with pytest.raises(WeightsError, match=said):
        huggingface.our_values(family, written, HERE)


def test_scaling_that_is_not_known(run_script: Program, tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    config["rope_parameters"] = {"rope_type": "longrope", "rope_theta": 1e4, "factor": 2.0}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    done = run_script("convert_llama_from_huggingface_to_tencentpretrain", tmp_path, tmp_path / "ours.bin")
    assert done.code == 2 and "longrope" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "ours.bin").exists()


@pytest.mark.parametrize(
    ("family", "changes", "said"),
    [
        (LLAMA, {"sliding_window": 4}, "`sliding_window` is 4"),
        (LLAMA, {"has_qkv_bias": True}, "`has_qkv_bias` is True"),
        (LLAMA, {"rotary_position_embedding": False}, "`rotary_position_embedding` is False"),
        (LLAMA, {"mask": "causal_with_prefix"}, "`mask` is causal_with_prefix"),
        (MISTRAL, {"has_qk_norm": True}, "`has_qk_norm` is True"),
        (QWEN2, {}, "`has_qkv_bias` is False"),
    ],
)
def test_models_of_ours_that_are_none_of_theirs(family: Any, changes: dict[str, Any], said: str) -> None:
    published = json.loads((ROOT / "models/llama/7b_config.json").read_text(encoding="utf-8"))
    small = {"hidden_size": 32, "emb_size": 32, "feedforward_size": 40, "heads_num": 4, "layers_num": 2}
    values = {name: value for name, value in published.items() if name not in ("about", "data_processor")}
    config = described_config(HERE, values | small | changes)
    tensors = {"embedding.word.embedding.weight": torch.zeros(9, 32)}
    with pytest.raises(WeightsError, match=said):
        huggingface.their_config(family, config, OurModel(tensors), ("lm",))


# Heads.


def test_pairs_are_neighbours_at_ours() -> None:
    rows = torch.arange(12)[:, None]  # two heads of six
    config = {"hidden_size": 12, "heads_num": 2}
    (ours,) = RotaryPairs().to_ours([rows], config)
    assert ours.flatten().tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]
    (back,) = RotaryPairs().to_theirs([ours], config)
    assert torch.equal(back, rows)
    (vector,) = RotaryPairs().to_ours([torch.arange(4)], {"attention_head_size": 4})
    assert vector.tolist() == [0, 2, 1, 3]
    with pytest.raises(WeightsError, match="not made of heads of 5 rows"):
        RotaryPairs().to_ours([rows], {"attention_head_size": 5})


def test_weights_alone_do_not_say_how_large_heads_are(tmp_path: Path) -> None:
    theirs = tiny()
    torch.save(theirs.state_dict(), tmp_path / "llama.pt")
    with pytest.raises(WeightsError, match=r"directory with config\.json"):
        dict(huggingface.read(tmp_path / "llama.pt").tensors)


@pytest.mark.parametrize("kind", ["Llama", "Mistral", "Qwen2", "Qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_model_without_head(kind: str, tied: bool, tmp_path: Path) -> None:
    theirs = tiny(kind, "Model", tie_word_embeddings=tied)
    theirs.save_pretrained(tmp_path)
    description = read_description(tmp_path)
    assert description is not None
    ours = build_model(described_config(tmp_path, description | {"target": ["lm"]}), 60).eval()
    report = load_weights(ours, tmp_path)
    # An untied head is not there: it must not silently be the embeddings.
    assert report.missing == ([] if tied else ["target.lm.output_layer.weight"])
    ids = torch.arange(5, 25)[None]
    hidden = ours.encode({"input_ids": ids, "segment_ids": torch.ones_like(ids)})
    torch.testing.assert_close(hidden, theirs(ids).last_hidden_state, rtol=1e-4, atol=1e-5)


# Files.


@pytest.mark.parametrize("safe", [True, False])
def test_directory_of_shards(safe: bool, tmp_path: Path) -> None:
    theirs = tiny()
    theirs.save_pretrained(tmp_path, max_shard_size="24KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text(encoding="utf-8"))
    if not safe:  # as LLaMA's were at first
        from safetensors.torch import load_file

        for file in sorted(tmp_path.glob("*.safetensors")):
            torch.save(load_file(file), tmp_path / f"pytorch_{file.stem}.bin")
            file.unlink()
        (tmp_path / "model.safetensors.index.json").unlink()
        index["weight_map"] = {
            name: f"pytorch_{Path(file).stem}.bin" for name, file in index["weight_map"].items()
        }
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index), encoding="utf-8")
    assert len(set(index["weight_map"].values())) > 2
    torch.testing.assert_close(logits(ours_of(tmp_path)), logits(theirs), rtol=1e-4, atol=1e-5)


def test_buffers_of_older_files_are_ignored() -> None:
    theirs = dict(tiny().state_dict())
    theirs["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    values = {"hidden_size": 32, "heads_num": 4}
    assert to_ours(LLAMA, theirs, values).ignored == ["model.layers.0.self_attn.rotary_emb.inv_freq"]


def test_program_takes_the_size_of_a_bare_file(run_script: Program, tmp_path: Path) -> None:
    theirs = tiny(num_key_value_heads=4)
    torch.save(theirs.state_dict(), tmp_path / "llama.bin")
    program = "convert_llama_from_huggingface_to_tencentpretrain"
    done = run_script(program, tmp_path / "llama.bin", tmp_path / "ours.bin", "--type", "13B")
    assert done.code == 2 and "40 layers" in done.stderr, done.stderr

    theirs.save_pretrained(tmp_path / "llama")
    done = run_script(program, tmp_path / "llama", tmp_path / "ours.bin", "--verify")
    assert done.code == 0, done.stderr
    config = load_config(tmp_path / "ours.bin.json")
    ours = build_model(config, 60).eval()
    assert load_weights(ours, tmp_path / "ours.bin").missing == []
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=1e-4, atol=1e-5)

    back = tmp_path / "back"
    done = run_script("convert_llama_from_tencentpretrain_to_huggingface", tmp_path / "ours.bin", back)
    assert done.code == 0, done.stderr
    assert "no tokenizer is written" in done.stdout
    again, info = type(theirs).from_pretrained(back, output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(logits(again), logits(theirs))

    done = run_script(
        "convert_llama_from_tencentpretrain_to_huggingface", tmp_path / "ours.bin", tmp_path / "back.bin"
    )
    assert done.code == 0, done.stderr
    written = torch.load(tmp_path / "back.bin", weights_only=True)
    expected = theirs.state_dict()
    assert written.keys() == expected.keys() and all(
        torch.equal(written[name], expected[name]) for name in written
    )


def test_bare_file_of_a_size_that_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = tiny(num_key_value_heads=4)
    theirs.save_pretrained(tmp_path / "llama")
    torch.save(theirs.state_dict(), tmp_path / "llama.bin")
    published = json.loads((ROOT / "models/llama/7b_config.json").read_text(encoding="utf-8"))
    small = {"hidden_size": 32, "emb_size": 32, "feedforward_size": 40, "heads_num": 4, "layers_num": 2}
    (tmp_path / "7b_config.json").write_text(json.dumps(published | small), encoding="utf-8")
    paths = [
        "--input_model_path",
        str(tmp_path / "llama.bin"),
        "--output_model_path",
        str(tmp_path / "ours.bin"),
    ]
    monkeypatch.setattr(sys, "argv", ["convert", *paths])
    llama_programs.from_huggingface(tmp_path)
    model = build_model(load_config(tmp_path / "ours.bin.json"), 60).eval()
    assert load_weights(model, tmp_path / "ours.bin").missing == []
    torch.testing.assert_close(logits(model), logits(theirs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "changes"), [("Llama", {}), ("Mistral", {"sliding_window": 8}), ("Qwen2", {}), ("Qwen3", {})]
)
def test_family_is_found_out(kind: str, changes: dict[str, Any], run_script: Program, tmp_path: Path) -> None:
    theirs = tiny(kind, **changes)
    theirs.save_pretrained(tmp_path / "theirs")
    done = run_script("convert", tmp_path / "theirs", tmp_path / "ours.bin", "--to", "tencentpretrain")
    assert done.code == 0, done.stderr
    done = run_script("convert", tmp_path / "ours.bin", tmp_path / "back", "--to", "huggingface")
    assert done.code == 0, done.stderr
    back = type(theirs).from_pretrained(tmp_path / "back")
    assert back.config.model_type == theirs.config.model_type == kind.lower()
    assert torch.equal(logits(back), logits(theirs))


# Meta's format.


def meta_files(directory: Path, shards: int, rows: bool, **params: Any) -> dict[str, Tensor]:
    """A LLaMA as Meta's programs write it, in as many files; the whole tensors."""
    config = ModelConfig(
        embedding=("word",), hidden_size=32, emb_size=32, feedforward_size=40, hidden_act="silu", heads_num=4,
        local_kv_heads_num=2, layers_num=2, mask="causal", layernorm="rms", layernorm_positioning="pre",
        feed_forward="gated", remove_embedding_layernorm=True, remove_transformer_bias=True,
        rotary_position_embedding=True, target=("lm",),
    )  # fmt: skip
    whole = dict(to_theirs(META, build_model(config, 60).state_dict()).tensors)
    split = {"wq": 0, "wk": 0, "wv": 0, "wo": 1, "w1": 0, "w2": 1, "w3": 0, "output": 0}
    split["tok_embeddings"] = 0 if rows else 1
    directory.mkdir()
    for number in range(shards):
        part = {
            name: tensor.chunk(shards, split[name.split(".")[-2]])[number].clone()
            if tensor.ndim > 1
            else tensor
            for name, tensor in whole.items()
        }
        torch.save({**part, "rope.freqs": torch.ones(4)}, directory / f"consolidated.{number:02}.pth")
    given = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "norm_eps": 1e-5, "vocab_size": -1}
    (directory / "params.json").write_text(json.dumps(given | params), encoding="utf-8")
    return whole


@pytest.mark.parametrize(("shards", "rows"), [(1, False), (2, False), (2, True), (4, False)])
def test_files_of_meta_are_joined(shards: int, rows: bool, tmp_path: Path) -> None:
    whole = meta_files(tmp_path / "meta", shards, rows, rope_theta=5e5, use_scaled_rope=True)
    for source in (tmp_path / "meta", tmp_path / "meta" / "consolidated.00.pth"):
        model = read_meta(source)
        back = to_theirs(META, model.tensors).tensors
        assert back.keys() == whole.keys()
        for name, tensor in whole.items():
            assert torch.equal(back[name], tensor), name
        config = described_config(source, model.values | {"target": list(model.parts)})
        assert (config.layernorm_eps, config.rope_theta, config.kv_heads_num) == (1e-5, 5e5, 2)
        assert config.rope_scaling["factor"] == 8.0 and config.feedforward_size == 40
        assert config.dropout == 0.0 and not config.tie_weights


def test_programs_of_meta_and_the_way_to_hugging_face(run_script: Program, tmp_path: Path) -> None:
    whole = meta_files(tmp_path / "meta", 2, False)
    ours, back, theirs = tmp_path / "ours.bin", tmp_path / "back.pth", tmp_path / "theirs"
    done = run_script("convert_llama_to_tencentpretrain", tmp_path / "meta", ours)
    assert done.code == 0, done.stderr
    assert "rope.freqs" in done.stdout
    done = run_script("convert_tencentpretrain_to_llama", ours, back, "--layers_num", "2")
    assert done.code == 0, done.stderr
    written = torch.load(back, weights_only=True)
    assert written.keys() == whole.keys() and all(torch.equal(written[name], whole[name]) for name in whole)
    done = run_script("convert_llama_from_tencentpretrain_to_huggingface", ours, theirs)
    assert done.code == 0, done.stderr

    import transformers

    model = build_model(load_config(f"{ours}.json"), 60).eval()
    load_weights(model, ours)
    expected = logits(transformers.LlamaForCausalLM.from_pretrained(theirs).eval())
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-5)


def test_what_is_no_llama_of_meta(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match=r"without consolidated\.\*\.pth"):
        read_meta(tmp_path / "empty")
    meta_files(tmp_path / "meta", 2, False)
    torch.save({"norm.weight": torch.ones(32)}, tmp_path / "meta" / "consolidated.01.pth")
    with pytest.raises(WeightsError, match="is not in every one of the 2 files"):
        read_meta(tmp_path / "meta")
    torch.save(tiny().state_dict(), tmp_path / "theirs.bin")
    with pytest.raises(WeightsError, match="have no place"):
        read_meta(tmp_path / "theirs.bin")


# Tokenizers.


@pytest.fixture(scope="module")
def sentencepiece_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vocabulary as LLaMA's: byte-pair pieces, bytes where there is none, single digits."""
    import sentencepiece

    directory = tmp_path_factory.mktemp("spm")
    text = directory / "text.txt"
    words = ["the model reads", "a text of 12 words", "and 34 others", "你好世界", "naïve café"]
    text.write_text("\n".join(words * 20), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(directory / "tokenizer"), vocab_size=330, model_type="bpe",
        byte_fallback=True, split_digits=True, normalization_rule_name="identity",
        remove_extra_whitespaces=False, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    return directory / "tokenizer.model"


def test_tokenizer_of_llama_is_carried(
    run_script: Program, sentencepiece_model: Path, tmp_path: Path
) -> None:
    source, ours, back = tmp_path / "llama", tmp_path / "ours.bin", tmp_path / "back"
    tiny(vocab_size=400).save_pretrained(source)
    (source / "tokenizer.model").write_bytes(sentencepiece_model.read_bytes())
    done = run_script("convert_llama_from_huggingface_to_tencentpretrain", source, ours)
    assert done.code == 0 and "configuration and tokenizer" in done.stdout, done
    tokenizer = load_tokenizer(ours)
    assert tokenizer.kind == "sentencepiece"
    done = run_script("convert_llama_from_tencentpretrain_to_huggingface", ours, back)
    assert done.code == 0, done.stderr

    import transformers

    theirs = transformers.AutoTokenizer.from_pretrained(back)
    for text in ("the model 12", "你好, world", "a</s>the", "", "🙂\n\tnaïve"):
        assert theirs(text, add_special_tokens=False).input_ids == tokenizer.encode(text), text
    config = json.loads((back / "config.json").read_text(encoding="utf-8"))
    assert (config["bos_token_id"], config["eos_token_id"]) == (1, 2)


def test_tokenizer_of_a_json_alone_is_carried(run_script: Program, tmp_path: Path) -> None:
    """Qwen's and Llama 3's cut texts with a pattern of their own before the merges."""
    import transformers
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    source, ours = tmp_path / "qwen", tmp_path / "ours.bin"
    tiny("Qwen2").save_pretrained(source)
    rust = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    rust.normalizer = normalizers.NFC()
    rust.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{N}|\s+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    rust.save(str(source / "tokenizer.json"))
    done = run_script("convert_qwen2_from_huggingface_to_tencentpretrain", source, ours)
    assert done.code == 0, done.stderr
    text = "ab b 12 é"
    tokenizer = load_tokenizer(ours)
    assert tokenizer.encode(text) == rust.encode(text).ids
    back = tmp_path / "back"
    done = run_script("convert_qwen2_from_tencentpretrain_to_huggingface", ours, back)
    assert done.code == 0, done.stderr
    assert transformers.AutoTokenizer.from_pretrained(back)(text).input_ids == tokenizer.encode(text)


def test_pretraining_starts_from_a_directory(tmp_path: Path) -> None:
    """Whose embedding has more rows than its tokenizer has tokens, as Qwen's and T5's have."""
    from tokenizers import Tokenizer, models

    from tencentpretrain.config import PreprocessConfig
    from tencentpretrain.data.preprocess import preprocess
    from tencentpretrain.errors import ConfigError
    from tencentpretrain.training.pretraining import fresh_model
    from tencentpretrain.training.settings import read_settings

    source, corpus = tmp_path / "qwen", tmp_path / "corpus.txt"
    model = tiny("Qwen2")
    model.save_pretrained(source)
    tokens = ["<s>", "</s>", "a", "b", "ab"]
    corpus.write_text("abba\nbab\n", encoding="utf-8")

    def saved(tokens: list[str], path: Path) -> str:
        path.mkdir(exist_ok=True)
        rust = Tokenizer(models.BPE({token: id for id, token in enumerate(tokens)}, [("a", "b")]))
        rust.add_special_tokens(["<s>", "</s>"])
        rust.save(str(path / "tokenizer.json"))
        return str(path)

    for name, directory in (("own", saved(tokens, source)), ("other", saved(tokens[::-1], tmp_path / "x"))):
        config = PreprocessConfig(corpus_path=(str(corpus),), dataset_path=str(tmp_path / name))
        preprocess(config, "documents", load_tokenizer(directory))
    options = ["--pretrained_model_path", str(source), "--data_processor", "lm", "--seq_length", "8"]
    options += ["--output_model_path", str(tmp_path / "out.bin"), "--dataset_path"]
    settings = read_settings([*options, str(tmp_path / "own")])
    rows = model.get_input_embeddings().weight.shape[0]
    assert fresh_model(settings).embedding.word.embedding.weight.shape[0] == rows > len(tokens)
    with pytest.raises(ConfigError, match="made with another tokenizer"):
        read_settings([*options, str(tmp_path / "other")])
