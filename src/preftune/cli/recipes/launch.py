"""`preftune launch`: a training on several machines of a Ray cluster, with Ray Train."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preftune.amounts import counted
from preftune.cli.flags.messages import echo, tell
from preftune.cli.flags.plain_parser import PlainParser
from preftune.cli.train.train_command import method_of
from preftune.errors import PreftuneError, RequestError, did_you_mean, sentence

if TYPE_CHECKING:
    import argparse

COMMANDS = ("dpo", "kto", "sft", "reward", "ppo", "grpo", "rloo", "online", "xpo", "nash-md")
"""Commands that train with several processes."""


def run(argv: Sequence[str]) -> int:
    """Runs `preftune launch` and returns its exit code.

    Raises: RequestError; PreftuneError if the training fails.
    """
    words = list(argv)
    named = next((word for word in words if word in COMMANDS), None)
    if named is not None and "--" not in words:
        raise RequestError(
            f"preftune launch: {named} is not after --. Write it after --, as in: preftune launch -- {named} ..."
        )
    place = words.index("--") if "--" in words else len(words)
    asked = _parser().read(words[:place])
    command = words[place + 1 :]
    output, resumes = _checked(asked, command)
    _train(asked, [*command, "--output_dir", output, *([] if resumes else ["--resume", "auto"])], output)
    tell(f"The run is in {output}.")
    return 0


def _parser() -> PlainParser:
    parser = PlainParser(
        prog="preftune launch",
        usage="preftune launch [--nodes N] [--gpus_per_node G] [--ray ADDRESS] -- dpo OPTIONS OF THE TRAINING",
        description="Start a training on the machines of a Ray cluster (extra: ray), one process for each GPU. The run "
        "directory must be on storage that all machines share: when a process or a machine is lost, the training "
        "starts again as soon as the cluster has room for it, and continues from its last checkpoint.",
    )
    add = parser.add_argument
    add("--nodes", type=int, default=1, metavar="N", help="machines (1)")
    add("--gpus_per_node", type=int, default=0, metavar="G", help="GPUs of each, with one process for each (none)")
    add("--processes_per_node", type=int, metavar="P", help="processes of each machine without GPUs (1)")
    add("--cpus_per_process", type=int, default=1, metavar="C", help="CPUs that a process reserves (1)")
    add("--max_restarts", type=int, default=3, metavar="R", help="how often the training starts again (3)")
    add("--ray", default="", metavar="ADDRESS", help="of the cluster (default: $RAY_ADDRESS, or one on this machine)")
    return parser


def _checked(asked: argparse.Namespace, command: Sequence[str]) -> tuple[str, bool]:
    """The run directory, as a path that is the same in every process, and whether the request says how to resume.

    Raises: RequestError, also for whatever the training would refuse before it loads anything.
    """
    from preftune.cli.train.train_command import requested, speaking_flags
    from preftune.training.record.resuming import AUTO

    if not command or command[0] not in COMMANDS:
        said = f"{command[0]!r} does not train" if command else "no training is named"
        hint = did_you_mean(command[0] if command else "", COMMANDS, otherwise=f"There are {', '.join(COMMANDS)}.")
        raise RequestError(f"preftune launch: {said}. Write it after --, as in: preftune launch -- dpo ... {hint}")
    for flag, least in {
        "nodes": 1,
        "gpus_per_node": 0,
        "processes_per_node": 1,
        "cpus_per_process": 1,
        "max_restarts": 0,
    }.items():
        value = getattr(asked, flag)
        if value is not None and value < least:
            raise RequestError(f"--{flag} {value}: give {least} or more.")
    if asked.processes_per_node is not None and asked.gpus_per_node:
        raise RequestError("--processes_per_node has no effect with --gpus_per_node: each GPU has one process.")
    method = method_of(command[0])
    with speaking_flags(method):
        request = requested(method, command[1:], elsewhere=True)
    if request.seeds:
        raise RequestError("--seeds starts a process for each seed. Launch each seed by itself, with --seed.")
    checkpoint = request.config.resume_from_checkpoint
    if isinstance(checkpoint, str) and checkpoint != AUTO:
        raise RequestError(
            f"preftune launch: each restart would return to {checkpoint} and lose the steps after it. Leave --resume "
            "out: the training continues from the last checkpoint in --output_dir (move later ones away)."
        )
    flags = {word.partition("=")[0].replace("-", "_") for word in command}
    if checkpoint is None and flags & {"__resume", "__resume_from_checkpoint"}:
        raise RequestError(
            "preftune launch: every start continues from the last checkpoint, so --resume none has no effect. Leave it "
            "out; --overwrite replaces an earlier run."
        )
    return os.path.abspath(os.path.expanduser(str(request.config.output_dir))), checkpoint is not None


def _train(asked: argparse.Namespace, words: Sequence[str], output: str) -> None:
    from preftune.workers.ray_pool import RayPool, passed_on

    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")  # it prints everything twice
    with ExitStack() as opened:
        opened.enter_context(RayPool(asked.ray, shows_output=True))
        from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
        from ray.train.torch import TorchConfig, TorchTrainer

        of_each = asked.gpus_per_node or asked.processes_per_node or 1
        processes = asked.nodes * of_each
        where = f"{counted(processes, 'process', 'processes')} on {counted(asked.nodes, 'machine')}"
        echo(f"preftune: {where}: preftune {words[0]}, at most {counted(asked.max_restarts, 'restart')}")
        loop: Any = worker
        trainer = TorchTrainer(
            loop,
            train_loop_config={
                "words": list(words),
                "folder": os.getcwd(),
                "environment": passed_on(),
                "processes": of_each,
            },
            scaling_config=ScalingConfig(
                num_workers=processes,
                use_gpu=asked.gpus_per_node > 0,
                resources_per_worker={"CPU": asked.cpus_per_process, "GPU": int(asked.gpus_per_node > 0)},
                placement_strategy="PACK",
            ),
            torch_config=TorchConfig(backend="nccl" if asked.gpus_per_node else "gloo"),
            run_config=RunConfig(
                name=Path(output).name,
                storage_path=str(Path(output).parent / ".ray_train"),
                failure_config=FailureConfig(max_failures=asked.max_restarts),
            ),
        )
        opened.callback(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT))  # Ray Train keeps its own
        try:
            trainer.fit()
        except TrainingFailedError as error:
            last = (str(error).strip().splitlines() or [""])[-1]
            raise PreftuneError(
                f"The training has failed after {counted(asked.max_restarts, 'restart')}: {sentence(last)} What was "
                f"reached is in {output}; the same command continues."
            ) from error


def worker(config: dict[str, Any]) -> None:
    """A process of the training; Ray Train has made its process group.

    Raises: RuntimeError if the training fails, so that Ray Train ends the other processes, which would wait for this
        one, and starts all of them again.
    """
    here, asked = int(os.environ["LOCAL_WORLD_SIZE"]), config["processes"]
    if here != asked:
        raise RuntimeError(
            f"Ray has put {counted(here, 'process', 'processes')} on a machine that was to have {asked}. Ask with "
            "--nodes and --gpus_per_node (or --processes_per_node) for what each machine has free."
        )
    from preftune.cli.main import main
    from preftune.workers.actor import enter

    enter(config["folder"], config["environment"])

    try:
        code = main([*config["words"], "--traceback"])  # which raises instead of printing
    except (PreftuneError, KeyboardInterrupt) as error:
        raise RuntimeError(" ".join(str(error).split()) or "The training was stopped.") from error
    if code:
        raise RuntimeError(f"preftune {config['words'][0]} ended with exit code {code}.")
