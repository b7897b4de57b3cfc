"""Features that are kept: what is computed again after a change, what a broken file does, and several processes."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cloc.data.storage import open_storage
from cloc.data.tables import read_table, write_table
from cloc.errors import ConfigError, DataError
from cloc.evaluation import encoding, features, workers
from cloc.evaluation.cache import FeatureCache, open_cache
from cloc.evaluation.features import Encoder, encode_split
from cloc.evaluation.models import load_models
from cloc.evaluation.truth import open_splits
from tests.evaluated_models import write_model, write_public
from tests.s3_server import needs_server, serving_s3, use_endpoint

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    return {
        "CLIP": write_model(root / "clip", "clip", seed=1),
        "CLOC": write_model(root / "cloc", "cloc", seed=2),
        "SigLIP": write_public(root / "siglip", family="siglip"),
    }


@pytest.fixture
def encoded(monkeypatch) -> list[tuple[tuple[str, ...], str]]:
    """What is encoded from now on: names of models, and the shard."""
    calls: list[tuple[tuple[str, ...], str]] = []
    plain = encoding.encode

    def watched(task, models, *args, **options):
        calls.append((tuple(model.name for model in models), task.images.shard.name))
        return plain(task, models, *args, **options)

    monkeypatch.setattr(workers, "encode", watched)
    monkeypatch.setattr(features, "encode", watched)
    return calls


def run(data: str, folders: dict[str, str], cache: Path, *, readers=(), workers=0, batch_size=3):
    """Features by model, arrays by name."""
    split, models = open_splits(data, ("test",))[0], load_models(folders, device="cpu", readers=readers)
    with open_cache(str(cache), gigabytes=1) as kept:
        found = encode_split(split, Encoder(models, kept, batch_size, workers), quarantine_limit=0.5)
        return {model.name: found.features(model) for model in models}


def same(a, b) -> bool:
    """Whether two models' features are equal, bit by bit."""
    names = ("images_NE", "texts_UE", "classes_CE", "coherence_Q3", "boxes")
    return all(
        np.array_equal(getattr(a, name), getattr(b, name), equal_nan=name == "coherence_Q3")
        for name in names
        if getattr(a, name) is not None
    ) and all(np.array_equal(rows, b.regions[reader]) for reader, rows in a.regions.items())


def test_each_shard_is_encoded_once_by_each_model(tmp_path, make_dataset, folders, encoded) -> None:
    data = make_dataset(tmp_path / "data", 8)
    two = {name: folders[name] for name in ("CLIP", "CLOC")}
    first = run(data, two, tmp_path / "cache")
    assert encoded == [(("CLIP", "CLOC"), "00000"), (("CLIP", "CLOC"), "00001")]
    encoded.clear()
    again = run(data, two, tmp_path / "cache")
    assert encoded == []
    assert all(same(first[name], again[name]) for name in two)
    run(data, folders, tmp_path / "cache")
    assert encoded == [(("SigLIP",), "00000"), (("SigLIP",), "00001")], "another model encodes itself alone"


def test_a_changed_table_changes_its_shard(tmp_path, make_dataset, folders, encoded) -> None:
    data = make_dataset(tmp_path / "data", 8)
    run(data, {"CLOC": folders["CLOC"]}, tmp_path / "cache")
    encoded.clear()
    storage = open_storage(data)
    rows = read_table(storage, "regions", "00001").to_pylist()
    rows[0]["x1"] += 0.05
    write_table(storage, "regions", "00001", rows)
    run(data, {"CLOC": folders["CLOC"]}, tmp_path / "cache")
    assert encoded == [(("CLOC",), "00001")]
    encoded.clear()
    run(data, {"CLOC": folders["CLOC"]}, tmp_path / "cache", readers=("crop",))
    assert [shard for _, shard in encoded] == ["00000", "00001"], "other readers are other features"


@pytest.mark.parametrize("body", [b"", b"nonsense", None])
def test_a_broken_file_is_made_again(tmp_path, make_dataset, folders, encoded, body) -> None:
    data, cache = make_dataset(tmp_path / "data", 4), tmp_path / "cache"
    first = run(data, {"CLOC": folders["CLOC"]}, cache)
    for path in (cache / "features").rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-7] if body is None else body)
    encoded.clear()
    again = run(data, {"CLOC": folders["CLOC"]}, cache)
    assert encoded == [(("CLOC",), "00000")]
    assert same(first["CLOC"], again["CLOC"])
    encoded.clear()
    run(data, {"CLOC": folders["CLOC"]}, cache)
    assert encoded == [], "the file is whole again"


def test_batches_and_processes_change_nothing(tmp_path, make_dataset, folders) -> None:
    data = make_dataset(tmp_path / "data", 8)
    here = run(data, folders, tmp_path / "one", batch_size=2)
    spread = run(data, folders, tmp_path / "two", batch_size=2, workers=2)
    for name in folders:
        assert same(here[name], spread[name])


def test_workers_load_the_version_that_a_registered_name_meant_at_the_start(tmp_path, make_dataset, folders) -> None:
    """An alias may move meanwhile, and there may be no registry where a worker asks."""
    split = open_splits(make_dataset(tmp_path / "data", 8), ("test",))[0]
    (model,) = load_models({"CLOC": folders["CLOC"]}, device="cpu")
    named = replace(model, folder="models:/cloc@champion")
    with open_cache(str(tmp_path / "cache"), gigabytes=1) as kept:
        found = encode_split(split, Encoder([named], kept, 3, workers=2), quarantine_limit=0.5).features(named)
    assert same(found, run(str(tmp_path / "data"), {"CLOC": folders["CLOC"]}, tmp_path / "other")["CLOC"])


def test_a_worker_that_fails_is_one_line(tmp_path, make_dataset, folders) -> None:
    data = make_dataset(tmp_path / "data", 8)
    shard = tmp_path / "data" / "images" / "00001.tar"
    shard.write_bytes(shard.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"00001\.tar") as failure:
        run(data, {"CLOC": folders["CLOC"]}, tmp_path / "cache", workers=2)
    assert "\n" not in str(failure.value)


SCRIPT = """
import signal
import sys
from cloc.evaluation.cache import open_cache
from cloc.evaluation.features import Encoder, encode_split
from cloc.evaluation.models import load_models
from cloc.evaluation.truth import open_splits
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
    split, models = open_splits(sys.argv[1], ("test",))[0], load_models({"CLOC": sys.argv[2]}, device="cpu")
    with open_cache(sys.argv[3], gigabytes=1) as kept:
        print("encoding", flush=True)
        encode_split(split, Encoder(models, kept, 3, 2), quarantine_limit=0.5)
    print("complete", flush=True)
"""


def test_no_process_is_left_after_ctrl_c(tmp_path, make_dataset, folders) -> None:
    data = make_dataset(tmp_path / "data", 240, shard_size=40)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), data, folders["CLOC"], str(tmp_path / "cache")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "encoding\n"
    end = time.monotonic() + 60
    while len(members(process.pid)) < 4 and process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)  # two workers and the tracker of resources
    assert process.poll() is None, "it ended before it could be stopped"
    os.kill(process.pid, signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode != 0
    end = time.monotonic() + 20
    while members(process.pid) and time.monotonic() < end:
        time.sleep(0.1)
    assert members(process.pid) == []


def members(session: int) -> list[int]:
    """Processes of a session that are not dead."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


class TestCache:
    def test_what_was_not_used_for_longest_goes_first(self, tmp_path: Path) -> None:
        size = 1 << 16
        for key in ("a", "b", "c"):
            with open_cache(str(tmp_path), gigabytes=1) as cache:
                cache.put(key * 64, {"x": np.zeros(size, dtype=np.uint8)})
                assert cache.get(key * 64) is not None
            time.sleep(0.01)
        with open_cache(str(tmp_path), gigabytes=2.5 * size / 2**30) as cache:
            assert cache.get("a" * 64) is not None  # the oldest, but used now
        assert cache.present(["a" * 64, "b" * 64, "c" * 64]) == [True, False, True]

    def test_what_a_killed_run_left_behind_counts(self, tmp_path: Path) -> None:
        FeatureCache(f"{tmp_path}/features").put("d" * 64, {"x": np.zeros(1 << 16, dtype=np.uint8)})
        (tmp_path / "features" / "index.json").write_text("{broken")
        with open_cache(str(tmp_path), gigabytes=1e-6) as cache:
            pass
        assert cache.present(["d" * 64]) == [False]

    @needs_server
    def test_a_prefix_on_s3(self, tmp_path: Path, monkeypatch) -> None:
        with serving_s3(tmp_path) as server:
            use_endpoint(monkeypatch, server.endpoint)
            with open_cache("s3://bucket/kept", gigabytes=1) as cache:
                cache.put("f" * 64, {"x": np.arange(5)})
                assert np.array_equal(cache.get("f" * 64)["x"], np.arange(5))
            with open_cache("s3://bucket/kept", gigabytes=1e-9) as cache:
                assert cache.present(["f" * 64, "a" * 64]) == [True, False]
            assert cache.present(["f" * 64]) == [False], "it did not fit"
        assert (tmp_path / "bucket" / "kept" / "features" / "index.json").exists()

    def test_a_place_that_cannot_be_written(self, tmp_path: Path, monkeypatch, capsys) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(DataError, match="file"), open_cache(str(tmp_path / "file"), gigabytes=1):
            pass
        monkeypatch.delenv("CLOC_CACHE")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        with open_cache("", gigabytes=1) as cache:  # nobody asked for this one: the run goes on without
            cache.put("a" * 64, {"x": np.ones(1)})
        assert "evaluation: features are not kept:" in capsys.readouterr().out

    def test_none_keeps_nothing(self, tmp_path: Path, monkeypatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        with open_cache("none", gigabytes=1) as cache:
            cache.put("e" * 64, {"x": np.ones(3)})
            assert np.array_equal(cache.get("e" * 64)["x"], np.ones(3))
        assert not Path(cache.url).exists()
        assert list(tmp_path.iterdir()) == []

    def test_the_place_is_the_variables_or_the_homes(self, tmp_path: Path, monkeypatch) -> None:
        monkeypatch.setenv("CLOC_CACHE", str(tmp_path / "named"))
        with open_cache("", gigabytes=1) as cache:
            assert cache.url == f"{tmp_path}/named/features"
        monkeypatch.delenv("CLOC_CACHE")
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setenv("HOME", str(tmp_path))
        with open_cache("", gigabytes=1) as cache:
            assert cache.url == f"{tmp_path}/.cache/cloc/features"


def test_readers_that_no_model_has(folders) -> None:
    clip = {"CLIP": folders["CLIP"]}
    with pytest.raises(ConfigError, match="no model of this comparison can read regions by 'prompter': CLIP has crop"):
        load_models(clip, device="cpu", readers=("crop", "prompter"))
    readers = [model.readers for model in load_models(folders, device="cpu", readers=("crop", "prompter"))]
    assert readers == [("crop",), ("crop", "prompter"), ("crop",)]


def test_a_public_checkpoint_without_its_weights(tmp_path, folders) -> None:
    (tmp_path / "config.json").write_text((Path(folders["SigLIP"]) / "config.json").read_text())
    with pytest.raises(ConfigError, match="cannot load the model"):
        load_models({"hub": str(tmp_path)}, device="cpu")


def test_few_images_are_encoded_here() -> None:
    cpu = load_cpu()
    assert workers.processes_for(0, images=100, tasks=10, device=cpu) == 1
    assert workers.processes_for(8, images=100, tasks=3, device=cpu) == 3
    assert workers.processes_for(1, images=10**6, tasks=10**3, device=cpu) == 1


def load_cpu():
    import torch

    return torch.device("cpu")


def test_training_that_is_not_known(folders) -> None:
    model = load_models({"SigLIP": folders["SigLIP"]}, device="cpu")[0]
    assert json.loads(json.dumps(model.training)) == {
        "objective": "clip",
        "origin": "public",
        "steps": None,
        "cpu_seconds": None,
    }
    assert model.readers == ("crop", "roi_align", "masked")
