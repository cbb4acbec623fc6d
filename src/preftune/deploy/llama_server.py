"""llama.cpp's server for a GGUF file, in this process, by the package xllamacpp (extra `llama`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from preftune.errors import ModelError
from preftune.models.load import require_package

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
            threads: 0 for the number of cores.
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
        if threads:
            settings.cpuparams.n_threads = threads
        try:
            self._server: Any = xllamacpp.Server(settings)
            self.address = str(self._server.listening_address)
        except (RuntimeError, ValueError, OSError) as error:
            raise ModelError(f"llama.cpp cannot load {file.name}: {error}. Export the model again.") from error

    def close(self) -> None:
        self._server = None
