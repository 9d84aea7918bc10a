"""``recbole-llmd unlearn``: a saved model forgets what a file names, and then is RecBole's own refit."""

import json
import shutil
import stat
from pathlib import Path

import pytest
from recbole.quick_start import load_data_and_model
from recbole.utils import get_model

from recbole_llmd.cli import main
from recbole_llmd.unlearning import Unlearner, fingerprint
from recbole_llmd.unlearning.command import unlearn
from recbole_llmd.unlearning.digests import digest_of_request
from tests.conftest import REPO
from tests.helpers.mapping_models import MODELS, evaluate, retained


@pytest.fixture
def saved(trained, workdir):
    """``saved(name)`` trains RecBole's model through the command line; gives the checkpoint, Config, loaders, model."""

    def _saved(name):
        config, loaders, model = trained(name)
        arguments = {
            "model": name,
            "dataset": "tiny",
            "data_path": config["data_path"].rsplit("/", 1)[0],
            "state": "ERROR",
            "show_progress": False,
            "metrics": ["Recall", "NDCG"],
            "valid_metric": "NDCG@10",
            "metric_decimal_place": 6,
            **MODELS[name],
        }
        assert main([f"--{key}={value}" for key, value in arguments.items()]) == 0
        return next((workdir / "saved").glob(f"{name}-*.pth")), config, loaders, model

    return _saved


def _tokens(dataset, users, items):
    return [(dataset.id2token("user_id", user), dataset.id2token("item_id", item)) for user, item in zip(users, items)]


@pytest.mark.parametrize("name", ["EASE", "ItemKNN"])
@pytest.mark.parametrize("whole_users", [False, True])
def test_the_corrected_file_gives_the_retrained_metrics(saved, workdir, name, whole_users):
    path, config, (train, _, test), _ = saved(name)
    dataset = train.dataset
    if name == "ItemKNN":  # RecBole's choice among equal similarities is arbitrary: fit with ours on both sides
        engine = Unlearner.from_checkpoint(path)
        engine.refit()
        engine.save(path)
    pairs = list(zip(dataset.inter_feat["user_id"].tolist(), dataset.inter_feat["item_id"].tolist()))
    chosen = {pairs[0][0], pairs[200][0], pairs[-1][0]}
    pairs = [pair for pair in dict.fromkeys(pairs) if (pair[0] in chosen if whole_users else pair[0] % 3 == 0)]
    users, items = zip(*pairs)
    if whole_users:
        lines = ["user_id:token", *sorted({user for user, _ in _tokens(dataset, users, items)})]
    else:
        lines = ["user_id:token\titem_id:token", *("\t".join(pair) for pair in _tokens(dataset, users, items))]
    (workdir / "tiny.forget").write_text("\n".join(lines) + "\n")
    assert main(["unlearn", f"--checkpoint={path}", "--forget-file=tiny.forget", "--out=new/corrected.pth"]) == 0

    receipt = json.loads((workdir / "new" / "corrected.pth.receipt.json").read_text())
    named = _tokens(dataset, users, items)
    salt_file = workdir / "new" / "corrected.pth.receipt.salt"
    assert receipt["digest"] == digest_of_request(salt_file.read_text().strip(), *zip(*named))
    assert stat.S_IMODE(salt_file.stat().st_mode) == 0o600 and "salt" not in receipt
    assert (receipt["interactions"], receipt["skipped"], receipt["pairs"]) == (len(pairs), 0, None)
    for token in {text for pair in named for text in pair}:
        assert f'"{token}"' not in json.dumps(receipt)
    assert receipt["hash_before"] != receipt["hash_after"]
    loaded_config, model, _, _, _, test_data = load_data_and_model(str(workdir / "new" / "corrected.pth"))
    rest = retained(dataset, users, items)
    retrained = get_model(name)(config, rest)
    if name == "ItemKNN":
        Unlearner(retrained, rest).refit()
    untouched = load_data_and_model(str(path))[1]
    result = evaluate(loaded_config, model, test_data)
    assert dict(result) == pytest.approx(dict(evaluate(config, retrained, test)), abs=1e-6)
    assert dict(result) != dict(evaluate(loaded_config, untouched, test_data))


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "there is no such file"),
        ("item_id:token\ni1\n", "has the columns item_id.*user_id:token"),
        ("user_id:token\titem:token\nu5\ti1\n", "has the columns user_id, item; .*alone to forget users whole"),
        ("user_id:token\tuser_id:token\nu5\tu6\n", "has the columns user_id, user_id"),
        ("user_id:token\nu5\tu6\n", "lines have more fields than its head"),
        ("", "cannot be read as an atomic file"),
        ("user_id:token\titem_id:token\nu5\t\n", "line 2 lacks a value"),
        ("user_id:token\nnobody\n", "'nobody'"),
        ("user_id:token\titem_id:token\nu1\ti2\n", "to forget are not in X.*first: user"),
    ],
)
def test_wrong_files_are_refused_and_nothing_is_written(saved, workdir, capsys, content, message):
    import re

    path, *_ = saved("EASE")
    if content is not None:
        (workdir / "f").write_text(content)
    assert main(["unlearn", f"--checkpoint={path}", "--forget-file=f", "--out=out.pth"]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not list(workdir.glob("out*"))


def test_skip_missing(saved, workdir, capsys):
    path, _, (train, _, _), _ = saved("EASE")
    feat = train.dataset.inter_feat
    ((user, item),) = _tokens(train.dataset, feat["user_id"][:1].tolist(), feat["item_id"][:1].tolist())
    (workdir / "f").write_text(f"user_id:token\titem_id:token\nu1\ti2\n{user}\t{item}\n")
    arguments = ["unlearn", f"--checkpoint={path}", "--forget-file=f", "--out=out.pth"]
    assert main(arguments) == 2
    assert main([*arguments, "--skip-missing"]) == 0
    assert "forgot 1 interactions (1 skipped)" in capsys.readouterr().out


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("out", ["saved", "saved/", "new/", "f", "f/model.pth", "taken.pth", ""])
def test_a_folder_or_another_file_is_never_replaced(saved, workdir, capsys, monkeypatch, out):
    path, *_ = saved("EASE")
    (workdir / "f").write_text("user_id:token\nu3\n")
    (workdir / "taken.pth.receipt.json").mkdir()
    (workdir / "taken.pth.receipt.json" / "note").write_text("kept")
    before = contents(workdir)
    monkeypatch.setattr(Unlearner, "from_checkpoint", None)  # refused before any work
    assert main(["unlearn", f"--checkpoint={path}", "--forget-file=f", f"--out={out}"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("recbole-llmd: error: out = ") and "Give " in message and message.count("\n") == 1
    assert contents(workdir) == before and not (workdir / "new").exists()


def test_the_receipt_never_replaces_the_forget_file(saved, workdir, capsys):
    path, *_ = saved("EASE")
    (workdir / "out.pth.receipt.json").write_text("user_id:token\nu3\n")
    before = contents(workdir)
    assert main(["unlearn", f"--checkpoint={path}", "--forget-file=out.pth.receipt.json", "--out=out.pth"]) == 2
    assert "would replace the forget file" in capsys.readouterr().err and contents(workdir) == before


def test_a_failed_write_leaves_nothing(saved, workdir, monkeypatch):
    path, *_ = saved("EASE")
    (workdir / "f").write_text("user_id:token\nu3\n")
    (workdir / "out.pth").write_text("an older model")
    before = contents(workdir)

    def fail(*arguments, **keywords):
        raise OSError("no space left")

    for place in ("torch.save", "recbole_llmd.unlearning.receipt.Receipt.json"):
        with monkeypatch.context() as patch:
            patch.setattr(place, fail)
            with pytest.raises(OSError, match="no space left"):
                unlearn(path, "f", "out.pth")
        assert contents(workdir) == before


def test_unlearn_is_a_plain_function(saved, workdir, capsys):
    path, _, (train, _, _), _ = saved("EASE")
    (workdir / "f").write_text("user_id:token\nu3\n")
    receipt = unlearn(Path(path), Path("f"), Path("deep/er/out.pth"), receipt_pairs=True)
    assert set(receipt.pairs.users) == {train.dataset.token2id("user_id", "u3")}
    assert json.loads((workdir / "deep/er/out.pth.receipt.json").read_text())["hash_after"] == receipt.hash_after
    assert f"EASE forgot {receipt.interactions} interactions" in capsys.readouterr().out
    engine = Unlearner.from_checkpoint("deep/er/out.pth")
    assert fingerprint(engine.X, engine.B) == receipt.hash_after
    with pytest.raises(TypeError):
        unlearn(path, "f", "out.pth", False)


def test_the_first_pair_that_is_missing_is_named_by_its_tokens(saved, workdir, capsys):
    path, *_ = saved("EASE")
    (workdir / "f").write_text("user_id:token\titem_id:token\nu1\ti2\n")
    assert main(["unlearn", f"--checkpoint={path}", "--forget-file=f", "--out=out.pth"]) == 2
    message = capsys.readouterr().err
    assert "user 'u1', item 'i2'" in message and "--skip-missing" in message and "internal" not in message


def test_a_data_file_that_was_sorted_since_the_training_is_refused(build, workdir, capsys):
    """Else u71 is asked for, u26 forgotten, and the receipt is clean."""
    shutil.copytree(REPO / "dataset" / "tiny", workdir / "tiny")
    arguments = {"model": "EASE", "dataset": "tiny", "data_path": ".", "state": "ERROR", "show_progress": False}
    assert main([f"--{key}={value}" for key, value in arguments.items()]) == 0
    path = next((workdir / "saved").glob("EASE-*.pth"))
    (workdir / "f").write_text("user_id:token\nu71\n")
    command = ["unlearn", f"--checkpoint={path}", "--forget-file=f", "--out=out.pth"]
    inter = workdir / "tiny" / "tiny.inter"
    head, *lines = inter.read_text().splitlines()
    inter.write_text("\n".join([head, *sorted(lines)]) + "\n")
    assert main(command) == 2
    assert "the data are not those that the model was trained on" in capsys.readouterr().err
    assert not list(workdir.glob("out*"))
    inter.write_text("\n".join([head, *lines]) + "\n")
    assert main(command) == 0
