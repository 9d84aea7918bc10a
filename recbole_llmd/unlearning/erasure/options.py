"""The options of ``recbole-llmd unlearn`` for erasure, and what they call."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from recbole.config import Config

from recbole_llmd.config import existing_files
from recbole_llmd.errors import SettingsError
from recbole_llmd.unlearning.erasure.ledger import Ledger
from recbole_llmd.unlearning.erasure.leftovers import leftovers, remove
from recbole_llmd.unlearning.erasure.purge import BEFORE, Forgotten, confirm, purge
from recbole_llmd.unlearning.erasure.requests_queue import answer_queue, report
from recbole_llmd.unlearning.erasure.secrets_files import read_secret
from recbole_llmd.unlearning.erasure.suppression import SuppressionList
from recbole_llmd.unlearning.erasure.verify import verify
from recbole_llmd.unlearning.forget_file import read_forget_file

Options = argparse.Namespace


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options to those of ``unlearn``."""
    group = parser.add_argument_group("erasure (docs/erasure.md)")
    group.add_argument("--queue", help="answer the requests of a folder of *.forget files, or of a file of many")
    group.add_argument("--verify", action="store_true", help="check --ledger and --checkpoint, and that both agree")
    group.add_argument("--suppress", action="store_true", help="add --forget-file to --suppression-list")
    group.add_argument("--purge", action="store_true", help="take --forget-file out of the files of --dataset")
    group.add_argument("--confirm", action="store_true", help="with --purge: remove what it kept of the old files")
    group.add_argument(
        "--remove", action="append", help="with --purge: remove this file, which --purge has listed; may be repeated"
    )
    group.add_argument("--ledger", help="the ledger: made by --queue, read by --verify")
    group.add_argument("--ledger-key", help="file with the ledger's secret key (HMAC), if it is kept with one")
    group.add_argument("--batch-size", type=int, default=100, help="with --queue: requests a batch (%(default)s)")
    group.add_argument(
        "--deadline", type=float, default=0.0, help="with --queue: seconds that requests may wait for a full batch"
    )
    group.add_argument("--suppression-list", help="the list of what later runs leave out; --queue adds to it")
    group.add_argument("--refit", action="store_true", help="with --verify: compare with a fit from scratch, too")


def takes_settings(options: Options) -> bool:
    """Whether RecBole's settings say where the data of this run are."""
    return bool(options.suppress or options.purge)


def command_of(options: Options) -> Callable[[Options, Mapping[str, str]], None] | None:
    """What the options ask of this module, or None.

    Raises:
        SettingsError: if they ask for two things, or lack what one needs.
    """
    asked = [name for name in COMMANDS if getattr(options, name)]
    if not asked:
        return None
    if len(asked) > 1 or options.evaluate:
        others = [*asked, *(["evaluate"] if options.evaluate else [])]
        raise SettingsError(f"{' and '.join(f'--{name}' for name in others)}: each is a run of its own. Give one.")
    command, needed = COMMANDS[asked[0]]
    for name in needed:
        if getattr(options, name) is None:
            raise SettingsError(f"--{name.replace('_', '-')} is missing: --{asked[0]} needs it.")
    return command


def config_of(options: Options, settings: Mapping[str, str]) -> Config:
    """RecBole's Config of a dataset, whatever the model: where its files are, and how they are written."""
    files = existing_files((options.config_files or "").split())
    return Config(model="Pop", dataset=options.dataset, config_file_list=files, config_dict=dict(settings))


def _key(options: Options) -> str | None:
    return None if options.ledger_key is None else read_secret(options.ledger_key, "ledger-key")


def _queue(options: Options, settings: Mapping[str, str]) -> None:
    answers = answer_queue(
        options.queue,
        options.checkpoint,
        options.ledger,
        batch_size=options.batch_size,
        deadline=options.deadline,
        strict=not options.skip_missing,
        suppression_list=options.suppression_list,
        key=_key(options),
    )
    report(answers)


def _verify(options: Options, settings: Mapping[str, str]) -> None:
    forget_file = options.forget_file
    for finding in verify(
        options.ledger, options.checkpoint, forget_file=forget_file, refit=options.refit, key=_key(options)
    ):
        print(finding)


def _suppress(options: Options, settings: Mapping[str, str]) -> None:
    users, items = read_forget_file(options.forget_file, config_of(options, settings))
    listed = SuppressionList(options.suppression_list, create=True)
    before = len(listed.entries)
    listed.add(listed.lines(users, items))
    print(f"{options.suppression_list}: {len(listed.entries) - before} entries added, {len(listed.entries)} in all.")


def _purge(options: Options, settings: Mapping[str, str]) -> None:
    """Filter the atomic files (or let the old ones go), remove the files named, and list what else there is."""
    config = config_of(options, settings)
    forgotten = Forgotten.of(*read_forget_file(options.forget_file, config), config)
    ledger = None if options.ledger is None else Ledger(options.ledger, _key(options))
    counts: dict[Path, int] = {}
    if options.remove:
        for path in remove(options.remove, leftovers(forgotten, config, ledger)[0]):
            print(f"removed: {path}")
    if options.confirm:
        for path in confirm(forgotten, config):
            print(f"removed: {path}")
    elif not options.remove:
        counts = purge(forgotten, config)
        for path, count in counts.items():
            kept = f"; the old file is kept as {path.name}{BEFORE}, until --confirm" if count else ""
            print(f"{path}: {count} lines taken out{kept}")
    if any(count for count in counts.values()):
        print("Checkpoints that were trained on the old files belong to other data now: train again.")
    found, clean = leftovers(forgotten, config, ledger)
    print(f"{len(found)} other files hold, or may hold, what was forgotten" + (":" if found else "."))
    for leftover in found:
        print(f"  {leftover}")
    print(f"{len(clean)} other files were looked at and do not" + (":" if clean else "."))
    for path in clean:
        print(f"  {path}")
    print("Not looked at: backups, logs, and copies elsewhere.")


COMMANDS: dict[str, tuple[Callable[[Options, Mapping[str, Any]], None], Sequence[str]]] = {
    "queue": (_queue, ("checkpoint", "ledger")),
    "verify": (_verify, ("checkpoint", "ledger")),
    "purge": (_purge, ("forget_file", "dataset")),
    "suppress": (_suppress, ("forget_file", "suppression_list", "dataset")),
}
