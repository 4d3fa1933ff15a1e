"""ALBERT: one layer for all, embeddings of their own width, and its tokenizer."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import SIZES, VOCABULARY

from tencentpretrain import load_tokenizer
from tencentpretrain.config import TokenizerConfig
from tencentpretrain.conversion import huggingface
from tencentpretrain.conversion.engine import to_ours, to_theirs
from tencentpretrain.conversion.huggingface import OurModel
from tencentpretrain.conversion.maps import ALBERT, families_of
from tencentpretrain.conversion.program import from_huggingface, to_huggingface
from tencentpretrain.errors import DataError, WeightsError
from tencentpretrain.tokenizers import Tokenizer, build_tokenizer
from tencentpretrain.weights import described_config, read_description


def tiny(kind: str = "AlbertForPreTraining", **changes: Any) -> Any:
    import transformers

    torch.manual_seed(0)
    model = getattr(transformers, kind)(
        transformers.AlbertConfig(**{**SIZES, "embedding_size": 8, **changes})
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


@pytest.mark.parametrize(
    ("kind", "parts", "incomplete"),
    [
        ("AlbertForPreTraining", ("mlm", "sp"), set()),
        ("AlbertForMaskedLM", ("mlm",), set()),
        ("AlbertModel", (), {"sp"}),
        ("AlbertForSequenceClassification", (), {"sp"}),
    ],
)
def test_heads_that_are_there(kind: str, parts: tuple[str, ...], incomplete: set[str]) -> None:
    theirs = dict(tiny(kind).state_dict())
    assert families_of(theirs)[0] is ALBERT
    done = to_ours(ALBERT, theirs)
    assert done.parts == parts and done.incomplete.keys() == incomplete
    back = to_theirs(ALBERT, done.tensors).tensors
    full = {ALBERT.canonical(name): tensor for name, tensor in theirs.items()}
    assert full.keys() - back.keys() == set(done.ignored)
    assert all(torch.equal(full[name], tensor) for name, tensor in back.items())


@pytest.mark.parametrize("kind", ["AlbertForPreTraining", "AlbertModel"])
def test_directory_there_and_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    import transformers

    source, weights, back = tmp_path / "theirs", tmp_path / "ours.bin", tmp_path / "back"
    theirs = tiny(kind)
    theirs.save_pretrained(source)
    # Chinese ALBERTs have BERT's tokenizer.
    (source / "vocab.txt").write_text("\n".join(VOCABULARY), encoding="utf-8")
    for program, start, end in ((from_huggingface, source, weights), (to_huggingface, weights, back)):
        arguments = ["--input_model_path", str(start), "--output_model_path", str(end)]
        monkeypatch.setattr(sys, "argv", ["program", *arguments])
        program(ALBERT)
    description = read_description(weights)
    assert description is not None
    config = described_config(weights, description)
    assert (config.emb_size, config.hidden_size, config.layers_num) == (8, 24, 3)
    assert (config.hidden_act, config.parameter_sharing) == ("gelu_fast", True)
    loaded, info = getattr(transformers, kind).from_pretrained(back, output_loading_info=True)
    assert not any(info.values()), info
    state = theirs.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())
    tokenizer = transformers.AutoTokenizer.from_pretrained(back)
    assert tokenizer.encode("a hello 你好 [MASK]", add_special_tokens=False) == load_tokenizer(
        weights
    ).encode("a hello 你好 [MASK]")


@pytest.mark.parametrize("changes", [{"num_hidden_groups": 2}, {"inner_group_num": 2}])
def test_several_groups_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    tiny(num_hidden_layers=4, **changes).save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match=f"`{next(iter(changes))}` is 2, only 1 is supported"):
        huggingface.read(tmp_path)


@pytest.fixture
def sentencepiece_tokenizer(tmp_path: Path) -> Tokenizer:
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["Low and lower prices", "The Lowest of all", "thé ends"] * 5),
        model_writer=model, vocab_size=60, hard_vocab_limit=False, pad_id=0, unk_id=1, bos_id=-1, eos_id=-1,
        pad_piece="<pad>", control_symbols=["[CLS]", "[SEP]", "[MASK]"], num_threads=1, minloglevel=2,
    )  # fmt: skip
    path = tmp_path / "albert.model"
    path.write_bytes(model.getvalue())
    return build_tokenizer(TokenizerConfig(spm_model_path=str(path)))


def test_its_own_tokenizer(tmp_path: Path, sentencepiece_tokenizer: Tokenizer) -> None:
    import transformers

    ours = sentencepiece_tokenizer
    tiny(vocab_size=ours.vocab_size).save_pretrained(tmp_path / "theirs")
    model = huggingface.read(tmp_path / "theirs")
    config = described_config(tmp_path, model.values)
    huggingface.write(tmp_path / "back", ALBERT, OurModel(model.tensors, config, ours), model.parts)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "back")
    assert type(tokenizer).__name__ == "AlbertTokenizer" and len(tokenizer) == ours.vocab_size
    for text in ("Low and lower", "The thé [MASK]", "lOW ends"):
        assert tokenizer.encode(text, add_special_tokens=False) == ours.encode(text)
    assert tokenizer.encode("Low")[0] == ours.cls_id and tokenizer.encode("Low")[-1] == ours.sep_id
    assert load_tokenizer(tmp_path / "back").encode("Low") == ours.encode("Low")


def test_tokenizer_that_changes_case_is_refused(tmp_path: Path, sentencepiece_tokenizer: Tokenizer) -> None:
    sentencepiece_tokenizer.write_files(tmp_path, {"spm_model_path": "spiece.model"})
    (tmp_path / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "AlbertTokenizer", "do_lower_case": true}', encoding="utf-8"
    )
    with pytest.raises(DataError, match="do_lower_case True; ours is False"):
        load_tokenizer(tmp_path)
