"""A linear bag-of-n-grams model, the first teacher: minutes to fit, and on long reviews as good as the encoder.

Its scores are taken out of fold (every row is scored by a model that never saw it), so that the student learns what the
linear model can tell about new text and not what it has memorised.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

if TYPE_CHECKING:
    from collections.abc import Sequence

    from models.train.loop import Scores

FOLDS = 4
WORDS_AND_MARKS = r"\b\w+\b|[!?]"


class Linear:
    """Word 1- to 3-grams under a logistic regression."""

    def __init__(self) -> None:
        self.words = TfidfVectorizer(
            ngram_range=(1, 3), min_df=3, max_features=300_000, sublinear_tf=True, token_pattern=WORDS_AND_MARKS
        )
        self.model = LogisticRegression(C=10.0, max_iter=100, tol=1e-3)

    def fit(self, texts: Sequence[str], labels: Sequence[int]) -> Linear:
        self.model.fit(self.words.fit_transform(texts), labels)
        return self

    def probabilities(self, texts: Sequence[str]) -> Scores:
        return np.asarray(self.model.predict_proba(self.words.transform(texts)), dtype=np.float32)


def out_of_fold(texts: Sequence[str], labels: Sequence[int], parts: Sequence[str]) -> Scores:
    """Scores of a part of every text, from models fitted on the whole texts of the other folds."""
    out = np.zeros((len(texts), len(set(labels))), dtype=np.float32)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=7)
    for fit, rest in folds.split(np.zeros(len(labels)), labels):
        model = Linear().fit([texts[i] for i in fit], [labels[i] for i in fit])
        out[rest] = model.probabilities([parts[i] for i in rest])
    return out
