"""Every command of docs/erasure.md, as it stands there, one after the other."""

import glob
import shlex
import shutil

from recbole_llmd.cli import main
from recbole_llmd.unlearning.erasure.ledger import Ledger
from tests.conftest import REPO
from tests.helpers.erasure_cases import write_request

PAGE = (REPO / "docs" / "erasure.md").read_text(encoding="utf-8")
COMMANDS = [line.strip() for line in PAGE.splitlines() if line.startswith("    ")]
OTHERS = ["--batch-size=50", "ledger.key", "--suppress ", "--remove="]  # what stands below, after the first block


def execute(command):
    program, *arguments = shlex.split(command)
    if program == "mv":
        (source,) = glob.glob(arguments[0])
        shutil.move(source, arguments[1])
        return 0
    assert program == "recbole-llmd"
    return main(arguments)


def test_the_page_is_executed(workdir, capsys):
    shutil.copytree(REPO / "dataset" / "tiny", workdir / "data" / "tiny")
    write_request(workdir / "requests" / "2026-001.forget", ["u3", "u7"])
    (workdir / "many.requests").write_text("request_id:token\tuser_id:token\n2026-002\tu12\n2026-003\tu13\n")
    (workdir / "ledger.key").write_text("a key that nobody knows\n")
    first = [command for command in COMMANDS if not any(word in command for word in OTHERS)]
    many, keyed, keyed_verify, suppress, remove = [command for command in COMMANDS if command not in first]
    data = workdir / "data" / "tiny" / "tiny.inter"
    gone = sum(line.split("\t")[0] in ("u3", "u7") for line in data.read_text().splitlines())

    def run(command):
        assert execute(command) == 0, command
        return capsys.readouterr().out

    run(first[0])
    run(first[1])
    shutil.copy("served.pth", "keyed-start.pth")
    assert "1 requests answered: 2026-001\n" in run(first[2])
    assert "what the forget file names is request 2026-001" in run(first[3])
    run(first[4])
    assert "1 waiting" not in (out := run(many)) and "2 requests waiting" in out  # the deadline is a day
    assert run(suppress) == "forgotten.list: 0 entries added, 2 in all.\n"  # the queue has added them
    shutil.copy("served.pth", "corrected.pth")
    shutil.copy("keyed-start.pth", "served.pth")
    run(keyed)
    assert "the chain of 1 entries, 1 requests" in run(keyed_verify)
    shutil.move("keyed-start.pth", "saved/old.pth")
    shutil.move("corrected.pth", "served.pth")
    assert f"tiny.inter: {gone} lines taken out" in (out := run(first[5])) and gone > 10
    assert "saved/old.pth: a pickle made from tiny, before or after" in out  # plain RecBole wrote it
    assert "removed: saved/old.pth\n" in run(remove)
    assert "tiny.inter.before-purge\n" in run(first[6])
    assert len(first) == 7 and set(Ledger("erasures.jsonl").done) == {"2026-001"}
    assert not {"u3", "u7"} & {line.split("\t")[0] for line in data.read_text().splitlines()}
