"""What a store has not acknowledged, on disk."""

import json
from pathlib import Path

import pytest

from cloc.tracking.identity import Identity, Parent
from cloc.tracking.journal import Journal, left_behind


@pytest.fixture
def outbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CLOC_OUTBOX", str(tmp_path / "outbox"))
    return tmp_path / "outbox"


def tag(value: str) -> dict[str, object]:
    return {"op": "tags", "values": {"a": value}}


def begun(*, attached: bool = False) -> Journal:
    return Journal.begin("http://mlflow", Identity("cloc", key="a/b", parent=Parent(key="p")), attached=attached)


def test_what_was_not_sent_is_found_by_another_process_when_this_one_lets_go(outbox: Path) -> None:
    journal = begun()
    for value in "123":
        journal.add(tag(value))
    journal.sent(1)
    assert list(left_behind()) == []
    journal.let_go()
    (found,) = left_behind()
    assert found.pending == [tag("2"), tag("3")]
    assert (found.uri, found.identity, found.finished) == ("http://mlflow", journal.identity, False)


def test_half_a_line_is_forgotten_and_what_follows_it_is_not(outbox: Path) -> None:
    journal = begun()
    journal.add(tag("1"))
    with (journal.folder / "journal.jsonl").open("a") as file:
        file.write('{"op": "tags", "val')  # the process was killed
    journal.let_go()
    (found,) = left_behind()
    found.add(tag("2"))
    found.let_go()
    (found,) = left_behind()
    assert found.pending == [tag("1"), tag("2")]


def test_a_run_that_has_ended_and_arrived_leaves_nothing(outbox: Path) -> None:
    journal = begun()
    journal.add({"op": "end", "status": "FINISHED", "time": 1})
    journal.sent(1)
    journal.let_go()
    assert not outbox.exists()


def test_files_are_copied_once(outbox: Path, tmp_path: Path) -> None:
    source = tmp_path / "report.html"
    source.write_text("first")
    journal = begun()
    owned = journal.own({"op": "file", "source": str(source), "folder": ""})
    source.write_text("second")
    assert Path(owned["source"]).read_text() == "first"
    assert journal.own(owned) == owned


def test_a_folder_of_another_release_is_named_and_stays(outbox: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = outbox / "1-other"
    folder.mkdir(parents=True)
    head = {"uri": "http://mlflow", "identity": {"parent": None, "colour": "red"}, "attached": False, "finished": False}
    (folder / "journal.jsonl").write_text(f"{json.dumps(head)}\n")
    assert list(left_behind()) == []
    assert folder.is_dir()
    assert f"{folder} cannot be delivered: no outbox of this release" in capsys.readouterr().err
