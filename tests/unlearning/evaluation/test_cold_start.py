"""The first request from a checkpoint: what is timed, and that nothing is left of it."""

import logging
import random

import numpy as np
import pytest
import torch

from recbole_llmd.unlearning import Unlearner
from recbole_llmd.unlearning.evaluation import cold_start
from recbole_llmd.unlearning.evaluation.cold_start import cold_seconds
from tests.helpers.mapping_models import MODELS, all_of


@pytest.mark.parametrize("name", MODELS)
def test_an_engine_of_each_mode_is_loaded_and_answers_within_the_time(trained, monkeypatch, name):
    """A clock that goes on by one for each step: loading, answering."""
    config, (train, _, _), model = trained(name)
    Unlearner(model, config).refit()
    request, steps = all_of(model.interaction_matrix, [1, 2]), []
    load, apply = Unlearner.from_checkpoint, Unlearner.apply

    def loading(path, **settings):
        steps.append(("load", settings["mode"]))
        return load(path, **settings)

    def applying(engine, asked):
        assert asked is request and engine.X.nnz == model.interaction_matrix.nnz
        assert engine.hashes == Unlearner(model, config).hashes  # the engine's own default
        steps.append(("apply", engine.mode))
        return apply(engine, asked)

    monkeypatch.setattr(Unlearner, "from_checkpoint", staticmethod(loading))
    monkeypatch.setattr(Unlearner, "apply", applying)
    monkeypatch.setattr(cold_start, "perf_counter", lambda: len(steps))
    held = model.interaction_matrix.nnz
    seconds = cold_seconds(model, config, train.dataset, request, ["mapping", "retrain"])
    assert seconds == {"mapping": 2, "retrain": 2}
    assert steps == [(step, mode) for mode in ("mapping", "retrain") for step in ("load", "apply")]
    assert model.interaction_matrix.nnz == held


def test_nothing_is_left_of_it(trained, workdir, caplog):
    config, (train, _, _), model = trained("EASE")
    caplog.set_level(logging.INFO)
    before = (
        random.getstate(),
        np.random.get_state()[1].tolist(),
        torch.get_rng_state().tolist(),
        sorted(workdir.rglob("*")),
    )
    cold_seconds(model, config, train.dataset, all_of(model.interaction_matrix, [1]), ["mapping"])
    after = (
        random.getstate(),
        np.random.get_state()[1].tolist(),
        torch.get_rng_state().tolist(),
        sorted(workdir.rglob("*")),
    )
    assert before == after and logging.getLogger().level == logging.INFO
    assert caplog.records == []
    assert config["model"] == "EASE"


def test_a_split_that_cannot_be_made_again_is_not_timed(trained, caplog):
    """The dataset of another seed: its files, split by the seed of the Config, give other interactions."""
    config, (train, _, _), model = trained("EASE")
    config["seed"] = 1
    assert cold_seconds(model, config, train.dataset, all_of(model.interaction_matrix, [1]), ["mapping"]) == {}
    (record,) = caplog.records
    assert record.message.startswith("the first request from a checkpoint is not timed: checkpoint = ")
