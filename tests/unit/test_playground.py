"""The playground's parts: the queue, what is kept in memory, what data is opened, and what the index finds."""

import asyncio
import io
import json
import socket
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import faiss
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from cloc import CLOC
from cloc.cli.playground import playground
from cloc.errors import ConfigError, DataError
from cloc.evaluation.cache import FeatureCache
from cloc.evaluation.models import load_models
from cloc.playground.batching import Batcher, Busy
from cloc.playground.collection import Collection, open_collection
from cloc.playground.engine import Engine
from cloc.playground.index import WHOLE, Indexer, windows
from cloc.playground.meters import Meters
from cloc.playground.pictures import Shelf, read_picture
from tests.evaluated_models import write_model, write_public


def jpeg(size: tuple[int, int] = (64, 48), color: str = "red") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, color).save(stream, "JPEG")
    return stream.getvalue()


# The queue


def test_queue_gathers_what_comes_together_and_answers_each() -> None:
    sizes = list[int]()

    async def ask(pool: ThreadPoolExecutor) -> list[int]:
        queue = Batcher(lambda items: [2 * item for item in items], pool, largest=8, limit=100, tell=sizes.append)
        return await asyncio.gather(*(queue.submit(number) for number in range(20)))

    with ThreadPoolExecutor(1) as pool:
        assert asyncio.run(ask(pool)) == [2 * number for number in range(20)]
    assert sizes == [8, 8, 4]


def test_queue_fills_while_a_batch_is_computed() -> None:
    sizes, go = list[int](), threading.Event()

    def work(items: Sequence[int]) -> list[int]:
        go.wait(10)
        return list(items)

    async def ask(pool: ThreadPoolExecutor) -> None:
        queue = Batcher(work, pool, largest=32, limit=100, gather=0, tell=sizes.append)
        first = asyncio.ensure_future(queue.submit(0))
        while not sizes:
            await asyncio.sleep(0)
        others = [asyncio.ensure_future(queue.submit(number)) for number in range(1, 11)]
        await asyncio.sleep(0)
        assert queue.waiting == 10
        go.set()
        assert await asyncio.gather(first, *others) == list(range(11))

    with ThreadPoolExecutor(1) as pool:
        asyncio.run(ask(pool))
    assert sizes == [1, 10]


def test_queue_refuses_what_does_not_fit_and_goes_on() -> None:
    async def ask(pool: ThreadPoolExecutor) -> None:
        queue = Batcher(list, pool, largest=2, limit=4)
        waiting = asyncio.ensure_future(queue.submit_all([1, 2, 3]))
        await asyncio.sleep(0)
        with pytest.raises(Busy):
            await queue.submit_all([4, 5])
        assert await waiting == [1, 2, 3]
        assert await queue.submit_all([4, 5]) == [4, 5]

    with ThreadPoolExecutor(1) as pool:
        asyncio.run(ask(pool))


def test_queue_hands_a_failure_to_all_who_wait_and_goes_on() -> None:
    def work(items: Sequence[int]) -> list[float]:
        return [1 / item for item in items]

    async def ask(pool: ThreadPoolExecutor) -> None:
        queue = Batcher(work, pool, largest=4, limit=10)
        found = await asyncio.gather(queue.submit(0), queue.submit(2), return_exceptions=True)
        assert [type(item) for item in found] == [ZeroDivisionError, ZeroDivisionError]
        assert await queue.submit(4) == 0.25

    with ThreadPoolExecutor(1) as pool:
        asyncio.run(ask(pool))


def test_queue_leaves_out_what_is_no_longer_wanted() -> None:
    seen = list[int]()

    def work(items: Sequence[int]) -> list[int]:
        seen.extend(items)
        return list(items)

    async def ask(pool: ThreadPoolExecutor) -> None:
        queue = Batcher(work, pool, largest=4, limit=10)
        tasks = [asyncio.ensure_future(queue.submit(number)) for number in range(3)]
        await asyncio.sleep(0)
        tasks[1].cancel()
        first, left_out, last = await asyncio.gather(*tasks, return_exceptions=True)
        assert (first, type(left_out), last) == (0, asyncio.CancelledError, 2)

    with ThreadPoolExecutor(1) as pool:
        asyncio.run(ask(pool))
    assert seen == [0, 2]


# Memory and pictures


def test_shelf_lets_go_of_what_was_not_used_for_longest() -> None:
    shelf: Shelf[str] = Shelf(100)
    for key in "abc":
        shelf.put(key, key.upper(), size=40 if key != "c" else 20)
    assert shelf.get("a") == "A"
    shelf.put("d", "D", size=40)
    assert [shelf.get(key) for key in "abcd"] == ["A", None, "C", "D"]
    shelf.put("large", "L", size=1000)
    assert len(shelf) == 1
    assert shelf.get("large") == "L"


def test_pictures_are_upright_reduced_and_named_by_content() -> None:
    stream = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (3000, 1000), "blue").save(stream, "JPEG", exif=exif)
    picture = read_picture(stream.getvalue())
    assert not isinstance(picture, str)
    assert (picture.width, picture.height) == (1000, 3000)
    assert picture.image.size == (683, 2048)
    again = read_picture(stream.getvalue())
    assert not isinstance(again, str)
    assert again.name == picture.name


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "empty file"),
        (b"<svg onload=alert(1)>", "SVG is not supported"),
        (jpeg()[:300], "cannot be decoded"),
        (b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" + b"\x7f\xff\xff\xff" * 2 + b"\x08\x02\0\0\0" + b"\0" * 40, ""),
    ],
)
def test_what_is_no_picture_is_said(body: bytes, reason: str) -> None:
    said = read_picture(body)
    assert isinstance(said, str)
    assert reason in said


# Data and index


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 40 pictures, two of them broken, and other files."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "more").mkdir()
    for number in range(40):
        place = folder / "more" if number % 2 else folder
        body = jpeg((64 + number, 48), "red" if number < 20 else "blue")
        (place / f"{number:03d}.jpg").write_bytes(body[:100] if number in (3, 6) else body)
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    (model,) = load_models({"CLOC": write_model(tmp_path_factory.mktemp("model") / "cloc", "cloc")}, device="cpu")
    return Engine(model, ThreadPoolExecutor(1), largest=8, meters=Meters())


def built(collection: Collection, engine: Engine, cache: Path, **more: int) -> Indexer:
    with ThreadPoolExecutor(1) as pool:
        indexer = Indexer(collection, [engine], pool, FeatureCache(str(cache)), **more)
        indexer.start()
        indexer.wait()
    assert not indexer.failure
    return indexer


def test_a_folder_is_listed_and_indexed_once(
    folder: Path, engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    collection = open_collection(str(folder), limit=1000)
    assert (collection.images, len(collection.chunks)) == (40, 2)
    first = built(collection, engine, tmp_path)
    told = capsys.readouterr().out
    assert "003.jpg: cannot be decoded" in told
    assert "532 regions of 38 images indexed\n" in told  # 14 windows an image
    assert len(first.samples) == first.done["CLOC"] == 38
    again = built(open_collection(str(folder), limit=1000), engine, tmp_path)
    assert "indexed, 2 of 2 chunks kept from before" in capsys.readouterr().out
    assert [sample.thumbnail for sample in again.samples] == [sample.thumbnail for sample in first.samples]
    changed = folder / "more" / "039.jpg"
    body = changed.read_bytes()
    try:
        changed.write_bytes(jpeg((90, 90), "green"))
        other = built(open_collection(str(folder), limit=1000), engine, tmp_path)
    finally:
        changed.write_bytes(body)
    assert "1 of 2 chunks kept from before" in capsys.readouterr().out
    assert (other.samples[-1].width, other.samples[-1].height) == (90, 90)


def test_a_broken_chunk_is_made_again(
    folder: Path, engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    collection = open_collection(str(folder), limit=20)
    built(collection, engine, tmp_path)
    for file in tmp_path.rglob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:50])
    assert len(built(collection, engine, tmp_path).samples) == 19
    assert "kept from before" not in capsys.readouterr().out


def test_an_index_that_is_stopped_goes_on_where_it_was(
    folder: Path, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    collection = open_collection(str(folder), limit=1000)
    with ThreadPoolExecutor(1) as pool:
        indexer = Indexer(collection, [engine], pool, FeatureCache(str(tmp_path)))
        put = FeatureCache.put

        def stop_after(cache: FeatureCache, key: str, arrays: dict[str, np.ndarray]) -> None:
            put(cache, key, arrays)
            if "images" in arrays:  # the first chunk of the index
                indexer._stop.set()

        monkeypatch.setattr(FeatureCache, "put", stop_after)
        indexer.start()
        indexer.wait()
        monkeypatch.undo()
    assert not indexer.failure
    assert not indexer.indexes
    capsys.readouterr()
    built(collection, engine, tmp_path)
    assert "1 of 2 chunks kept from before" in capsys.readouterr().out


def test_search_finds_the_region_itself(make_dataset: Callable[..., str], engine: Engine, tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data", 40, shard_size=36)
    indexer = built(open_collection(data, limit=38), engine, tmp_path / "cache")
    assert len(indexer.samples) == 38
    index = indexer.indexes["CLOC"]
    assert len(index) == 38 * 3  # the whole image and two labelled boxes
    sample = indexer.samples[37]
    assert (sample.key, len(sample.known.boxes)) == ("000037", 2)
    picture = read_picture(sample.read())
    assert not isinstance(picture, str)
    read = asyncio.run(engine.read(picture, [sample.known.boxes[1]], "prompter"))
    hits = index.search(read.embeds[0], 10)
    assert (hits[0].sample, hits[0].box, hits[0].text) == (37, sample.known.boxes[1], sample.known.texts[1])
    assert hits[0].score == pytest.approx(1, abs=1e-4)
    assert len({hit.sample for hit in hits}) == len(hits) == 10
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_data_that_cannot_be_read_is_said(
    make_dataset: Callable[..., str], engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_dataset(tmp_path / "data", 8, shard_size=8)
    (shard,) = Path(data).rglob("*.tar")
    shard.write_bytes(shard.read_bytes()[:3000])
    with ThreadPoolExecutor(1) as pool:
        indexer = Indexer(open_collection(data, limit=8), [engine], pool, FeatureCache(str(tmp_path / "cache")))
        indexer.start()
        indexer.wait()
    assert "images/00000.tar: truncated" in indexer.failure
    assert f"the index cannot be made: {indexer.failure}\n" in capsys.readouterr().out
    assert not indexer.indexes


def test_a_large_index_is_a_graph_that_is_kept(
    folder: Path, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection = open_collection(str(folder), limit=1000)
    exact = built(collection, engine, tmp_path).indexes["CLOC"]
    graph = built(collection, engine, tmp_path, exact=100).indexes["CLOC"]
    monkeypatch.setattr(faiss, "IndexHNSWFlat", None)  # the second time it is read
    kept = built(collection, engine, tmp_path, exact=100).indexes["CLOC"]
    (query_E,) = asyncio.run(engine.embed_texts(["a red box"]))
    best = exact.search(query_E, 5)
    assert [hit.score for hit in graph.search(query_E, 5)] == pytest.approx([hit.score for hit in best], abs=1e-4)
    assert [hit.score for hit in kept.search(query_E, 5)] == pytest.approx([hit.score for hit in best], abs=1e-4)


def test_a_model_that_was_trained_with_points_is_asked_by_them(tmp_path: Path) -> None:
    folder = Path(write_model(tmp_path / "cloc", "cloc"))
    config = json.loads((folder / "config.json").read_text())
    config["cloc"]["points"] = True
    (folder / "config.json").write_text(json.dumps(config))
    (model,) = load_models({"CLOC": str(folder)}, device="cpu")
    body, point, box = jpeg((90, 60)), (0.7, 0.4), (0.1, 0.2, 0.6, 0.9)
    picture = read_picture(body)
    assert not isinstance(picture, str)
    with ThreadPoolExecutor(1) as pool:
        engine = Engine(model, pool, largest=8, meters=Meters())
        assert engine.takes_points
        read = asyncio.run(engine.read(picture, [point, box], "prompter"))
    encoded = CLOC.from_pretrained(folder).encode(Image.open(io.BytesIO(body)))
    np.testing.assert_allclose(read.embeds[:1], encoded.embed(points=[point]), atol=1e-4)
    np.testing.assert_allclose(read.embeds[1:], encoded.embed([box]), atol=1e-4)


def test_a_public_siglip_reads_regions_and_shows_heat(tmp_path: Path) -> None:
    (model,) = load_models({"SigLIP": write_public(tmp_path / "siglip", family="siglip")}, device="cpu")
    picture = read_picture(jpeg((90, 60)))
    assert not isinstance(picture, str)

    async def ask(engine: Engine) -> None:
        for reader in model.readers:
            read = await engine.read(picture, [(0.1, 0.2, 0.6, 0.9), (0.7, 0.4)], reader)
            np.testing.assert_allclose(np.linalg.norm(read.embeds, axis=1), 1, atol=1e-5)
            assert engine.scale(reader) > 0
        found = await engine.find(picture, "a red box", engine.dense_reader)
        assert found.box is None
        assert np.isfinite(found.heat.values_YX).all()

    with ThreadPoolExecutor(1) as pool:
        engine = Engine(model, pool, largest=8, meters=Meters())
        assert (engine.reader, engine.dense_reader, engine.takes_points) == ("crop", "masked", False)
        asyncio.run(ask(engine))


def test_windows_cover_the_image() -> None:
    boxes = np.array(windows())
    assert tuple(boxes[0]) == WHOLE
    assert len({tuple(box) for box in boxes.round(6)}) == 14
    assert (boxes >= 0).all()
    assert (boxes <= 1).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    for side in (0.6, 0.4):
        mine = boxes[np.isclose(boxes[:, 2] - boxes[:, 0], side)]
        grid = np.stack(np.meshgrid(np.linspace(0, 1, 21), np.linspace(0, 1, 21)), axis=-1).reshape(-1, 1, 2)
        inside = (grid >= mine[None, :, :2] - 1e-9) & (grid <= mine[None, :, 2:] + 1e-9)
        assert inside.all(axis=2).any(axis=1).all()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: None, "neither a data set"),
        (lambda path: path.mkdir(), "no image in this folder"),
    ],
)
def test_data_that_is_none_is_said(make: Callable[[Path], None], reason: str, tmp_path: Path) -> None:
    make(tmp_path / "photos")
    with pytest.raises(DataError, match=reason):
        open_collection(str(tmp_path / "photos"), limit=10)


# The command


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "Missing option '--model'"),
        (["--model", "A=x", "--model", "A=y"], "two models are called 'A'"),
        (["--model", "=x"], "give NAME=MODEL"),
        ([item for number in range(5) for item in ("--model", f"m{number}=x")], "at most 4"),
        (["--model", "x", "--port", "0", "--data", "no/such"], "no/such: neither a data set"),
        (["--model", "no/such/model", "--port", "0"], "no/such/model"),
        (["--model", "x", "--host", "no.such.host.invalid"], "no address of this machine"),
    ],
)
def test_wrong_use_is_one_line(arguments: list[str], reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = CliRunner().invoke(playground, arguments)
    said = done.output if done.exit_code == 2 and not isinstance(done.exception, Exception) else str(done.exception)
    assert reason in said
    assert isinstance(done.exception, SystemExit | ConfigError | DataError)


def test_a_port_that_is_taken_is_said_before_anything_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = CliRunner().invoke(playground, ["--model", "no/such", "--port", str(port)])
    assert isinstance(done.exception, ConfigError)
    assert f"--port {port}: 127.0.0.1:{port} cannot be used (address already in use)" in str(done.exception)
    assert "no/such" not in str(done.exception)
