"""Faster forwards for layers of known kinds, each with a fallback to the library's own.

compiled     compiled norms and MLPs
fast_layers  which layers get a faster forward
gated_mlp    a gated MLP as one function
projection   LoRA as one product
rope         rope without scaling by length
"""

__all__ = ["compiled", "fast_layers", "rope"]
