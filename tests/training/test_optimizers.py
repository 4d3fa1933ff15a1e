from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tencentpretrain import ConfigError, build_model
from tencentpretrain.config import OptimizationConfig, load_config
from tencentpretrain.training.optimizers import Adafactor, distances_from_head, make_optimizer

SMALL: dict[str, Any] = {
    "emb_size": 16, "hidden_size": 16, "feedforward_size": 24, "heads_num": 2, "layers_num": 3,
    "max_seq_length": 16,
}  # fmt: skip


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.word = nn.Embedding(5, 3)
        self.linear = nn.Linear(3, 5)
        self.norm = nn.LayerNorm(3)
        self.linear.weight = self.word.weight  # tied


def test_matrices_decay_and_vectors_do_not() -> None:
    model = Small()
    model.norm.weight.requires_grad_(False)
    optimizer = make_optimizer(model, OptimizationConfig(weight_decay=0.1))
    decayed, free = optimizer.param_groups
    assert [tuple(weight.shape) for weight in decayed["params"]] == [(5, 3)]  # once, although tied
    assert [tuple(weight.shape) for weight in free["params"]] == [(5,), (3,)]
    assert decayed["weight_decay"] == 0.1 and free["weight_decay"] == 0


def test_adamw_is_the_published_one() -> None:
    model = nn.Linear(3, 2)
    weight = model.weight.detach().double().clone()
    config = OptimizationConfig(learning_rate=0.01, weight_decay=0.1, beta1=0.8, beta2=0.9, adam_eps=1e-6)
    optimizer = make_optimizer(model, config)
    assert isinstance(optimizer, torch.optim.AdamW) and optimizer.defaults["fused"]
    first, second = torch.zeros(2, 3).double(), torch.zeros(2, 3).double()
    for step in range(1, 6):
        gradient = torch.randn(2, 3, generator=torch.Generator().manual_seed(step))
        model.weight.grad = gradient.clone()
        optimizer.step()
        first = 0.8 * first + 0.2 * gradient
        second = 0.9 * second + 0.1 * gradient.double() ** 2
        update = first / (1 - 0.8**step) / ((second / (1 - 0.9**step)).sqrt() + 1e-6)
        weight = weight * (1 - 0.01 * 0.1) - 0.01 * update
    torch.testing.assert_close(model.weight.detach().double(), weight, rtol=1e-5, atol=1e-6)


def adafactor_by_hand(weight: Tensor, gradients: list[Tensor], lr: float, decay: float) -> Tensor:
    """Shazeer & Stern 2018, algorithms 4 and 5, without the scaling by the size of the parameter."""
    row = column = square = torch.zeros(())
    for step, gradient in enumerate(gradients, start=1):
        beta = 1 - step**-0.8
        squares = gradient**2 + 1e-30
        if gradient.ndim == 2:
            row = beta * row + (1 - beta) * squares.sum(1)
            column = beta * column + (1 - beta) * squares.sum(0)
            estimate = torch.outer(row, column) / row.sum()
        else:
            square = estimate = beta * square + (1 - beta) * squares
        update = gradient / estimate.sqrt()
        update = update / max(1.0, update.pow(2).mean().sqrt().item())
        weight = weight - lr * decay * weight - lr * update
    return weight


def test_adafactor() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((4, 6), (5,)):
        weight = nn.Parameter(torch.randn(shape, generator=generator).double())
        gradients = [torch.randn(shape, generator=generator).double() * 10**step for step in range(4)]
        expected = adafactor_by_hand(weight.detach().clone(), gradients, lr=0.1, decay=0.01)
        optimizer = Adafactor([weight], lr=0.1, weight_decay=0.01)
        for gradient in gradients:
            weight.grad = gradient
            optimizer.step()
        torch.testing.assert_close(weight.detach(), expected)


def test_adafactor_memory_and_state() -> None:
    weight = nn.Parameter(torch.ones(100, 50))
    optimizer = make_optimizer(nn.ParameterList([weight]), OptimizationConfig(optimizer="adafactor"))
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    held = sum(value.numel() for value in optimizer.state[weight].values() if isinstance(value, Tensor))
    assert held == 150


def model_of(path: str, **options: Any) -> nn.Module:
    return build_model(load_config(f"models/{path}_config.json", **{**SMALL, **options}), 30)


@pytest.mark.parametrize("path", ["bert/base", "t5/base", "llama/7b"])
def test_norms_and_biases_do_not_decay(path: str) -> None:
    """As published, where names with bias, gamma or beta do not; T5's and LLaMA's norms have another name."""
    model = model_of(path)
    names = {id(weight): name for name, weight in model.named_parameters()}
    decayed, free = (
        {names[id(weight)] for weight in group["params"]}
        for group in make_optimizer(model, OptimizationConfig()).param_groups
    )
    assert len(decayed) + len(free) == len(names)
    published = {name for name in names.values() if name.endswith(("bias", "gamma", "beta"))}
    norms = {name for name in names.values() if "layer_norm" in name}
    assert free == published | norms and norms


def test_muon_has_the_matrices_of_layers() -> None:
    for path in ("bert/base", "t5/base", "llama/7b", "albert/base"):
        model = model_of(path)
        optimizer = make_optimizer(model, OptimizationConfig(optimizer="muon", weight_decay=0.1))
        names = {id(weight): name for name, weight in model.named_parameters()}
        groups = [{names[id(weight)] for weight in group["params"]} for group in optimizer.param_groups]
        muon = groups[0]
        assert optimizer.param_groups[0]["muon"] and sum(map(len, groups)) == len(names)
        for name, weight in model.named_parameters():
            layer = ("linear" in name or "gate" in name) and name.startswith(("encoder.", "decoder."))
            assert (name in muon) == (layer and weight.ndim == 2), name
    with pytest.raises(ConfigError, match="muon"):
        make_optimizer(nn.Linear(2, 2), OptimizationConfig(optimizer="muon"))


def test_muon_is_torchs_beside_torchs_adamw() -> None:
    """The same updates as from the two by themselves, also behind a state that was saved."""
    torch.manual_seed(0)
    model, alone = model_of("bert/base"), model_of("bert/base")
    alone.load_state_dict(model.state_dict())
    config = OptimizationConfig(optimizer="muon", learning_rate=0.01, weight_decay=0.1)
    optimizer = make_optimizer(model, config)
    matrices = [w for n, w in alone.named_parameters() if n.startswith("encoder.") and w.ndim == 2]
    others = [w for w in alone.parameters() if all(w is not matrix for matrix in matrices)]
    muon = torch.optim.Muon(matrices, lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(
        [
            {"params": [w for w in others if w.ndim >= 2], "weight_decay": 0.1},
            {"params": [w for w in others if w.ndim < 2], "weight_decay": 0.0},
        ],
        lr=0.01, betas=(0.9, 0.999), eps=1e-6, fused=True,
    )  # fmt: skip
    for step in range(4):
        if step == 2:
            state = optimizer.state_dict()
            optimizer = make_optimizer(model, config)
            optimizer.load_state_dict(state)
        for one, other in zip(model.parameters(), alone.parameters(), strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        optimizer.step()
        muon.step()
        adamw.step()
    for (name, one), other in zip(model.named_parameters(), alone.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_layers_far_from_the_head_learn_slowly() -> None:
    distances = {
        path: distances_from_head([name for name, _ in model_of(path, **options).named_parameters()])
        for path, options in (
            ("bert/base", {}), ("albert/base", {}), ("t5/base", {"decoder_layers_num": 2}),
            ("rnn/lstm", {"layers_num": 2}),
        )
    }  # fmt: skip
    bert = distances["bert/base"]
    assert bert["embedding.word.embedding.weight"] == bert["embedding.layer_norm.gamma"] == 4
    biases = [bert[f"encoder.transformer.{layer}.self_attn.linear_layers.1.bias"] for layer in range(3)]
    assert biases == [3, 2, 1]
    assert bert["target.sp.linear_1.weight"] == 0
    albert = distances["albert/base"]  # one layer, used at every depth
    assert albert["encoder.transformer.self_attn.linear_layers.2.weight"] == 1
    assert albert["encoder.linear.weight"] == albert["embedding.word.embedding.weight"] == 2
    t5 = distances["t5/base"]
    assert (
        t5["encoder.transformer.0.feed_forward.linear_1.weight"] == 3 and t5["encoder.layer_norm.weight"] == 1
    )
    assert t5["decoder.transformer_decoder.0.feed_forward.linear_1.weight"] == 2
    assert {distance for name, distance in t5.items() if "relative_pos_emb" in name} == {4}
    lstm = distances["rnn/lstm"]
    assert (lstm["encoder.rnn.weight_ih_l0"], lstm["encoder.rnn.bias_hh_l1"]) == (2, 1)


def test_groups_of_layers_have_their_share_of_the_learning_rate() -> None:
    model = model_of("bert/base")
    optimizer = make_optimizer(model, OptimizationConfig(layerwise_lr_decay=0.5))
    scales = {id(weight): group["lr_scale"] for group in optimizer.param_groups for weight in group["params"]}
    weights = dict(model.named_parameters())
    assert scales[id(weights["embedding.word.embedding.weight"])] == 0.5**4
    assert scales[id(weights["encoder.transformer.0.layer_norm_1.gamma"])] == 0.5**3
    assert scales[id(weights["target.mlm.linear_1.weight"])] == 1
    one = make_optimizer(model, OptimizationConfig())
    assert [group["lr_scale"] for group in one.param_groups] == [1.0, 1.0]
