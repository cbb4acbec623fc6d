from __future__ import annotations

import subprocess
import sys
from collections import Counter

from preftune.generation.own_prompts import own_prompts


def test_three_categories_of_about_twenty_each_labelled() -> None:
    prompts = own_prompts().prompts
    counts = Counter(prompt.kept["category"] for prompt in prompts)
    assert set(counts) == {"ordinary", "edge case", "out of domain"}
    assert all(15 <= count <= 25 for count in counts.values())
    assert len({prompt.key for prompt in prompts}) == len({prompt.id for prompt in prompts}) == len(prompts)
    assert all(prompt.kept["topic"] and prompt.prompt[-1]["role"] == "user" for prompt in prompts)


def test_a_few_are_of_all_categories_and_text_stays_text() -> None:
    few = own_prompts(6, as_chat=False)
    assert len({prompt.kept["category"] for prompt in few.prompts}) == 3
    assert all(isinstance(prompt.prompt, str) for prompt in few.prompts)
    assert len(own_prompts(1000).prompts) == len(own_prompts().prompts)


def test_they_load_without_torch() -> None:
    code = "import sys; from preftune.generation.own_prompts import own_prompts; own_prompts()"
    subprocess.run([sys.executable, "-c", f"{code}; assert 'torch' not in sys.modules"], check=True)
