"""`preftune eval`: generates answers, judges and counts them, and says in words whether the model got better."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preftune.cli.commands.eval_request import need_comparison, read_request, results_folder
from preftune.cli.commands.eval_training import plain_text_note, trained_with
from preftune.cli.flags.arguments import column_names
from preftune.cli.flags.judge_flags import echo_cost, open_asked_judge
from preftune.cli.flags.messages import echo, tell
from preftune.cli.flags.model_flags import (
    conduct_and_budget,
    echo_prompts,
    model_options,
    refuse,
    sampling_settings,
)
from preftune.cli.flags.ray_flags import open_pool
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
    from preftune.generation.endpoint.client import Conduct
    from preftune.generation.protocol import Answer, Rows, Side
    from preftune.judges.registry import OpenedJudge
    from preftune.judges.reward_model import RewardModel
    from preftune.statistics.verdict_rules import Decision
    from preftune.types import Text


def run(argv: Sequence[str]) -> int:
    """Runs `preftune eval` and returns its exit code: 0 when it finishes, 1 if the verdict is below `--fail_under`."""
    asked = read_request(argv)
    seeds = {} if is_endpoint(asked.model) else seed_folders(asked.model)
    if not seeds:
        with ExitStack() as opened:
            decision = _evaluated(asked, results_folder(asked), conduct_and_budget(asked, opened))
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
    with ExitStack() as opened:
        endpoints = conduct_and_budget(asked, opened)  # the caps are of all seeds together
        for seed, run in seeds.items():
            echo(f"preftune: seed {seed}")
            one = argparse.Namespace(**{**vars(asked), "model": str(run)})
            decision = _evaluated(one, folders[seed], endpoints, earlier=[folders[done] for done in decisions])
            assert decision is not None  # only suites have none
            decisions[seed] = decision
    found = over_seeds(folders, decisions, into=output)
    tell("\n".join(found.sentences()))
    return _exit_code(asked, found.level, found.grounds)


def _evaluated(
    asked: argparse.Namespace, folder: Path, endpoints: tuple[Conduct, Budget], earlier: Sequence[Path] = ()
) -> Decision | None:
    """One evaluation.

    Args:
        earlier: folders of evaluations of the same baseline, whose answers are used again.
    Raises: KeyboardInterrupt, which says what is kept.
    """
    try:
        with locked(folder, another="-o FOLDER"), ExitStack() as opened:
            return _evaluate(asked, folder, opened, endpoints, earlier)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"Stopped. The answers received so far are kept in {folder}, the verdicts in the cache; the same command "
            "continues from there."
            if (folder / "generations.jsonl").is_file()
            else "Stopped before the first answer, so nothing is kept."
        ) from None


def _exit_code(asked: argparse.Namespace, level: int | None, grounds: str | None) -> int:
    if asked.fail_under is None:
        return 0
    assert level is not None  # `need_comparison` refuses suites without a verdict
    if level >= LEVELS[asked.fail_under]:
        return 0
    echo(f"preftune: exit code 1, because the verdict is {grounds}, and --fail_under is {asked.fail_under}")
    return 1


def _evaluate(
    asked: argparse.Namespace,
    folder: Path,
    opened: ExitStack,
    endpoints: tuple[Conduct, Budget],
    earlier: Sequence[Path],
) -> Decision | None:
    from preftune.evaluation.two_models.open_models import AnswerOptions, match_up, reward_models_of
    from preftune.storage.run_directory import write_json

    conduct, budget = endpoints
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
    own = make_judge(asked) if asked.judge == AUTO else None
    if own is not None:
        asked.judge = f"reward:{own.folder}"
    pool = open_pool(asked, opened)
    judge = None if asked.judge is None else open_asked_judge(asked, opened, conduct=conduct, budget=budget, pool=pool)
    match = match_up(asked.model, asked.baseline, opened, options)
    if pool is not None:
        from preftune.evaluation.two_models.spread_sides import spread

        match = spread(match, pool, asked.model, asked.baseline, options)
        opened.callback(match.release)
    for note in match.notes:
        echo(f"preftune: {note}")
    if asked.suite:
        decision = _run_suites(asked, folder, match, judge, opened)
    else:
        assert judge is not None
        decision = _compare(asked, folder, match, judge, budget, opened, earlier)
    if own is not None:
        write_json(folder / "judge.json", own.to_dict())
        tell(own.sentence())
    return decision


def _compare(
    asked: argparse.Namespace,
    folder: Path,
    match: Matchup,
    judge: OpenedJudge,
    budget: Budget,
    opened: ExitStack,
    earlier: Sequence[Path],
) -> Decision:
    from preftune.cli.display.eval_table import show
    from preftune.evaluation.two_models.run import evaluate_pairwise, questions_of
    from preftune.evaluation.two_models.verdict_record import abilities_of
    from preftune.statistics.intervals import power_sentence

    rows, seen = _rows(asked, match)
    echo(f"preftune: {power_sentence(len({digest(row['prompt']) for row in rows}))}")
    needs = getattr(judge.judge, "needs", None)
    if needs is not None:
        for row in rows:
            needs(row)
    prepare_folder(folder)
    _echo_changes(folder, match)
    _before_answering(match, rows, folder, earlier)
    abilities = abilities_of(folder, match.settings, asked.forgetting_budget)
    if asked.forgetting_budget is None and "budget" in abilities:
        echo(
            f"preftune: the forgetting budget is {abilities['budget']:g} points, as in the earlier evaluation in "
            f"{folder} (--forgetting_budget changes it)"
        )
    spent = budget.calls, budget.tokens_in, budget.tokens_out
    again, symmetric = bool(asked.ask_again), bool(getattr(judge.judge, "symmetric", False))

    def before_judging(answered: list[AnsweredRow]) -> None:
        match.release()
        questions = questions_of(answered, rows, symmetric=symmetric)
        calls = echo_cost(judge, questions, again=again, what="each pair of answers, in both orders")
        if judge.asker is not None and questions and not calls:
            echo("preftune: 0 calls, because every verdict is known")

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
        cost=lambda: _cost(budget, asked, spent),
        training=trained_with(asked.model),
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
    if as_chat and (note := plain_text_note(asked.model)):
        echo(f"preftune: {note}")
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
    echo_prompts(prompts)
    seen = None
    if asked.prompts is not None:
        seen = seen_in_training(asked.model, [prompt.prompt for prompt in prompts.prompts])
        if seen is None and run_facts(asked.model):
            echo(
                f"preftune: it is unknown which of these prompts {asked.model} was trained on: its run kept no record "
                f"({FILE})."
            )
    if seen:
        echo(f"preftune: {seen_sentence(seen, len(prompts.prompts))}")
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


def _echo_changes(folder: Path, match: Matchup) -> None:
    """Says that the evaluation in the folder had other settings, so that its answers are generated again."""
    from preftune.evaluation.labelling.sample import differences

    before = read_object(folder / "summary.json").get("settings")
    changed = differences(before, match.settings) if isinstance(before, dict) else []
    if changed:
        echo(f"preftune: {folder} held an evaluation with other settings ({'; '.join(changed[:3])}); it is replaced")


def _before_answering(match: Matchup, rows: list[dict[str, Any]], folder: Path, earlier: Sequence[Path]) -> None:
    """Takes over what is answered, prints the maximum cost of the endpoints, and checks that they respond."""
    from preftune.evaluation.two_models.answers import missing_rows, take_over_baseline

    path = folder / "generations.jsonl"
    for other in earlier:
        take_over_baseline(rows, match.settings, path, earlier=other)
    asking = []
    for side, answerer in match.generate.sides.items():
        if answerer not in match.endpoints:
            continue
        missing = missing_rows(rows, match.settings, path, side)
        if missing:
            estimate = answerer.estimate([row["prompt"] for row in missing], missing)
            echo(f"preftune: {answerer.name}: {estimate.line()}")
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


def _cost(budget: Budget, asked: argparse.Namespace, before: tuple[int, int, int]) -> dict[str, Any] | None:
    """What this evaluation used of the budget."""
    if not any(is_endpoint(name) for name in (asked.model, asked.baseline or "", asked.judge or "")):
        return None
    now = budget.calls, budget.tokens_in, budget.tokens_out
    calls, tokens_in, tokens_out = (after - earlier for after, earlier in zip(now, before, strict=True))
    money = budget.cost_of(tokens_in, tokens_out)
    return {"calls": calls, "tokens_in": tokens_in, "tokens_out": tokens_out, "money": money}


def _rate(asked: argparse.Namespace, folder: Path, raters: Mapping[Side, RewardModel]) -> None:
    """Runs the suite of reward models."""
    from preftune.cli.display.eval_table import show_suite
    from preftune.evaluation.suites import check_suites, run_suite, writes_no_answers
    from preftune.evaluation.two_models.context import Contest

    def no_answers(side: Side, prompts: Sequence[Text], rows: Rows) -> Sequence[Answer]:
        raise writes_no_answers(asked.model)

    if not asked.suite:
        raise writes_no_answers(asked.model)
    refuse(asked, ("judge",), unless=f"models write answers, and {asked.model} is a reward model")
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
    check_suites(asked.suite, contest)
    prepare_folder(folder)
    for name in asked.suite:
        show_suite(run_suite(name, contest, data=asked.suite_data, limit=asked.limit), folder)


def _run_suites(
    asked: argparse.Namespace, folder: Path, match: Matchup, judge: OpenedJudge | None, opened: ExitStack
) -> Decision | None:
    from preftune.cli.display.eval_table import show_suite
    from preftune.evaluation.suites import check_suites, find_suite, run_suite
    from preftune.evaluation.two_models.context import Contest
    from preftune.evaluation.two_models.verdict_record import decide_again

    need_comparison(asked, folder, match)
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
    check_suites(asked.suite, contest)
    prepare_folder(folder)
    if judge is not None and judge.endpoint is not None:
        judge.endpoint.check()
    for name in asked.suite:
        beta = trained_with(asked.model).get("beta") if asked.beta is None else asked.beta
        options: dict[str, Any] = {"tasks": asked.tasks, "beta": beta}
        taken = {option: options[option] for option in find_suite(name).options}
        show_suite(run_suite(name, contest, data=asked.suite_data, limit=asked.limit, **taken), folder)
    if "general" not in asked.suite:
        return None
    decision = decide_again(folder, match.settings, asked.forgetting_budget, **trained_with(asked.model))
    if decision is not None:
        tell(f"The verdict with these abilities: {decision.name}. {decision.sentence}")
    return decision
