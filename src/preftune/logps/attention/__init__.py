"""Attention over packed groups.

`packed` is registered with transformers and dispatches to the CPU, CUDA and FlexAttention kernels.

    cpu     attention by blocks
    cuda    flash kernels for variable lengths
    flex    FlexAttention, for caps and sinks
    packed  registration and dispatch
"""

__all__ = ["cuda", "packed"]
