"""The folder behind the Storage interface: order, ranges, whole objects, and errors that say what to do."""

import subprocess
import sys
from pathlib import Path

import pytest

from cloc.data.storage import FolderStorage, StorageError, Trouble


def test_walk_is_sorted_like_the_paths(tmp_path: Path) -> None:
    storage = FolderStorage(tmp_path)
    names = ["a", "a.b", "ab/c", "ab/c.d/e", "ab/c0", "ab-c/x", "ab.tar", "ab/ü", "z/0/1", "B"]
    for name in names:
        storage.write_bytes(name, b"x")
    (tmp_path / "ab/.tmp-unfinished").write_bytes(b"x")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert list(storage.walk("")) == storage.list("") == sorted(names)
    assert storage.list("ab") == sorted(name for name in names if name.startswith("ab/"))
    assert storage.list("none") == []


def test_ranges_and_sizes(tmp_path: Path) -> None:
    storage, body = FolderStorage(tmp_path), bytes(range(250))
    storage.write_bytes("a", body)
    for offset, size in ((0, 0), (0, 1), (7, 100), (240, 100), (250, 1), (1000, 10)):
        assert storage.read_range("a", offset=offset, size=size) == body[offset : offset + size]
    assert (storage.read_tail("a", 3), storage.read_tail("a", 1000), storage.size("a")) == (body[-3:], body, 250)


def test_missing_objects(tmp_path: Path) -> None:
    storage = FolderStorage(tmp_path)
    for act in (
        lambda: storage.open("a/b"),
        lambda: storage.read_bytes("a/b"),
        lambda: storage.read_range("a/b", offset=0, size=1),
        lambda: storage.read_tail("a/b", 1),
        lambda: storage.size("a/b"),
    ):
        with pytest.raises(StorageError, match=f"^{tmp_path}: there is no a/b$") as caught:
            act()
        assert caught.value.trouble is Trouble.NO_OBJECT
    storage.delete("a/b")
    assert not storage.exists("a/b")


def test_a_file_and_a_folder_in_each_others_way(tmp_path: Path) -> None:
    storage = FolderStorage(tmp_path)
    storage.write_bytes("a", b"x")
    storage.write_bytes("d/e", b"x")
    for act in (
        lambda: storage.write_bytes("a/b", b"x"),
        lambda: storage.write_bytes("d", b"x"),
        lambda: storage.read_bytes("d"),
    ):
        with pytest.raises(StorageError, match=rf"^{tmp_path}/(a/b|d): .*a file and a folder are in each other's way"):
            act()
    assert storage.list("") == ["a", "d/e"], "nothing temporary is left"


PROGRAM = """
import resource, sys
from pathlib import Path
from cloc.data.storage import FolderStorage, StorageError
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # as a disk that is full after so much
storage, source = FolderStorage(sys.argv[1]), Path(sys.argv[2])
storage.write_bytes("a", b"old")
for act in (lambda: storage.write_bytes("a", bytes(200_000)), lambda: storage.write_file("a", source)):
    try:
        act()
    except StorageError as error:
        print(error.trouble, error)
"""


def test_no_room_leaves_what_was_there(tmp_path: Path) -> None:
    source = Path("/dev/shm/cloc-test-source")  # another file system: the move is a copy
    if not source.parent.is_dir() or source.parent.stat().st_dev == tmp_path.stat().st_dev:
        source = tmp_path / "source"
    source.write_bytes(bytes(200_000))
    try:
        command = [sys.executable, "-c", PROGRAM, str(tmp_path / "data"), str(source)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    finally:
        moved = not source.exists()
        source.unlink(missing_ok=True)
    lines = done.stdout.splitlines()
    assert lines
    for line in lines:
        assert line.startswith(f"full {tmp_path}/data/a: File too large; free some space")
    if not moved:
        assert (tmp_path / "data/a").read_bytes() == b"old"
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["a"]
