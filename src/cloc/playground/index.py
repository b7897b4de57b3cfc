"""The index of a collection's regions by each model: made chunk by chunk behind the page, kept, and searched.

What is kept of a chunk are evaluation's features, under evaluation's key: a hash of images, boxes, weights, reader and
code. So a second start reads them, an interrupted one goes on where it was, and what changed is made again. Rows are
searched by faiss: all of them up to `_EXACT` rows, by a graph (HNSW), kept as well, beyond.
"""

import threading
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cloc.errors import ClocError, DataError
from cloc.evaluation.cache import FeatureCache
from cloc.evaluation.encoding import ShardFeatures, encode
from cloc.evaluation.features import feature_key
from cloc.evaluation.models import EvaluatedModel
from cloc.evaluation.tasks import Task
from cloc.evaluation.truth import ImageTruth, Region
from cloc.playground.collection import Chunk, Collection, Known, Sample
from cloc.playground.engine import Box, Engine, Floats
from cloc.stage import fingerprint

_BATCH = 8  # images a call: a request waits for one of these at most
_EXACT = 100_000  # rows up to which a search looks at each
_LINKS, _BREADTH = 32, 128  # of the graph: neighbours a row, candidates of a search
_REPEATS = 8  # rows that are asked for an image: the best region of each is shown
# Where nothing is known of an image: the whole, and windows of two sizes that overlap.
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)
_WINDOWS = ((0.6, 2), (0.4, 3))  # side, windows a row


def windows() -> tuple[Box, ...]:
    """The boxes that are read of an image without known boxes."""
    boxes = [WHOLE]
    for side, count in _WINDOWS:
        starts = [number * (1 - side) / (count - 1) for number in range(count)]
        boxes += [(x, y, min(1.0, x + side), min(1.0, y + side)) for y in starts for x in starts]
    return tuple(boxes)


@dataclass(frozen=True)
class Hit:
    """A region that was found.

    Attributes:
        sample: number of the image.
        box: the region.
        text: what the data says of it, "" for nothing.
        score: cosine with what was looked for.
    """

    sample: int
    box: Box
    text: str
    score: float


class RegionIndex:
    """Region embeddings of a model, and what they are of. Built by `Indexer`; whole before it is searched."""

    def __init__(self, places: Sequence[tuple[int, Box, str]], searcher: Any) -> None:
        self._places, self._searcher = places, searcher

    def __len__(self) -> int:
        return len(self._places)

    def search(self, query_E: Floats, count: int) -> list[Hit]:
        """The best region of each of the `count` best images, best first."""
        asked = min(len(self._places), count * _REPEATS)
        scores, rows = self._searcher.search(query_E[None], asked)
        hits: dict[int, Hit] = {}
        for score, row in zip(scores[0].tolist(), rows[0].tolist(), strict=True):
            if row >= 0:  # a graph may find fewer
                sample, box, text = self._places[row]
                hits.setdefault(sample, Hit(sample, box, text, score))
        return list(hits.values())[:count]


class Indexer:
    """Makes the samples' list, then the index of each model, in a thread; requests go in between its batches.

    Args:
        collection: the data.
        engines: the models.
        pool: what computes, shared with requests.
        cache: keeps chunks.
        exact: rows up to which a search looks at each.
    """

    def __init__(
        self,
        collection: Collection,
        engines: Sequence[Engine],
        pool: Executor,
        cache: FeatureCache,
        *,
        exact: int = _EXACT,
    ) -> None:
        self.collection = collection
        self.samples: list[Sample] = []
        self.indexes: dict[str, RegionIndex] = {}
        self.done = {engine.name: 0 for engine in engines}
        self.failure = ""
        self._engines, self._pool, self._cache, self._exact = engines, pool, cache, exact
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="playground-index", daemon=True)

    def start(self) -> None:
        """Begins."""
        self._thread.start()

    def stop(self) -> None:
        """Ends after the batch that is computed; what is done is kept."""
        self._stop.set()
        if self._thread.ident is not None:  # it has begun
            self._thread.join()

    def wait(self) -> None:
        """Waits for the end of it all."""
        self._thread.join()

    def _run(self) -> None:
        try:
            chunks = self._list()
            for engine in self._engines:
                self._index(engine, chunks)
        except _Stopped:
            pass
        except Exception as error:  # told on the page and in the terminal: naming and finding go on without an index
            kind = "" if isinstance(error, ClocError) else f"{type(error).__name__}: "
            self.failure = f"{kind}{error}".splitlines()[0]
            print(f"playground: the index cannot be made: {self.failure}", flush=True)

    def _list(self) -> list[tuple[Chunk, list[Sample]]]:
        chunks = []
        for chunk in self.collection.chunks:
            self._check()
            found = chunk.samples(self._cache)
            self.samples += found
            chunks.append((chunk, found))
        return chunks

    def _index(self, engine: Engine, chunks: Sequence[tuple[Chunk, list[Sample]]]) -> None:
        model = replace(engine.model, readers=(engine.dense_reader,))
        rows, places, keys, made, first = list[Floats](), list[tuple[int, Box, str]](), list[str](), 0, 0
        for chunk, samples in chunks:
            key, features, new = self._features(model, chunk, samples)
            if list(features.keys) != [sample.key for sample in samples]:
                raise DataError(f"{self.collection.name}: it changed while it was read; start the playground again")
            made += new
            keys.append(key)
            rows.append(features.regions[engine.dense_reader])
            for number, sample in enumerate(samples, start=first):
                texts = dict(zip(sample.known.boxes, sample.known.texts, strict=True))
                places += [(number, box, texts.get(box, "")) for box in _boxes(sample.known)]
            first += len(samples)
            self.done[engine.name] = first
        matrix = np.concatenate(rows) if rows else np.zeros((0, model.model.embed_dim), dtype=np.float32)
        self.indexes[engine.name] = RegionIndex(places, self._searcher(matrix, keys))
        kept = f", {len(chunks) - made} of {len(chunks)} chunks kept from before" if made < len(chunks) else ""
        print(f"playground: {engine.name}: {len(places):,} regions of {first:,} images indexed{kept}", flush=True)

    def _features(
        self, model: EvaluatedModel, chunk: Chunk, samples: Sequence[Sample]
    ) -> tuple[str, ShardFeatures, bool]:
        """A chunk's features, their key, and whether they were made now."""
        truth = {
            sample.key: ImageTruth(regions=tuple(Region(box, "", "") for box in _boxes(sample.known)))
            for sample in samples
        }
        task = Task(self.collection.name, chunk.images, len(samples), truth)
        key = feature_key(task, model)
        if (arrays := self._cache.get(key)) is not None:
            try:
                return key, ShardFeatures.from_arrays(arrays), False
            except (KeyError, ValueError, TypeError):
                print(f"playground: {model.name}: a chunk of the index is broken; it is made again", flush=True)
        (features,) = encode(task, [model], self._pool, batch_size=_BATCH, tell=self._check)
        self._cache.put(key, features.to_arrays())
        return key, features, True

    def _searcher(self, matrix_RE: Floats, keys: Sequence[str]) -> Any:
        import faiss

        if len(matrix_RE) <= self._exact:
            flat = faiss.IndexFlatIP(matrix_RE.shape[1])
            flat.add(np.ascontiguousarray(matrix_RE))
            return flat
        return _graph(matrix_RE, self._cache, fingerprint(["hnsw", faiss.__version__, _LINKS, *keys]))

    def _check(self, images: int = 0) -> None:
        if self._stop.is_set():
            raise _Stopped


class _Stopped(Exception):  # noqa: N818 (a way out, no fault)
    """The index is no longer wanted."""


def _graph(matrix_RE: Floats, cache: FeatureCache, key: str) -> Any:
    """HNSW over the rows, from the cache where it was made before."""
    import faiss

    kept = cache.get(key)
    graph: Any
    if kept is not None and "graph" in kept:
        graph = faiss.deserialize_index(np.array(kept["graph"]))
    else:
        graph = faiss.IndexHNSWFlat(matrix_RE.shape[1], _LINKS, faiss.METRIC_INNER_PRODUCT)
        graph.add(np.ascontiguousarray(matrix_RE))
        cache.put(key, {"graph": faiss.serialize_index(graph)})
    graph.hnsw.efSearch = _BREADTH
    return graph


def _boxes(known: Known) -> tuple[Box, ...]:
    """What is read of an image: the whole and its known boxes, else windows."""
    return tuple(dict.fromkeys((WHOLE, *known.boxes))) if known.boxes else windows()
