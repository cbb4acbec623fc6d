"""`preftune eval`: generates answers, judges and counts them, and says in words whether the model got better."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preftune.cli.commands.eval_request import read_request, results_folder
from preftune.cli.flags.arguments import column_names
from preftune.cli.flags.judge_flags import open_asked_judge, tell_before_asking
from preftune.cli.flags.messages import tell
from preftune.cli.flags.model_flags import (
    conduct_and_budget,
    model_options,
    sampling_settings,
    tell_prompts,
)
from preftune.cli.train.auto_judge import AUTO, make_judge, seen_in_training
from preftune.errors import RequestError
from preftune.generation.endpoint.client import is_endpoint
from preftune.statistics.verdict_names import LEVELS
from preftune.storage.jsonl import digest, prepare_folder, read_object
from preftune.storage.run_directory import run_facts, seed_folders
from preftune.storage.run_lock import locked
from preftune.storage.trained_prompts import FILE

if TYPE_CHECKING:
    from preftune.evaluation.two_models.answers import Progress
    from preftune.evaluation.two_models.open_models import Matchup
    from preftune.evaluation.two_models.types import AnsweredRow
    from preftune.generation.endpoint.budget import Budget
    from preftune.generation.protocol import Side
    from preftune.judges.registry import OpenedJudge
    from preftune.judges.reward_model import RewardModel
    from preftune.statistics.verdict_rules import Decision


def run(argv: Sequence[str]) -> int:
    """Runs `preftune eval` and returns its exit code: 0 when it finishes, 1 if the verdict is below `--fail_under`."""
    asked = read_request(argv)
    seeds = {} if is_endpoint(asked.model) else seed_folders(asked.model)
    if not seeds:
        decision = _evaluated(asked, results_folder(asked))
        return _exit_code(asked, decision and decision.level, decision and decision.grounds)
    if asked.suite:
        raise RequestError(
            f"--suite measures one model, and {asked.model} has {len(seeds)} seeds. Name one: "
            f"--model {next(iter(seeds.values()))}."
        )
    return _over_seeds(asked, seeds)


def _over_seeds(asked: argparse.Namespace, seeds: Mapping[int, Path]) -> int:
    """The same evaluation of every seed's model, and the win rate over seeds and prompts."""
    from preftune.evaluation.two_models.over_seeds import over_seeds

    output = Path(asked.model).expanduser() / "eval" if asked.output is None else Path(asked.output)
    folders = {seed: run / "eval" if asked.output is None else output / run.name for seed, run in seeds.items()}
    decisions: dict[int, Decision] = {}
    for seed, run in seeds.items():
        tell(f"preftune: seed {seed}")
        decision = _evaluated(argparse.Namespace(**{**vars(asked), "model": str(run)}), folders[seed])
        assert decision is not None  # only suites have none
        decisions[seed] = decision
    found = over_seeds(folders, decisions, into=output)
    print("\n".join(found.sentences()))
    return _exit_code(asked, found.level, found.grounds)


def _evaluated(asked: argparse.Namespace, folder: Path) -> Decision | None:
    """One evaluation. Raises: KeyboardInterrupt, which says what is kept."""
    try:
        with locked(folder, another="-o FOLDER"), ExitStack() as opened:
            return _evaluate(asked, folder, opened)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"Stopped. The answers received so far are kept in {folder}, the verdicts in the cache; the same command "
            "continues from there."
        ) from None


def _exit_code(asked: argparse.Namespace, level: int | None, grounds: str | None) -> int:
    if asked.fail_under is None:
        return 0
    assert level is not None  # `_need_comparison` refuses suites without a verdict
    if level >= LEVELS[asked.fail_under]:
        return 0
    tell(f"preftune: exit code 1, because the verdict is {grounds}, and --fail_under is {asked.fail_under}")
    return 1


def _evaluate(asked: argparse.Namespace, folder: Path, opened: ExitStack) -> Decision | None:
    from preftune.evaluation.two_models.open_models import AnswerOptions, match_up, reward_models_of
    from preftune.storage.run_directory import write_json

    conduct, budget = conduct_and_budget(asked, opened)
    own = make_judge(asked) if asked.judge == AUTO else None
    if own is not None:
        asked.judge = f"reward:{own.folder}"
    judge = None if asked.judge is None else open_asked_judge(asked, opened, conduct=conduct, budget=budget)
    options = AnswerOptions(
        sampling=sampling_settings(asked),
        seed=asked.seed,
        batch_size=asked.batch_size,
        backend=asked.backend or "auto",
        model=model_options(asked),
        conduct=conduct,
        budget=budget,
    )
    raters = reward_models_of(asked.model, asked.baseline, options, opened)
    if raters:
        _rate(asked, folder, raters)
        return None
    match = match_up(asked.model, asked.baseline, opened, options)
    for note in match.notes:
        tell(f"preftune: {note}")
    if asked.suite:
        decision = _run_suites(asked, folder, match, judge, opened)
    else:
        assert judge is not None
        decision = _compare(asked, folder, match, judge, budget, opened)
    if own is not None:
        write_json(folder / "judge.json", own.to_dict())
        print(own.sentence())
    return decision


def _compare(
    asked: argparse.Namespace, folder: Path, match: Matchup, judge: OpenedJudge, budget: Budget, opened: ExitStack
) -> Decision:
    from preftune.cli.display.eval_table import show
    from preftune.evaluation.two_models.run import evaluate_pairwise, questions_of
    from preftune.evaluation.two_models.verdict_record import abilities_of
    from preftune.statistics.intervals import power_sentence

    rows, seen = _rows(asked, match)
    tell(f"preftune: {power_sentence(len({digest(row['prompt']) for row in rows}))}")
    needs = getattr(judge.judge, "needs", None)
    if needs is not None:
        for row in rows:
            needs(row)
    prepare_folder(folder)
    _tell_what_changes(folder, match)
    _before_answering(match, rows, folder)
    abilities = abilities_of(folder, match.settings, asked.forgetting_budget)
    if asked.forgetting_budget is None and "budget" in abilities:
        tell(
            f"preftune: the forgetting budget is {abilities['budget']:g} points, as in the earlier evaluation in "
            f"{folder} (--forgetting_budget changes it)"
        )
    again, symmetric = bool(asked.ask_again), bool(getattr(judge.judge, "symmetric", False))

    def before_judging(answered: list[AnsweredRow]) -> None:
        match.release()
        questions = questions_of(answered, rows, symmetric=symmetric)
        calls = tell_before_asking(judge, questions, again=again, what="each pair of answers, in both orders")
        if judge.asker is not None and questions and not calls:
            tell("preftune: 0 calls, because every verdict is known")

    summary = evaluate_pairwise(
        rows,
        generate=match.generate,
        judge=judge.judge,
        output_dir=folder,
        settings=match.settings,
        evaluated=match.evaluated(),
        seed=asked.seed,
        names=(match.baseline, match.aligned),
        again=again,
        judge_thoughts=bool(asked.judge_thoughts),
        anytime=bool(asked.anytime),
        cost=lambda: _cost(budget, asked),
        training=_trained_with(asked.model),
        seen=seen,
        abilities=abilities,
        before_judging=before_judging,
        progress=_progress(opened),
    )
    show(summary, folder)
    return summary.decision


def _rows(asked: argparse.Namespace, match: Matchup) -> tuple[list[dict[str, Any]], int | None]:
    """The prompts as rows for `evaluate_pairwise`, and how many of them were trained on (None if that is unknown)."""
    from preftune.evaluation.two_models.advice import seen_sentence
    from preftune.generation.prompts import CATEGORIES, KEYS, Prompts, load_prompts

    as_chat = match.takes_conversations()
    if asked.prompts is None:
        from preftune.generation.own_prompts import own_prompts

        prompts: Prompts = own_prompts(asked.limit, as_chat=as_chat)
    else:
        keep = [*(asked.keep or []), *([asked.by] if asked.by else [])]
        prompts = load_prompts(
            asked.prompts,
            split=asked.split or "train",
            columns=column_names(asked.columns),
            format=asked.format,
            as_chat=as_chat,
            keep=list(dict.fromkeys(keep)),
            keep_if_there=(*CATEGORIES, *KEYS),
            limit=asked.limit,
        )
    tell_prompts(prompts)
    seen = None
    if asked.prompts is not None:
        seen = seen_in_training(asked.model, [prompt.prompt for prompt in prompts.prompts])
        if seen is None and run_facts(asked.model):
            tell(
                f"preftune: it is unknown which of these prompts {asked.model} was trained on: its run kept no record "
                f"({FILE})."
            )
    if seen:
        tell(f"preftune: {seen_sentence(seen, len(prompts.prompts))}")
    rows = []
    for prompt in prompts.prompts:
        row = prompt.row(asked.by)
        if asked.baseline == "dataset":
            if prompt.chosen is None:
                raise RequestError(
                    f"--baseline dataset takes the chosen answers of pairs, and {prompts.name} holds no pairs. Give "
                    "held-out pairs with --prompts, or name a model as --baseline."
                )
            row["given"] = prompt.chosen
        rows.append(row)
    return rows, seen


def _tell_what_changes(folder: Path, match: Matchup) -> None:
    """Says that the evaluation in the folder had other settings, so that its answers are generated again."""
    from preftune.evaluation.labelling.sample import differences

    before = read_object(folder / "summary.json").get("settings")
    changed = differences(before, match.settings) if isinstance(before, dict) else []
    if changed:
        tell(f"preftune: {folder} held an evaluation with other settings ({'; '.join(changed[:3])}); it is replaced")


def _before_answering(match: Matchup, rows: list[dict[str, Any]], folder: Path) -> None:
    """Prints the maximum cost of the endpoints, and checks that they respond."""
    from preftune.evaluation.two_models.answers import missing_rows

    asking = []
    for side, answerer in match.generate.sides.items():
        if answerer not in match.endpoints:
            continue
        missing = missing_rows(rows, match.settings, folder / "generations.jsonl", side)
        if missing:
            estimate = answerer.estimate([row["prompt"] for row in missing], missing)
            tell(f"preftune: {answerer.name}: {estimate.line()}")
            asking.append((answerer, estimate))
    if len(asking) > 1:  # each fits under the caps; do both?
        _, both = zip(*asking, strict=True)
        asking[0][0].endpoint.budget.estimate(
            calls=sum(one.calls for one in both),
            tokens_in=sum(one.tokens_in for one in both),
            tokens_out=sum(one.tokens_out for one in both),
        )
    for answerer, _ in asking:
        answerer.endpoint.check()


def _progress(opened: ExitStack) -> Progress:
    from preftune.progress import Counting

    bars = {
        "generate": opened.enter_context(Counting("answering", unit="answers")),
        "judge": opened.enter_context(Counting("judging", unit="verdicts")),
    }

    def progress(step: str, done: int, total: int) -> None:
        bars[step](done, total)
        if done >= total:
            bars[step].close()

    return progress


def _cost(budget: Budget, asked: argparse.Namespace) -> dict[str, Any] | None:
    if not any(is_endpoint(name) for name in (asked.model, asked.baseline or "", asked.judge or "")):
        return None
    return {
        "calls": budget.calls,
        "tokens_in": budget.tokens_in,
        "tokens_out": budget.tokens_out,
        "money": budget.cost,
    }


def _rate(asked: argparse.Namespace, folder: Path, raters: Mapping[Side, RewardModel]) -> None:
    """Runs the suite of reward models."""
    from preftune.cli.display.eval_table import show_suite
    from preftune.evaluation.suites import run_suite
    from preftune.evaluation.two_models.context import Contest
    from preftune.evaluation.two_models.open_models import no_answers

    if not asked.suite:
        no_answers("aligned", (), ())
    prepare_folder(folder)
    contest = Contest(
        generate=no_answers,
        settings={side: rater.cache_key for side, rater in raters.items()},
        folder=folder,
        judge=None,
        asker=None,
        baseline=asked.baseline or "equal rewards",
        aligned=asked.model,
        scorers=raters,
    )
    for name in asked.suite:
        show_suite(run_suite(name, contest, data=asked.suite_data, limit=asked.limit), folder)


def _run_suites(
    asked: argparse.Namespace, folder: Path, match: Matchup, judge: OpenedJudge | None, opened: ExitStack
) -> Decision | None:
    from preftune.cli.display.eval_table import show_suite
    from preftune.evaluation.suites import find_suite, run_suite
    from preftune.evaluation.two_models.context import Contest
    from preftune.evaluation.two_models.verdict_record import decide_again

    _need_comparison(asked, folder, match)
    prepare_folder(folder)
    if judge is not None and judge.endpoint is not None:
        judge.endpoint.check()
    contest = Contest(
        generate=match.generate,
        settings=match.settings,
        folder=folder,
        judge=None if judge is None else judge.judge,
        asker=None if judge is None else judge.asker,
        baseline=match.baseline,
        aligned=match.aligned,
        progress=_progress(opened),
        judge_thoughts=bool(asked.judge_thoughts),
        seed=asked.seed,
        load_models=match.load_models,
        seen=lambda prompts: seen_in_training(asked.model, prompts),
    )
    for name in asked.suite:
        beta = _trained_with(asked.model).get("beta") if asked.beta is None else asked.beta
        options: dict[str, Any] = {"tasks": asked.tasks, "beta": beta}
        taken = {option: options[option] for option in find_suite(name).options}
        show_suite(run_suite(name, contest, data=asked.suite_data, limit=asked.limit, **taken), folder)
    if "general" not in asked.suite:
        return None
    decision = decide_again(folder, match.settings, asked.forgetting_budget, **_trained_with(asked.model))
    if decision is not None:
        print(f"The verdict with these abilities: {decision.name}. {decision.sentence}")
    return decision


def _need_comparison(asked: argparse.Namespace, folder: Path, match: Matchup) -> None:
    """A verdict needs a comparison; checked before a suite runs. Raises: RequestError."""
    from preftune.evaluation.two_models.verdict_record import compared_before

    for flag in ("fail_under", "forgetting_budget"):
        if getattr(asked, flag) is not None and not compared_before(folder, match.settings):
            raise RequestError(
                f"--{flag} applies to a verdict, and these two models have not been compared in {folder}. Run preftune "
                f"eval with --judge first, or leave --{flag} out."
            )


def _trained_with(model: str) -> dict[str, Any]:
    """`method`, `beta`, `usual_beta`, `learning_rate`, `epochs` and `kl_coef` of a run directory, as far as they are
    recorded.
    """
    names = {"beta": "beta", "learning_rate": "learning_rate", "epochs": "num_train_epochs", "kl_coef": "kl_coef"}
    run, method = run_facts(model, "configuration"), run_facts(model).get("method")
    try:
        known = {name: None if run.get(field) is None else float(run[field]) for name, field in names.items()}
        if float(run.get("max_steps") or 0) > 0:  # they decide, and the epochs that were asked for do not
            known["epochs"] = _epochs_run(Path(model))
    except (ValueError, TypeError):
        return {}
    usual = method not in ("cpo", "orpo", "tpo") and _usual_beta(run)
    return {**known, "usual_beta": usual, "method": str(method) if method else None} if run else {}


def _epochs_run(folder: Path) -> float | None:
    """The number of epochs that a run trained for, from its log."""
    from preftune.storage.jsonl import read_lines

    logged = [line["epoch"] for line in read_lines(folder.expanduser() / "metrics.jsonl") if "epoch" in line]
    return round(float(logged[-1]), 2) if logged else None


def _usual_beta(configuration: Mapping[str, Any]) -> bool:
    """Whether beta holds the model near a reference, on the scale that DPO has."""
    from preftune.losses import LOSSES

    named = configuration.get("loss_type")
    losses = [LOSSES[name] for name in (named if isinstance(named, list) else [named]) if name in LOSSES]
    return all(loss.reference and loss.betas[0] <= 0.1 <= loss.betas[1] for loss in losses if loss.name != "sft")
