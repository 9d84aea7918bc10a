"""``--verify``: what it finds wrong with a ledger, a checkpoint and a model, and what it accepts."""

import re
import shutil

import numpy as np
import pytest

from recbole_llmd.cli import main
from recbole_llmd.errors import LedgerError
from recbole_llmd.unlearning import Unlearner, fingerprint
from recbole_llmd.unlearning.erasure.durable import file_sha256
from recbole_llmd.unlearning.erasure.ledger import Ledger
from recbole_llmd.unlearning.erasure.requests_queue import answer_queue
from recbole_llmd.unlearning.erasure.verify import verify
from tests.helpers.erasure_cases import make_data, save_checkpoint, write_request


@pytest.fixture
def erased(workdir):
    """``erased(model)``: three requests were answered one by one; gives the pairs of the data."""

    def _erased(model="EASE"):
        pairs = make_data(workdir)
        save_checkpoint(workdir, "m.pth", model)
        shutil.copy("m.pth", "untouched.pth")
        write_request(workdir / "q" / "a.forget", ["u1", "u2"])
        write_request(workdir / "q" / "b.forget", ["u3"], [next(item for user, item in pairs if user == "u3")])
        write_request(workdir / "q" / "c.forget", ["u5"])
        answer_queue("q", "m.pth", "l", batch_size=1)
        return pairs

    return _erased


@pytest.mark.parametrize("model", ["EASE", "ItemKNN", "SLIMElastic", "ADMMSLIM", "DualEASE", "SparseEASE", "NCEPLRec"])
def test_what_was_forgotten_is_verified(erased, model, capsys):
    erased(model)
    for name in ("a", "b", "c"):
        findings = verify("l", "m.pth", forget_file=f"q/{name}.forget", refit=True)
        assert all(finding.clean for finding in findings) and len(findings) == 7
        assert f"what the forget file names is request {name}" in [finding.text for finding in findings]
    arguments = ["unlearn", "--verify", "--ledger=l", "--checkpoint=m.pth", "--forget-file=q/a.forget", "--refit"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "ok      the chain of 3 entries, 3 requests\n" in out
    assert "ok      0 of the interactions of users that were to be forgotten are in X\n" in out
    assert re.search(r"ok      B is that of a fit from scratch: largest difference \S+, \S+ allowed\n", out)


def test_profiles_of_the_forgotten_are_probed(erased):
    erased()
    (found,) = [f.text for f in verify("l", "m.pth", forget_file="q/a.forget") if "profiles" in f.text]
    assert "over 2 forgotten profiles" in found
    error = float(re.search(r"backward error (\S+)", found).group(1))
    assert 0 < error < 3e-6


def test_a_model_that_was_forgotten_in_no_ledger_is_found(erased, workdir):
    erased()
    with pytest.raises(LedgerError, match=r"the checkpoint's SHA-256 is that of the last entry.*; the model's hash"):
        verify("l", "untouched.pth")
    with pytest.raises(LedgerError, match="8 of the interactions of users that were to be forgotten are in X"):
        verify("l", "untouched.pth", forget_file="q/a.forget")


@pytest.mark.parametrize("cut", [1, 2])
def test_a_cut_tail_is_found_by_the_checkpoint(erased, workdir, cut):
    erased()
    lines = (workdir / "l").read_bytes().splitlines(keepends=True)
    (workdir / "l").write_bytes(b"".join(lines[:-cut]))
    with pytest.raises(LedgerError, match=r"not so: the checkpoint's SHA-256 .*Entries may have been cut off"):
        verify("l", "m.pth")
    (workdir / "l").write_bytes(b"")
    with pytest.raises(LedgerError, match="has no entry, so that nothing can be verified"):
        verify("l", "m.pth")


def reseal(engine):
    """A ledger whose only entry is for the engine's model as it is: chain and hashes are right."""
    engine.save("m.pth")
    ledger = Ledger("resealed")
    model, checkpoint = fingerprint(engine.X, engine.B), file_sha256("m.pth")
    facts = {"checkpoint_before": "", "model_before": "", "model": "EASE", "method": "none"}
    ledger.append(ledger.next_entry([], checkpoint_after=checkpoint, model_after=model, **facts))


@pytest.mark.parametrize("model", ["EASE", "ItemKNN", "SLIMElastic", "ADMMSLIM", "DualEASE", "SparseEASE", "NCEPLRec"])
def test_a_mapping_that_still_knows_the_forgotten_is_found(erased, workdir, model):
    """X alone was corrected, and everything else is as it should be."""
    erased(model)
    engine = Unlearner.from_checkpoint("m.pth", mode="interaction")
    engine.forget_users(["u7"])
    write_request(workdir / "f", ["u7"])
    reseal(engine)
    with pytest.raises(LedgerError, match=r"not so: B (solves the equations of X: backward error|is what X gives)"):
        verify("resealed", "m.pth", forget_file="f")


def test_a_trace_in_the_direction_of_a_profile_is_found(erased, workdir):
    """A thousandth of the largest entry, put where the forgotten user's items are."""
    pairs = erased()
    engine = Unlearner.from_checkpoint("m.pth")
    items = [engine.dataset.token2id("item_id", item) for user, item in pairs if user == "u5"]
    B = np.array(engine.B)
    B[np.ix_(items, items)] += 1e-3 * np.abs(B).max() * (1 - np.eye(len(items), dtype=B.dtype))
    setattr(engine.model, engine.mapping.MATRIX, B)
    reseal(engine)
    with pytest.raises(LedgerError, match=r"not so: B solves the equations of X.*over 1 forgotten profiles"):
        verify("resealed", "m.pth", forget_file="q/c.forget")
    with pytest.raises(LedgerError, match="B is that of a fit from scratch: largest difference"):
        verify("resealed", "m.pth", refit=True)


def test_a_pair_that_came_back_is_found(erased, workdir):
    pairs = erased()
    engine = Unlearner.from_checkpoint("m.pth")
    engine.learn("u5", next(item for user, item in pairs if user == "u5"))
    reseal(engine)
    verify("resealed", "m.pth")
    with pytest.raises(LedgerError, match="not so: 1 of the interactions of users that were to be forgotten are in X"):
        verify("resealed", "m.pth", forget_file="q/c.forget")


def test_a_killed_queue_comes_first(erased, workdir):
    erased()
    (workdir / "l.intent").write_text("{}")
    with pytest.raises(LedgerError, match=r"l.intent is there: a queue was killed. Run recbole-llmd unlearn --queue"):
        verify("l", "m.pth")


def test_what_the_command_lacks_is_said(workdir, capsys):
    for arguments, message in [
        (["--verify", "--ledger=l"], "--checkpoint is missing: --verify needs it."),
        (["--verify", "--checkpoint=l"], "--ledger is missing: --verify needs it."),
        (["--verify", "--queue=q"], "--queue and --verify: each is a run of its own. Give one."),
        (["--verify", "--evaluate"], "--verify and --evaluate: each is a run of its own"),
        (
            ["--verify", "--ledger=l", "--checkpoint=c", "--ledger-key=k"],
            "ledger-key file = 'k': there is no such file",
        ),
    ]:
        assert main(["unlearn", *arguments]) == 2
        assert message in capsys.readouterr().err
