"""Training from S3, against a real server over HTTP: the stream is that of a folder, resumed as well."""

from collections.abc import Iterator

import pytest

from cloc.data.dataset import Dataset
from cloc.data.loader import LoaderSettings, TrainLoader
from cloc.data.storage import open_storage
from cloc.errors import DataError
from tests.conftest import write_dataset
from tests.s3_server import Server, needs_server, serving_s3, use_endpoint
from tests.unit.test_loader import Step, assert_equal, lengths, taken

pytestmark = needs_server
SETTINGS = LoaderSettings(image_size=32, batch_size=4, max_regions=3, alt_text_share=0.5, seed=0, buffer=6)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving_s3(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture(autouse=True)
def environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    use_endpoint(monkeypatch, server.endpoint)


def loader(url: str, **changed: int) -> TrainLoader:
    settings = LoaderSettings(**{**vars(SETTINGS), **changed})
    return TrainLoader(Dataset.open(url), settings, tokenize=lengths)


def test_the_stream_is_that_of_a_folder_and_resumes(tmp_path) -> None:
    folder = write_dataset(tmp_path / "data", 30, shard_size=7)
    url = write_dataset("s3://bucket/data", 30, shard_size=7)
    expected: list[Step] = taken(loader(folder), 12)
    assert_equal(taken(loader(url), 12), expected)
    for number, workers in ((3, 0), (8, 1)):
        resumed = loader(url, workers=workers)
        resumed.load_state_dict(expected[number].state)
        assert_equal(taken(resumed, 2), expected[number + 1 : number + 3])


def test_a_shard_that_is_gone_is_named() -> None:
    url = write_dataset("s3://bucket/gone", 12, shard_size=4)
    open_storage(url).delete("images/00001.tar")
    with pytest.raises(DataError, match=r"s3://bucket/gone: there is no images/00001\.tar") as caught:
        taken(loader(url), 4)
    assert "\n" not in str(caught.value)
