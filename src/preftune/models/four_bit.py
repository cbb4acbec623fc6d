"""bitsandbytes' 4-bit layers on a CPU, kept to the weights that were loaded.

On a processor with AVX512-BF16 instructions, bitsandbytes (0.50) rewrites a 4-bit weight in place at its first forward
in evaluation mode without gradients: scales rounded to bfloat16, another memory layout, a product without a backward
pass. Reference and evaluation passes are such forwards. Training would continue with other weights, and without
gradients below the layer; and widths that are not a multiple of 32 fail."""

from __future__ import annotations

from typing import Any

from torch import nn


def keep_as_loaded(model: nn.Module) -> int:
    """Switches this rewriting off, and undoes it in layers where it has happened (their scales stay rounded).

    Returns: the number of layers that had been rewritten.
    """
    undone = 0
    module: Any
    for module in model.modules():
        if not hasattr(module, "support_avx512bf16_for_cpu"):
            continue
        module.support_avx512bf16_for_cpu = False
        state = getattr(module.weight, "quant_state", None)
        if state is None or not getattr(state, "packing_format_for_cpu", False):
            continue
        # unnecessary when bitsandbytes undoes it itself when a model is put into training mode
        from bitsandbytes.functional import _convert_weight_packed_for_cpu_inverse

        module.weight.data, module.weight.quant_state = _convert_weight_packed_for_cpu_inverse(
            module.weight.data, state
        )
        undone += 1
    return undone


def is_quantized(model: nn.Module) -> bool:
    return bool(getattr(model, "is_quantized", False) or getattr(model, "is_loaded_in_4bit", False))
