"""What each form of an exported run costs: the table of docs/deploy.md.

    python benchmarks/export_cost.py RUN [--base MODEL] [--limit 16]

Exports a run in every form, loads it as it is served (GGUF files by llama.cpp's server), and compares it with the
adapter on its base in float32. `preftune serve` starts `transformers serve`, which shows answers only. The merge that
is rounded to nearest is what other tools write. The result is kept in benchmarks/results/export_cost.json.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch
from record import provenance, write_result

from preftune.deploy import ServedEndpoint, Trained, Verification, export, questions_of, serving, verify
from preftune.generation.endpoint.client import Conduct, Endpoint, EndpointName
from preftune.models import load_tokenizer, merge

RESULT = Path(__file__).parent / "results" / "export_cost.json"
FORMS = {
    "`adapter`": ("adapter", None),
    "`merged --dtype float16`": ("merged", "float16"),
    "`gguf:f16` in llama.cpp": ("gguf:f16", None),
    "`merged` (bfloat16)": ("merged", None),
    "`gguf:q8_0` in llama.cpp": ("gguf:q8_0", None),
    "`ollama:q4_k_m`, its file in llama.cpp": ("ollama:q4_k_m", None),
}
NEAREST = "merged into bfloat16, rounded to nearest"
SERVED = "`preftune serve` with transformers"


def measure(run: str, base: str | None, limit: int, scratch: Path, forms: dict = FORMS) -> dict[str, Verification]:
    """What was found of every form, by its name in the table."""
    trained = Trained(run, questions_of(None, limit=limit), base_model=base)
    found = {}
    for number, (name, (target, dtype)) in enumerate(forms.items()):
        folder = export(run, scratch / str(number), [target], dtype=dtype, base_model=base)[0].folder
        found[name] = verify(folder, trained)
        print(name, found[name].verdict(), found[name].figures, flush=True)
    exact = merge(run, dtype="float32", base_model=base)
    exact.to(torch.bfloat16).save_pretrained(scratch / "nearest")
    load_tokenizer(run, base_model=base).save_pretrained(scratch / "nearest")
    found[NEAREST] = verify(scratch / "nearest", trained)
    with serving(run, engine="transformers", port=0, base_model=base) as running:
        conduct = Conduct(concurrency=1, timeout=600)
        with Endpoint(EndpointName("aligned", running.address), conduct=conduct) as endpoint:
            found[SERVED] = verify(ServedEndpoint(endpoint), trained)
    return found


def table(forms: dict[str, dict]) -> str:
    """The rows of the table in docs/deploy.md, the smallest distance first."""
    first = next(iter(forms.values()))
    lines = [
        "| artefact | distance, nats per token | reward margin, nats | pairs with another sign | same greedy answers |",
        "|---|---|---|---|---|",
        f"| the training itself (trained model to base) | {first['moved']:.4f} | {first['margin']:.2f} | | |",
    ]
    for name, one in sorted(forms.items(), key=lambda item: (not item[1]["pairs"], item[1]["off"])):
        scores = "not shown | | |"
        if one["pairs"]:
            other = round((1 - one["agreement"]) * one["pairs"])
            scores = f"{one['off']:.4f} | {one['served_margin']:.2f} | {other} of {one['pairs']} |"
        same, identical = (round(one[key] * one["prompts"]) for key in ("same_answers", "identical"))
        letters = "" if same == identical else f", {identical} letter by letter"
        lines.append(f"| {name} | {scores} {same} of {one['prompts']}{letters} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("--base")
    parser.add_argument("--limit", type=int, default=16)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measured = measure(asked.run, asked.base, asked.limit, Path(folder))
    forms = {name: {"verdict": one.verdict(), **asdict(one.figures)} for name, one in measured.items()}
    command = f"python benchmarks/export_cost.py RUN --limit {asked.limit}"
    write_result({"forms": forms, **provenance(command)}, RESULT.parent, RESULT.stem)
    print(table(forms))
