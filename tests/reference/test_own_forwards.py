"""Modules whose forward is the program's own are identified by its code and by the values that it holds."""

from __future__ import annotations

import functools
from types import FunctionType, MethodType

import numpy as np
import pytest
import torch
from torch import nn

from models_zoo import random_model
from preftune.own_code import written
from preftune.reference import fingerprint


def of(model) -> str:
    return fingerprint(model, adapters=True)


def test_a_forward_of_the_program_s_own_counts_by_what_is_written_there():
    """Scores of the plain model were taken for those of the changed one, and thrown away where the first step's check
    saw the difference."""

    def times(factor):
        def forward(self, x):
            return factor * type(self).forward(self, x)

        return forward

    def patched(function):
        model = random_model("llama")
        mlp = model.model.layers[0].mlp
        mlp.forward = MethodType(function, mlp)
        return of(model)

    def subclassed():
        model = random_model("llama")
        mlp = model.model.layers[0].mlp

        class Louder(type(mlp)):
            def forward(self, x):
                return 2 * super().forward(x)

        mlp.__class__ = Louder
        return of(model)

    plain = of(random_model("llama"))
    assert len({plain, patched(times(2)), patched(times(3)), subclassed()}) == 4
    assert patched(times(2)) == patched(times(2)), "another process finds its scores again"
    assert subclassed() == subclassed()


class Scaled:
    """A forward that is an object."""

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, x):
        return self.factor * x


def scaled(x, *, factor):
    return factor * x


def times(factor):
    def forward(x):
        return factor * x

    return forward


def through(inner):
    def forward(x):
        return inner(x)

    return forward


FACTOR: object = None
"""Of the forwards below."""
FACTORS: dict[str, object] = {}
times_factor = print


def by_global(factor):
    def forward(x):
        return FACTOR * x

    return with_globals(forward, FACTOR=factor)


def by_global_in_a_nested_function(factor):
    def forward(x):
        return [FACTORS["mlp"] * one for one in x]

    return with_globals(forward, FACTORS={"mlp": factor})


def by_global_function(factor):
    def forward(x):
        return times_factor(x)

    return with_globals(forward, times_factor=times(factor))


def with_globals(function, **values):
    """The function as if its module had these variables, as it has in another run of an edited program."""
    return FunctionType(function.__code__, {**function.__globals__, **values})


def test_classes_and_counters_that_a_forward_names():
    """A class in a table has no value of its own, and a count of calls is no setting."""

    def counted(x):
        global FACTOR
        FACTOR = 1
        return x.to(FACTORS["kind"])

    first, later = (
        with_globals(counted, FACTOR=calls, FACTORS={"kind": np.float32, "other": torch.Tensor}) for calls in (0, 5)
    )
    assert written(first) == written(later) != written(with_globals(counted, FACTORS={"kind": np.float64}))


FORWARDS = {
    "global number": by_global,
    "global tensor": lambda factor: by_global(torch.tensor(float(factor))),
    "global array": lambda factor: by_global(np.array([factor])),
    "global mapping": by_global_in_a_nested_function,
    "global function": by_global_function,
    "number in a closure": times,
    "tensor in a closure": lambda factor: times(torch.tensor(float(factor))),
    "function in a closure": lambda factor: through(times(factor)),
    "partial": lambda factor: functools.partial(scaled, factor=factor),
    "default": lambda factor: lambda x, factor=factor: factor * x,
    "default of a keyword": lambda factor: lambda x, *, factor=factor: factor * x,
    "object": Scaled,
}


@pytest.mark.parametrize("form", FORWARDS)
def test_what_a_forward_of_the_program_s_own_holds_counts(form):
    def patched(factor):
        model = random_model()
        model.model.layers[0].mlp.forward = FORWARDS[form](factor)
        return of(model)

    assert patched(2) == patched(2) != patched(3)


@pytest.mark.parametrize("value", [3, 3.0, torch.tensor(3.0)])
def test_attributes_of_a_module_of_the_program_s_own_count(value):
    class Steered(nn.Module):
        def __init__(self, mlp, factor):
            super().__init__()
            self.mlp, self.factor = mlp, factor

        def forward(self, x):
            return self.factor * self.mlp(x)

    def steered(factor):
        model = random_model()
        model.model.layers[0].mlp = Steered(model.model.layers[0].mlp, factor)
        return of(model)

    assert steered(value) == steered(value) != steered(value * 2)


def test_tags_that_a_trainer_sets_count_nowhere():
    """A model of an own class was always "changed after the trainer was made"."""
    model = random_model()
    model.__class__ = type("Own", (type(model),), {"forward": lambda self, *given, **more: None})
    before = of(model)
    model.model_tags = ["preftune", "dpo"]
    assert of(model) == before != of(random_model())


def test_a_variable_that_another_function_sets_is_no_setting():
    def use(x):
        return FACTOR * x

    def count():
        global FACTOR
        FACTOR = 2

    assert written(with_globals(use, FACTOR=1)) != written(with_globals(use, FACTOR=2))
    once, twice = (written(with_globals(use, FACTOR=calls, count=count)) for calls in (1, 2))
    assert once == twice


def test_a_function_that_holds_itself_is_read_once():
    def forward(x, again=True):
        return forward(x, again=False) if again else x

    model = random_model()
    model.model.layers[0].mlp.forward = forward
    assert of(model) == of(model) != of(random_model())


def louder_helper(module):
    class Louder(type(module)):
        def _norm(self, x):
            return 2 * super()._norm(x)

    module.__class__ = Louder


def helper_of_its_own(module):
    module._norm = lambda x: 2 * x


def function_of_a_library(module):
    module.forward = torch.nn.functional.silu


def number_called_p(module):
    class Louder(type(module)):
        def forward(self, x):
            return self.p * super().forward(x)

    module.__class__, module.p = Louder, 2.0


@pytest.mark.parametrize("change", [louder_helper, helper_of_its_own, function_of_a_library, number_called_p])
def test_every_function_and_value_of_a_changed_module_counts(change):
    model = random_model()
    norm = model.model.layers[0].input_layernorm
    before = of(model)
    change(norm)
    changed = of(model)
    assert changed != before
    if change is number_called_p:
        norm.p = 3.0
        assert of(model) != changed
