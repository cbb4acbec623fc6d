"""The controlled experiment on made-up reviews and a tiny model: it runs, goes on where it was killed, and its figures
are what they are said to be.
"""

from __future__ import annotations

import json
import math
import runpy
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import frontier
import numpy as np
import pytest
import results_page
import torch
from corpus import clean, load_corpus
from experiment import SMOKE
from gold import GoldReward, Vader
from language_model import new_model, trained_language_model
from measure import Ruler
from preferences import make_preferences, prompts_of, texts_of
from sampling import completion_logps, sample

from preftune.errors import DatasetError, RequestError
from preftune.logps import naive_logps, pack
from preftune.types import TokenizedGroup
from tests.examples.made_up_reviews import GOOD

FOLDER = Path(__file__).parents[2] / "examples/sentiment"


@pytest.fixture(scope="module")
def trained(corpora: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The smoke version's language model on the made-up corpus."""
    corpus = load_corpus(corpora)
    folder = tmp_path_factory.mktemp("language_model")
    return trained_language_model(
        folder, SMOKE.model, corpus.language_model, corpus.test_prompts, say=lambda line: None
    )


def test_parts_share_no_sentence_and_labels_stay_with_their_sentences(corpora: Path) -> None:
    corpus = load_corpus(corpora)
    parts = [set(part if isinstance(part, list) else part.texts) for part in corpus]
    assert sum(map(len, parts)) == len(set().union(*parts)) == sum(corpus.sizes().values())
    assert corpus.sizes()["language_model"] > 5 * corpus.sizes()["train_prompts"]
    for labelled in (corpus.gold_train, corpus.gold_test):
        for text, positive in zip(*labelled, strict=True):
            assert positive == any(word in text.split() for word in GOOD)


def test_lines_are_cleaned() -> None:
    assert clean("  a  film \n that works ! ! !") == "a film that works !"
    assert clean("too short .") == clean("* * * * * * * a") == clean("word " * 61) == ""


def test_a_missing_corpus_is_named_with_the_command_that_fetches_it(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no movie_reviews.zip.*nltk.downloader"):
        load_corpus(tmp_path)


def test_the_gold_reward_knows_half_sentences_and_is_bounded_whatever_is_repeated(corpora: Path) -> None:
    corpus = load_corpus(corpora)
    gold = GoldReward(corpus.gold_train)
    assert gold.accuracy(corpus.gold_test) > 0.95
    half_good, half_bad, once, often, everything = gold(
        ["the film is brilliant", "the film is awful and", "superb", "superb " * 50, " ".join(GOOD)]
    )
    assert half_bad < 0 < half_good
    assert often == pytest.approx(once)
    assert everything < gold.highest
    said_again = gold([f"the plot of this film is dull and superb{' superb' * times}" for times in (0, 5, 5000)])
    assert said_again[0] < said_again[1] < said_again[2] < gold.highest  # repeating pays, ever less
    assert max(gold.repeated_words().values()) == gold.highest


def test_nltk_fetches_what_it_lacks_once(corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []

    def download(name: str, *, quiet: bool) -> bool:
        fetched.append(name)
        source = next(file for file in corpora.iterdir() if file.name.endswith(f"{name}.zip"))
        (tmp_path / "corpora").mkdir(exist_ok=True)
        (tmp_path / "corpora" / f"{name}.zip").write_bytes(source.read_bytes())
        return True

    data = SimpleNamespace(path=[str(tmp_path / "nowhere"), str(tmp_path)])
    stand_in = SimpleNamespace(data=data, download=download)
    monkeypatch.setitem(sys.modules, "nltk", stand_in)
    assert load_corpus(None) == load_corpus(None) == load_corpus(corpora)
    assert fetched == ["movie_reviews", "sentence_polarity"]
    stand_in.download = lambda name, quiet: False
    data.path = []
    with pytest.raises(DatasetError, match=r"could not download it.*python -m nltk.downloader movie_reviews"):
        load_corpus(None)


def test_a_torn_archive_is_named(corpora: Path, tmp_path: Path) -> None:
    for file in corpora.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes()[:500])
    with pytest.raises(DatasetError, match=r"movie_reviews.zip is no whole zip archive"):
        load_corpus(tmp_path)


def test_vader_reads_a_lexicon_of_its_own() -> None:
    good, bad, nothing = Vader()(["a wonderful film", "an awful film", "the of"])
    assert bad < nothing == 0 < good


@pytest.mark.sample(0)
def test_log_probabilities_are_those_of_the_plain_computation_and_samples_follow_them(trained: Any) -> None:
    model, tokenizer, facts = trained
    assert facts["parameters"] < 10_000_000
    prompt = [tokenizer.bos_token_id, *tokenizer("the film of this plot", add_special_tokens=False)["input_ids"]]
    completions = sample(model, [prompt] * 2000, new_tokens=2, seed=3)
    assert completions == sample(model, [prompt] * 2000, new_tokens=2, seed=3)
    distinct = sorted(set(map(tuple, completions)))
    logps = completion_logps(model, [prompt] * len(distinct), distinct)
    batch = pack([TokenizedGroup(tuple(prompt), (completion,), ()) for completion in distinct[:5]])
    plain = torch.zeros(5).index_add(0, batch.owner_T, naive_logps(model, batch).detach())
    np.testing.assert_allclose(logps[:5], plain.numpy(), atol=1e-4)
    # the mean of -log p over samples estimates the entropy, which the seen completions nearly cover
    probability = np.exp(logps)
    assert 0.9 < probability.sum() <= 1 + 1e-5
    frequency = np.array([sum(tuple(c) == d for c in completions) for d in distinct]) / 2000
    assert np.abs(frequency - probability).sum() / 2 < 0.15  # total variation


def test_a_killed_language_model_goes_on_and_ends_in_the_same_weights(
    corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import language_model

    corpus = load_corpus(corpora)
    shape, texts = replace(SMOKE.model, epochs=1, warmup_steps=2), corpus.language_model[:300]
    said: list[str] = []
    whole, _, facts = trained_language_model(tmp_path / "a", shape, texts, corpus.test_prompts, say=said.append)
    monkeypatch.setattr(language_model, "_SAVE_EVERY_S", 0.0)

    def killed(*arguments: Any) -> None:
        write(*arguments)
        if arguments[3] == 3:
            raise KeyboardInterrupt

    write = language_model._write_state
    monkeypatch.setattr(language_model, "_write_state", killed)
    with pytest.raises(KeyboardInterrupt):
        trained_language_model(tmp_path / "b", shape, texts, corpus.test_prompts, say=said.append)
    monkeypatch.setattr(language_model, "_write_state", write)
    resumed, _, again = trained_language_model(tmp_path / "b", shape, texts, corpus.test_prompts, say=said.append)
    assert any("goes on at step 3" in line for line in said)
    for (name, one), (_, other) in zip(whole.named_parameters(), resumed.named_parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6, msg=name)
    assert again["held_out_perplexity_per_token"] == facts["held_out_perplexity_per_token"]
    assert 1 < facts["held_out_perplexity_per_token"] < shape.vocabulary


def test_pairs_prefer_the_larger_reward_and_are_made_once(trained: Any, corpora: Path, tmp_path: Path) -> None:
    model, tokenizer, _ = trained
    prompts = prompts_of(load_corpus(corpora).train_prompts, tokenizer, 20, (2, 8), seed=0)
    assert all(3 <= len(prompt) <= 9 and prompt[0] == tokenizer.bos_token_id for prompt in prompts)

    def length(texts: Any) -> Any:
        return np.array([float(len(text)) for text in texts])

    options = {"completions": 4, "new_tokens": 12, "seed": 0}
    made = make_preferences(tmp_path / "p.json", model, tokenizer, length, prompts, **options)
    for group in made.groups:
        texts = texts_of(tokenizer, [group.prompt_ids] * len(group.completions), group.completions)
        assert group.pairs
        assert all(len(texts[pair.chosen]) > len(texts[pair.rejected]) for pair in group.pairs)
    assert made.facts["pairs"] + made.facts["pairs_left_out_as_equal"] == 20 * 6
    again = make_preferences(tmp_path / "p.json", None, tokenizer, length, prompts, **options)  # no model is needed
    assert list(again.groups) == list(made.groups)


def test_the_reference_is_at_a_kl_of_zero_and_a_changed_model_is_not(trained: Any, corpora: Path) -> None:
    model, tokenizer, _ = trained
    corpus = load_corpus(corpora)
    prompts = prompts_of(corpus.test_prompts, tokenizer, 16, (2, 8), seed=0)
    ruler = Ruler(model, tokenizer, GoldReward(corpus.gold_train), Vader(), prompts, samples=2, new_tokens=12)
    same = ruler.measure(model, seed=5)
    assert same["kl"] == same["kl_error"] == 0
    other = new_model(SMOKE.model, tokenizer)
    assert ruler.measure(other, seed=5)["kl"] > 5
    baseline = ruler.baseline((2, 4), seed=1)
    two, four = baseline["best_of"]
    assert baseline["reward"] < two["reward"] < four["reward"]
    assert two["kl"] == pytest.approx(math.log(2) - 0.5, abs=1e-5)


BASELINE = {"reward": 0.0, "reward_deviation": 2.0, "vader": 0.1, "vader_deviation": 0.5}


def made_up(method: str, strength: float, seed: int, *points: tuple[float, float]) -> dict[str, Any]:
    rest = {"vader": 0.6, "tokens": 20.0, "finished": 1.0, "repeated": 0.0, "reward_error": 0.1, "kl_error": 0.1}
    rest |= {f"{name}_error": 0.0 for name in ("vader", "tokens", "finished", "repeated")}
    made = [{"step": i, "share": i / 2, "kl": kl, "reward": reward, **rest} for i, (kl, reward) in enumerate(points, 1)]
    return {"method": method, "strength": strength, "seed": seed, "points": made}


def test_the_summary_of_made_up_runs() -> None:
    records = [
        made_up("dpo", 0.1, 0, (3.0, 3.0), (25.0, 8.0)),
        made_up("dpo", 0.1, 1, (4.0, 3.4), (30.0, 9.0)),
        made_up("ppo", 6.0, 0, (2.0, 1.0), (4.0, 2.1)),
        made_up("ppo", 6.0, 1, (2.5, 1.0), (4.5, 2.3)),
    ]
    summary = frontier.summarise(records, BASELINE, kl_limit=20.0)
    dpo, ppo = summary["rise"]["dpo"], summary["rise"]["ppo"]
    assert dpo["seeds"]["0"] == {"deviations": 1.5, "lower": 1.4, "kl": 3.0, "strength": 0.1, "step": 1}
    assert dpo["above_one_on_all_seeds"]
    assert not ppo["above_one_on_all_seeds"]  # 1.05 standard deviations, but not by more than the error
    first = summary["curves"][0]
    assert (first["method"], first["strength"], first["points"][0]["kl"]) == ("dpo", 0.1, 3.5)
    assert first["points"][0]["kl_deviation"] == pytest.approx(math.sqrt(0.5), abs=1e-4)
    assert first["points"][0]["reward_gain"] == pytest.approx(1.6)
    assert first["points"][0]["vader_gain"] == pytest.approx(1.0)
    at_two = next(row for row in summary["frontier"] if row["kl"] == 2.0)
    assert at_two["dpo"]["mean"] == pytest.approx((math.sqrt(2 / 3) * 1.5 + math.sqrt(2 / 4) * 1.7) / 2, abs=1e-3)
    assert at_two["ppo"]["mean"] == pytest.approx((0.5 + math.sqrt(2 / 2.5) * 0.5) / 2, abs=1e-3)
    assert at_two["difference"]["mean"] == pytest.approx(1.2134 - 0.4736, abs=1e-3)
    assert at_two["difference"]["low"] < 0.73 < at_two["difference"]["high"]
    at_twelve = summary["frontier"][-1]
    assert at_twelve["ppo"] == {"mean": None, "deviation": None, "seeds": 0}
    assert "difference" not in at_twelve


def test_a_run_that_comes_back_counts_where_it_was_best() -> None:
    record = made_up("ppo", 3.0, 0, (4.0, 2.0), (2.0, 3.0))
    back = (math.sqrt(3) - 2) / (math.sqrt(2) - 2)
    assert frontier.rise_at(record, 3.0, BASELINE) == pytest.approx(1 + 0.5 * back)  # less on the way out
    assert frontier.rise_at(record, 5.0, BASELINE) is None


def test_a_difference_is_shown_only_if_its_interval_leaves_out_zero() -> None:
    assert frontier.difference([1.0, 1.1, 0.9])["shown"]
    assert not frontier.difference([1.0, -0.5, 0.3])["shown"]


@pytest.mark.sample(0)
def test_the_smoke_version_runs_and_a_second_start_trains_nothing(
    corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    words = ["run.py", "--smoke", "--corpora", str(corpora), "--output", str(output)]
    monkeypatch.setattr(sys, "argv", words)
    script = runpy.run_path(str(FOLDER / "run.py"))
    assert script["main"]() == 0
    result = json.loads((output / "result.json").read_text(encoding="utf-8"))
    assert [(run["method"], run["strength"]) for run in result["runs"]] == [
        ("dpo", 0.1), ("dpo", 1.0), ("ppo", 3.0), ("ppo", 12.0)
    ]  # fmt: skip
    for run in result["runs"]:
        assert [point["share"] for point in run["points"]] == [0.5, 1.0]
        assert run["points"][-1]["reward"] > result["baseline"]["reward"]
    text = results_page.filled(
        f"before{results_page.BEGIN}stale text{results_page.END}after", results_page.page(result)
    )
    assert text.startswith("before")
    assert text.endswith("after")
    assert "stale text" not in text
    assert "| DPO, beta 0.1 |" in text
    assert "| PPO, target 12 |" in text
    one_run = "**PPO, target 3 and PPO, target 12 are one run**"
    same = [run["points"] for run in result["runs"] if run["method"] == "ppo"]
    assert one_run not in text
    assert same[0] != same[1]  # what holds the policy back plays its part from the first round on
    threads = result["machine"]["torch threads"]
    assert f"on {threads} thread" in text
    with pytest.raises(RequestError, match="holds a smoke run"):
        results_page.keep(output, tmp_path)
    assert not (tmp_path / "results").exists()
    assert all((output / name).stat().st_size > 2000 for name in ("frontier.svg", "frontier.png", "hacking.svg"))
    stamps = {file: file.stat().st_mtime_ns for file in (output / "runs").iterdir()}
    assert script["main"]() == 0
    assert stamps == {file: file.stat().st_mtime_ns for file in (output / "runs").iterdir()}
    with pytest.raises(RequestError, match=r"no_such_package missing.*preftune\[sentiment\]"):
        script["check_packages"](["json", "no_such_package"])
    for changed in (["--dpo_learning_rate", "0"], ["--ppo_learning_rate", "1e-5"], ["--seeds", "1"]):
        monkeypatch.setattr(sys, "argv", [*words, *changed])
        assert script["main"]() == 2
        assert "Choose another --output" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", [*words, "--seeds", "0", "0"])
    assert script["arguments"]().experiment.seeds == (0,)  # twice the same is no second seed


def test_the_page_names_strengths_that_made_no_difference_and_threads() -> None:
    records = [made_up("dpo", beta, seed, (3.0 + seed, 3.0)) for beta in (0.1, 1.0) for seed in (0, 1)]
    records += [made_up("ppo", 6.0, seed, (2.0 + seed, 1.0)) for seed in (0, 1)]
    summary = frontier.summarise(records, BASELINE, kl_limit=20.0)
    (line,) = results_page._same_runs({"summary": summary})
    assert "**DPO, beta 0.1 and DPO, beta 1 are one run**" in line


def test_texts_of_a_model_are_no_markup() -> None:
    assert results_page._plain("a *\n film <b> `x` |") == r"a \* film \<b\> \`x\` \|"


def test_a_page_of_no_result_is_refused_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["results_page.py", str(tmp_path / "none")])
    before = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert results_page.main() == 2
    assert "has no result.json. Let run.py finish" in capsys.readouterr().err
    assert (FOLDER / "README.md").read_text(encoding="utf-8") == before


def test_the_readme_says_what_the_kept_result_says() -> None:
    kept = FOLDER / "results/result.json"
    if not kept.exists():
        pytest.skip("the whole experiment has not been run yet")
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert results_page.filled(text, results_page.page(json.loads(kept.read_text(encoding="utf-8")))) == text
