"""The study: draws settings, trains, measures, and keeps what was found."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from preftune.errors import PreftuneError, RequestError
from preftune.storage.atomic import write_whole
from preftune.storage.jsonl import digest, write_atomically
from preftune.storage.run_directory import run_facts, write_json
from preftune.sweep.objective import Intermediate, measured
from preftune.sweep.plan import WIN_RATE, SweepPlan
from preftune.training.stages import Stage, run_stage

Say = Callable[[str], None]
_DEFAULTS: Mapping[str, Any] = {"eval_strategy": "epoch", "save_strategy": "no", "report_to": "none", "guard": "off"}
"""Of a trial, where the recipe says nothing."""
_FAILURES = 3
"""Trials that may fail one after the other before anything succeeded."""


class TrialError(PreftuneError):
    """A trial that did not finish."""


class Sweep:
    """One process of a sweep; several may share its storage.

    Args:
        fields: of the command: a default is set where it has the field.
        storage: of the study: an address of a database, or None for one in `output`.
        say: gets lines about what goes on.
    """

    def __init__(
        self, plan: SweepPlan, output: Path, *, fields: Sequence[str], say: Say, storage: str | None = None
    ) -> None:
        self.plan, self.output, self._say = plan, output, say
        self._recipe = {**{name: value for name, value in _DEFAULTS.items() if name in fields}, **plan.recipe}
        self._alone = storage is None
        self._storage = storage or f"sqlite:///{output / 'study.db'}"

    # --- the study ---

    def run(self, *, timeout: float | None = None) -> Any:
        """Trains until there are as many trials as planned. Returns: Optuna's study.

        Raises:
            RequestError: the study in the storage is another one, or the first trials all failed.
        """
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        study = self._open(optuna)
        self.again_what_was_cut_off(study)
        planned = min(self.plan.trials, self._grid_size() or self.plan.trials)
        over = optuna.study.MaxTrialsCallback(planned, states=_ended(optuna))
        if len(study.get_trials(deepcopy=False, states=_ended(optuna))) < planned:
            study.optimize(self._trial, timeout=timeout, callbacks=[over, self._after], catch=(TrialError,))
        self.write(study)
        return study

    def _open(self, optuna: Any) -> Any:
        name, plan = self.output.name, self.plan
        shared: dict[str, Any] = {}
        with warnings.catch_warnings(action="ignore"):  # Optuna calls these parts experimental
            if not self._alone:
                retry = optuna.storages.RetryHeartbeatStaleTrialCallback(max_retry=2)
                shared = {"heartbeat_interval": 60, "failed_trial_callback": retry}
            storage = optuna.storages.RDBStorage(self._storage, **shared)
        study = optuna.create_study(
            study_name=name, storage=storage, direction=plan.direction, load_if_exists=True, pruner=self._pruner(optuna)
        )
        made_of = digest([dict(self._recipe), [repr(one) for one in plan.space], plan.objective, list(plan.seeds)])
        if study.user_attrs.setdefault("made_of", made_of) != made_of:
            raise RequestError(
                f"{self._storage} holds a study {name} of another recipe. Name another folder with -o, or go on with "
                "the recipe that it was made of."
            )
        study.set_user_attr("made_of", made_of)
        study.sampler = self._sampler(optuna, len(study.get_trials(deepcopy=False)))
        return study

    def _sampler(self, optuna: Any, trials: int) -> Any:
        if self.plan.sampler == "grid":
            return optuna.samplers.GridSampler({one.name: one.grid for one in self.plan.space}, seed=0)
        # a sampler of the same seed would draw again what an earlier process drew
        if self.plan.sampler == "random":
            return optuna.samplers.RandomSampler(seed=trials)
        return optuna.samplers.TPESampler(seed=trials)

    def _pruner(self, optuna: Any) -> Any:
        if self.plan.pruner == "none":
            return optuna.pruners.NopPruner()
        return optuna.pruners.MedianPruner(n_startup_trials=4)

    def _grid_size(self) -> int | None:
        if self.plan.sampler != "grid":
            return None
        size = 1
        for one in self.plan.space:
            size *= len(one.grid or [])
        return size

    def again_what_was_cut_off(self, study: Any) -> None:
        """Trials that an earlier process left unfinished are run again with the same settings."""
        import optuna

        if self._alone:  # otherwise another machine may run them, and the heartbeat notices when it does not
            for trial in study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.RUNNING]):
                study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        trials = study.get_trials(deepcopy=False)
        repeated = {trial.user_attrs.get("instead_of") for trial in trials}
        for trial in trials:
            if _cut_off(trial) and trial.params and trial.number not in repeated:
                study.enqueue_trial(trial.params, user_attrs={"instead_of": trial.number})

    # --- a trial ---

    def _trial(self, trial: Any) -> float:
        import optuna

        plan = self.plan
        settings = {one.name: one.draw(trial) for one in plan.space}
        trial.set_user_attr("settings", settings)
        values: list[float] = []
        for place, seed in enumerate(plan.seeds):
            folder = self.folder(trial.number, seed)
            watch = None
            if len(plan.seeds) == 1 and plan.pruner != "none" and plan.objective != WIN_RATE:
                watch = Intermediate(folder / "metrics.jsonl", plan.objective, _asks(trial))
            values.append(self._value(trial, settings, seed, folder, watch))
            if len(plan.seeds) > 1:
                trial.report(sum(values) / len(values), place)
                if place + 1 < len(plan.seeds) and trial.should_prune():
                    raise optuna.TrialPruned
        trial.set_user_attr("by_seed", values)
        return sum(values) / len(values)

    def _value(self, trial: Any, settings: Mapping[str, Any], seed: int, folder: Path, watch: Any) -> float:
        import optuna

        stage = Stage(self.plan.command, folder, {**self._recipe, **settings, "seed": seed}, made_of="")
        try:
            outcome = run_stage(stage, watch=watch)
            trial.set_user_attr("seconds", trial.user_attrs.get("seconds", 0.0) + round(outcome.seconds, 1))
            if not outcome.finished and trial.user_attrs.get("stopped"):
                raise optuna.TrialPruned
            if not outcome.finished:
                raise RequestError(f"{outcome.error} (log: {folder / 'log.txt'})")
            return measured(self.plan, folder, seed=seed)
        except RequestError as error:
            trial.set_user_attr("error", str(error))
            raise TrialError(str(error)) from error

    def folder(self, number: int, seed: int) -> Path:
        """The run directory of a trial."""
        name = f"{number:03d}" + (f"-seed{seed}" if len(self.plan.seeds) > 1 else "")
        return self.output / "trials" / name

    # --- what is kept ---

    def _after(self, study: Any, trial: Any) -> None:
        said = ", ".join(f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
                         for name, value in trial.user_attrs["settings"].items())  # fmt: skip
        state = trial.state.name.lower()
        worth = {"complete": f"{self.plan.objective} {trial.value:.4g}" if trial.value is not None else ""}
        words = worth.get(state, "stopped early" if state == "pruned" else f"failed: {trial.user_attrs.get('error')}")
        self._say(f"trial {trial.number}: {said}: {words}")
        ended = study.get_trials(deepcopy=False)
        failed = sum(one.state.name == "FAIL" and not _cut_off(one) for one in ended)
        if failed >= max(_FAILURES, self.plan.trials) or failed == len(ended) >= _FAILURES:
            raise RequestError(f"{failed} of {len(ended)} trials failed. The last: {trial.user_attrs.get('error')}")
        self.write(study)

    def write(self, study: Any) -> None:
        """The result so far: sweep.json, best.yaml, report.html."""
        from preftune.sweep.page import sweep_page

        result = self.result(study)
        write_json(self.output / "sweep.json", result)
        if result["best"] is not None:
            text = yaml.safe_dump(result["best"]["recipe"], sort_keys=False, allow_unicode=True)
            write_whole(self.output / "best.yaml", text.encode())
        write_atomically(self.output / "report.html", sweep_page(result))

    def result(self, study: Any) -> dict[str, Any]:
        """All trials, the best one with its recipe, importances, and what the reference cost."""
        found = study.get_trials(deepcopy=False)
        trials = [self._facts(trial) for trial in found if trial.state.name != "WAITING" and not _cut_off(trial)]
        complete = [trial for trial in trials if trial["state"] == "complete"]
        sign = -1 if self.plan.direction == "maximize" else 1
        best = min(complete, key=lambda trial: sign * trial["value"], default=None)
        if best is not None:
            # without the sweep's own defaults, so that a training of it has checkpoints and a guard
            recipe = {**self.plan.recipe, **best["settings"], "seed": self.plan.seeds[0]}
            best = {**best, "recipe": recipe}
        return {
            "objective": self.plan.objective,
            "direction": self.plan.direction,
            "note": self.plan.note,
            "command": self.plan.command,
            "seeds": list(self.plan.seeds),
            "searched": [
                {"name": one.name, "ends": one.ends, "log": getattr(one, "log", None)} for one in self.plan.space
            ],
            "planned": self.plan.trials,
            "trials": trials,
            "best": best,
            "importance": importance(study, len(complete)),
            "reference_scores": _summed([trial["reference_scores"] for trial in trials]),
        }

    def _facts(self, trial: Any) -> dict[str, Any]:
        folders = [self.folder(trial.number, seed) for seed in self.plan.seeds]
        return {
            "number": trial.number,
            "state": trial.state.name.lower(),
            "value": trial.value,
            "by_seed": trial.user_attrs.get("by_seed"),
            "settings": dict(trial.user_attrs.get("settings", trial.params)),
            "seconds": trial.user_attrs.get("seconds"),
            "error": trial.user_attrs.get("error"),
            "intermediate": [[step, value] for step, value in trial.intermediate_values.items()],
            "reference_scores": _summed([run_facts(folder, "reference_scores") for folder in folders]),
        }


def importance(study: Any, complete: int) -> dict[str, float]:
    """How much of the variance of the objective each setting explains (PED-ANOVA, Watanabe et al. 2023,
    arXiv:2304.10255); empty with fewer than 8 whole trials.
    """
    import optuna

    if complete < 8:
        return {}
    try:
        found = optuna.importance.get_param_importances(
            study, evaluator=optuna.importance.PedAnovaImportanceEvaluator()
        )
    except (ValueError, RuntimeError):  # settings that never varied among whole trials
        return {}
    return {name: round(float(value), 4) for name, value in found.items()}


def _asks(trial: Any) -> Callable[[float, int], bool]:
    def ask(value: float, step: int) -> bool:
        trial.report(value, step)
        if not trial.should_prune():
            return False
        trial.set_user_attr("stopped", step)
        return True

    return ask


def _cut_off(trial: Any) -> bool:
    """Whether the process of a trial was stopped or killed, and not the trial itself failed."""
    return bool(trial.state.name == "FAIL") and "error" not in trial.user_attrs


def _ended(optuna: Any) -> tuple[Any, ...]:
    """States of trials that count."""
    return optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED


def _summed(found: Sequence[Mapping[str, int]]) -> dict[str, int]:
    return {name: sum(int(one.get(name, 0)) for one in found) for name in ("computed", "from_cache")}
