"""Sequences of items by user as Python lists: data files of them, and what SequentialRules holds, by double loops."""

import numpy as np
from recbole.utils import get_trainer

from recbole_llmd.data.transitions import Samples

HELD_OUT = 2  # RecBole's leave-one-out: the last for the test, the one before for validation


def write_dataset(folder, lists, texts=None, starts=None):
    """The dataset ``hand`` of sequences ``{user: [items]}`` and texts ``{item: text}``, tokens all.

    ``starts`` are times of users' first interactions, 0 for those not given.
    """
    starts = starts or {}
    (folder / "hand").mkdir(parents=True, exist_ok=True)
    lines = [
        f"{user}\t{item}\t{time}"
        for user, items in lists.items()
        for time, item in enumerate(items, starts.get(user, 0))
    ]
    (folder / "hand" / "hand.inter").write_text(
        "\n".join(["user_id:token\titem_id:token\ttimestamp:float", *lines]) + "\n"
    )
    if texts:
        lines = [f"{item}\t{text}" for item, text in texts.items()]
        (folder / "hand" / "hand.item").write_text("\n".join(["item_id:token\ttitle:token_seq", *lines]) + "\n")


def settings_of(folder, window=4, **more):
    return {
        "model": "SequentialRules",
        "dataset": "hand",
        "data_path": str(folder),
        "load_col": {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "title"]},
        "MAX_ITEM_LIST_LENGTH": window,
        "show_progress": False,
        "state": "ERROR",
        "metrics": ["Recall", "NDCG"],
        "valid_metric": "NDCG@1",
        "topk": [1],
        **more,
    }


def train(build, settings):
    """The loaders and the trained model."""
    config, loaders, model = build(settings)
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    trainer.fit(*loaders[:2], verbose=False, saved=False)
    return loaders, model


def samples_of(pairs, window):
    """Samples of (user, history, target) with the histories cut to the window."""
    rows = [(user, history[-window:], target) for user, history, target in pairs]
    items = np.array([history + [0] * (window - len(history)) for _, history, _ in rows], np.int64)
    lengths = np.array([len(history) for _, history, _ in rows], np.int64)
    targets, users = (np.array(values, np.int64) for values in ([row[2] for row in rows], [row[0] for row in rows]))
    return Samples(items.reshape(-1, window), lengths, targets, users)


def popularity_of(lists, n_items):
    counts = np.zeros(n_items)
    for items in lists.values():
        if len(items) > 1:  # a single item is in no sample: RecBole does not count it
            for item in items:
                counts[item] += 1
    return counts


def oracle(lists, n_items, window, weights, texts, linear):
    """``next``, ``matrix`` (texts in it only with the linear model) and ``rest`` of retained sequences, in float64."""
    counts, follows, gram = (np.zeros((n_items, n_items)) for _ in range(3))
    for items in lists.values():
        for q in range(1, len(items)):
            history = np.zeros(n_items)
            for p in range(max(0, q - window), q):
                counts[items[p], items[q]] += 0.8 ** (q - p - 1)
                follows[items[p], items[q]] += (q - p) * 0.8 ** (q - p - 1)
                history[items[p]] += 0.8 ** (q - p - 1)
            gram += np.outer(history, history)
    popularity = popularity_of(lists, n_items)
    scale = np.outer((1 + popularity) ** -0.5, (1 + popularity) ** -0.25)
    both_ways, following, of_linear, of_texts, of_popularity = weights.kinds
    matrix = both_ways * scale * (counts + 0.5 * counts.T)
    if linear:
        matrix += of_linear * np.maximum(0, np.linalg.solve(gram + 100 * np.eye(n_items), follows))
        if texts is not None:
            matrix += of_texts * (texts @ texts.T).toarray()
    logs = np.log1p(popularity)
    return following * scale * counts, matrix, of_popularity * logs / max(logs.max(), 1e-9) + weights.floor
