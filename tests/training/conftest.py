"""Whole runs, many of them: keep them cheap."""

from __future__ import annotations

import gc
import json

import pytest


@pytest.fixture(scope="session", autouse=True)
def imported_modules_are_no_garbage():
    """accelerate collects garbage after every run; without this it looks through all of torch and transformers."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def one_twin_per_architecture():
    """Whether an architecture can be packed is tried once per config, not once per run; tests/logps tests that."""
    from preftune.logps import support

    supports, known = support.supports, {}

    def remembered(model):
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        facts = {key: value for key, value in base.config.to_dict().items() if key != "_name_or_path"}
        adapters = [str(sorted(c.to_dict().items())) for c in (getattr(model, "peft_config", None) or {}).values()]
        layers = sorted({type(module).__name__ for module in model.modules()})
        key = (type(base).__name__, json.dumps(facts, sort_keys=True, default=str), *adapters, *layers)
        if key not in known:
            known[key] = supports(model)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(support, "supports", remembered)
        yield
