"""``recbole-llmd unlearn`` on SequentialRules: end to end on the tiny dataset, in sequence, and refusals."""

import json
import shutil

import pytest
import torch
from recbole.quick_start import load_data_and_model
from recbole.utils import get_trainer

from recbole_llmd.cli import main
from recbole_llmd.data.sequences import TrainingSequences
from recbole_llmd.distill.evidence import Evidence, PooledEvidence
from recbole_llmd.errors import CheckpointError, ModelError
from recbole_llmd.unlearning import Unlearner
from recbole_llmd.unlearning.digests import digest_of_request
from recbole_llmd.unlearning.sequential_unlearner import SequentialUnlearner
from tests.conftest import REPO


@pytest.fixture
def saved(workdir):
    """The checkpoint of a run on a copy of the tiny dataset."""
    shutil.copytree(REPO / "dataset" / "tiny", workdir / "tiny")
    arguments = {
        "model": "SequentialRules",
        "dataset": "tiny",
        "data_path": ".",
        "state": "ERROR",
        "show_progress": False,
        "MAX_ITEM_LIST_LENGTH": 5,
        "metrics": ["Recall", "NDCG"],
        "valid_metric": "NDCG@10",
        "metric_decimal_place": 6,
    }
    assert main([f"--{key}={value}" for key, value in arguments.items()]) == 0
    return next((workdir / "saved").glob("SequentialRules-*.pth"))


def evaluated(path, evidence=None):
    config, model, _, _, _, test = load_data_and_model(str(path))
    if evidence is not None:
        model.evidence = evidence(model)
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    return dict(trainer.evaluate(test, load_best_model=False))


def lists_of(path):
    """The training sequences in a checkpoint, by user."""
    sequences = torch.load(path, weights_only=False)["other_parameter"]["sequences"]
    return [sequences.of_user(user).tolist() for user in range(sequences.n_users)]


def command(path, out, *more):
    return main(["unlearn", f"--checkpoint={path}", "--forget-file=f", f"--out={out}", *more])


@pytest.mark.parametrize("whole_users", [False, True])
def test_the_corrected_file_gives_what_counting_anew_gives(saved, workdir, capsys, whole_users):
    engine, lists = SequentialUnlearner.from_checkpoint(saved), lists_of(saved)
    chosen = [user for user in range(len(lists)) if user % 3 == 1 and lists[user]]
    gone = [(user, item) for user in chosen for item in sorted(set(lists[user]))[: None if whole_users else 2]]
    named = [(engine.user_ids.token(user), engine.item_ids.token(item)) for user, item in gone]
    lines = sorted({user for user, _ in named}) if whole_users else ["\t".join(pair) for pair in named]
    head = "user_id:token" if whole_users else "user_id:token\titem_id:token"
    (workdir / "f").write_text("\n".join([head, *lines]) + "\n")
    assert command(saved, "new/corrected.pth") == 0
    assert f"SequentialRules forgot {len(gone)} interactions (0 skipped)" in capsys.readouterr().out

    receipt = json.loads((workdir / "new" / "corrected.pth.receipt.json").read_text())
    salt = (workdir / "new" / "corrected.pth.receipt.salt").read_text().strip()
    assert receipt["digest"] == digest_of_request(salt, *zip(*named)) and "salt" not in receipt
    assert (receipt["users"], receipt["interactions"], receipt["pairs"]) == (len(chosen), len(gone), None)
    assert receipt["hash_before"] == engine.fingerprint() != receipt["hash_after"]
    assert SequentialUnlearner.from_checkpoint("new/corrected.pth").fingerprint() == receipt["hash_after"]

    left = [[item for item in items if (user, item) not in gone] for user, items in enumerate(lists)]
    assert lists_of("new/corrected.pth") == left

    def counted_anew(model):
        samples = TrainingSequences.from_lists(left, 5).samples()
        evidence = Evidence.of(samples, samples.popularity(model.n_items), model.texts)
        return PooledEvidence(evidence, model.evidence.weights)

    result = evaluated("new/corrected.pth")
    assert result == evaluated("new/corrected.pth", counted_anew) and result != evaluated(saved)


def test_a_second_request_finds_nothing_of_the_first(saved, workdir, capsys):
    (workdir / "f").write_text("user_id:token\nu3\n")
    assert command(saved, "one.pth") == 0
    assert command("one.pth", "two.pth") == 2
    assert "user 'u3': there is no interaction to forget" in capsys.readouterr().err
    assert command("one.pth", "skipped.pth", "--skip-missing") == 0
    (workdir / "f").write_text("user_id:token\nu9\n")
    assert command("one.pth", "two.pth") == 0
    (workdir / "f").write_text("user_id:token\nu3\nu9\n")
    assert command(saved, "both.pth") == 0
    hashes = [json.loads((workdir / f"{name}.pth.receipt.json").read_text())["hash_after"] for name in ("two", "both")]
    assert hashes[0] == hashes[1]
    content = torch.load("two.pth", weights_only=False)
    left, user = (
        content["other_parameter"],
        SequentialUnlearner.from_checkpoint("two.pth").user_ids.to_internal("u3")[0],
    )
    assert not len(left["sequences"].of_user(user[0])) and user[0] not in left["validation"].users
    assert content["data_identity"]["sha256"] is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("user_id:token\nnobody\n", "user = 'nobody': the model does not know it"),
        ("user_id:token\titem_id:token\nu1\ti2\n", "1 of 1 pairs to forget are not in X"),
        ("user_id:token\titem:token\nu5\ti1\n", "has the columns user_id, item"),
    ],
)
def test_refused_requests_write_nothing(saved, workdir, capsys, content, message):
    (workdir / "f").write_text(content)
    assert command(saved, "out.pth") == 2
    assert message in capsys.readouterr().err and not list(workdir.glob("out*"))


def test_a_folder_is_no_place_for_the_model(saved, workdir, capsys):
    (workdir / "f").write_text("user_id:token\nu3\n")
    before = saved.read_bytes()
    assert command(saved, "saved") == 2
    assert "out = 'saved'" in capsys.readouterr().err and saved.read_bytes() == before


def test_other_data_or_a_checkpoint_without_sequences_are_refused(saved, workdir):
    inter = workdir / "tiny" / "tiny.inter"
    head, *lines = inter.read_text().splitlines()
    inter.write_text("\n".join([head, *sorted(lines)]) + "\n")
    with pytest.raises(CheckpointError, match="the data are not those that the model was trained on"):
        SequentialUnlearner.from_checkpoint(saved)
    inter.write_text("\n".join([head, *lines]) + "\n")
    content = torch.load(saved, weights_only=False)
    del content["other_parameter"]["sequences"]
    torch.save(content, "old.pth")
    with pytest.raises(CheckpointError, match="holds no training sequences"):
        SequentialUnlearner.from_checkpoint("old.pth")


def test_what_is_for_mapping_models_says_so(saved, workdir, capsys):
    with pytest.raises(ModelError, match="SequentialRules forgets by recbole-llmd unlearn"):
        Unlearner.from_checkpoint(saved)
    (workdir / "requests").mkdir()
    (workdir / "requests" / "1.forget").write_text("user_id:token\nu3\n")
    before = saved.read_bytes()
    assert main(["unlearn", "--queue=requests", f"--checkpoint={saved}", "--ledger=ledger.jsonl"]) == 2
    assert "the queue, the verification" in capsys.readouterr().err and saved.read_bytes() == before
