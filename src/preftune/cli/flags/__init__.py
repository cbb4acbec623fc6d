"""Parsing: fields of dataclasses and small parsers as flags, YAML recipes, and error messages as one paragraph.

arguments           data, model and adapter
field_names         names of flags without importing what they configure
field_parser        dataclasses and recipes -> flags
help_pages          --help and --help-all of training commands
judge_flags         the judge
messages            errors as one paragraph
model_flags         a local model, or an endpoint
plain_parser        argparse without abbreviations
ray_flags           --ray: work on the workers of a cluster
recipe              YAML recipes
seeds               --seeds: what each seed's command says
"""

__all__ = [
    "arguments",
    "field_names",
    "field_parser",
    "help_pages",
    "judge_flags",
    "messages",
    "model_flags",
    "plain_parser",
    "ray_flags",
    "recipe",
    "seeds",
]
