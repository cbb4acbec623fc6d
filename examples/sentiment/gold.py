"""What is good: a classifier as the gold reward, and a lexicon that nothing ever optimises."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from corpus import Labelled
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class GoldReward:
    """Log-odds that a text is positive, in nats: logistic regression on TF-IDF of words and word pairs.

    The features of a text are scaled to length 1, so that no text whatever has a reward above `highest`. A text of one
    word has the same reward however often it is said; within a sentence repeating a good word gains, by the logarithm
    of how often. Half a sentence has a reward as well; a text without a word that the classifier knows has
    `self.intercept`.
    """

    def __init__(self, train: Labelled, *, inverse_penalty: float = 4.0, at_least: int = 2) -> None:
        """
        Args:
            inverse_penalty: scikit-learn's C.
            at_least: in so many sentences a word or word pair must stand to be known.
        """
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression

        self._words = TfidfVectorizer(
            ngram_range=(1, 2), min_df=at_least, sublinear_tf=True, token_pattern=r"[a-z]+(?:['-][a-z]+)*"
        )
        features = self._words.fit_transform(train.texts)
        self._classifier = LogisticRegression(C=inverse_penalty, max_iter=1000).fit(features, train.positive)
        self.intercept = float(self._classifier.intercept_[0])

    def __call__(self, texts: Sequence[str]) -> Floats:
        """(texts,) log-odds of positive."""
        scores: Floats = self._classifier.decision_function(self._words.transform(list(texts)))
        return scores

    def accuracy(self, test: Labelled) -> float:
        """Share of sentences on whose side of zero the label is."""
        return float(np.mean((self(test.texts) > 0) == np.asarray(test.positive)))

    @property
    def highest(self) -> float:
        """No text has a higher reward: the length of the positive weights, which features of length 1 cannot exceed."""
        weights = self._classifier.coef_[0]
        return float(np.linalg.norm(weights[weights > 0])) + self.intercept

    def strongest(self, count: int = 12) -> list[str]:
        """The words and word pairs with the largest weight."""
        order = np.argsort(-self._classifier.coef_[0])[:count]
        return [str(name) for name in self._words.get_feature_names_out()[order]]

    def repeated_words(self) -> dict[str, float]:
        """The reward of the strongest words said over and over: what a policy would find that cheats."""
        best = self.strongest()
        return {
            "once": float(self([best[0]])[0]),
            "twenty times": float(self([" ".join([best[0]] * 20)])[0]),
            "the twelve strongest": float(self([" ".join(best)])[0]),
            "no text can exceed": self.highest,
        }


class Vader:
    """VADER's compound sentiment, -1 to 1 (Hutto and Gilbert 2014): a lexicon and rules, trained on nothing here."""

    def __init__(self) -> None:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

        self._analyser: Any = SentimentIntensityAnalyzer()

    def __call__(self, texts: Sequence[str]) -> Floats:
        """(texts,)"""
        return np.array([self._analyser.polarity_scores(text)["compound"] for text in texts], dtype=np.float64)
