"""The five common errors of the tutorial that everybody finds: made impossible, or answered with the cure that works.

Each is tested as a user would meet it, through `DPOTrainer`, `load_pairs`, `load_model` or the command line; where a
message names a cure, the test takes the cure out of the message, applies it and trains.
"""
