"""Forgetting what a file in RecBole's atomic format names: the command ``recbole-llmd unlearn``."""

import os

from recbole_llmd.atomic_write import atomic_write
from recbole_llmd.data.atomic_file import read_atomic_file
from recbole_llmd.errors import DataError
from recbole_llmd.unlearning.unlearner import Unlearner


def read_forget_file(path, config):
    """The users, and the items or None, that a forget file names.

    Args:
        path: an atomic file with the columns of ``USER_ID_FIELD`` and ``ITEM_ID_FIELD`` (``user_id:token``,
            ``item_id:token``), or of the users alone, who are then forgotten whole. Other columns are ignored.
        config: the model's Config, for the names of the fields and the separator.

    Returns:
        tuple: tokens of the users ``[n]``, and of the items ``[n]`` or None.

    Raises:
        DataError: if there is no such file, or it has no column of users, or a token is missing.
    """
    if not os.path.isfile(path):
        raise DataError(f"forget-file = {str(path)!r}: there is no such file.")
    frame, _ = read_atomic_file(path, config)
    user, item = config["USER_ID_FIELD"], config["ITEM_ID_FIELD"]
    if user not in frame.columns:
        raise DataError(
            f"forget-file = {str(path)!r}: has the columns {', '.join(frame.columns)}; an atomic file with "
            f"the header {user}:token, or {user}:token and {item}:token, is needed."
        )
    columns = [column for column in (user, item) if column in frame.columns]
    frame = frame[columns]
    if (frame == "").any(axis=None):
        line = int((frame == "").any(axis=1).to_numpy().argmax()) + 2
        raise DataError(
            f"forget-file = {str(path)!r}: line {line} lacks a value. Each line names a user"
            + (" and an item." if item in columns else ".")
        )
    return frame[user].tolist(), frame[item].tolist() if item in columns else None


def unlearn(checkpoint, forget_file, out, strict=True):
    """Correct the model of a checkpoint, and write it and its receipt.

    Args:
        checkpoint: a checkpoint of EASE, ItemKNN, SLIMElastic or ADMMSLIM that RecBole wrote.
        forget_file: see :func:`read_forget_file`.
        out: the corrected checkpoint, which RecBole loads; the receipt goes to ``<out>.receipt.json``.
        strict (bool): refuse interactions that are not in the model's training data, instead of skipping them.

    Returns:
        Receipt: what was done.

    Raises:
        DataError: if something given is wrong; nothing is written then.
    """
    engine = Unlearner.from_checkpoint(checkpoint)
    users, items = read_forget_file(forget_file, engine.config)
    if items is None:
        receipt = engine.forget_users(users, strict=strict)
    else:
        receipt = engine.forget(users, items, strict=strict)
    engine.save(out)
    with atomic_write(f"{out}.receipt.json") as temporary:
        temporary.write_text(receipt.json() + "\n")
    print(
        f"{receipt.model} forgot {len(receipt.users)} interactions ({receipt.skipped} skipped) by {receipt.method} in "
        f"{receipt.seconds:.3f} s; written to {out}"
    )
    return receipt
