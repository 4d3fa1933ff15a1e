"""RoBERTa and XLM-RoBERTa: positions from 2, one segment, two names for one table, their tokenizers."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import SIZES

from tencentpretrain import encode, load_tokenizer, load_weights
from tencentpretrain.conversion import huggingface
from tencentpretrain.conversion.engine import to_ours, to_theirs
from tencentpretrain.conversion.family import Family
from tencentpretrain.conversion.huggingface import OurModel
from tencentpretrain.conversion.maps import ROBERTA, XLM_ROBERTA
from tencentpretrain.conversion.program import from_huggingface, to_huggingface
from tencentpretrain.errors import WeightsError
from tencentpretrain.model import build_model
from tencentpretrain.weights import described_config, read_description, read_state_dict, save_weights

TEXTS = ["a low, lower price", "newest things: 1, 2, 3", "the lowest of all prices"]


def tiny(kind: str = "RobertaForMaskedLM", **changes: Any) -> Any:
    import transformers

    config = getattr(transformers, kind).config_class
    torch.manual_seed(0)
    values = {**SIZES, "type_vocab_size": 1, "layer_norm_eps": 1e-5, **changes}
    model = getattr(transformers, kind)(config(**values)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def write_bpe(directory: Path) -> int:
    """RoBERTa's two files; the size of the vocabulary."""
    from tokenizers import pre_tokenizers

    tokens = ["<s>", "<pad>", "</s>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    merges = ["l o", "lo w", "Ġ lo", "e s", "es t"]
    tokens += [merge.replace(" ", "") for merge in merges] + ["<mask>"]
    ids = {token: id for id, token in enumerate(tokens)}
    (directory / "vocab.json").write_text(json.dumps(ids), encoding="utf-8")
    (directory / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]), encoding="utf-8")
    return len(tokens)


def write_sentencepiece(directory: Path) -> int:
    """XLM-RoBERTa's file; the size of the vocabulary."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 5), model_writer=model, vocab_size=60, hard_vocab_limit=False,
        unk_id=0, bos_id=1, eos_id=2, pad_id=-1, num_threads=1, minloglevel=2,
    )  # fmt: skip
    (directory / "sentencepiece.bpe.model").write_bytes(model.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()).vocab_size() + 2


def run(monkeypatch: pytest.MonkeyPatch, program: Any, family: Family, source: Path, target: Path) -> None:
    arguments = ["--input_model_path", str(source), "--output_model_path", str(target)]
    monkeypatch.setattr(sys, "argv", ["program", *arguments])
    program(family)


@pytest.mark.parametrize(
    ("kind", "family", "write"),
    [("Roberta", ROBERTA, write_bpe), ("XLMRoberta", XLM_ROBERTA, write_sentencepiece)],
)
def test_directory_there_and_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, family: Family, write: Any
) -> None:
    import transformers

    source, weights, back = tmp_path / "theirs", tmp_path / "ours.bin", tmp_path / "back"
    source.mkdir()
    theirs = tiny(f"{kind}ForMaskedLM", vocab_size=write(source), max_position_embeddings=40)
    theirs.save_pretrained(source)
    run(monkeypatch, from_huggingface, family, source, weights)
    run(monkeypatch, to_huggingface, family, weights, back)

    tokenizer = transformers.AutoTokenizer.from_pretrained(back)
    assert type(tokenizer).__name__ == f"{kind}Tokenizer" and tokenizer.model_max_length == 38
    ours = load_tokenizer(weights)
    assert len(tokenizer) == ours.vocab_size == theirs.config.vocab_size
    for text in (*TEXTS, "a <mask> price", "é"):
        assert tokenizer.encode(text, add_special_tokens=False) == ours.encode(text)
    description = read_description(weights)
    assert description is not None and description["max_seq_length"] == 40
    model = build_model(described_config(weights, description), description["vocab_size"]).eval()
    assert load_weights(model, weights).missing == []
    loaded, info = type(theirs).from_pretrained(back, output_loading_info=True)
    assert not any(info.values()), info
    # From text to states, padded, by either's own tokenizer.
    batch = encode(ours, TEXTS)
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    assert torch.equal(batch["input_ids"], inputs["input_ids"])
    expected = loaded.base_model(**inputs).last_hidden_state
    real = batch["segment_ids"] > 0
    assert not real.all()
    torch.testing.assert_close(model.encode(batch)[real], expected[real], rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", [ROBERTA, XLM_ROBERTA], ids=lambda family: family.name)
def test_file_alone_is_of_the_family_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: Family
) -> None:
    theirs = dict(tiny().state_dict())
    torch.save(theirs, tmp_path / "theirs.bin")
    run(monkeypatch, from_huggingface, family, tmp_path / "theirs.bin", tmp_path / "ours.bin")
    run(monkeypatch, to_huggingface, family, tmp_path / "ours.bin", tmp_path / "back.bin")
    back = torch.load(tmp_path / "back.bin", weights_only=True)
    assert back.keys() == theirs.keys()
    assert all(torch.equal(back[name], theirs[name]) for name in back)


def test_file_of_the_published_conversion() -> None:
    """It has the one segment below two rows of zeros, and zeros for the positions that no text has."""
    theirs = dict(tiny().state_dict())
    positions = theirs["roberta.embeddings.position_embeddings.weight"]
    positions[:2] = 0
    segments = theirs["roberta.embeddings.token_type_embeddings.weight"]
    ours = dict(to_ours(ROBERTA, theirs).tensors)
    published = torch.cat([positions[2:], positions.new_zeros(2, positions.shape[1])])
    assert torch.equal(ours["embedding.pos.embedding.weight"], published)
    ours["embedding.seg.embedding.weight"] = torch.cat([torch.zeros(2, segments.shape[1]), segments])
    back = to_theirs(ROBERTA, ours).tensors
    assert all(torch.equal(back[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("kind", ["Roberta", "XLMRoberta"])
def test_bare_model(tmp_path: Path, run_convert: Any, kind: str) -> None:
    """With its pooler, which nothing here reads."""
    import transformers

    theirs = tiny(f"{kind}Model")
    theirs.save_pretrained(tmp_path / "theirs")
    weights, back = tmp_path / "ours.bin", tmp_path / "back"
    said = run_convert("tencentpretrain", tmp_path / "theirs", weights)
    assert "targets: none" in said and "ignored: none" in said
    assert "pooler" not in run_convert("huggingface", weights, back)
    loaded, info = transformers.AutoModel.from_pretrained(back, output_loading_info=True)
    assert not any(info.values()), info
    assert all(torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in loaded.state_dict().items())

    tensors = {name: one for name, one in read_state_dict(weights).items() if "target" not in name}
    save_weights(tensors, weights)
    said = run_convert("huggingface", weights, tmp_path / "without")
    assert "there is no pooler, so from_pretrained draws theirs at random" in said
    _, info = transformers.AutoModel.from_pretrained(tmp_path / "without", output_loading_info=True)
    assert all("pooler" in name for name in info["missing_keys"]) and info["missing_keys"]


def test_pooler_beside_targets_and_heads() -> None:
    """Published masked language models have one; fine-tuned ones have no place for it."""
    pooler = {f"roberta.pooler.dense.{kind}": torch.ones(24, 24)[0] for kind in ("weight", "bias")}
    state = dict(tiny().state_dict()) | pooler
    done = to_ours(ROBERTA, state)
    assert done.parts == ("mlm",) and not done.ignored
    assert to_theirs(ROBERTA, done.tensors).tensors.keys() == state.keys()
    headed = dict(tiny("RobertaForTokenClassification").state_dict()) | pooler
    done = to_ours(ROBERTA.with_head("token_classification"), headed)
    assert done.parts == ("token_classification",) and set(done.ignored) == set(pooler)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"type_vocab_size": 3}, "has 3 segments, expected 1 or 2"),
        ({"hidden_act": "relu"}, "`hidden_act` is relu, only gelu"),
        ({"pad_token_id": 0}, "`pad_token_id` is 0, only 1 is supported"),
    ],
)
def test_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    tiny(**changes).save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match=message):
        dict(huggingface.read(tmp_path).tensors)


def test_tokenizer_with_other_padding_is_refused(tmp_path: Path) -> None:
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdef"]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    tiny(vocab_size=len(vocabulary)).save_pretrained(tmp_path / "theirs")
    model = huggingface.read(tmp_path / "theirs")
    config = described_config(tmp_path, model.values)
    with pytest.raises(WeightsError, match="`pad_token_id` is 0 in the tokenizer, only 1 is possible"):
        huggingface.write(
            tmp_path / "back", ROBERTA, OurModel(model.tensors, config, load_tokenizer(tmp_path)), model.parts
        )
