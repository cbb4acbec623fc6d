"""Fast layers equal the layers they stand in for, in values and gradients, and step aside where they do not apply."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from preftune.logps.layers import fast_layers
from preftune.logps.layers.fast_layers import plain_layers, quicken
from preftune.logps.layers.gated_mlp import gated_mlp
from preftune.logps.layers.projection import Projection, adapted_linear
from tiny import tiny_model

IDS = torch.randint(0, 200, (1, 23), generator=torch.Generator().manual_seed(3))


def random_projection(out: int, width: int, *, rank: int | None, bias: bool = False) -> Projection:
    def make(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64)

    a, b = (None, None) if rank is None else (make(rank, width).requires_grad_(), make(out, rank).requires_grad_())
    return Projection(make(out, width), make(out) if bias else None, a, b, 0.7)


def plain(x: Tensor, of: Projection) -> Tensor:
    y = linear(x, of.weight, of.bias)
    return y if of.a is None or of.b is None else y + of.scale * linear(linear(x, of.a), of.b)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("bias", [False, True])
def test_an_adapted_layer_is_its_formula_and_its_gradients_are_right(bias: bool) -> None:
    of = random_projection(7, 5, rank=2, bias=bias)
    x = torch.randn(2, 4, 5, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(adapted_linear(x, of), plain(x, of), rtol=1e-12, atol=1e-12)
    assert of.a is not None
    assert of.b is not None

    def function(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return adapted_linear(x, Projection(of.weight, of.bias, a, b, of.scale))

    assert torch.autograd.gradcheck(function, (x, of.a, of.b))


@pytest.mark.parametrize("ranks", [(2, 2, 2), (None, 2, None), (None, None, 3), (None, None, None)])
@pytest.mark.parametrize("rows", [1, 9])
def test_a_gated_mlp_is_its_formula_and_its_gradients_are_right(
    ranks: tuple[int | None, ...], rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "preftune.logps.layers.gated_mlp.ELEMENTS_IN_CACHE", 2 * 6
    )  # two rows at a time, the last time one
    gate, up = (random_projection(6, 4, rank=rank) for rank in ranks[:2])
    down = random_projection(4, 6, rank=ranks[2])
    x = torch.randn(1, rows, 4, dtype=torch.float64, requires_grad=True)
    expected = plain(silu(plain(x, gate)) * plain(x, up), down)
    torch.testing.assert_close(gated_mlp(x, gate, up, down), expected, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(gated_mlp(x, gate, up, down), expected, rtol=1e-12, atol=1e-12)
    adapters = [t for p in (gate, up, down) for t in (p.a, p.b) if t is not None]

    def function(x: Tensor, *adapters: Tensor) -> Tensor:
        given = iter(adapters)
        parts = [
            Projection(
                p.weight,
                None,
                next(given) if p.a is not None else None,
                next(given) if p.b is not None else None,
                p.scale,
            )
            for p in (gate, up, down)
        ]
        return gated_mlp(x, *parts)

    assert torch.autograd.gradcheck(function, (x, *adapters))


def test_a_frozen_input_gets_no_gradient_and_costs_none() -> None:
    gate, up, down = (random_projection(*shape, rank=2) for shape in ((6, 4), (6, 4), (4, 6)))
    x = torch.randn(1, 3, 4, dtype=torch.float64)
    gated_mlp(x, gate, up, down).sum().backward()
    assert all(p.a is not None and p.a.grad is not None for p in (gate, up, down))
    adapted_linear(x, gate).sum().backward()
    assert x.grad is None


def adapted(name: str = "llama", **lora: Any) -> Any:
    model = tiny_model(name, dtype=torch.float64)
    model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", **lora))
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "lora_B" in parameter_name:
                parameter.normal_(std=0.05)
    return model.train()


def scores(model: Any, **options: Any) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad(set_to_none=True)
    torch.manual_seed(5)
    out = model(input_ids=IDS, use_cache=False, **options).logits
    out.float().logsumexp(-1).sum().backward()
    return out.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def same(
    one: tuple[Tensor, dict[str, Tensor]], other: tuple[Tensor, dict[str, Tensor]], tolerance: float = 1e-9
) -> None:
    torch.testing.assert_close(one[0], other[0], rtol=tolerance, atol=tolerance)
    assert one[1].keys() == other[1].keys()
    for name, gradient in one[1].items():
        torch.testing.assert_close(gradient, other[1][name], rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize("name", ["llama", "qwen3", "mistral", "smollm3"])
def test_a_quickened_model_computes_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted(name)
    before = scores(model)
    layers = model.config.num_hidden_layers
    assert quicken(model) == layers * (1 + 7)
    assert quicken(model) == 0
    calls = counted(monkeypatch)
    same(scores(model), before, 1e-5)  # transformers computes norms in float32 even here
    assert calls == {"adapted_linear": 4 * layers, "gated_mlp": layers}


def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    calls: dict[str, int] = {}

    def counting(name: str, function: Any) -> Any:
        def count(*args: Any) -> Tensor:
            calls[name] = calls.get(name, 0) + 1
            result: Tensor = function(*args)
            return result

        return count

    for name in ("adapted_linear", "gated_mlp", "gated_product"):
        monkeypatch.setattr(fast_layers, name, counting(name, getattr(fast_layers, name)))
    return calls


def test_plain_layers_are_the_librarys_own(monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted()
    quicken(model)
    calls = counted(monkeypatch)
    with plain_layers():
        scores(model)
    assert calls == {}


def test_checkpointing_recomputes_the_fast_way() -> None:
    model = adapted()
    before = scores(model)
    quicken(model)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    same(scores(model), before, 1e-5)


def test_the_reference_is_the_base_and_comes_back() -> None:
    model = adapted()
    with torch.no_grad(), model.disable_adapter():
        expected = model(input_ids=IDS).logits
    quicken(model)
    with torch.no_grad(), model.disable_adapter():
        torch.testing.assert_close(model(input_ids=IDS).logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:`lora_bias=True`")  # it will never be merged here
@pytest.mark.parametrize(
    "lora",
    [{"use_dora": True}, {"lora_dropout": 0.3}, {"bias": "lora_only"}, {"lora_bias": True}, {"use_rslora": True}],
)
def test_what_is_not_plain_lora_stays_right(lora: dict[str, Any]) -> None:
    model = adapted(**lora)
    before = scores(model)
    quicken(model)
    same(scores(model), before, 1e-5)


def test_two_adapters_merged_weights_and_hooks_stay_right() -> None:
    model = adapted()
    model.add_adapter("second", LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    model.base_model.set_adapter(["default", "second"])
    before = scores(model)
    quicken(model)
    same(scores(model), before, 1e-5)
    model.set_adapter("default")
    seen: list[Any] = []
    mlp = model.base_model.model.model.layers[0].mlp
    mlp.down_proj.register_forward_hook(lambda module, inputs, output: seen.append(output))
    expected = scores(model)
    assert len(seen) == 1
    model.merge_adapter()
    torch.testing.assert_close(model(input_ids=IDS).logits, expected[0], rtol=1e-5, atol=1e-5)


def test_full_training_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(dtype=torch.float64).train()
    before = scores(model)
    quicken(model)
    calls = counted(monkeypatch)
    same(scores(model), before, 1e-5)
    layers = model.config.num_hidden_layers
    assert calls == {"gated_product": layers}


def test_another_activation_is_not_taken() -> None:
    assert quicken(tiny_model("gemma2")) == 0  # gelu


def test_weights_that_are_not_numbers_are_left_alone() -> None:
    model = tiny_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    assert quicken(model) == 0


def test_a_look_alike_that_computes_something_else_is_not_taken() -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate_proj, self.up_proj = nn.Linear(4, 6, bias=False), nn.Linear(4, 6, bias=False)
            self.down_proj, self.act_fn = nn.Linear(6, 4, bias=False), nn.SiLU()

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.down_proj(self.act_fn(self.up_proj(x)) * self.gate_proj(x))
            return out

    other = Other().requires_grad_(False)
    assert quicken(nn.Sequential(other)) == 0


class LookAlike(nn.Module):
    """An MLP with the parts of a gated one, in bfloat16, where a loose comparison would see no difference."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(64, 96, bias=False), nn.Linear(64, 96, bias=False)
        self.down_proj, self.act_fn = nn.Linear(96, 64, bias=False), nn.SiLU()
        self.bfloat16().requires_grad_(False)


class Halved(LookAlike):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x)) * 0.5
        return out


class Clamped(LookAlike):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(self.act_fn(self.gate_proj(x).clamp(max=7.0)) * self.up_proj(x))
        return out


class Plain(LookAlike):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
        return out


@pytest.mark.parametrize(("kind", "taken"), [(Halved, 0), (Clamped, 0), (Plain, 1)])
def test_factors_and_clamps_are_noticed_in_half_precision_too(kind: type[nn.Module], taken: int) -> None:
    assert quicken(nn.Sequential(kind())) == taken


def test_results_may_be_changed_in_place() -> None:
    """OLMo clamps its queries so."""
    of = random_projection(7, 5, rank=2)
    x = torch.randn(2, 4, 5, dtype=torch.float64, requires_grad=True)
    adapted_linear(x, of).clamp_(-1, 1).sum().backward()
    assert x.grad is not None
    gate, up, down = (random_projection(*shape, rank=2) for shape in ((6, 5), (6, 5), (5, 6)))
    gated_mlp(x, gate, up, down).clamp_(-1, 1).sum().backward()


def test_no_rows_are_no_trouble() -> None:
    of = random_projection(7, 5, rank=2)
    assert adapted_linear(torch.zeros(0, 5, dtype=torch.float64), of).shape == (0, 7)


def test_copies_and_pickles_are_models_of_their_own() -> None:
    model = adapted()
    quicken(model)
    before = scores(model)
    again = copy.deepcopy(model)
    same(scores(again), before)
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.zero_()
    same(scores(model), before)
    restored = pickle.loads(pickle.dumps(model.base_model.model.model.layers[0].mlp))
    x = torch.randn(1, 3, model.config.hidden_size, dtype=torch.float64)
    torch.testing.assert_close(restored(x), model.base_model.model.model.layers[0].mlp(x))


def test_under_autocast_the_result_is_as_close_to_the_truth_as_the_plain_one() -> None:
    truth = adapted()
    exact = scores(truth)[0]
    model = copy.deepcopy(truth).float()

    def error() -> float:
        with torch.autocast("cpu", torch.bfloat16):
            return float((scores(model)[0].double() - exact).abs().mean())

    plain_error = error()
    quicken(model)
    assert error() <= 1.2 * plain_error
