"""Trainings that are killed at random moments and started again: the final weights must be those of an undisturbed run,
bit for bit.

    python benchmarks/torture.py                     twenty kills: DPO, SFT and PPO, one and two ranks, sharded or not
    python benchmarks/torture.py --kills 3 --seed 7

Each trial starts one training with `--resume auto`, sends SIGKILL or SIGTERM to it (to the whole training, or with two
ranks to a random rank) at a moment that is uniform over the time of an undisturbed run, start and report included, and
starts the same command again until it has finished. The models are tiny and random; time goes into starting processes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

ROWS = 24
MOST_STARTS = 6
COMMON = [
    "--use_cpu", "--report_to", "none", "--seed", "3", "--resume", "auto", "--no_report", "--save_strategy", "steps",
    "--logging_steps", "1",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Setting:
    """A training that is disturbed."""

    name: str
    command: tuple[str, ...]
    ranks: int = 1

    def words(self, folder: Path, output: Path) -> list[str]:
        places = {"MODEL": folder / "model", "PAIRS": folder / "pairs.jsonl", "TEXTS": folder / "texts.jsonl"}
        own = [str(places.get(word, word)) for word in self.command]
        return [*own, "--output_dir", str(output), *COMMON]


_DPO = (
    "dpo", "--model", "MODEL", "--data", "PAIRS", "--max_steps", "12", "--save_steps", "3", "--learning_rate", "1e-3",
    "--guard", "off", "--num_train_epochs", "9",
)  # fmt: skip
_SFT = (
    "sft", "--model", "MODEL", "--data", "TEXTS", "--max_steps", "12", "--save_steps", "3", "--learning_rate", "1e-3",
    "--num_train_epochs", "9",
)  # fmt: skip
_PPO = (
    "ppo", "--model", "MODEL", "--data", "PAIRS", "--reward_model", "length:5", "--total_episodes", "64",
    "--max_new_tokens", "8", "--save_steps", "4", "--per_device_train_batch_size", "4",
)  # fmt: skip
SETTINGS = (
    Setting("dpo", _DPO),
    Setting("dpo, two ranks", (*_DPO, "--use_peft", "--per_device_train_batch_size", "2"), ranks=2),
    Setting("dpo, sharded", (*_DPO, "--fsdp", "full_shard", "--per_device_train_batch_size", "2"), ranks=2),
    Setting("sft", _SFT),
    Setting("ppo", _PPO),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="preftune-torture-") as place:
        results = torture(Path(place), kills=options.kills, seed=options.seed)
    wrong = [result for result in results if not result["same"]]
    print(f"{len(results)} kills, {len(wrong)} with other weights than an undisturbed run")
    return int(bool(wrong))


def torture(folder: Path, *, kills: int, seed: int, settings: tuple[Setting, ...] = SETTINGS) -> list[dict[str, Any]]:
    """One trial for each kill, the settings in turn. Returns: what was done in each, and whether the weights are those
    of the undisturbed run.
    """
    make_inputs(folder)
    chance, undisturbed = random.Random(seed), {}
    results = []
    for index in range(kills):
        setting = settings[index % len(settings)]
        if setting.name not in undisturbed:
            began = time.monotonic()
            output = folder / f"undisturbed-{setting.name.replace(', ', '-').replace(' ', '-')}"
            finish(setting, folder, output)
            undisturbed[setting.name] = output, time.monotonic() - began
        whole, seconds = undisturbed[setting.name]
        moment, number = chance.uniform(0, seconds), chance.choice([signal.SIGKILL, signal.SIGTERM])
        rank = chance.randrange(-1, setting.ranks) if setting.ranks > 1 else -1
        output = folder / f"trial-{index}"
        begun = start(setting, folder, output)
        disturb(begun, moment, number, rank)
        starts = 1 + finish(setting, folder, output)
        result = {
            "setting": setting.name,
            "seconds": round(moment, 2),
            "signal": number.name,
            "to": "all" if rank < 0 else f"rank {rank}",
            "starts": starts,
            "same": same_weights(whole, output),
        }
        print(json.dumps(result), flush=True)
        results.append(result)
        shutil.rmtree(output)
    return results


def make_inputs(folder: Path) -> None:
    """A tiny model with random weights, pairs and demonstrations."""
    from tiny import chat_rows, save_tiny

    os.environ["PREFTUNE_CACHE"] = str(folder / "cache")
    save_tiny(folder / "model")
    rows = chat_rows(ROWS)
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    texts = [{"messages": [*row["prompt"], *row["chosen"]]} for row in rows]
    (folder / "texts.jsonl").write_text("\n".join(map(json.dumps, texts)), encoding="utf-8")


def start(setting: Setting, folder: Path, output: Path) -> list[subprocess.Popen[bytes]]:
    """The processes of one start, a session of their own each."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PREFTUNE_CACHE": str(folder / "cache")}
    command = [sys.executable, "-m", "preftune", *setting.words(folder, output)]
    processes = []
    for rank in range(setting.ranks):
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": setting.ranks, "LOCAL_WORLD_SIZE": setting.ranks}
        ranked = {name: str(value) for name, value in own.items()} | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        with open(f"{output}.log", "ab") as log:
            processes.append(
                subprocess.Popen(
                    [*command, *(["--ddp_backend", "gloo", "--ddp_timeout", "60"] if setting.ranks > 1 else [])],
                    env=environment | (ranked if setting.ranks > 1 else {}),
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )
    return processes


def disturb(processes: list[subprocess.Popen[bytes]], moment: float, number: signal.Signals, rank: int) -> None:
    """Sends a signal at the moment, and lets the other ranks end; one that waits for a lost one is killed, as torchrun
    does.
    """
    end = time.monotonic() + moment
    while time.monotonic() < end and any(process.poll() is None for process in processes):
        time.sleep(0.01)
    for process in processes if rank < 0 else [processes[rank]]:
        if process.poll() is None:
            process.send_signal(number)
    until = time.monotonic() + 30
    while any(process.poll() is None for process in processes) and time.monotonic() < until:
        if any(process.poll() not in (None, 0) for process in processes):
            until = min(until, time.monotonic() + 10)
        time.sleep(0.05)
    for process in processes:
        process.kill()
        process.wait()


def finish(setting: Setting, folder: Path, output: Path) -> int:
    """Starts the training until it has finished. Returns: how often."""
    for starts in range(1, MOST_STARTS + 1):
        processes = start(setting, folder, output)
        codes = [process.wait() for process in processes]
        if not any(codes):
            return starts
    log = Path(f"{output}.log").read_text(encoding="utf-8", errors="replace")
    raise RuntimeError(f"{setting.name} did not finish in {MOST_STARTS} starts:\n{log[-3000:]}")


def same_weights(one: Path, other: Path) -> bool:
    """Whether the final weights of two runs are the same, bit for bit."""
    names = sorted(path.name for path in one.glob("*.safetensors"))
    assert names, f"{one} has no weights"
    return names == sorted(path.name for path in other.glob("*.safetensors")) and all(
        (one / name).read_bytes() == (other / name).read_bytes() for name in names
    )


if __name__ == "__main__":
    sys.exit(main())
