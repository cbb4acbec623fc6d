from __future__ import annotations

import dataclasses

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import BitsAndBytesConfig

from preftune.errors import ConfigError
from preftune.models import precision as policy
from preftune.models.load import load_model
from preftune.models.precision import Precision, apply_precision, decide_precision, mixed_dtype, rounded, weights_dtype
from tests.models.tiny import tiny_llama

BF16 = Precision(torch.bfloat16, torch.bfloat16, False, "test")
FP32 = Precision(None, torch.float32, False, "test")


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch):
    """Pretend to have a CUDA card of the given compute capability."""

    def pretend(major: int, minor: int) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (major, minor))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Pretended")

    return pretend


def test_new_cards_get_bf16_and_old_ones_fp16_with_loss_scaling(card) -> None:
    card(8, 0)
    assert decide_precision(device="cuda").autocast == torch.bfloat16
    card(7, 5)
    old = decide_precision(device="cuda")
    assert (old.autocast, old.frozen, old.grad_scaling) == (torch.float16, torch.float16, True)
    assert "sm75" in old.describe()
    assert "loss scaling" in old.describe()
    assert decide_precision(device="cuda", fp16=False).autocast is None


def test_bf16_on_an_old_card_is_refused_with_the_fix(card) -> None:
    card(7, 5)
    with pytest.raises(ConfigError, match=r"sm75.*fp16=True"):
        decide_precision(bf16=True, device="cuda")


def test_explicit_flags_win_and_exclude_each_other(card) -> None:
    card(9, 0)
    assert decide_precision(fp16=True, device="cuda").fp16
    assert decide_precision(bf16=False, device="cuda").autocast is None
    assert decide_precision(bf16=True, device="cpu").bf16
    with pytest.raises(ConfigError, match="exclude each other"):
        decide_precision(bf16=True, fp16=True)
    with pytest.raises(ConfigError, match="graphics card"):
        decide_precision(fp16=True, device="cpu")


def test_cpu_follows_the_weights_and_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    assert decide_precision(model_dtype=torch.float32).autocast is None
    half = decide_precision(model_dtype=torch.float16)
    assert half.frozen == torch.float32
    assert "float16" in half.describe()
    monkeypatch.setattr(policy, "cpu_has_bf16", lambda: True)
    assert decide_precision(model_dtype=torch.bfloat16).bf16
    monkeypatch.setattr(policy, "cpu_has_bf16", lambda: None)
    assert decide_precision(model_dtype=torch.bfloat16).bf16
    monkeypatch.setattr(policy, "cpu_has_bf16", lambda: False)
    slow = decide_precision(model_dtype=torch.bfloat16)
    assert slow.autocast is None
    assert "no bfloat16 instructions" in slow.describe()
    assert decide_precision(device="mps", model_dtype=torch.bfloat16).autocast is None


def test_describe_is_one_line() -> None:
    assert "\n" not in BF16.describe()
    assert BF16.describe().startswith("precision: autocast bfloat16, frozen weights bfloat16, trainable weights")


def _step(model: torch.nn.Module, precision: Precision) -> None:
    """Forward and backward under the policy; every trainable weight has a finite float32 gradient."""
    ids = torch.arange(3, 19).view(2, 8)
    model.train()
    with torch.autocast("cpu", dtype=precision.autocast, enabled=precision.autocast is not None):
        loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    trainable = [p for p in model.parameters() if p.requires_grad]
    assert trainable
    for parameter in trainable:
        assert parameter.dtype == torch.float32
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all()


def _mix(model: torch.nn.Module) -> None:
    """Every dtype that people bring together, on purpose."""
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data = parameter.data.float()
        elif "lora_A" in name or "q_proj" in name:
            parameter.data = parameter.data.half()
        elif "lora_B" in name or "up_proj" in name:
            parameter.data = parameter.data.bfloat16()


@pytest.mark.parametrize("precision", [BF16, FP32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mixed", [False, True], ids=["pure", "mixed"])
@pytest.mark.parametrize("kind", ["full", "lora", "modules_to_save"])
def test_no_dtypes_clash_under_the_policy(precision: Precision, dtype: torch.dtype, mixed: bool, kind: str) -> None:
    model: torch.nn.Module = tiny_llama(dtype, tied=kind != "modules_to_save")
    if kind != "full":
        saved = ["lm_head", "embed_tokens"] if kind == "modules_to_save" else None
        config = LoraConfig(r=4, target_modules=["q_proj", "up_proj"], modules_to_save=saved)
        model = get_peft_model(model, config, autocast_adapter_dtype=False)
    if mixed:
        _mix(model)
    apply_precision(model, precision)
    assert {p.dtype for p in model.parameters() if not p.requires_grad} <= {precision.frozen}
    _step(model, precision)
    assert apply_precision(model, precision) == []


def test_pure_bf16_full_fine_tuning_becomes_fp32_and_says_so() -> None:
    model = tiny_llama(torch.bfloat16)
    said = apply_precision(model, BF16)
    assert len(said) == 1
    assert "cast from bfloat16 to float32" in said[0]
    assert "round to nothing" in said[0]


def test_tied_weights_stay_tied_and_keep_their_values() -> None:
    model = tiny_llama(torch.bfloat16, tied=True)
    before = model.lm_head.weight.float().clone()
    apply_precision(model, BF16)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    torch.testing.assert_close(model.lm_head.weight, before, rtol=0, atol=0)
    model.requires_grad_(False)
    apply_precision(model, BF16)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.lm_head.weight.dtype == torch.bfloat16


def test_a_weight_that_overflows_in_fp16_stays_in_fp32() -> None:
    model = tiny_llama(torch.bfloat16).requires_grad_(False)
    model.model.norm.weight.data[0] = 1e6
    said = apply_precision(model, Precision(torch.float16, torch.float16, True, "test"))
    assert model.model.norm.weight.dtype == torch.float32
    assert model.model.norm.weight[0] > 9e5
    assert "model.norm.weight" in said[-1]


def test_what_the_architecture_keeps_in_fp32_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama().requires_grad_(False)
    model._keep_in_fp32_modules_strict = {"norm"}
    apply_precision(model, BF16)
    assert model.model.norm.weight.dtype == torch.float32
    assert model.lm_head.weight.dtype == torch.bfloat16


def test_a_frozen_reference_can_be_kept_in_fp32() -> None:
    model = tiny_llama().requires_grad_(False)
    assert apply_precision(model, dataclasses.replace(BF16, frozen=torch.float32)) == []


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("tiny")
    tiny_llama(torch.bfloat16).save_pretrained(path)
    return path


@pytest.mark.parametrize("precision", [BF16, FP32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16, torch.float16])
def test_four_bit_weights_are_left_alone_and_compute_in_the_policys_dtype(folder, precision, compute) -> None:
    quantised = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute, bnb_4bit_quant_storage="uint8"
    )
    base = load_model(folder, quantization_config=quantised)
    model = get_peft_model(
        base, LoraConfig(r=4, target_modules="all-linear", modules_to_save=["norm"]), autocast_adapter_dtype=False
    )
    packed = {n: p.data.clone() for n, p in model.named_parameters() if type(p).__name__ == "Params4bit"}
    apply_precision(model, precision)
    after = dict(model.named_parameters())
    assert packed
    assert all(torch.equal(after[n].data, data) for n, data in packed.items())
    layers = [m for m in model.modules() if type(getattr(m, "weight", None)).__name__ == "Params4bit"]
    assert {m.compute_dtype for m in layers if hasattr(m, "compute_dtype")} == {precision.compute}
    _step(model, precision)


def test_weights_dtype_and_mixed_dtype() -> None:
    model = tiny_llama(torch.bfloat16)
    assert weights_dtype(model) == torch.bfloat16
    assert mixed_dtype(model) is None
    adapted = get_peft_model(model, LoraConfig(r=64, target_modules="all-linear"))
    assert weights_dtype(adapted) == torch.bfloat16
    assert mixed_dtype(adapted) is None
    model.model.norm.weight.data = model.model.norm.weight.data.float()
    assert mixed_dtype(adapted) == torch.bfloat16


def test_rounding_to_bfloat16_keeps_small_updates_on_average():
    """Rounded to nearest, an update of an eighth of a unit in the last place is lost."""
    base = (torch.randn(100_000, generator=torch.Generator().manual_seed(0)) * 0.1).bfloat16().float()
    updated = base + base.abs() * 2.0**-11
    kept = ((rounded(updated, torch.bfloat16, seed="a").float() - base) / (updated - base)).mean()
    assert kept == pytest.approx(1, abs=0.03)
    assert torch.equal(updated.bfloat16().float(), base)


def test_rounding_is_to_a_neighbour_and_by_the_seed():
    weight = torch.randn(10_000, generator=torch.Generator().manual_seed(1))
    one, same, other = (rounded(weight, torch.bfloat16, seed=seed) for seed in ("a", "a", "b"))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert ((one.float() - weight).abs() <= weight.abs() * 2.0**-7).all()
    exact = weight.bfloat16()
    assert torch.equal(rounded(exact.float(), torch.bfloat16, seed="a"), exact)
    assert rounded(weight, torch.float32, seed="a") is weight
    odd = torch.tensor([float("inf"), float("-inf"), 0.0, 3.3895e38])
    assert torch.equal(rounded(odd, torch.bfloat16, seed="a"), odd.bfloat16())
    assert rounded(torch.tensor([float("nan")]), torch.bfloat16, seed="a").isnan().all()


@pytest.mark.parametrize(("dtype", "unit"), [(torch.bfloat16, 2**-7), (torch.float16, 2**-10)])
def test_a_small_update_survives_rounding_on_average(dtype, unit):
    """A tenth of the distance of two neighbours is kept as a tenth of the weights, at every size of the weights."""
    for size in (1.0, -0.25, 3e-3):
        exact = torch.full((40_000,), size * (1 + 0.1 * unit))
        found = rounded(exact, dtype, seed="a weight")
        assert found.dtype == dtype
        assert len(found.unique()) == 2
        error = (found.double() - exact.double()).mean() / (abs(size) * unit)
        assert abs(error) < 0.02
        assert torch.equal(found, rounded(exact, dtype, seed="a weight"))
        assert not torch.equal(found, rounded(exact, dtype, seed="another"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_a_dtype_represents_is_unchanged(dtype):
    every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int16).view(dtype)
    numbers = every[~every.isnan()]
    assert torch.equal(rounded(numbers.float(), dtype, seed="x").view(torch.int16), numbers.view(torch.int16))


def test_the_smallest_numbers_of_float16_survive_on_average():
    step = 2.0**-24
    for exact in (0.3 * step, -5.7 * step, 1022.6 * step):
        found = rounded(torch.full((40_000,), exact), torch.float16, seed="small")
        assert len(found.unique()) == 2
        assert abs(found.double().mean().item() - exact) < 0.02 * step


def test_large_numbers_become_what_nearest_gives():
    large = torch.tensor([65504.0, 65519.0, 1e6, -1e6, float("inf"), float("nan")])
    assert torch.equal(rounded(large, torch.float16, seed="x")[:5], large.half()[:5])
    assert rounded(large, torch.float16, seed="x")[5].isnan()
