"""Recurrent encoders, the LSTM decoder and the language model in both directions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_model import VOCABULARY, make_batch, make_config
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from tencentpretrain import ConfigError, build_model
from tencentpretrain.batch import Batch
from tencentpretrain.generation import greedy
from tencentpretrain.model import Model

TWO_WAYS = ("birnn", "bilstm", "bigru")


def recurrent(encoder: str, **values: Any) -> Model:
    torch.manual_seed(0)
    given = {"embedding": ("word",), "emb_size": 24, "encoder": encoder, **values}
    return build_model(make_config(**given), VOCABULARY).eval()


def sees(model: Model, batch: Batch, length: int) -> torch.Tensor:
    """[query, changed, half]: whether half of the state at a position depends on a token."""
    before = model.encode(batch)[0].unflatten(-1, (2, -1))
    rows = []
    for changed in range(length):
        other = batch | {"input_ids": batch["input_ids"].clone()}
        other["input_ids"][0, changed] = (other["input_ids"][0, changed] + 1) % VOCABULARY
        rows.append((model.encode(other)[0].unflatten(-1, (2, -1)) - before).abs().amax(-1) > 0)
    return torch.stack(rows, 1)


@pytest.mark.parametrize("encoder", ["rnn", "lstm", "gru"])
def test_one_direction_sees_the_past_only(encoder: str) -> None:
    past = torch.ones(12, 12, dtype=torch.bool).tril()
    assert torch.equal(sees(recurrent(encoder), make_batch(rows=1), 12).all(-1), past)


@pytest.mark.parametrize("encoder", TWO_WAYS)
def test_each_half_is_blind_to_what_it_predicts_and_to_padding(encoder: str) -> None:
    batch = {name: value[2:] for name, value in make_batch(rows=3).items()}
    length = int((batch["segment_ids"] > 0).sum())
    assert length < 12
    past = torch.ones(12, 12, dtype=torch.bool).tril()
    seen = sees(recurrent(encoder), batch, 12)
    assert torch.equal(seen[:length, :, 0], past[:length])
    future = past.mT[:length].clone()
    future[:, length:] = False
    assert torch.equal(seen[:length, :, 1], future)


@pytest.mark.parametrize("encoder", ["rnn", "lstm", "gru"])
def test_bidirectional_layers_are_torchs_on_packed_sequences(encoder: str) -> None:
    model, batch = recurrent(encoder, bidirectional=True, layers_num=3), make_batch()
    real = batch["segment_ids"] > 0
    hidden = model.embedding(batch)
    packed = pack_padded_sequence(hidden, real.sum(1), batch_first=True, enforce_sorted=False)
    expected = pad_packed_sequence(model.encoder.rnn(packed)[0], batch_first=True, total_length=12)[0]
    torch.testing.assert_close(model.encoder(hidden, batch)[real], expected[real])
    torch.testing.assert_close(model.encoder(hidden, {}), model.encoder.rnn(hidden)[0])


def test_dropout_lies_between_layers_and_behind_them() -> None:
    for encoder, bidirectional in (("lstm", True), ("lstm", False), ("bilstm", False)):
        model = recurrent(encoder, bidirectional=bidirectional, dropout=0.5)
        hidden, batch = model.embedding(make_batch()).detach(), make_batch()
        calm = model.encoder(hidden, batch)
        states = model.encoder.train()(hidden, batch)
        assert 0.4 < float((states == 0).float().mean()) < 0.6
        kept = states != 0
        assert not torch.allclose(states[kept], 2 * calm[kept]), "only the last layer's states were dropped"
        single = recurrent(encoder, bidirectional=bidirectional, dropout=0.5, layers_num=1)
        calm = single.encoder(hidden, batch)
        states = single.encoder.train()(hidden, batch)
        torch.testing.assert_close(states[states != 0], 2 * calm[states != 0], rtol=1e-4, atol=1e-6)


def test_bilm_is_two_language_models_with_one_vocabulary_layer() -> None:
    model, batch = recurrent("bilstm", target=("bilm",), has_lmtarget_bias=True), make_batch()
    output = model(batch)
    hidden, labels = model.encode(batch), batch["bilm_labels"]
    cross_entropy = nn.CrossEntropyLoss(reduction="sum", ignore_index=-100)
    layer = model.target["bilm"].output_layer
    ahead, back = (
        cross_entropy(layer(half).flatten(0, 1), labels[..., way].flatten())
        for way, half in enumerate((hidden[..., :16], hidden[..., 16:]))
    )
    assert int(output.count) == int((labels != -100).sum())
    torch.testing.assert_close(output.parts["bilm"].loss_sum, ahead + back)
    assert set(output.metrics) == {"acc_bilm"}


def test_bilm_learns_both_neighbours() -> None:
    torch.manual_seed(0)
    model = recurrent("bigru", target=("bilm",), layers_num=1, tie_weights=True, emb_size=16).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    ids = (torch.arange(8) + torch.arange(24)[:, None]) % 24  # each token has one neighbour on either side
    ends = torch.full((24, 1), -100)
    labels = torch.stack([torch.cat([ids[:, 1:], ends], 1), torch.cat([ends, ids[:, :-1]], 1)], -1)
    for _ in range(80):
        optimizer.zero_grad()
        output = model({"input_ids": ids, "bilm_labels": labels})
        output.loss.backward()
        optimizer.step()
    right, count = output.metrics["acc_bilm"]
    assert right / count > 0.95


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"encoder": "bilstm", "target": ("lm",)}, "target 'lm' needs a decoder behind encoder 'bilstm'"),
        ({"encoder": "lstm", "bidirectional": True, "target": ("lm",)}, "target 'lm' needs a decoder"),
        ({"encoder": "lstm", "target": ("bilm",)}, "one of the encoders bigru, bilstm, birnn, but .* lstm"),
        ({"encoder": "gru", "bidirectional": True, "target": ("bilm",)}, "each blind to the token"),
        ({"encoder": "transformer", "target": ("bilm",)}, "but `encoder` is transformer"),
        ({"encoder": "bilstm", "decoder": "lstm", "target": ("bilm",)}, "decoder 'lstm' sees no token after"),
        (
            {"encoder": "bilstm", "target": ("bilm",), "tie_weights": True},
            r"\(24\) equal to half of .*\(32\)",
        ),
        ({"encoder": "birnn", "hidden_size": 33}, "'birnn' needs an even `hidden_size`.* 33"),
        ({"encoder": "rnn", "hidden_size": 33, "bidirectional": True}, "`bidirectional` needs an even"),
        ({"encoder": "lstm", "mask": "causal_with_prefix"}, "'lstm' has no attention that `mask` could"),
        ({"encoder": "bilstm", "mask": "causal"}, "'bilstm' has no attention that `mask` could"),
        ({"encoder": "gru", "rotary_position_embedding": True}, "`rotary_position_embedding` is about att"),
        ({"encoder": "lstm", "decoder": "transformer", "target": ("lm",)}, "decoder 'transformer' needs"),
    ],
)
def test_what_recurrent_encoders_cannot_do_is_said(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        make_config(embedding=("word",), emb_size=24, **values)


def test_the_mask_may_say_what_a_recurrent_encoder_is() -> None:
    assert make_config(encoder="lstm", mask="causal", target=("lm",)).mask == "causal"


def cove(**values: Any) -> Model:
    torch.manual_seed(1)
    given = {"embedding": ("word",), "emb_size": 24, "encoder": "bilstm", "decoder": "lstm", **values}
    return build_model(make_config(target=("lm",), decoder_layers_num=3, **given), VOCABULARY).eval()


def decoder_batch() -> Batch:
    batch, other = make_batch(), make_batch(length=9, seed=1)
    batch["decoder_input_ids"], batch["decoder_segment_ids"] = (
        other["input_ids"],
        other["segment_ids"].clamp(max=1),
    )
    return batch | {"lm_labels": other["lm_labels"]}


def test_the_lstm_decoder_attends_to_the_source_and_sees_its_own_past() -> None:
    model, batch = cove(), decoder_batch()
    before = model.encode(batch)[0]
    assert model.decoder.rnn.num_layers == 3 and before.shape == (9, 32)
    for changed in range(12):
        other = batch | {"input_ids": batch["input_ids"].clone()}
        other["input_ids"][0, changed] -= 1
        assert bool(((model.encode(other)[0] - before).abs().amax(-1) > 0).all())
    for changed in range(9):
        other = batch | {"decoder_input_ids": batch["decoder_input_ids"].clone()}
        other["decoder_input_ids"][0, changed] -= 1
        seen = (model.encode(other)[0] - before).abs().amax(-1) > 0
        assert seen.tolist() == [query >= changed for query in range(9)]


def test_the_lstm_decoder_attends_by_a_softmax_over_what_is_not_padding() -> None:
    model, batch = cove(), decoder_batch()
    memory = model.encoder(model.embedding(batch), batch)
    target = {name.removeprefix("decoder_"): value for name, value in batch.items() if "decoder_" in name}
    states = model.decoder.rnn(model.tgt_embedding(target))[0]
    row, end = 2, 8
    scores = model.decoder.attention(states[row]) @ memory[row, :end].T
    context = scores.softmax(-1) @ memory[row, :end]
    expected = model.decoder.output(torch.cat([context, states[row]], -1)).tanh()
    torch.testing.assert_close(model.encode(batch)[row], expected)


@pytest.mark.parametrize("encoder", ["lstm", "gru", "rnn", "gatedcnn", "bilstm"])
def test_generation_is_the_argmax_of_the_whole_and_the_same_alone(encoder: str) -> None:
    model = cove(encoder=encoder) if encoder == "bilstm" else recurrent(encoder, target=("lm",))
    for parameter in model.parameters():  # so that tokens differ
        nn.init.normal_(parameter, std=1.0)
    batch = {name: make_batch()[name] for name in ("input_ids", "segment_ids")}
    texts = greedy(model, batch, 10, start_id=1)
    for row, length in enumerate((12, 10, 8)):
        alone = {name: value[row : row + 1, :length] for name, value in batch.items()}
        tokens = torch.tensor([[1]]) if encoder == "bilstm" else alone["input_ids"]
        for expected in texts[row].tolist():
            own = {"input_ids": tokens} if encoder != "bilstm" else alone | {"decoder_input_ids": tokens}
            token = model.target["lm"].logits(model.encode(own)[:, -1]).argmax(-1)
            assert int(token) == expected
            tokens = torch.cat([tokens, token[None]], 1)
    assert texts.unique().numel() > 5
