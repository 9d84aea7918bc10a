"""Checkpoints and the data they belong to: internal ids must not change owners between training and unlearning."""

import copy
import shutil
import zipfile

import numpy as np
import pytest
import torch
from recbole.utils import get_trainer

from recbole_llmd.data.identity import DataIdentity
from recbole_llmd.errors import CheckpointError, DataError, RequestError
from recbole_llmd.unlearning import Unlearner, checkpoint
from tests.conftest import REPO
from tests.helpers.mapping_models import ALL

FIRST_OF_EACH_USER = {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "TO", "mode": "full", "group_by": "user"}


@pytest.fixture
def saved(trained, workdir):
    """``saved(name, writer)``: a checkpoint of a model trained on a copy of the tiny dataset, and the data file."""

    def _saved(name, writer):
        shutil.copytree(REPO / "dataset" / "tiny", workdir / "tiny")
        # So split, the training interactions do not depend on the order of the rows: only the numbers of users do.
        config, (train, _, _), model = trained(name, data_path=str(workdir), eval_args=FIRST_OF_EACH_USER)
        if writer == "RecBole":
            trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
            trainer._save_checkpoint(0, verbose=False)
            path = trainer.saved_model_file
        else:
            path = workdir / "ours.pth"
            engine = Unlearner(model, train.dataset)
            if writer == "Unlearner, corrected":
                engine.forget_users("u3")
                engine.learn("newcomer", "i1", grow=True)
            engine.save(path)
        return path, workdir / "tiny" / "tiny.inter"

    return _saved


WRITERS = ["RecBole", "Unlearner", "Unlearner, corrected"]
CASES = [
    (name, writer)
    for name in ALL
    for writer in WRITERS
    if (name, writer) != ("ADMMSLIM", "RecBole")  # RecBole trains it again on the data of today
]


@pytest.mark.parametrize("name, writer", CASES)
def test_data_whose_rows_were_sorted_since_the_training_are_refused(saved, name, writer):
    """The same interactions in another order number other users: u71 would be asked for and u26 forgotten."""
    path, inter = saved(name, writer)
    Unlearner.from_checkpoint(path).forget_users("u71")  # an unchanged file passes
    head, *lines = inter.read_text().splitlines()
    inter.write_text("\n".join([head, *sorted(lines)]) + "\n")
    with pytest.raises(CheckpointError, match=r"checkpoint = '.*'.*not those.*trained on.*Restore the file, or train"):
        Unlearner.from_checkpoint(path)
    inter.write_text("\n".join([head, *lines]) + "\n")
    Unlearner.from_checkpoint(path).forget_users("u71")


@pytest.mark.parametrize("name, writer", [case for case in CASES if case[1] != "Unlearner, corrected"])
def test_data_with_one_more_interaction_are_refused(saved, name, writer):
    path, inter = saved(name, writer)
    text = inter.read_text()
    pairs = {tuple(line.split("\t")[:2]) for line in text.splitlines()}
    added = next(item for item in (f"i{n}" for n in range(1, 60)) if ("u71", item) not in pairs)
    inter.write_text(text + f"u71\t{added}\t4\t0\n")
    with pytest.raises(CheckpointError, match=r"the training interactions are others|the interactions are others"):
        Unlearner.from_checkpoint(path)


def test_a_model_that_has_forgotten_tells_nothing_of_the_data_it_had(saved, workdir):
    """A hash of all interactions, beside those that are left, would let anybody try which one was forgotten."""
    path, _ = saved("ItemKNN", "Unlearner")
    engine = Unlearner.from_checkpoint(path)
    identity = torch.load(path, weights_only=False)["data_identity"]
    assert len(identity["sha256"]) == 64
    X = engine.X
    engine.forget([4], [X[4].indices[0]], ids="internal")
    engine.save("corrected.pth")
    again = Unlearner.from_checkpoint("corrected.pth")
    again.save("twice.pth")
    for name in ("corrected.pth", "twice.pth"):
        assert torch.load(name, weights_only=False)["data_identity"] == {**identity, "sha256": None}
    assert (again.X != engine.X).nnz == 0 and (engine.X != X).nnz == 1
    assert not any(isinstance(value, dict) for value in again.checkpoint.values())  # no matrix of before


def test_what_differs_is_said(saved):
    path, inter = saved("EASE", "Unlearner")
    head, *lines = inter.read_text().splitlines()
    inter.write_text("\n".join([head, *sorted(lines)]) + "\n")
    with pytest.raises(CheckpointError, match=r"user 1 \(internal id\) was 'u71' and is 'u1'"):
        Unlearner.from_checkpoint(path)
    inter.write_text("\n".join([head, *lines, "somebody\ti11\t4\t0"]) + "\n")
    with pytest.raises(CheckpointError, match=r"there were \d+ users and are \d+"):
        Unlearner.from_checkpoint(path)


def test_the_identity_of_the_data_is_stored_as_plain_types(saved):
    path, _ = saved("EASE", "Unlearner, corrected")
    stored = torch.load(path, weights_only=False)["data_identity"]
    assert stored["users"][:2] == ["[PAD]", "u71"] and "newcomer" not in stored["users"]
    assert all(type(token) is str for token in stored["users"] + stored["items"])
    engine = Unlearner.from_checkpoint(path)
    assert engine.identity.without_interactions().as_dict() == stored
    engine.save("again.pth")
    assert torch.load("again.pth", weights_only=False)["data_identity"] == stored


def test_a_checkpoint_of_an_engine_without_a_dataset_is_refused(trained):
    config, _, model = trained("EASE")
    engine = Unlearner(model, config)
    engine.forget_users(3, ids="internal")
    engine.save("model.pth")
    with pytest.raises(CheckpointError, match="no dataset but only a Config"):
        Unlearner.from_checkpoint("model.pth")


def test_engines_that_share_a_model_grow_it_one_after_the_other(trained):
    """Each engine reads from the model how many users it has: no newcomer gets the id, and the data, of another."""
    _, (train, _, _), model = trained("EASE")
    n_users, first, second = model.n_users, Unlearner(model, train.dataset), Unlearner(model, train.dataset)
    first.learn("newcomer", "i1", grow=True)
    second.learn("another", "i2", grow=True)
    assert train.dataset.token2id("user_id", ["newcomer", "another"]).tolist() == [n_users, n_users + 1]
    assert model.n_users == model.interaction_matrix.shape[0] == n_users + 2
    assert first.X[[n_users, n_users + 1]].nnz == 2
    assert second.forget("newcomer", "i1").users == 1 and not second.X[n_users, 1]


def test_a_model_that_another_engine_has_grown_is_saved_and_loaded(trained):
    _, (train, _, _), model = trained("EASE")
    Unlearner(model, train.dataset).learn(["newcomer", "newcomer"], ["i1", "new item"], grow=True)
    Unlearner(model, train.dataset).save("model.pth")
    engine = Unlearner.from_checkpoint("model.pth")
    assert engine.new_tokens == {"user_id": ["newcomer"], "item_id": ["new item"]}
    assert engine.identity == DataIdentity.of(trained("EASE")[1][0].dataset)  # of the files, whatever was learned
    engine.learn("third", "new item", grow=True)
    engine.forget_users("newcomer")
    engine.save("again.pth")
    again = Unlearner.from_checkpoint("again.pth")
    assert again.new_tokens == {"user_id": ["newcomer", "third"], "item_id": ["new item"]}
    assert again.forget("third", "new item").users == 1 and not again.X[again.model.n_users - 1].nnz


def test_a_dataset_that_is_not_the_models_is_refused(trained):
    _, (train, _, _), model = trained("EASE")
    twin = copy.deepcopy(model)
    beside, engine = Unlearner(twin, train.dataset), Unlearner(model, train.dataset)
    engine.learn("newcomer", "i1", grow=True)
    with pytest.raises(DataError, match=rf"the dataset has {twin.n_users} users and the model {twin.n_users - 1}:"):
        Unlearner(twin, train.dataset)
    with pytest.raises(RequestError, match="another model has grown it"):
        beside.learn("other", "i1", grow=True)
    assert twin.n_users + 1 == len(train.dataset.field2id_token["user_id"]) and beside.new_tokens["user_id"] == []


@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x02}q\x00.", "half"])
def test_files_that_are_no_complete_checkpoint_are_refused(trained, workdir, content):
    _, (train, _, _), model = trained("EASE")
    Unlearner(model, train.dataset).save("model.pth")
    file = workdir / "model.pth"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2] if content == "half" else content)
    with pytest.raises(CheckpointError, match=r"checkpoint = '.*'.*that RecBole wrote"):
        Unlearner.from_checkpoint(file)


def test_a_checkpoint_whose_data_are_gone_is_refused(saved):
    path, inter = saved("EASE", "RecBole")
    shutil.rmtree(inter.parent)
    with pytest.raises(CheckpointError, match=r"cannot be read: Neither.*folder of the training"):
        Unlearner.from_checkpoint(path)


def test_a_large_array_is_read_as_an_array_without_this_package(trained, workdir, monkeypatch):
    monkeypatch.setattr(checkpoint, "LARGE", 1)
    _, (train, _, _), model = trained("EASE")
    engine = Unlearner(model, train.dataset)
    engine.forget_users("u3")
    engine.save(workdir / "ours.pth")
    content = torch.load(workdir / "ours.pth", weights_only=False)
    stored = content["other_parameter"]["item_similarity"]
    assert type(stored) is np.ndarray and stored.flags.writeable and np.array_equal(stored, engine.B)
    pickled = [name for name in zipfile.ZipFile(workdir / "ours.pth").namelist() if name.endswith("data.pkl")]
    assert b"recbole_llmd" not in zipfile.ZipFile(workdir / "ours.pth").read(pickled[0])
