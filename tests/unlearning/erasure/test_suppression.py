"""The suppression list: what it has is in no part of the data, whatever the model; a wrong list is an error."""

import json
import logging
import os
import shutil

import numpy as np
import pandas as pd
import pytest
from recbole.config import Config
from recbole.data import create_dataset, data_preparation

from recbole_llmd.cli import main
from recbole_llmd.errors import CheckpointError, DataError, SettingsError
from recbole_llmd.trainer.llmd4rec import fingerprint
from recbole_llmd.unlearning import Unlearner
from recbole_llmd.unlearning.digests import digest
from recbole_llmd.unlearning.erasure.suppression import SuppressionList
from tests.conftest import REPO
from tests.helpers.erasure_cases import make_data, pairs_in, save_checkpoint, settings_of, write_request

SPLIT = {"split": {"LS": "valid_and_test"}, "order": "RO", "mode": "full", "group_by": "user"}


@pytest.fixture
def data(workdir):
    """The pairs of the data; the list ``s`` has user u1, and u3 with two of its four items."""
    pairs = make_data(workdir)
    listed = SuppressionList("s", create=True)
    of_u3 = [item for user, item in pairs if user == "u3"]
    listed.add(listed.lines(["u1"], None) + listed.lines(["u3", "u3"], of_u3[:2]))
    gone = {("u3", of_u3[0]), ("u3", of_u3[1])}
    return pairs, {pair for pair in pairs if pair[0] != "u1" and pair not in gone}


def parts(workdir, model="EASE", **more):
    config = Config(config_dict=settings_of(workdir, model, **more))
    dataset = create_dataset(config)
    return dataset, [loader.dataset for loader in data_preparation(config, dataset)]


def tokens(dataset):
    users, items = (dataset.inter_feat[field].numpy() for field in ("user_id", "item_id"))
    return list(zip(dataset.id2token("user_id", users).tolist(), dataset.id2token("item_id", items).tolist()))


@pytest.mark.parametrize("model", ["EASE", "BPR", "FM", "IMCorrect"])
def test_suppressed_interactions_are_in_no_part(workdir, data, model):
    _, kept = data
    split = {"eval_args": SPLIT}
    if model == "FM":  # with the users' ages, which it reads from the .user file
        split = {"eval_args": {**SPLIT, "mode": "labeled"}, "threshold": {"rating": 3}, "load_col": None}
    dataset, (train, valid, test) = parts(workdir, model, suppression_list="s", **split)
    found = [*tokens(train), *tokens(valid), *tokens(test)]
    assert len(found) == len(kept) and set(found) == kept and len(valid.inter_feat) > 5
    assert "u1" not in dataset.field2token_id["user_id"] and dataset.user_num == 12  # 11 and the padding
    assert dataset.user_feat is None or "u1" not in dataset.id2token("user_id", dataset.user_feat["user_id"].numpy())
    assert (dataset.user_feat is not None) == (model == "FM")
    before = parts(workdir, model, **split)[0]
    assert "u1" in before.field2token_id["user_id"] and before.user_num == 13


def test_sequences_hold_nothing_suppressed(workdir, data):
    pairs, kept = data
    lines = [f"{user}\t{item}\t{number}" for number, (user, item) in enumerate(pairs)]
    head = "user_id:token\titem_id:token\ttimestamp:float"
    (workdir / "small" / "small.inter").write_text("\n".join([head, *lines]) + "\n")
    settings = {"suppression_list": "s", "eval_args": {**SPLIT, "order": "TO"}, "train_neg_sample_args": None}
    _, datasets = parts(workdir, "GRU4Rec", **settings)
    seen = set()
    for dataset in datasets:
        feat = dataset.inter_feat
        for user, history, target in zip(feat["user_id"], feat["item_id_list"], feat["item_id"]):
            items = [*history[history > 0].tolist(), int(target)]
            names = dataset.id2token("item_id", np.array(items))
            seen |= {(str(dataset.id2token("user_id", int(user))), str(item)) for item in names}
    assert seen <= kept and {user for user, _ in seen} >= {"u2", "u4"}


def test_files_that_are_split_beforehand(workdir, data):
    pairs, kept = data
    head = "user_id:token\titem_id:token"
    of = {"train": [*pairs[:4], *pairs[8:30]], "valid": pairs[4:8], "test": pairs[30:]}  # u1 is all of valid
    of["valid"] = [*of["valid"], pairs[0]]
    for part, rows in of.items():
        lines = ["\t".join(row) for row in rows]
        (workdir / "small" / f"small.{part}.inter").write_text("\n".join([head, *lines]) + "\n")
    _, datasets = parts(workdir, suppression_list="s", benchmark_filename=["train", "valid", "test"])
    for dataset, rows in zip(datasets, of.values()):
        assert tokens(dataset) == [row for row in rows if row in kept]


def test_the_log_says_what_was_left_out(workdir, data, caplog):
    with caplog.at_level(logging.INFO):
        parts(workdir, suppression_list="s")
    assert "s: 6 interactions of 2 users are left out, as they were forgotten." in caplog.messages


def test_another_salt_matches_nothing_and_is_an_error(workdir, data):
    salt = (workdir / "s.salt").read_text().strip()
    entry = f"user {digest(salt, 'u1')}"
    assert (
        entry in (workdir / "s").read_text()
        and f"user {digest('another ' + salt, 'u1')}" not in SuppressionList("s").entries
    )
    (workdir / "s.salt").write_text("another " + salt)
    with pytest.raises(DataError, match=r"suppression_list = 's': does not belong to the salt in s\.salt\. Restore it"):
        parts(workdir, suppression_list="s")


def test_every_changed_byte_is_an_error(workdir, data):
    content = (workdir / "s").read_bytes()
    for position in range(len(content)):
        changed = bytearray(content)
        changed[position] ^= 1
        (workdir / "s").write_bytes(changed)
        with pytest.raises(DataError, match="is damaged: its checksum is another"):
            SuppressionList("s")
    for cut in (b"", content[:-1], content[: len(content) // 2], content + b"\n"):
        (workdir / "s").write_bytes(cut)
        with pytest.raises(DataError, match=r"is damaged.*what was forgotten would come back"):
            parts(workdir, suppression_list="s")


@pytest.mark.parametrize(
    "settings, error, message",
    [
        ({"suppression_list": "none"}, DataError, "'none': there is no such file. Restore it from a copy"),
        ({"suppression_list": 7}, SettingsError, "suppression_list = 7: must be None or a non-empty string"),
        ({"supression_list": "s"}, SettingsError, "supression_list is not a setting. The nearest valid name is"),
        ({"suppression_lists": "s"}, SettingsError, "suppression_lists is not a setting"),
        ({"suppression_state": 0}, SettingsError, "suppression_state is not a setting"),
    ],
)
@pytest.mark.parametrize("model", ["EASE", "IMCorrect"])
def test_a_setting_that_would_suppress_nothing_is_refused(workdir, data, model, settings, error, message):
    with pytest.raises(error, match=message.replace("(", r"\(")):
        Config(config_dict=settings_of(workdir, model, **settings))


def test_a_missing_salt_is_refused(workdir, data):
    os.remove("s.salt")
    with pytest.raises(SettingsError, match=r"salt file = 's.salt': there is no such file"):
        parts(workdir, suppression_list="s")


def test_saved_datasets_do_not_bring_it_back(workdir, data):
    """RecBole takes a saved dataset, or saved dataloaders, in place of the atomic files."""
    pairs, kept = data
    keep = {"save_dataset": True, "save_dataloaders": True}
    _, (train, *_) = parts(workdir, **keep)
    assert set(tokens(train)) == set(pairs) and len(list((workdir / "saved").iterdir())) == 2
    _, (train, *_) = parts(workdir, **keep, suppression_list="s")
    assert set(tokens(train)) == kept
    listed = SuppressionList("s")
    listed.add(listed.lines(["u4"], None))
    _, (train, *_) = parts(workdir, suppression_list="s")
    assert set(tokens(train)) == {pair for pair in kept if pair[0] != "u4"}


def test_a_checkpoint_gets_the_data_of_its_training_though_the_list_has_grown(workdir, data):
    _, kept = data
    save_checkpoint(workdir, "m.pth", suppression_list="s")
    write_request(workdir / "q" / "1.forget", ["u5"])
    arguments = ["--checkpoint=m.pth", "--ledger=l"]
    assert main(["unlearn", "--queue=q", *arguments, "--suppression-list=s"]) == 0
    write_request(workdir / "q" / "2.forget", ["u6"])
    assert main(["unlearn", "--queue=q", *arguments, "--suppression-list=s"]) == 0
    assert main(["unlearn", "--verify", *arguments, "--refit"]) == 0
    left = {pair for pair in kept if pair[0] not in ("u5", "u6")}
    assert pairs_in(Unlearner.from_checkpoint("m.pth")) == left
    assert set(tokens(parts(workdir, suppression_list="s")[1][0])) == left  # a new training: the same data
    content = (workdir / "s").read_bytes()
    os.remove("s")
    os.remove("s.salt")
    anew = SuppressionList("s", create=True)  # as many entries, but others
    anew.add(anew.lines([f"x{number}" for number in range(5)], None))
    with pytest.raises(CheckpointError, match="no longer has all entries that it had"):
        Unlearner.from_checkpoint("m.pth")
    assert content.count(b"user ") == 3


def test_entries_are_kept_once_and_in_their_order(workdir, data):
    listed = SuppressionList("s")
    first, state = listed.entries, listed.state
    other = SuppressionList("s")  # another process, which read the list before it grew
    listed.add([*listed.lines(["u8"], None), *first, *listed.lines(["u8"], None)])
    other.add(other.lines(["u9"], None))
    assert SuppressionList("s").entries == first + listed.lines(["u8", "u9"], None)
    assert SuppressionList("s", state=state).entries == first


def test_digests_are_looked_up_by_user_and_by_pair(workdir, data):
    listed = SuppressionList("s")
    users = pd.Series(["u1", "u3", "u3", "i1", "u2", np.nan])
    pairs = json.loads(json.dumps(data[0]))
    of_u3 = [item for user, item in pairs if user == "u3"]
    items = pd.Series(["i0", of_u3[0], of_u3[2], "u1", of_u3[0], "i1"])
    assert listed.suppressed(users, items).tolist() == [True, True, False, False, False, False]
    assert listed.suppressed_users(users).tolist() == [True, False, False, False, False, False]


def test_the_commands_suppress(workdir, data, capsys):
    """``--suppress`` adds to the list, and ``run`` leaves out what it has."""
    write_request(workdir / "f", ["u7", "u8"])
    settings = [f"--data_path={workdir}", "--dataset=small"]
    assert main(["unlearn", "--suppress", "--forget-file=f", "--suppression-list=s", *settings]) == 0
    assert "s: 2 entries added, 5 in all." in capsys.readouterr().out
    given = {**settings_of(workdir, "EASE"), "suppression_list": "s", "eval_args": SPLIT, "metrics": ["Recall"]}
    given |= {"valid_metric": "Recall@10", "state": "ERROR"}
    assert main([f"--{key}={value}" for key, value in given.items()]) == 0
    (path,) = (workdir / "saved").glob("EASE-*.pth")
    names = Unlearner.from_checkpoint(path).dataset.field2token_id["user_id"]
    assert not {"u1", "u7", "u8"} & set(names) and "u2" in names


def test_a_run_is_another_where_the_list_has_grown(workdir, data):
    """Results that a comparison has, and what LLMD4Rec resumes, are found by this hash."""
    shutil.copy("s", "t")
    shutil.copy("s.salt", "t.salt")

    def key(**more):
        return fingerprint(Config(config_dict=settings_of(workdir, "EASE", **more)))

    hashes = [key(), key(suppression_list="s"), key(suppression_list="t")]
    listed = SuppressionList("s")
    listed.add(listed.lines(["u4"], None))
    hashes += [key(), key(suppression_list="s")]
    assert hashes[0] == hashes[3] and hashes[1] == hashes[2] and len(set(hashes)) == 3


def test_a_comparison_leaves_it_out(workdir):
    listed = SuppressionList("s", create=True)
    listed.add(listed.lines(["u3", "u7"], None))
    lines = (REPO / "dataset" / "tiny" / "tiny.inter").read_text().splitlines()
    gone = sum(line.split("\t")[0] in ("u3", "u7") for line in lines)
    given = ["--dataset=tiny", f"--data_path={REPO / 'dataset'}", "--suppression_list=s", "--out=out"]
    assert main(["compare", "--models=Pop", "--seeds=1", "--mask_history=True", *given]) == 0
    logs = "".join(path.read_text() for path in (workdir / "out" / "logs").rglob("*") if path.is_file())
    assert f"s: {gone} interactions of 2 users are left out, as they were forgotten." in logs and gone > 5
