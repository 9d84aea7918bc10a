"""The queue: what is answered, when, and once; what is refused; and that other files are left alone."""

import os
import shutil
import time

import numpy as np
import pytest

from recbole_llmd.cli import main
from recbole_llmd.errors import CheckpointError, DataError, LedgerError, OutputError, SettingsError
from recbole_llmd.unlearning import Unlearner
from recbole_llmd.unlearning.erasure.durable import file_sha256, locked
from recbole_llmd.unlearning.erasure.ledger import Ledger
from recbole_llmd.unlearning.erasure.requests_queue import answer_queue
from recbole_llmd.unlearning.erasure.suppression import SuppressionList
from recbole_llmd.unlearning.erasure.verify import verify
from tests.helpers.erasure_cases import make_data, pairs_in, save_checkpoint, write_request


@pytest.fixture
def pairs(workdir):
    """The pairs of the data, on which ``m.pth`` was trained."""
    pairs = make_data(workdir)
    save_checkpoint(workdir, "m.pth")
    return set(pairs)


def of(pairs, *users):
    return {pair for pair in pairs if pair[0] in users}


@pytest.mark.parametrize("batch_size, entries", [(1, 4), (3, 2), (10, 1)])
def test_each_request_is_answered_once(workdir, pairs, batch_size, entries):
    one = sorted(of(pairs, "u3"))[0]
    write_request(workdir / "q" / "1.forget", ["u1", "u2", "u1"])
    write_request(workdir / "q" / "2.forget", ["u2"])  # all of it is gone with the first
    write_request(workdir / "q" / "3.forget", [one[0]], [one[1]])
    write_request(workdir / "q" / "4.forget", ["u3"])
    (workdir / "q" / "5.forget.part").write_text("half copied")
    answers = answer_queue("q", "m.pth", "l", batch_size=batch_size)
    assert answers.answered == ["1", "2", "3", "4"] and not answers.refused and not answers.waiting
    ledger = Ledger("l")
    assert {name: (done.interactions, done.skipped) for name, done in ledger.done.items()} == {
        "1": (8, 0),
        "2": (0, 0 if batch_size > 1 else 1),
        "3": (1, 0),
        "4": (3, 0),
    }
    assert len(ledger.entries) == entries and ledger.last.checkpoint_after == file_sha256("m.pth")
    engine = Unlearner.from_checkpoint("m.pth")
    assert pairs_in(engine) == pairs - of(pairs, "u1", "u2", "u3")
    np.testing.assert_allclose(engine.B, engine.mapping.fit(engine.X, engine.params), atol=1e-6)
    before = (workdir / "l").read_bytes(), (workdir / "m.pth").read_bytes()
    again = answer_queue("q", "m.pth", "l", batch_size=batch_size)
    assert again.done_before == ["1", "2", "3", "4"] and not again.answered
    assert before == ((workdir / "l").read_bytes(), (workdir / "m.pth").read_bytes())


def test_the_ledger_names_nobody(workdir, pairs):
    write_request(workdir / "q" / "1.forget", ["u10", "u11"])
    answer_queue("q", "m.pth", "l", suppression_list="s")
    for file in ("l", "s"):
        assert b"u10" not in (workdir / file).read_bytes() and b"u11" not in (workdir / file).read_bytes()


def test_a_file_of_many_requests(workdir, pairs):
    (some, other), third = sorted(of(pairs, "u1"))[:2], sorted(of(pairs, "u4"))[0]
    lines = ["request_id:token\titem_id:token\tuser_id:token"]
    lines += [f"{name}\t{item}\t{user}" for name, (user, item) in (("b", some), ("a", third), ("b", other))]
    (workdir / "many").write_text("\n".join(lines) + "\n")
    assert answer_queue("many", "m.pth", "l").answered == ["b", "a"]
    assert [(r.id, r.interactions) for r in Ledger("l").last.requests] == [("b", 2), ("a", 1)]
    assert pairs_in(Unlearner.from_checkpoint("m.pth")) == pairs - {some, other, third}


def test_requests_wait_for_a_full_batch_or_the_deadline(workdir, pairs):
    now = time.time()
    for number in range(5):
        path = write_request(workdir / "q" / f"{number}.forget", [f"u{number}"])
        os.utime(path, (now, now - 100 * number))
    answers = answer_queue("q", "m.pth", "l", batch_size=3, deadline=1000)
    assert answers.answered == ["0", "1", "2"] and answers.waiting == ["3", "4"]
    assert answer_queue("q", "m.pth", "l", batch_size=3, deadline=350).answered == ["3", "4"]  # 4 has waited 400 s


def test_a_refused_request_holds_up_no_other(workdir, pairs, capsys):
    write_request(workdir / "q" / "1.forget", ["nobody"])
    write_request(workdir / "q" / "2.forget", ["u2"])
    (workdir / "q" / "3.forget").write_text("user_id:token\titem:token\nu5\ti1\n")
    never = next(f"i{i}" for i in range(9) if ("u4", f"i{i}") not in pairs)
    write_request(workdir / "q" / "4.forget", ["u4"], [never])
    arguments = ["unlearn", "--queue=q", "--checkpoint=m.pth", "--ledger=l"]
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert "1 requests answered: 2\n" in out and "3 requests were refused and stay open" in err
    assert "'nobody'" in err and "alone to forget users whole" in err and "1 of the pairs named never were in X" in err
    assert pairs_in(Unlearner.from_checkpoint("m.pth")) == pairs - of(pairs, "u2")
    (workdir / "q" / "3.forget").unlink()
    assert main([*arguments, "--skip-missing"]) == 0
    assert "2 requests answered: 1, 4\n1 requests done before: 2\n" in capsys.readouterr().out
    assert [(r.id, r.interactions, r.skipped) for r in Ledger("l").last.requests] == [("1", 0, 1), ("4", 0, 1)]
    verify("l", "m.pth")


def test_an_id_is_used_once(workdir, pairs):
    path = write_request(workdir / "q" / "1.forget", ["u1"])
    answer_queue("q", "m.pth", "l")
    write_request(path, ["u2"])
    answers = answer_queue("q", "m.pth", "l")
    assert "was answered when it named something else. Give what is new another id." in answers.refused["1"]
    assert pairs_in(Unlearner.from_checkpoint("m.pth")) == pairs - of(pairs, "u1")


def test_the_suppression_list_gets_what_was_answered(workdir, pairs):
    user, item = sorted(of(pairs, "u3"))[0]
    write_request(workdir / "q" / "1.forget", ["u1"])
    write_request(workdir / "q" / "2.forget", [user], [item])
    write_request(workdir / "q" / "3.forget", ["nobody"])
    answer_queue("q", "m.pth", "l", suppression_list="s")
    listed = SuppressionList("s")
    assert listed.entries == listed.lines(["u1"], None) + listed.lines([user], [item])


def test_a_list_that_is_named_later_gets_what_was_answered_before(workdir, pairs):
    write_request(workdir / "q" / "1.forget", ["u1"])
    answer_queue("q", "m.pth", "l")
    write_request(workdir / "q" / "2.forget", ["u2"])
    answer_queue("q", "m.pth", "l", suppression_list="s")
    listed = SuppressionList("s")
    assert listed.entries == listed.lines(["u1", "u2"], None)


def test_the_file_behind_a_link_is_replaced(workdir, pairs):
    """Or the old model would stay where the link pointed."""
    os.rename("m.pth", "stored.pth")
    os.symlink("stored.pth", "m.pth")
    write_request(workdir / "q" / "1.forget", ["u1"])
    answer_queue("q", "m.pth", "l")
    assert (workdir / "m.pth").is_symlink()
    assert pairs_in(Unlearner.from_checkpoint("stored.pth")) == pairs - of(pairs, "u1")


def test_a_keyed_ledger_stays_keyed(workdir, pairs, capsys):
    (workdir / "key").write_text("a key of many characters\n")
    write_request(workdir / "q" / "1.forget", ["u1"])
    arguments = ["--checkpoint=m.pth", "--ledger=l"]
    assert main(["unlearn", "--queue=q", *arguments, "--ledger-key=key"]) == 0
    assert main(["unlearn", "--verify", *arguments, "--ledger-key=key"]) == 0
    write_request(workdir / "q" / "2.forget", ["u2"])
    before = (workdir / "m.pth").read_bytes()
    for command in (["--queue=q"], ["--verify"]):
        assert main(["unlearn", *command, *arguments]) == 2
        assert "give --ledger-key" in capsys.readouterr().err
    assert (workdir / "m.pth").read_bytes() == before


def test_another_checkpoint_or_another_process_is_refused(workdir, pairs):
    shutil.copy("m.pth", "before.pth")
    write_request(workdir / "q" / "1.forget", ["u1"])
    answer_queue("q", "m.pth", "l")
    with pytest.raises(LedgerError, match=r"before.pth': is not the one that entry 1 of l left .*Restore"):
        answer_queue("q", "before.pth", "l")
    with locked("l"), pytest.raises(OutputError, match=r"l: another process is working with it. Wait"):
        answer_queue("q", "m.pth", "l")
    os.remove("l.salt")
    with pytest.raises(SettingsError, match=r"'l.salt': there is no such file"):
        answer_queue("q", "m.pth", "l")


@pytest.mark.parametrize(
    "changed, error, message",
    [
        ({"batch_size": 0}, SettingsError, "batch-size = 0: must be a whole number of at least 1"),
        ({"deadline": -1.0}, SettingsError, "deadline = -1.0: must be a number of seconds of at least 0"),
        ({"deadline": float("nan")}, SettingsError, "deadline = nan"),
        ({"checkpoint": "none"}, CheckpointError, "checkpoint = 'none': there is no such file"),
        ({"queue": "none"}, DataError, "queue = 'none': is not there. Give a folder"),
        ({"queue": "f"}, DataError, "queue = 'f': a file of requests has the column request_id:token once"),
    ],
)
def test_refusals(workdir, pairs, changed, error, message):
    write_request(workdir / "f", ["u1"])
    write_request(workdir / "q" / "1.forget", ["u1"])
    before = (workdir / "m.pth").read_bytes()
    with pytest.raises(error, match=message):
        answer_queue(**{"queue": "q", "checkpoint": "m.pth", "ledger": "l", **changed})
    assert (workdir / "m.pth").read_bytes() == before and not (workdir / "l").exists()
