"""The commands ``run`` and ``export`` as plain functions; the others stand with what they do."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import recbole.quick_start
import torch

from recbole_llmd import registry
from recbole_llmd.atomic_write import atomic_write, refuse_unwritable
from recbole_llmd.config import existing_files, plain_config
from recbole_llmd.errors import CheckpointError


def run(
    model: str | None = None,
    dataset: str | None = None,
    *,
    config_files: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
    resume: bool = False,
    **processes: Any,
) -> Any:
    """Train and evaluate a model, of this package or of RecBole.

    Args:
        model, dataset: their names, where the settings do not have them.
        config_files: RecBole's property files.
        settings: any settings of RecBole or of ours, above those of the files.
        resume: go on with an interrupted run of the same settings.
        processes: ``nproc``, ``world_size``, ``ip``, ``port`` and ``group_offset`` of ``recbole.quick_start.run``.

    Returns:
        RecBole's result dictionary, with our results beside RecBole's; None from a run in several processes whose
        result RecBole does not hand back.

    Raises:
        SettingsError: if a file is not there, or a setting is wrong.
    """
    given = {**(settings or {}), **({"resume": True} if resume else {})}
    files = existing_files(config_files)
    return recbole.quick_start.run(model, dataset, config_file_list=files, config_dict=given, **processes)


def export(checkpoint: str | os.PathLike[str], out: str | os.PathLike[str]) -> None:
    """Write the conventional recommender of a distillation's checkpoint as a checkpoint of that RecBole model alone.

    The written file names nothing of this package: plain RecBole's ``load_data_and_model`` reads it, and its test
    result is the one that the run printed.

    Args:
        checkpoint: a checkpoint of a model that holds another one, such as LLMD4Rec.
        out: the file to write.

    Raises:
        CheckpointError: if there is no such file, or it holds no such model.
        OutputError: if ``out`` is a folder.
    """
    refuse_unwritable(out, "out")
    content = _read_exportable(checkpoint)
    inner = registry.spec(content["config"]["model"]).inner
    assert inner is not None and inner.attribute is not None  # or it would not be exportable
    name, prefix = content["config"][inner.key], f"{inner.attribute}."
    state = content["state_dict"]
    exported = {
        **content,
        "config": plain_config(content["config"], name),
        "state_dict": {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)},
    }
    with atomic_write(out) as temporary:
        torch.save(exported, temporary, pickle_protocol=4)
    print(f"{name} written to {os.fspath(out)}")


def _read_exportable(checkpoint: str | os.PathLike[str]) -> dict[str, Any]:
    said = f"checkpoint = {os.fspath(checkpoint)!r}"
    if not os.path.isfile(checkpoint):
        raise CheckpointError(f"{said}: there is no such file.")
    # Named by the user, and holding RecBole's pickled Config.
    content = torch.load(checkpoint, map_location="cpu", weights_only=False)
    models = registry.exportable()
    if not isinstance(content, dict) or "config" not in content or content["config"]["model"] not in models:
        raise CheckpointError(f"{said}: export takes a checkpoint that {' or '.join(models)} wrote.")
    return content
