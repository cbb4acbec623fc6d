"""The experiment is scripts, not a package: their folder goes on the path, as it does when they are run."""

from __future__ import annotations

import random
import sys
import zipfile
from pathlib import Path

import pytest

from tests.examples.made_up_reviews import sentence

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "sentiment"))


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both archives in the shape of nltk's, made up."""
    folder = tmp_path_factory.mktemp("corpora")
    draw = random.Random(0)
    with zipfile.ZipFile(folder / "movie_reviews.zip", "w") as archive:
        for number in range(260):
            lines = [sentence(draw) for _ in range(14)]
            archive.writestr(f"movie_reviews/pos/cv{number:03}.txt", "\n".join([*lines, "! ! !", "too short ."]))
    with zipfile.ZipFile(folder / "nltk_sentence_polarity.zip", "w") as archive:
        for kind, mood in (("pos", "good"), ("neg", "bad")):
            lines = [sentence(draw, mood) for _ in range(500)]
            archive.writestr(f"sentence_polarity/rt-polarity.{kind}", "\n".join(lines))
    return folder
