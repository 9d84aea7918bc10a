"""Two trainers never share a checkpoint."""

import re
from pathlib import Path

import pytest
import torch
from recbole.trainer import trainer as recbole_trainer
from recbole.utils import get_trainer

from recbole_llmd import checkpoint_names

SECOND = "Nov-27-2026_08-35-31"


@pytest.fixture(autouse=True)
def one_second(monkeypatch):
    """Everything happens within it."""
    monkeypatch.setattr(recbole_trainer, "get_local_time", lambda: SECOND)


def trainer_of(config, model):
    return get_trainer(config["MODEL_TYPE"], config["model"])(config, model)


@pytest.mark.parametrize("model", ["SASRec", "LLMRec", "LLMD4Rec"])
def test_a_checkpoint_is_named_after_model_dataset_and_time_and_is_one_of_its_kind(model, build, fast):
    config, _, built = build(fast, model=model)
    names = {trainer_of(config, built).saved_model_file for _ in range(2)}
    assert len(names) == 2
    for name in names:
        assert re.fullmatch(rf"saved/{model}-tiny-{SECOND}-[0-9a-f]{{6}}\.pth", name)


def test_two_models_of_one_second_are_both_kept(build, fast):
    """Of two SASRec trained at once under two seeds, each trainer evaluates its own."""
    runs = []
    for seed in (1, 2):
        config, (train, valid, test), model = build(fast, model="SASRec", seed=seed, epochs=1)
        trainer = trainer_of(config, model)
        trainer.fit(train, valid, verbose=False)
        runs.append((trainer, test, {key: value.clone() for key, value in model.state_dict().items()}))
    assert len(list(Path("saved").glob("*.pth"))) == 2
    for trainer, test, weights in runs:
        with torch.no_grad():
            for parameter in trainer.model.parameters():
                parameter.zero_()
        trainer.evaluate(test)  # loads the best model from the trainer's file
        assert all(torch.equal(value, weights[key]) for key, value in trainer.model.state_dict().items())


def test_every_process_of_a_distributed_run_takes_the_first_ones_name(monkeypatch):
    """RecBole's first process alone writes; all read what it has written."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "broadcast_object_list", lambda names: names.__setitem__(0, "the first's"))
    assert checkpoint_names.unique_name("SASRec", "tiny") == "the first's"


def test_a_datasets_name_stays_within_the_folder():
    assert checkpoint_names.unique_name("EASE", "../data/mine").startswith(f"EASE-..-data-mine-{SECOND}-")
