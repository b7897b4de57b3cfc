"""The shard worker: batches, threads, failures of a model, splitting of the work."""

import os
import threading
import time
from functools import partial

import pytest
from PIL import Image

from cloc.data.dataset import Dataset, write_manifest
from cloc.data.schema import Manifest
from cloc.data.selection import Selection
from cloc.data.shards import Sample, ShardWriter
from cloc.data.storage import open_storage
from cloc.data.tables import read_table, table_info
from cloc.errors import ClocError, ConfigError, DataError
from cloc.labeling.images import BadImageError
from cloc.labeling.jobs import PROCESS_VARIABLE, run_job
from cloc.labeling.worker import Job, Labels, Worker
from tests.labelers import Echo, Watching, job, png, quarantine, tables_of


def texts(out, shard: str = "00000") -> list[str]:
    return read_table(open_storage(out), "captions", shard).column("text").to_pylist()


def data_of_sizes(path, shards: list[list[tuple[int, int]]]) -> str:
    """A data set of PNG images of these widths and heights."""
    storage, made, number = open_storage(path), [], 0
    for position, sizes in enumerate(shards):
        writer = ShardWriter()
        for width, height in sizes:
            writer.add(Sample(key=f"{number:06d}", image=png(width, height), suffix="png", meta={}))
            number += 1
        made.append(writer.write(storage, f"{position:05d}"))
    write_manifest(storage, Manifest(shards=tuple(made)))
    return str(path)


class Batches(Echo):
    """Puts images of one size into one batch and remembers its batches."""

    def __init__(self):
        self.batches: list[list[str]] = []

    def bucket(self, prepared):
        return prepared[1]

    def label(self, batch):
        assert len({size for _, size in batch}) == 1
        self.batches.append([key for key, _ in batch])
        return super().label(batch)


def test_batches_are_of_one_padded_size_and_of_one_shard_and_rows_stay_in_order(tmp_path):
    wide, tall = (40, 20), (20, 40)
    data = data_of_sizes(tmp_path / "data", [[wide, tall, wide, wide, wide, tall, wide], [tall, wide]])
    labeler = Batches()
    run_job(job(data, tmp_path / "out"), lambda: labeler, processes=1, quarantine_limit=0.0)
    assert labeler.batches == [
        ["000000", "000002", "000003", "000004"],
        ["000001", "000005"],
        ["000006"],
        ["000007"],
        ["000008"],
    ]
    assert texts(tmp_path / "out") == [
        f"{number:06d} {size}" for number, size in enumerate([wide, tall, wide, wide, wide, tall, wide])
    ]


def test_images_of_many_sizes_do_not_pile_up(tmp_path):
    data = data_of_sizes(tmp_path / "data", [[(16 + number, 16) for number in range(100)]])
    held, most = 0, 0

    class Counting(Batches):
        def bucket(self, prepared):
            nonlocal held, most
            held += 1
            most = max(most, held)
            return super().bucket(prepared)

        def label(self, batch):
            nonlocal held
            held -= len(batch)
            return super().label(batch)

    run_job(job(data, tmp_path / "out"), Counting, processes=1, quarantine_limit=0.0)
    assert texts(tmp_path / "out") == [f"{number:06d} {(16 + number, 16)}" for number in range(100)]
    assert most < 70  # eight batches of four wait, two more and what the threads hold are read ahead


@pytest.mark.parametrize("in_flight", [1, 3])
def test_threads_and_batches_in_flight_change_nothing(tmp_path, make_dataset, in_flight):
    data = make_dataset(tmp_path / "data", 30, broken=[7])

    class Jittery(Echo):
        def prepare(self, item):
            time.sleep(0.002 * (int(item.key) % 3))
            return super().prepare(item)

        def label(self, batch):
            time.sleep(0.004 * (int(batch[0][0]) % 2))
            return super().label(batch)

    Jittery.in_flight = in_flight
    whole = job(data, tmp_path / "plain")
    run_job(whole, Echo, processes=1, quarantine_limit=0.1)
    threaded = Job(**{**vars(whole), "output": str(tmp_path / "threads"), "threads": 4})
    run_job(threaded, Jittery, processes=1, quarantine_limit=0.1)
    for table in ("captions", "quarantine"):
        assert tables_of(tmp_path / "plain", table) == tables_of(tmp_path / "threads", table)


def test_batches_in_flight_run_at_once(tmp_path, make_dataset):
    data = make_dataset(tmp_path / "data", 16)
    meeting = threading.Barrier(2, timeout=20)

    class Meeting(Echo):
        in_flight = 2

        def label(self, batch):
            meeting.wait()  # passes only when two batches are under way
            return super().label(batch)

    run_job(job(data, tmp_path / "out"), Meeting, processes=1, quarantine_limit=0.0)


def test_the_next_shard_is_read_while_one_is_labelled(tmp_path, make_dataset):
    data = make_dataset(tmp_path / "data", 8)
    last_is_prepared = threading.Event()

    class Watchful(Echo):
        def prepare(self, item):
            if item.key == "000007":
                last_is_prepared.set()
            return super().prepare(item)

        def label(self, batch):
            assert last_is_prepared.wait(timeout=20)
            return super().label(batch)

    run_job(job(data, tmp_path / "out"), Watchful, processes=1, quarantine_limit=0.0)


def test_an_image_that_the_model_cannot_take_is_quarantined_alone(tmp_path, make_dataset):
    data = make_dataset(tmp_path / "data", 12)

    class Choosy(Echo):
        def prepare(self, item):
            if item.key == "000001":
                raise BadImageError("too thin for the model")
            if item.key == "000002":
                raise ValueError("absolute aspect ratio must be smaller than 200")
            return super().prepare(item)

        def label(self, batch):
            if any(key == "000005" for key, _ in batch):
                raise RuntimeError("CUDA out of memory")
            return super().label(batch)

    result = run_job(job(data, tmp_path / "out"), Choosy, processes=1, quarantine_limit=0.5)
    assert result.totals.labelled == 9
    assert quarantine(tmp_path / "out") == [
        ("000001", "captioning", "too thin for the model"),
        ("000002", "captioning", "cannot be prepared: ValueError: absolute aspect ratio must be smaller than 200"),
    ]
    assert quarantine(tmp_path / "out", "00001") == [
        ("000005", "captioning", "the model fails at it: RuntimeError: CUDA out of memory")
    ]


def test_a_model_that_fails_at_everything_stops_the_stage_with_its_reason(tmp_path, make_dataset):
    class Broken(Echo):
        def label(self, batch):
            raise RuntimeError("no kernel image is available")

    with pytest.raises(DataError, match=r"4 of 12 images .*no kernel image is available"):
        run_job(job(make_dataset(tmp_path / "data", 12), tmp_path / "out"), Broken, processes=1, quarantine_limit=0.05)


def test_a_device_that_breaks_stops_the_stage_and_no_image_is_blamed(tmp_path, make_dataset):
    data = make_dataset(tmp_path / "data", 48, shard_size=48)

    class Breaking(Echo):
        def label(self, batch):
            if int(batch[-1][0]) >= 8:
                raise RuntimeError("CUDA error: device-side assert triggered")
            return super().label(batch)

    with pytest.raises(ClocError, match=r"fails at 32 images in a row \(RuntimeError: CUDA error.*run again to go on"):
        run_job(job(data, tmp_path / "out"), Breaking, processes=1, quarantine_limit=1.0)
    assert tables_of(tmp_path / "out", "captions") == tables_of(tmp_path / "out", "quarantine") == {}
    assert run_job(job(data, tmp_path / "out"), Echo, processes=1, quarantine_limit=0.0).totals.labelled == 48


@pytest.mark.parametrize("error", [ConfigError("the endpoint refuses the key"), TypeError("a fault of the program")])
def test_what_no_image_is_to_blame_for_stops_the_stage(tmp_path, make_dataset, error):
    class Failing(Echo):
        def label(self, batch):
            raise error

    with pytest.raises(type(error), match=str(error)):
        run_job(job(make_dataset(tmp_path / "data", 8), tmp_path / "out"), Failing, processes=1, quarantine_limit=1.0)
    assert tables_of(tmp_path / "out", "captions") == {}
    names = [thread.name for thread in threading.enumerate()]
    assert not any(name.startswith(("prepare", "label", "write", "prefetch")) for name in names)


def test_statistics_lie_in_the_table_and_are_those_of_a_rerun(tmp_path, make_dataset):
    data, out = make_dataset(tmp_path / "data", 8, broken=[2]), tmp_path / "out"

    class Counting(Echo):
        def label(self, batch):
            return [Labels(rows=labels.rows, counts={"seen": 1}) for labels in super().label(batch)]

    first = run_job(job(data, out), Counting, processes=1, quarantine_limit=0.2)
    again = run_job(job(data, out), Counting, processes=1, quarantine_limit=0.2)
    assert first.totals.more_counts == again.totals.more_counts == {"seen": 7}
    assert first.shards == again.shards
    assert [name for name, _ in again.shards] == ["00000", "00001"]
    info = table_info(open_storage(out), "captions", "00000")
    assert info is not None
    assert info.statistics["counts"] == {"seen": 3}
    assert (again.speed, sorted(first.speed)) == ({}, ["data_wait_share", "images_per_second"])


def test_the_time_that_a_model_waits_is_told_from_the_time_it_works(tmp_path, make_dataset):
    data = make_dataset(tmp_path / "data", 16)

    class Slow(Echo):
        def label(self, batch):
            time.sleep(0.05)
            return super().label(batch)

    watch = Watching()
    stats = dict(Worker(job(data, tmp_path / "out"), Slow(), watch=watch).label(Dataset.open(data).manifest.shards))
    assert (watch.images, watch.rows, len(stats)) == (16, 16, 4)
    assert watch.worked >= 4 * 0.05
    assert watch.waited < watch.worked


@pytest.mark.parametrize(
    ("shards", "worker", "chosen"),
    [
        ("", "", [0, 1, 2, 3, 4, 5, 6]),
        ("1:4", "", [1, 2, 3]),
        (":2", "", [0, 1]),
        ("5:", "", [5, 6]),
        ("3", "", [3]),
        ("5:100", "", [5, 6]),
        ("", "0/3", [0, 3, 6]),
        ("", "2/3", [2, 5]),
        ("1:6", "1/2", [2, 4]),
        ("6:", "1/2", []),
    ],
)
def test_selections(shards, worker, chosen):
    assert list(Selection.parse(shards=shards, worker=worker).of(range(7))) == chosen


@pytest.mark.parametrize(
    ("shards", "worker", "message"),
    [
        ("a:b", "", "--shards 'a:b'"),
        ("1-3", "", "--shards '1-3'"),
        ("", "3/3", "--worker '3/3'"),
        ("", "1", "--worker"),
    ],
)
def test_selections_that_are_none(shards, worker, message):
    with pytest.raises(ConfigError, match=message):
        Selection.parse(shards=shards, worker=worker)


def test_workers_share_the_shards_and_the_last_one_reports_on_all(tmp_path, make_dataset):
    data, out = make_dataset(tmp_path / "data", 20), tmp_path / "out"
    whole = job(data, out)
    counts = []
    for number in range(3):
        selection = Selection.parse(worker=f"{number}/3")
        result = run_job(whole, Echo, processes=1, quarantine_limit=0.0, selection=selection)
        counts.append((result.totals.images, result.totals.skipped, result.share))
    assert counts == [
        (8, 0, " (in 2 of 5 shards)"),
        (8, 0, " (in 2 of 5 shards)"),
        (4, 0, " (in 1 of 5 shards)"),
    ]

    def never():
        raise AssertionError("all is done")

    last = run_job(whole, never, processes=1, quarantine_limit=0.0)
    assert (last.totals.images, last.totals.skipped, last.share) == (20, 20, "")


def test_two_workers_on_the_same_shards_do_no_harm(tmp_path, make_dataset):
    data = make_dataset(tmp_path / "data", 12, broken=[4])

    class Slow(Echo):
        def label(self, batch):
            time.sleep(0.02)
            return super().label(batch)

    run_job(job(data, tmp_path / "one"), Slow, processes=1, quarantine_limit=0.2)
    both = [
        threading.Thread(target=partial(run_job, job(data, tmp_path / "two"), Slow, processes=1, quarantine_limit=0.2))
        for _ in range(2)
    ]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join(timeout=60)
    for table in ("captions", "quarantine"):
        assert tables_of(tmp_path / "one", table) == tables_of(tmp_path / "two", table)
    assert not list((tmp_path / "two").rglob(".tmp-*"))


class Numbered(Echo):
    """Says which process labels, and dies when it is told to."""

    def label(self, batch):
        if any(key == os.environ.get("CLOC_TEST_DIE") for key, _ in batch):
            os._exit(9)
        return [
            Labels(rows=[{"text": os.environ.get(PROCESS_VARIABLE, "0"), "kind": "generated", "model": "n"}])
            for _ in batch
        ]


def test_processes_are_numbered(tmp_path, make_dataset):
    data, out = make_dataset(tmp_path / "data", 24), tmp_path / "out"
    result = run_job(job(data, out), Numbered, processes=2, quarantine_limit=0.0)
    assert result.totals.labelled == 24
    assert {text for shard in range(6) for text in texts(out, f"{shard:05d}")} <= {"0", "1"}


def test_a_process_that_dies_is_one_clear_line_and_the_rest_goes_on_later(tmp_path, make_dataset, monkeypatch):
    data, out = make_dataset(tmp_path / "data", 16), tmp_path / "out"
    monkeypatch.setenv("CLOC_TEST_DIE", "000009")
    with pytest.raises(ClocError, match=r"captioning: a labelling process died .*run again to go on"):
        run_job(job(data, out), Numbered, processes=2, quarantine_limit=0.0)
    assert "00002.parquet" not in tables_of(out, "captions")
    monkeypatch.delenv("CLOC_TEST_DIE")
    assert run_job(job(data, out), Numbered, processes=2, quarantine_limit=0.0).totals.labelled == 16


def test_decoded_images_are_upright_rgb(tmp_path):
    data = data_of_sizes(tmp_path / "data", [[(20, 30)]])
    seen = []

    class Looking(Echo):
        def prepare(self, item):
            seen.append((item.image.mode, item.image.size, isinstance(item.image, Image.Image)))
            return super().prepare(item)

    run_job(job(data, tmp_path / "out"), Looking, processes=1, quarantine_limit=0.0)
    assert seen == [("RGB", (20, 30), True)]
