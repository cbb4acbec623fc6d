"""What was changed in a model in memory and is in none of its files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from preftune.amounts import counted
from preftune.errors import PreftuneError
from preftune.log import warn
from preftune.models.load import meta_copy, meta_model
from preftune.models.locate import locate
from preftune.reference.module_settings import changed_settings


def warn_of_unsaved(model: Any, *, revision: str | None, trust_remote_code: bool) -> None:
    """A warning of settings (an epsilon, the scale of attention, a switch) that a model has in memory and that its
    configuration does not make: the saved model, or the base of a saved adapter, would compute with others.

    Args:
        revision: of the base on the hub; None for its newest.
    """
    adapter = hasattr(model, "peft_config")
    base = model.get_base_model() if adapter else model
    try:
        saved = _saved_base(base, revision, trust_remote_code) if adapter else meta_copy(base, None)
    except PreftuneError:  # nothing to compare with
        return
    changed = changed_settings(base, saved)
    used, made = (dict(_numbers(one.config.to_dict())) for one in (base, saved))
    changed |= {name: (used[name], made[name]) for name in used if name in made and used[name] != made[name]}
    if not changed:
        return
    more = f" (and {counted(len(changed) - 1, 'other setting')})" if len(changed) > 1 else ""
    name, (value, other) = next(iter(changed.items()))
    shown = f"{name.removesuffix(' is')} is {value}, not {other}"
    whose = f"the base {base.name_or_path}" if adapter else "its configuration"
    warn(
        f"the model was changed in memory: {shown}{more}. The saved {'adapter' if adapter else 'model'} will compute "
        f"with the values of {whose}. Set them in config.json before the model is loaded, or change it in the same way "
        "wherever it is used."
    )


def _saved_base(base: Any, revision: str | None, trust_remote_code: bool) -> Any:
    """The base of an adapter as its files describe it. Raises: PreftuneError without such files."""
    if not base.name_or_path:
        raise PreftuneError("the base has no name.")
    place = locate(base.name_or_path, revision=revision)
    return meta_model(place, revision=revision, trust_remote_code=trust_remote_code)


def _numbers(config: Mapping[str, Any], prefix: str = "config.") -> Iterator[tuple[str, float]]:
    """The entries of a configuration that are no whole numbers, by name."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{key}.")
        elif isinstance(value, float) and "drop" not in key:
            yield prefix + str(key), value
