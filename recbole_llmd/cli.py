"""The command line: ``recbole-llmd run``, ``compare``, ``export`` and ``unlearn``."""

import argparse
import sys

RUN_HELP = """\
Train and evaluate a model: LLMD4Rec, LLMRec, IMCorrect or any model of RecBole. Besides the options below, any setting
of RecBole or of this package can be given as --key=value."""
COMPARE_HELP = """\
Train models on the same split over several seeds and test their differences to a baseline. What is finished in --out
is not run again. Besides the options below, any setting can be given as --key=value, for every model that has it."""

UNLEARN_HELP = """\
Correct a saved model so that it forgets what a file names, and write it to --out with a receipt (<out>.receipt.json).
With --evaluate: train each of --models, let it forget by each of --scenarios, compare with retraining, and write
tables, records and a page into the folder --out. Any setting of RecBole or of IMCorrect can then be given as
--key=value."""


def _parser():
    parser = argparse.ArgumentParser(prog="recbole-llmd", description="LLM distillation and unlearning for RecBole.")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="train and evaluate a model (the default command)", description=RUN_HELP)
    run.add_argument("--model", "-m", help="name of the model, such as LLMD4Rec, LLMRec or SASRec")
    run.add_argument("--dataset", "-d", help="name of the dataset, such as ml-100k")
    run.add_argument("--config_files", help="property files, separated by spaces")
    run.add_argument(
        "--resume", action="store_true", help="go on with an interrupted LLMD4Rec run with the same settings"
    )
    run.add_argument("--nproc", type=int, default=1, help="processes on this machine, one a GPU (models of RecBole)")
    run.add_argument("--world_size", type=int, default=-1, help="processes in all")
    run.add_argument("--ip", default="localhost", help="address of the master node")
    run.add_argument("--port", default="5678", help="port of the master node")
    run.add_argument("--group_offset", type=int, default=0, help="rank of this machine's first process")
    export = commands.add_parser("export", help="write the CRM of an LLMD4Rec checkpoint as a plain RecBole checkpoint")
    export.add_argument("--checkpoint", required=True, help="a checkpoint that LLMD4Rec wrote")
    export.add_argument("--out", required=True, help="where to write the CRM")
    unlearn = commands.add_parser(
        "unlearn",
        help="let a saved EASE, ItemKNN, SLIMElastic or ADMMSLIM forget, or evaluate unlearning",
        description=UNLEARN_HELP,
    )
    unlearn.add_argument("--checkpoint", help="a checkpoint of the model that RecBole wrote")
    unlearn.add_argument("--forget-file", help="atomic file of what to forget: user_id, item_id; or user_id")
    unlearn.add_argument("--out", required=True, help="the corrected model; with --evaluate the folder of the report")
    unlearn.add_argument(
        "--skip-missing", action="store_true", help="skip what is not in the training data, instead of refusing it"
    )
    unlearn.add_argument("--evaluate", action="store_true", help="evaluate instead of correcting a saved model")
    unlearn.add_argument("--models", default="EASE", help="with --evaluate: mapping models, separated by commas")
    unlearn.add_argument("--scenarios", default="users", help="with --evaluate: scenarios, separated by commas")
    unlearn.add_argument("--dataset", "-d", help="with --evaluate: name of the dataset")
    unlearn.add_argument("--config_files", help="with --evaluate: property files, separated by spaces")
    _add_compare(commands)
    return parser


def _add_compare(commands):
    compare = commands.add_parser(
        "compare", help="train models over several seeds and test their differences", description=COMPARE_HELP
    )
    compare.add_argument("--models", help="names with commas between them, such as SASRec,LLMRec,LLMD4Rec")
    compare.add_argument("--dataset", help="one dataset, or several with commas between them")
    compare.add_argument("--seeds", help="how many seeds, from 2020 on, or a list such as 2020,2021")
    compare.add_argument("--baseline", help="what the others are compared with (default: the first one)")
    compare.add_argument("--experiment", help="an experiment file: datasets, variants and their settings")
    compare.add_argument("--config_files", help="RecBole's property files, separated by spaces")
    compare.add_argument("--out", help="the folder of records and report (default: saved/compare/<name>)")


def _settings(arguments, parser):
    """The settings given as ``--key=value``."""
    settings = {}
    for argument in arguments:
        key, equals, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or not equals or not key:
            parser.error(f"{argument!r}: a setting is written --key=value, with no space around the '='.")
        if settings.get(key, value) != value:
            parser.error(f"--{key} is given twice, as {settings[key]!r} and {value!r}. Give it once.")
        settings[key] = value
    return settings


def main(argv=None):
    """Run the command line; returns the exit status."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv and argv[0].startswith("-") and argv[0] not in ("-h", "--help"):
        argv = ["run", *argv]
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    settings = _settings(rest, parser)
    takes_settings = args.command in ("run", "compare") or (args.command == "unlearn" and args.evaluate)
    if settings and not takes_settings:
        parser.error(f"--{next(iter(settings))} is not an option of {args.command}.")
    sys.argv = sys.argv[:1]  # RecBole's Config reads what is left there; everything was read above

    from recbole_llmd import quick_start
    from recbole_llmd.errors import LLMDError, SettingsError

    try:
        if args.command == "export":
            quick_start.export(args.checkpoint, args.out)
        elif args.command == "unlearn" and args.evaluate:
            quick_start.evaluate_unlearning(args, settings)
        elif args.command == "unlearn":
            for option in ("checkpoint", "forget_file"):
                if getattr(args, option) is None:
                    raise SettingsError(f"--{option.replace('_', '-')} is missing: it is needed without --evaluate.")
            from recbole_llmd.unlearning.command import unlearn

            unlearn(args.checkpoint, args.forget_file, args.out, strict=not args.skip_missing)
        elif args.command == "compare":
            from recbole_llmd.comparison.command import compare

            return compare(args, settings, " ".join(["recbole-llmd", *argv]))
        else:
            quick_start.run(args, settings)
    except LLMDError as error:
        print(f"recbole-llmd: error: {error}", file=sys.stderr)
        return 2
    return 0
