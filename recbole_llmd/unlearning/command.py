"""A saved model forgets what a file names: the command ``recbole-llmd unlearn``."""

from __future__ import annotations

import os
from dataclasses import replace
from os import PathLike

from recbole_llmd import registry
from recbole_llmd.atomic_write import atomic_write, refuse_unwritable
from recbole_llmd.errors import OutputError
from recbole_llmd.unlearning.checkpoint import read
from recbole_llmd.unlearning.forget_file import read_forget_file
from recbole_llmd.unlearning.receipt import Receipt
from recbole_llmd.unlearning.sequential_unlearner import SequentialUnlearner
from recbole_llmd.unlearning.unlearner import Unlearner


def unlearn(
    checkpoint: str | PathLike[str],
    forget_file: str | PathLike[str],
    out: str | PathLike[str],
    *,
    strict: bool = True,
    receipt_pairs: bool = False,
) -> Receipt:
    """Correct the model of a checkpoint, and write it and its receipt; both or neither.

    Args:
        checkpoint: a checkpoint of a mapping model (EASE, ItemKNN, ...) that RecBole or :meth:`Unlearner.save` wrote,
            or of SequentialRules.
        forget_file: see :func:`~recbole_llmd.unlearning.forget_file.read_forget_file`.
        out: the file of the corrected checkpoint, which RecBole loads; a file that is there is replaced. The receipt
            goes to ``<out>.receipt.json``, the salt of its digest to ``<out>.receipt.salt``, for its owner alone.
        strict: refuse interactions that are not in the model's training data, instead of skipping them.
        receipt_pairs: write what was forgotten into the receipt, which is then personal data; else a salted digest.

    Returns:
        What was done; ``hash_after`` is the fingerprint of the model written.

    Raises:
        OutputError: if ``out`` is no place for a file; nothing is read or written then.
        LLMDError: if something else given is wrong; nothing is written then.
    """
    receipt_file = f"{os.fspath(out)}.receipt.json"
    salt_file = f"{os.fspath(out)}.receipt.salt"
    for path in (os.fspath(out), receipt_file, salt_file):
        refuse_unwritable(path, "out")
        if os.path.exists(path) and os.path.exists(forget_file) and os.path.samefile(path, forget_file):
            raise OutputError(f"out = {str(out)!r}: would replace the forget file. Give the model another name.")
    content = read(checkpoint)
    engine_class = registry.unlearner(content["config"]["model"])
    engine: Unlearner | SequentialUnlearner = engine_class.from_checkpoint(
        checkpoint, content, keep_pairs=receipt_pairs
    )
    users, items = read_forget_file(forget_file, engine.config)
    receipt = engine.forget_users(users, strict=strict) if items is None else engine.forget(users, items, strict=strict)
    receipt = replace(receipt, hash_after=engine.fingerprint())
    # Complete before the model is written, there once it is.
    with atomic_write(receipt_file) as temporary, atomic_write(salt_file) as secret:
        temporary.write_text(receipt.json() + "\n")
        secret.touch(mode=0o600)
        secret.write_text(f"{receipt.salt}\n")
        engine.save(out)
    print(
        f"{receipt.model} forgot {receipt.interactions} interactions ({receipt.skipped} skipped) by {receipt.method} "
        f"in {receipt.seconds:.3f} s; written to {out}"
    )
    return receipt
