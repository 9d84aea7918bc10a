"""RecBole's quick start with our results in its dictionary, in one process or many."""

import functools
import os
import shlex
from logging import getLogger

import recbole.quick_start
import torch
from recbole.quick_start import quick_start as recbole_quick_start
from recbole.utils import set_color

from recbole_llmd.atomic_write import atomic_write
from recbole_llmd.config import plain_config
from recbole_llmd.errors import SettingsError
from recbole_llmd.report.provenance import without_paths
from recbole_llmd.result_collector import collect_results

_run_recboles = recbole_quick_start.run_recboles


def run_recboles(rank, *args):
    """The target of RecBole's spawned processes (``--nproc``); being ours, it loads this package there too."""
    return _run_recboles(rank, *args)


def _with_extra_results(run):
    @functools.wraps(run)
    def wrapper(*args, **kwargs):
        with collect_results() as extra:
            result = run(*args, **kwargs)
        llm = extra.get("llm", {})
        if llm:
            logger = getLogger()
            logger.info(set_color("LLM best valid ", "yellow") + f": {llm.get('best_valid_result')}")
            logger.info(set_color("LLM test result", "yellow") + f": {llm.get('test_result')}")
        return {**result, **extra}

    return wrapper


def install():
    """Extend RecBole's quick start; called once by ``import recbole_llmd``."""
    for name in ("run_recbole", "objective_function"):
        wrapped = _with_extra_results(getattr(recbole_quick_start, name))
        for module in (recbole.quick_start, recbole_quick_start):
            setattr(module, name, wrapped)
    for module in (recbole.quick_start, recbole_quick_start):
        module.run_recboles = run_recboles


def _config_files(args):
    files = (args.config_files or "").split()
    for file in files:
        if not os.path.isfile(file):
            raise SettingsError(f"config_files: there is no file {file!r}.")
    return files


def run(args, settings):
    """Run what the command line asks for; ``settings`` are its ``--key=value`` arguments."""
    files = _config_files(args)
    if args.resume:
        settings = {**settings, "resume": True}
    return recbole.quick_start.run(
        args.model,
        args.dataset,
        config_file_list=files,
        config_dict=settings,
        nproc=args.nproc,
        world_size=args.world_size,
        ip=args.ip,
        port=args.port,
        group_offset=args.group_offset,
    )


def evaluate_unlearning(args, settings):
    """Run IMCorrect for each of ``--models`` and ``--scenarios``; the whole report goes to the folder ``--out``.

    Returns:
        dict: the record (see ``docs/unlearning.md``).
    """
    from recbole_llmd.unlearning.evaluation import report

    files, record = _config_files(args), None
    for model in args.models.split(","):
        for scenario in args.scenarios.split(","):
            chosen = {
                "mapping_model": model,
                "unlearn_scenario": scenario,
                "unlearn_dir": os.path.join(args.out, f"{model}-{scenario}"),
            }
            result = recbole.quick_start.run_recbole(
                "IMCorrect", args.dataset, config_file_list=files, config_dict={**settings, **chosen}, saved=False
            )
            one = result["unlearning"]
            record = record or {**one, "command": _command(args, settings), "rows": [], "drift": [], "fits": []}
            for part in ("rows", "drift"):
                record[part] = record[part] + one[part]
        record["fits"] = record["fits"] + one["fits"]  # the model's last: each scenario fits it again
    report.write(args.out, record)
    print(f"The report is in {os.path.join(args.out, 'evaluation.html')}")
    return record


def _command(args, settings):
    named = {key: getattr(args, key) for key in ("models", "scenarios", "dataset", "config_files")}
    given = [f"--{key}={value}" for key, value in {**named, **settings}.items() if value]
    return without_paths(shlex.join(["recbole-llmd", "unlearn", "--evaluate", *given]))


def export(checkpoint_file, out):
    """Write the CRM of an LLMD4Rec checkpoint as a checkpoint of that RecBole model alone.

    The written file names nothing of this package: plain RecBole's ``load_data_and_model`` reads it, and its test
    result is the one LLMD4Rec printed.

    Raises:
        SettingsError: if there is no such file, or it is no LLMD4Rec checkpoint.
    """
    if not os.path.isfile(checkpoint_file):
        raise SettingsError(f"checkpoint = {checkpoint_file!r}: there is no such file.")
    # Named by the user, and holding RecBole's pickled Config.
    checkpoint = torch.load(checkpoint_file, map_location="cpu", weights_only=False)
    if "config" not in checkpoint or checkpoint["config"]["model"] != "LLMD4Rec":
        raise SettingsError(f"checkpoint = {checkpoint_file!r}: export takes a checkpoint that LLMD4Rec wrote.")
    state = {
        name.removeprefix("crm."): tensor
        for name, tensor in checkpoint["state_dict"].items()
        if name.startswith("crm.")
    }
    with atomic_write(out) as temporary:
        torch.save(
            {
                **checkpoint,
                "config": plain_config(checkpoint["config"], checkpoint["config"]["crm_model"]),
                "state_dict": state,
            },
            temporary,
            pickle_protocol=4,
        )
    print(f"{checkpoint['config']['crm_model']} written to {out}")
