"""Verifies that what is served is what was aligned, by token ids, end tokens, scores and greedy answers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

from preftune.amounts import counted
from preftune.deploy.artefact import Manifest, damage_of, read_manifest
from preftune.deploy.distances import Figures, Scored, figures_of
from preftune.deploy.files import check_base, check_gguf_ends, check_head, check_weights
from preftune.deploy.ollama import faults_of_modelfile
from preftune.deploy.served import Served, ServedModel, gguf_of
from preftune.deploy.text_faults import Fault, Stage, faults_of_text
from preftune.deploy.trained import Questions, Trained
from preftune.deploy.win_rates import Judging, WinRates, win_rates
from preftune.generation.protocol import Kept
from preftune.storage.run_directory import run_facts


@dataclass(slots=True)
class Verification:
    """The result: `faults` is empty for an artefact that is what was aligned."""

    name: str
    faults: list[Fault] = field(default_factory=list)
    figures: Figures | None = None
    """None if the served model shows neither scores nor answers that could be compared."""
    notes: list[str] = field(default_factory=list)
    """What could not be compared, and what differs without being a fault, in sentences."""
    win_rates: WinRates | None = None
    """None without a judge, or where the answers were not compared."""
    form: str = ""
    """The number format of the weights where it rounds and they are known to be the run's; otherwise empty."""

    @property
    def holds(self) -> bool:
        return not self.faults

    def verdict(self) -> str:
        """One sentence."""
        if self.faults:
            return f"{self.faults[0].stage}: {self.faults[0].sentence}"
        if self.figures is None or not (self.figures.moved or self.figures.apart):
            return "No difference was found, but the trained model hardly differs from its base: this proves little."
        if not self.figures.pairs:
            return "What is served answers as what was aligned. (Only answers were compared.)"
        if not self.form:
            return "What is served is what was aligned."
        cost = self.figures.cost(self.form)
        return f"{cost} Export with --dtype float16 to keep it." if "in bfloat16" in cost else cost

    def to_dict(self) -> dict[str, Any]:
        """The record: whether it holds, the verdict, and all figures."""
        return {"holds": self.holds, "verdict": self.verdict(), **asdict(self)}


def verify(
    artefact: str | os.PathLike[str] | Served,
    against: str | os.PathLike[str] | Trained,
    questions: Questions | None = None,
    *,
    form: str = "",
    judging: Judging | None = None,
    progress: Callable[[str], None] = lambda what: None,
    **options: Any,
) -> Verification:
    """Compares a served model with the run that it was made from.

    Args:
        artefact: a folder of `preftune export`, a model, an adapter, a GGUF file, or a model that is served already.
        against: the run: an adapter, or a whole model with the name of its base in run.json; or a `Trained`, which
            answers once for several artefacts.
        questions: default: preftune's own prompts.
        form: number format of a model that is served already, if it is coarser than float16; of files it is known.
        judging: a judge, for the win rates against the base; it is asked when all models are released.
        progress: called with what is done next.
        options: of `Trained`.
    Raises: ModelError if the artefact or the run cannot be loaded.
    """
    trained = against if isinstance(against, Trained) else Trained(os.fspath(against), questions, **options)
    if judging is not None:
        judging.check(trained.questions.rows)
    folder = None if isinstance(artefact, Served) else Path(artefact).expanduser()
    manifest = None if folder is None else read_manifest(folder)
    found = Verification(str(getattr(artefact, "name", artefact)))
    found.form = form or _coarse_form(folder, manifest)
    if folder is not None and manifest is not None and (damage := damage_of(folder, manifest)):
        found.faults.append(Fault("files", f"{damage}. Export again."))
        return found
    trained.base_name()  # an error, if it has none, before anything is loaded
    if manifest is not None and (other := _other_run(trained.run, manifest)):
        found.faults.append(Fault("weights", other))
    with _opened(artefact, trained) as served:
        progress("token ids")
        found.faults += faults_of_text(trained.run, served, trained.questions.prompts, manifest, found.notes)
        if any(fault.stage in ("vocabulary", "template") for fault in found.faults):
            return found  # scores and answers to other token ids would say nothing
        proven = False
        if folder is not None:
            found.faults += [Fault("head", fault) for fault in check_head(trained.run, folder)]
            found.faults += [Fault("end token", fault) for fault in check_gguf_ends(trained.run, folder)]
            found.faults += faults_of_modelfile(trained.run, folder)
            found.faults += [Fault("base", fault) for fault in check_base(trained.run, served, manifest)]
            trained.run.close()
            proven = _check_weights(trained.run, served, found)
        found.figures, answers = _compare(trained, served, progress, found.notes)
    known = {fault.stage for fault in found.faults}
    shown = (Fault(stage, sentence) for stage, sentence in found.figures.faults(found.form, proven=proven))
    found.faults += [fault for fault in shown if fault.stage not in known]
    if judging is not None:
        progress("verdicts of the judge")
        found.win_rates = win_rates(trained, served, answers, judging)
        found.faults += [Fault("win rate", lost)] if (lost := found.win_rates.lost()) else []
    found.faults.sort(key=lambda fault: _STAGES.index(fault.stage))  # the cause first: it also changes the answers
    return found


_STAGES: tuple[Stage, ...] = get_args(Stage)


def _other_run(run: ServedModel, manifest: Manifest) -> str:
    """A sentence if the manifest names another run than the given one."""
    own = str(run_facts(run.name).get("id") or "")
    if not own or not manifest.run or own == manifest.run:
        return ""
    return f"it was exported from the run {manifest.run}, and {run.name} is the run {own}."


def _coarse_form(folder: Path | None, manifest: Manifest | None) -> str:
    """The type of a GGUF file that rounds more than float16 does."""
    from preftune.deploy.gguf import TYPES

    if manifest is not None:
        form = manifest.form if manifest.kind in ("gguf", "ollama") else ""
    else:
        file = None if folder is None else gguf_of(folder)
        name = "" if file is None else file.stem.lower().replace("-", "_")
        form = next((kind for kind in sorted(TYPES, key=len, reverse=True) if name.endswith(kind)), "")
    return "" if form in ("f32", "f16") else form


def _check_weights(run: ServedModel, served: Served, found: Verification) -> bool:
    """Adds the faults of a whole model's weights, or its dtype; returns whether they are known to be the run's."""
    weights = check_weights(run, served)
    if weights is None:
        return False
    if weights.other_base:
        sentence = f"{weights.other_base} is not the base's, and the adapter does not change it: it is another base."
        found.faults.append(Fault("base", sentence))
    elif weights.other:
        found.faults.append(Fault("weights", f"{weights.other} is not the run's: another run or checkpoint."))
    else:
        found.form = weights.form
    return bool(found.form)


@contextmanager
def _opened(artefact: Any, trained: Trained) -> Iterator[Served]:
    """The artefact, served as it will be: by llama.cpp for a GGUF file, otherwise by transformers and PEFT."""
    with ExitStack() as stack:
        if isinstance(artefact, Served):
            yield artefact
            return
        file = gguf_of(artefact)
        if file is not None:
            from preftune.deploy.gguf import LlamaServer
            from preftune.deploy.served_http import ServedEndpoint
            from preftune.generation.endpoint.client import Conduct, Endpoint, EndpointName

            server = LlamaServer(file)
            stack.callback(server.close)
            name = EndpointName(file.stem, f"{server.address}/v1")
            served: Served = ServedEndpoint(Endpoint(name, conduct=Conduct(timeout=600, concurrency=1)))
        else:
            served = ServedModel(str(artefact), base_model=trained.base_model, **trained.options)
        stack.callback(served.close)
        yield served


def _compare(
    trained: Trained, served: Served, progress: Callable[[str], None], notes: list[str]
) -> tuple[Figures, list[Kept]]:
    """Scores and greedy answers of all three, and the served answers. Models of transformers are loaded one after the
    other.
    """
    progress("answers and scores of the trained model and its base")
    own = trained.answers
    progress("answers and scores of what is served")
    scores = served.scores(own.groups)
    if scores is None:
        notes.append("The server does not show log-probabilities of given tokens: scores were not compared.")
    answers = served.answers(trained.questions.prompts, trained.questions.max_new_tokens)
    served.close()
    lengths = [(len(group.completions[0]), len(group.completions[1])) for group in own.groups]
    scored = None if scores is None else Scored(own.run_scores, own.base_scores, scores, lengths)
    gaps = trained.gaps(answers)
    trained.run.close()
    found = figures_of(scored, own.run, own.base, answers, gaps)
    if found.unscored:
        notes.append(f"{counted(found.unscored, 'pair')} left out: longer than the model's positions.")
    return found, answers
