"""The command line: ``recbole-llmd run``, ``compare``, ``export`` and ``unlearn``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from recbole_llmd import commands, registry
from recbole_llmd.comparison.command import compare
from recbole_llmd.errors import LLMDError, SettingsError
from recbole_llmd.unlearning.command import unlearn
from recbole_llmd.unlearning.erasure import options as erasure
from recbole_llmd.unlearning.evaluation.command import compare_unlearning

RUN_HELP = """\
Train and evaluate a model: {models} or any model of RecBole. Besides the options below, any setting
of RecBole or of this package can be given as --key=value."""
COMPARE_HELP = """\
Train models on the same split over several seeds and test their differences to a baseline. What is finished in --out
is not run again. Besides the options below, any setting can be given as --key=value, for every model that has it."""
UNLEARN_HELP = """\
Correct a saved model so that it forgets what a file names, and write it to --out with a receipt (<out>.receipt.json).
With --evaluate: train each of --models, let it forget by each of --scenarios, compare with retraining, and write
tables, records and a page into the folder --out. Any setting of RecBole or of the evaluation can then be given as
--key=value."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments; those of the process if None.

    Returns:
        The exit status: 0; 1 if a cell of a comparison failed; 2 for an error of this package, which is printed as one
        line; 130 if a comparison was interrupted.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv and argv[0].startswith("-") and argv[0] not in ("-h", "--help"):
        argv = ["run", *argv]
    parser = _parser()
    options, rest = parser.parse_known_args(argv)
    settings = _settings(rest, parser)
    takes_settings = options.command in ("run", "compare") or (
        options.command == "unlearn" and (options.evaluate or erasure.takes_settings(options))
    )
    if settings and not takes_settings:
        parser.error(f"--{next(iter(settings))} is not an option of {options.command}.")
    sys.argv = sys.argv[:1]  # RecBole's Config reads what is left there; everything was read above
    try:
        return _execute(options, settings, " ".join(["recbole-llmd", *argv]))
    except LLMDError as error:
        print(f"recbole-llmd: error: {error}", file=sys.stderr)
        return 2


def _execute(options: argparse.Namespace, settings: dict[str, str], command: str) -> int:
    """Call the function of the command with what was parsed."""
    given = vars(options)
    config_files = (given.get("config_files") or "").split()
    if options.command == "export":
        commands.export(options.checkpoint, options.out)
    elif options.command == "unlearn" and (erase := erasure.command_of(options)):
        erase(options, settings)
    elif options.command == "unlearn" and options.evaluate:
        _refuse_missing(given, "out")
        compare_unlearning(
            options.models.split(","),
            options.scenarios.split(","),
            options.dataset,
            options.out,
            config_files=config_files,
            settings=settings,
        )
    elif options.command == "unlearn":
        _refuse_missing(given, "out", "checkpoint", "forget_file")
        unlearn(
            options.checkpoint,
            options.forget_file,
            options.out,
            strict=not options.skip_missing,
            receipt_pairs=options.receipt_pairs,
        )
    elif options.command == "compare":
        named = {key: given[key] for key in ("models", "seeds", "baseline", "experiment", "mask_history", "out")}
        return _compare({**named, "datasets": options.dataset}, config_files, settings, command)
    else:
        processes = {key: given[key] for key in ("nproc", "world_size", "ip", "port", "group_offset")}
        commands.run(
            options.model,
            options.dataset,
            config_files=config_files,
            settings=settings,
            resume=options.resume,
            **processes,
        )
    return 0


def _refuse_missing(given: dict[str, str | None], *options: str) -> None:
    for option in options:
        if given[option] is None:
            with_it = " with --evaluate" if given["evaluate"] else ""
            raise SettingsError(f"--{option.replace('_', '-')} is missing: unlearn{with_it} needs it.")


def _compare(named: dict[str, str | None], config_files: list[str], settings: dict[str, str], command: str) -> int:
    try:
        record = compare(**named, config_files=config_files, settings=settings, command=command)
    except KeyboardInterrupt:
        print("Interrupted. The same command goes on from here.")
        return 130
    return int(any(cell["status"] == "failed" for cell in record["cells"]))


def _settings(arguments: Sequence[str], parser: argparse.ArgumentParser) -> dict[str, str]:
    """The settings given as ``--key=value``."""
    settings: dict[str, str] = {}
    for argument in arguments:
        key, equals, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or not equals or not key:
            parser.error(f"{argument!r}: a setting is written --key=value, with no space around the '='.")
        if settings.get(key, value) != value:
            parser.error(f"--{key} is given twice, as {settings[key]!r} and {value!r}. Give it once.")
        settings[key] = value
    return settings


# --- options ----------------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="recbole-llmd", description="LLM distillation and unlearning for RecBole.", allow_abbrev=False
    )
    subparsers = parser.add_subparsers(dest="command", required=True)
    _add_run(subparsers)
    _add_export(subparsers)
    _add_unlearn(subparsers)
    _add_compare(subparsers)
    return parser


def _add_run(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    models = ", ".join(registry.names())
    run = subparsers.add_parser(
        "run", help="train and evaluate a model (the default command)", description=RUN_HELP.format(models=models)
    )
    run.add_argument("--model", "-m", help=f"name of the model, such as {models} or SASRec")
    run.add_argument("--dataset", "-d", help="name of the dataset, such as ml-100k")
    run.add_argument("--config_files", help="property files, separated by spaces")
    run.add_argument("--resume", action="store_true", help="go on with an interrupted run with the same settings")
    run.add_argument("--nproc", type=int, default=1, help="processes on this machine, one a GPU (models of RecBole)")
    run.add_argument("--world_size", type=int, default=-1, help="processes in all")
    run.add_argument("--ip", default="localhost", help="address of the master node")
    run.add_argument("--port", default="5678", help="port of the master node")
    run.add_argument("--group_offset", type=int, default=0, help="rank of this machine's first process")


def _add_export(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    models = " or ".join(registry.exportable())
    export = subparsers.add_parser(
        "export", help=f"write the CRM of a {models} checkpoint as a plain RecBole checkpoint"
    )
    export.add_argument("--checkpoint", required=True, help=f"a checkpoint that {models} wrote")
    export.add_argument("--out", required=True, help="the file to write the CRM to")


def _add_unlearn(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    *most, last = registry.mapping_names()
    unlearning = subparsers.add_parser(
        "unlearn",
        help=f"let a saved {', '.join(most)} or {last} forget, or evaluate unlearning",
        description=UNLEARN_HELP,
    )
    unlearning.add_argument("--checkpoint", help="a checkpoint of the model that RecBole wrote")
    unlearning.add_argument("--forget-file", help="atomic file of what to forget: user_id, item_id; or user_id")
    unlearning.add_argument("--out", help="the corrected model; with --evaluate the folder of the report")
    unlearning.add_argument(
        "--skip-missing", action="store_true", help="skip what is not in the training data, instead of refusing it"
    )
    unlearning.add_argument(
        "--receipt-pairs",
        action="store_true",
        help="list in the receipt what was forgotten, not a salted digest",
    )
    unlearning.add_argument("--evaluate", action="store_true", help="evaluate instead of correcting a saved model")
    unlearning.add_argument(
        "--models", default=most[0], help="with --evaluate: mapping models, separated by commas (default: %(default)s)"
    )
    unlearning.add_argument(
        "--scenarios", default="users", help="with --evaluate: scenarios, separated by commas (default: %(default)s)"
    )
    unlearning.add_argument("--dataset", "-d", help="with --evaluate: name of the dataset")
    unlearning.add_argument("--config_files", help="with --evaluate: property files, separated by spaces")
    erasure.add_options(unlearning)


def _add_compare(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    comparison = subparsers.add_parser(
        "compare", help="train models over several seeds and test their differences", description=COMPARE_HELP
    )
    comparison.add_argument("--models", help=f"names with commas between them, such as SASRec,{registry.names()[0]}")
    comparison.add_argument("--dataset", help="one dataset, or several with commas between them")
    comparison.add_argument("--seeds", help="how many seeds, from 2020 on, or a list such as 2020,2021")
    comparison.add_argument("--baseline", help="what the others are compared with (default: the first one)")
    comparison.add_argument("--experiment", help="an experiment file: datasets, variants and their settings")
    comparison.add_argument(
        "--mask_history", help="True or False: whether items of a user's history are left out of all rankings"
    )
    comparison.add_argument("--config_files", help="RecBole's property files, separated by spaces")
    comparison.add_argument("--out", help="the folder of records and report (default: saved/compare/<name>)")
