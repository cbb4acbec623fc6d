"""Memory, time and cost of a training, computed before anything is loaded.

shape        sizes of a model and of what is trained, from its config
workload     tokens of rows, steps and micro-batches
devices      devices, their memory and rates
settings     how a training computes
activations  bytes that a micro-batch keeps for the backward pass
memory       all lines of a rank's memory
work         useful FLOPs, time and cost
fit          the settings that make a training fit
forecast     all of it together, as text and JSON
"""

__all__ = ["activations", "devices", "fit", "forecast", "memory", "settings", "shape", "work", "workload"]
