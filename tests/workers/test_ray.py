"""`--ray` on a real local cluster: the bytes of one process, also when workers and the caller are killed."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from preftune.errors import PreftuneError, RequestError
from tests.cli.command import pairs_file, preftune, tiny_model, write_rows
from tests.evaluation.labelling.test_label import write_samples
from tests.judges.test_reward_model import saved as classifier_folder
from tiny import chat_rows, save_tiny

ray = pytest.importorskip("ray", reason="the extra ray is not installed")

from preftune.workers import ray_pool  # noqa: E402

__all__ = ["pairs_file", "preftune", "tiny_model"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A cluster of two CPUs; its address."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    on_sigterm = signal.getsignal(signal.SIGTERM)
    ray.init(
        num_cpus=2, include_dashboard=False, object_store_memory=100 * 2**20, log_to_driver=False, logging_level="ERROR"
    )
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests
    yield ray.get_runtime_context().gcs_address
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    ray.shutdown()
    signal.signal(signal.SIGTERM, on_sigterm)  # Ray leaves it to the system, which ends the process


@pytest.fixture
def losing(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Kills a worker when it has given its first result; the list counts the workers that were lost."""
    lost: list[int] = []
    result, replace = ray_pool.RayTeam._result, ray_pool.RayTeam._replace

    def killing(self: Any, ref: Any) -> Any:
        found = result(self, ref)
        self._asked += 1
        if not lost and self._asked == 4:
            ray.kill(self._alive[0])
            lost.append(0)
        return found

    def counting(self: Any, actor: Any, error: BaseException) -> None:
        lost[0] += actor in self._alive
        replace(self, actor, error)

    monkeypatch.setattr(ray_pool.RayTeam, "_asked", 0, raising=False)
    monkeypatch.setattr(ray_pool.RayTeam, "_result", killing)
    monkeypatch.setattr(ray_pool.RayTeam, "_replace", counting)
    return lost


def scores_in(cache: Path) -> list[tuple[Any, ...]]:
    (file,) = (cache / "reference").rglob("*.sqlite")
    with sqlite3.connect(file) as connection:
        found = connection.execute("SELECT key, value FROM scores ORDER BY key").fetchall()
    connection.close()
    return found


def test_scores_are_the_bits_of_one_process_and_a_training_finds_them(
    preftune, tiny_model, tmp_path, monkeypatch, cluster, losing, caplog
):
    rows = write_rows(tmp_path / "pairs.jsonl", chat_rows(160))
    words = ["dpo", "--model", tiny_model, "--data", rows, "--use_peft", "--eval_fraction", 0.1, "--use_cpu"]
    words += ["--per_device_eval_batch_size", 2]
    for cache, more in (("one", []), ("two", ["--ray", "--ray_workers", 2])):
        monkeypatch.setenv("PREFTUNE_CACHE", str(tmp_path / cache))
        found = preftune("score", *words, *more)
        assert found.code == 0, found.err
        assert "160 rows: 320 completions scored now" in found.out
    assert losing == [1]
    assert "A worker was lost (" in caplog.text
    assert scores_in(tmp_path / "one") == scores_in(tmp_path / "two")
    run = tmp_path / "run"
    found = preftune(*words, "--max_steps", 1, "--guard", "off", "--no_report", "--output_dir", run)
    assert found.code == 0, found.err
    assert json.loads((run / "run.json").read_text())["reference_scores"] == {"computed": 0, "from_cache": 16}


SAMPLING = ("-k", 3, "--max_new_tokens", 12, "--batch_size", 4)


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    return write_rows(tmp_path / "prompts.jsonl", [{"prompt": row["prompt"]} for row in chat_rows(24)])


def test_samples_are_the_bytes_of_one_process_after_kills_of_workers_and_caller(
    preftune, tiny_model, prompts, tmp_path, cluster, losing
):
    words = ["sample", "--model", tiny_model, "--data", prompts, *SAMPLING]
    alone, spread = tmp_path / "alone.jsonl", tmp_path / "spread.jsonl"
    assert preftune(*words, "-o", alone).code == 0
    command = [sys.executable, "-m", "preftune", *map(str, words), "-o", str(spread), "--ray", cluster]
    killed = subprocess.Popen([*command, "--ray_workers", "1"], stderr=subprocess.PIPE)
    while not (spread.exists() and spread.stat().st_size > 0):
        assert killed.poll() is None, killed.stderr.read().decode()
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    there = spread.read_bytes().count(b"\n")
    assert 0 < there < 72
    found = preftune(*words, "-o", spread, "--ray", "--ray_workers", 2)
    assert found.code == 0, found.err
    assert losing == [1]
    assert f"72 completions of 24 prompts (3 each), 72 distinct, 12 tokens on average; {72 - there} of them new" in (
        found.out
    )
    assert spread.read_bytes() == alone.read_bytes()


KEEP = """
def short(row):
    return len(row["text"]["chosen"]) < 60 and row["stars"] > 1
"""


@pytest.mark.sample(0)
@pytest.mark.parametrize(
    ("ending", "more"),
    [
        (".jsonl", ["--dedupe", "near", "--split", "0.1", "--topic", "a", "b", "--rule", "keep.py:short"]),
        (".parquet", ["--language", "en", "--balance_length"]),
    ],
)
def test_converted_pairs_and_their_manifest_are_the_bytes_of_one_process(
    preftune, tmp_path, monkeypatch, cluster, losing, ending, more
):
    monkeypatch.chdir(tmp_path)
    Path("keep.py").write_text(KEEP)
    text = "The answer to this question of yours is number"
    rows = [
        {
            "prompt": f"Tell me {i % 900} things",
            "chosen": f"{text} {i % 700}",
            "rejected": "no " * (1 + i % 30) if i % 97 else None,
            "topic": "abc"[i % 3],
            "stars": i % 5,
            "source": f"s{i % 4}",
        }
        for i in range(6000)
    ]
    write_rows(Path("rows.jsonl"), rows)
    for name, words in (("alone", []), ("spread", ["--ray", "--ray_workers", 2])):
        Path(name).mkdir()
        found = preftune("convert", "rows.jsonl", "-o", f"{name}/out{ending}", *more, *words)
        assert found.code == 0, found.err
    assert losing == [1]
    files = sorted(path.name for path in Path("alone").iterdir())
    assert len(files) == (3 if "--split" in more else 2)
    for name in files:
        assert Path("alone", name).read_bytes() == Path("spread", name).read_bytes(), name


def test_a_stream_is_not_converted_on_a_cluster(preftune, pairs_file, tmp_path, cluster):
    found = preftune("convert", pairs_file, "-o", tmp_path / "out.jsonl", "--streaming", "--ray")
    assert "--streaming reads the rows in this process" in found.message


@pytest.mark.sample(0)
@pytest.mark.parametrize("reference", [False, True])
def test_an_audit_is_that_of_one_process(preftune, tiny_model, tmp_path, monkeypatch, cluster, losing, reference):
    rows = chat_rows(330 if reference else 3300)
    for place, row in enumerate(rows):
        row["prompt"][-1]["content"] += f" {place % 250}"
        if place % 31 == 0:
            row["rejected"] = row["chosen"]
        if place % 57 == 0:
            row["chosen"] = None
        if place % 3 == 0:
            row["prompt"].insert(0, {"role": "system", "content": f"Be {place % 5}."})
    rows += rows[:40]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    words = ["audit", data, "--model", tiny_model, "--eval", write_rows(tmp_path / "held.jsonl", chat_rows(20))]
    words += ["--with_reference"] if reference else []
    found = {}
    for name, more in (("one", []), ("two", ["--ray", "--ray_workers", 2])):
        monkeypatch.setenv("PREFTUNE_CACHE", str(tmp_path / name))
        for turn in ("", " again") if reference else ("",):
            result = preftune(*words, *more, "-o", tmp_path / name)
            assert result.code == 0, result.err
            found[name + turn] = json.loads((tmp_path / name / "audit.json").read_text())
            for varying in ("created", "seconds"):
                del found[name + turn][varying]
    assert found["one"] == found["two"]
    names = {finding["name"] for finding in found["two"]["findings"]}
    assert {"unreadable", "identical", "duplicate_pairs", "repeated_prompts"} <= names
    if reference:
        assert found["two again"]["figures"]["reference"] == found["one again"]["figures"]["reference"]
        assert scores_in(tmp_path / "one") == scores_in(tmp_path / "two")
    else:
        assert losing == [1]


def read_rows(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


RULES = """
def brevity(prompt, answer, row):
    return -len(answer)

def brief(prompt, a, b, row):
    return 'a' if len(a) < len(b) else 'b'
"""


@pytest.mark.sample(1)
@pytest.mark.parametrize("judge", ["rule:pair_rules:brevity", "rule:pair_rules:brief", "reward:rm", "local:MODEL"])
def test_pairs_are_the_bytes_of_one_process(preftune, tiny_model, tmp_path, monkeypatch, cluster, judge):
    monkeypatch.chdir(tmp_path)
    Path("pair_rules.py").write_text(RULES)
    classifier_folder(Path("rm"))
    write_samples(Path("samples.jsonl"), {f"q{i}": [f"{'a' * n} {i}" for n in (1, 4, 9)] for i in range(20)})
    judge = judge.replace("MODEL", tiny_model)
    words = ["label", "samples.jsonl", "--judge", judge, "--pairs", "all"]
    words += ["--judge_max_tokens", 4] if "local" in judge else []
    for name, more in (("alone", ()), ("spread", ("--ray", "--ray_workers", 2))):
        monkeypatch.setenv("PREFTUNE_CACHE", str(tmp_path / f"cache-{name}"))
        found = preftune(*words, *more, "-o", f"{name}.jsonl")
        assert found.code == (0 if "local" not in judge else 1), found.err
    verdicts = [read_verdicts(tmp_path / f"cache-{name}") for name in ("alone", "spread")]
    assert verdicts[0] == verdicts[1]
    assert Path("alone.jsonl").read_bytes() == Path("spread.jsonl").read_bytes()


def read_verdicts(cache: Path) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(cache / "verdicts" / "verdicts.sqlite")
    found = connection.execute("SELECT key, value FROM verdicts ORDER BY key").fetchall()
    connection.close()
    return found


def doubling(fault: str = ""):
    """Work on numbers; what goes wrong is done by the block 3."""

    def work(block: Any) -> Any:
        if block == 3 and fault == "request":
            raise RequestError("three is not allowed")
        if block == 3 and fault == "bug":
            raise KeyError("three")
        if block == 3 and fault == "death":
            os._exit(1)
        return 2 * block

    return work


@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        ("request", RequestError, "^three is not allowed$"),
        ("bug", PreftuneError, "A worker failed. KeyError: 'three'"),
        ("death", PreftuneError, "Block 3 of the rows was lost with its worker 5 times"),
    ],
)
def test_what_ends_the_work(cluster, fault, kind, message):
    team = ray_pool.RayPool(workers=1).team(partial(doubling, fault), gpu=False)
    with pytest.raises(kind, match=message):
        list(team.compute(range(6)))
    team.close()


def test_a_team_computes_each_block_once_and_again(cluster):
    team = ray_pool.RayPool(workers=2).team(doubling, gpu=False)
    for count in (0, 1, 20):
        found = dict(team.compute(iter(range(count))))
        assert found == {number: 2 * number for number in range(count)}
    team.close()


def test_a_worker_that_cannot_start_is_an_error(cluster, monkeypatch):
    class Broken:
        def __init__(self, *args: Any) -> None:
            raise ImportError("there is no module of that name")

        def prepare(self) -> None:
            pass

    monkeypatch.setattr(ray_pool, "Actor", Broken)
    team = ray_pool.RayPool(workers=1).team(doubling, gpu=False)
    with pytest.raises(PreftuneError, match=r"Workers cannot start: .*there is no module of that name"):
        list(team.compute([1]))
    team.close()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ray_workers", 2], "--ray_workers has no effect without --ray"),
        (["--ray", "--ray_workers", 0], "--ray_workers 0: give 1 or more"),
    ],
)
def test_flags_that_cannot_be(preftune, tiny_model, pairs_file, cluster, words, message):
    found = preftune("score", "--model", tiny_model, "--data", pairs_file, "--use_cpu", *words)
    assert (found.code, message in found.err) == (2, True), found.err


def test_without_ray_the_extra_is_named(preftune, tiny_model, pairs_file, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    found = preftune("score", "--model", tiny_model, "--data", pairs_file, "--use_cpu", "--ray")
    assert "pip install 'preftune[ray]'" in found.message


def kill_a_worker_after(checkpoint: Path, killed: list[int]) -> None:
    """Kills one process of the training when a checkpoint is there."""
    while not (checkpoint / "trainer_state.json").exists():
        time.sleep(0.05)
    for one in psutil.Process().children(recursive=True):  # not those of other tests on this machine
        with suppress(psutil.Error):
            if "RayTrainWorker" in " ".join(one.cmdline()):
                one.kill()
                killed.append(one.pid)
                return


@pytest.mark.sample(0)
def test_an_evaluation_is_that_of_one_process(preftune, tiny_model, prompts, tmp_path, monkeypatch, cluster, losing):
    monkeypatch.chdir(tmp_path)
    save_tiny(Path("aligned"), seed=5)
    words = ["eval", "--model", "aligned", "--baseline", tiny_model, "--prompts", prompts, "--judge", "longer"]
    words += ["--max_new_tokens", 12, "--batch_size", 4, "--temperature", 1]
    for name, more in (("alone", ()), ("spread", ("--ray", "--ray_workers", 2))):
        found = preftune(*words, *more, "-o", name)
        assert found.code == 0, found.err
    assert losing == [1]
    assert len(read_rows(Path("alone/generations.jsonl"))) == 24
    for file in ("generations.jsonl", "verdicts.jsonl"):
        assert Path("alone", file).read_bytes() == Path("spread", file).read_bytes()


@pytest.mark.sample(0)
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray", "ignore::FutureWarning:ray")
def test_a_launched_training_goes_on_after_a_process_is_killed(preftune, tiny_model, tmp_path, cluster):
    rows = write_rows(tmp_path / "pairs.jsonl", chat_rows(64))
    words = ["dpo", "--model", tiny_model, "--data", rows, "--use_peft", "--use_cpu", "--max_steps", 40]
    words += ["--per_device_train_batch_size", 2]
    words += ["--save_steps", 2, "--learning_rate", "1e-3", "--guard", "off", "--no_report"]
    killed: list[int] = []
    weights = []
    for name in ("calm", "killed"):
        output = tmp_path / name
        if name == "killed":
            Thread(target=kill_a_worker_after, args=(output / "checkpoint-4", killed), daemon=True).start()
        found = preftune("launch", "--processes_per_node", 2, "--", *words, "--output_dir", output)
        assert found.code == 0, found.err
        assert f"The run is in {output}." in found.out
        weights.append(load_file(output / "adapter_model.safetensors"))
        facts = json.loads((output / "run.json").read_text())
        assert (facts["outcome"], "resumed_from_step" in facts) == ("finished", name == "killed"), facts.keys()
    assert len(killed) == 1
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
