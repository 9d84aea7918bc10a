"""TF-IDF vectors of item texts: sparse, and reduced to a dense size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

TOKENS = r"(?u)\b\w+\b"  # of item texts: words of one letter count, too
POWER_ITERATIONS = 7  # of the randomized decomposition


def tfidf_vectors(texts: Sequence[str]) -> sp.csr_matrix | None:
    """TF-IDF vectors of unit length, CSR ``[n_items, n_words]``; None where no item has a text.

    >>> tfidf_vectors(["", "The Comet", "the comet"]).toarray().round(2)
    array([[0.  , 0.  ],
           [0.71, 0.71],
           [0.71, 0.71]], dtype=float32)
    """
    if not any(texts):
        return None
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(sublinear_tf=True, token_pattern=TOKENS, dtype=np.float32).fit_transform(texts).tocsr()


def dense_tfidf(texts: Sequence[str], largest: int, seed: int) -> NDArray[np.float32]:
    """TF-IDF vectors reduced by a truncated singular value decomposition (Deerwester et al., 1990).

    Products of the reduced vectors are the best approximation, of their rank, of the products of the TF-IDF vectors.

    Args:
        texts: one text per item; an empty one has a zero row.
        largest: the size of the vectors, where there are enough items and words for it.
        seed: of the random start of the decomposition (Halko et al., 2011).

    Returns:
        numpy.ndarray: ``[n_items, min(largest, items with text - 1, words - 1)]`` (at least one column), float32.

    Raises:
        ValueError: if no item has a text.

    >>> vectors = dense_tfidf(["", "red comet", "red comet", "clue one", "clue two"], largest=8, seed=2020)
    >>> vectors.shape, (vectors @ vectors.T).round(2)[1].tolist()
    ((5, 3), [0.0, 1.0, 1.0, 0.0, 0.0])
    """
    sparse = tfidf_vectors(texts)
    if sparse is None:
        raise ValueError("no item has a text")
    from sklearn.utils.extmath import randomized_svd

    with_text = np.flatnonzero(np.diff(sparse.indptr))
    size = max(1, min(largest, len(with_text) - 1, sparse.shape[1] - 1))
    left, spread, _ = randomized_svd(sparse[with_text], size, n_iter=POWER_ITERATIONS, random_state=seed)
    vectors = np.zeros((len(texts), size), np.float32)
    vectors[with_text] = left * spread
    return vectors
