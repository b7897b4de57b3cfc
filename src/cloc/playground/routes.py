"""The API: pictures, samples of the data, naming, finding, searching, embedding.

A handler checks what is asked and leaves the work to an engine's queues. /docs lists all of it, with examples.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, HTTPException, Path, Query, Request, Response

from cloc import __version__
from cloc.evaluation import heatmap
from cloc.evaluation.models import Reader
from cloc.pages.pictures import data_url, fit
from cloc.playground import limits, schemas
from cloc.playground.collection import Sample
from cloc.playground.engine import Engine, Floats
from cloc.playground.guard import UPLOAD
from cloc.playground.index import Indexer, RegionIndex
from cloc.playground.pictures import Picture, Pictures, as_jpeg

_SHOWN = 1280  # pixels, long side of a picture in the page
_HEAT = 800  # of a heat map
_KEEP = {"cache-control": "private, max-age=86400, immutable"}  # a picture's name is its content's
_REVALIDATE = {"cache-control": "no-cache"}
_FAILS: Mapping[int | str, dict[str, Any]] = {
    status: {"model": schemas.Failure, "description": reason}
    for status, reason in {
        404: "There is no such model, picture or sample.",
        413: "The body is too large.",
        422: "The body is not as the schema says, or a file is no usable picture.",
        503: "Too much waits; come again after the seconds of Retry-After.",
    }.items()
}

SampleNumber = Annotated[int, Path(ge=0)]


@dataclass(frozen=True)
class Service:
    """What answers.

    Attributes:
        engines: models by name, in order.
        pictures: what clients sent.
        indexer: the data; None without.
    """

    engines: Mapping[str, Engine]
    pictures: Pictures
    indexer: Indexer | None

    def engine(self, name: str) -> Engine:
        """A model. Raises HTTPException when there is none."""
        if name not in self.engines:
            raise HTTPException(404, f"there is no model {name!r}; there are {', '.join(self.engines)}")
        return self.engines[name]

    def picture(self, name: str) -> Picture:
        """A picture. Raises HTTPException when it is not here."""
        found = self.pictures.get(name)
        if found is None:
            raise HTTPException(404, "this picture is not or no longer in memory; send it again")
        return found

    def data(self) -> Indexer:
        """The data. Raises HTTPException when there is none."""
        if self.indexer is None:
            raise HTTPException(404, "this playground was started without --data")
        return self.indexer

    def index(self, model: str) -> RegionIndex:
        """A model's index. Raises HTTPException when it is not whole."""
        indexer = self.data()
        if model not in indexer.indexes:
            reason = indexer.failure or f"{indexer.done[model]} of {indexer.collection.images} images are indexed"
            raise HTTPException(503, f"the index of {model} is not there: {reason}", {"retry-after": "5"})
        return indexer.indexes[model]

    def sample(self, number: int) -> Sample:
        """A sample of the data. Raises HTTPException when there is none."""
        samples = self.data().samples
        if number >= len(samples):
            raise HTTPException(404, f"there is no sample {number}; there are {len(samples)}")
        return samples[number]


def reader_of(engine: Engine, asked: str | None, *, default: Reader) -> Reader:
    """The reader that a request asks for. Raises HTTPException when the model has no such one."""
    if asked is None:
        return default
    found = next((reader for reader in engine.model.readers if reader == asked), None)
    if found is None:
        raise HTTPException(
            422, f"{engine.name} cannot read regions by {asked!r}; it can by {', '.join(engine.model.readers)}"
        )
    return found


def make_router(service: Service) -> APIRouter:
    """The routes over a service."""
    router = APIRouter(responses=dict(_FAILS))

    @router.get("/api/state", tags=["state"], summary="Models, data, and how far the index is")
    async def state() -> schemas.State:
        return _state(service)

    @router.post(
        UPLOAD,
        tags=["pictures"],
        summary="Send a picture: the file's bytes (jpg, png or webp) as the body",
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
            }
        },
    )
    async def upload(request: Request) -> schemas.ImageAnswer:
        return await _added(service, await request.body(), "the file")

    @router.get(
        "/api/images/{image}", tags=["pictures"], summary="A picture as the page shows it", response_class=Response
    )
    async def image(image: schemas.ImageName) -> Response:
        shown = await asyncio.to_thread(as_jpeg, service.picture(image).image, side=_SHOWN)
        return Response(shown, media_type="image/jpeg", headers=_KEEP)

    @router.get("/api/samples", tags=["data"], summary="Images of the data")
    async def samples(
        first: Annotated[int, Query(ge=0)] = 0, count: Annotated[int, Query(ge=1, le=limits.SAMPLES)] = 24
    ) -> schemas.SamplesAnswer:
        found = service.data().samples
        listed = [
            schemas.Sample(
                sample=number, key=item.key, width=item.width, height=item.height, caption=item.known.caption
            )
            for number, item in enumerate(found[first : first + count], start=first)
        ]
        return schemas.SamplesAnswer(total=len(found), samples=listed)

    @router.get("/api/samples/{sample}/thumbnail", tags=["data"], summary="A small picture", response_class=Response)
    async def thumbnail(sample: SampleNumber) -> Response:
        return Response(service.sample(sample).thumbnail, media_type="image/jpeg", headers=_REVALIDATE)

    @router.post("/api/samples/{sample}", tags=["data"], summary="Take a sample as the picture of later requests")
    async def pick(sample: SampleNumber) -> schemas.ImageAnswer:
        found = service.sample(sample)
        return await _added(service, await asyncio.to_thread(found.read), found.key)

    @router.post("/api/classify", tags=["models"], summary="Rank labels for boxes and points")
    async def classify(asked: schemas.ClassifyRequest) -> schemas.ClassifyAnswer:
        engine, picture = service.engine(asked.model), service.picture(asked.image)
        reader = reader_of(engine, asked.reader, default=engine.reader)
        texts_TE, read = await asyncio.gather(
            engine.embed_texts(asked.labels), engine.read(picture, [item.place for item in asked.regions], reader)
        )
        cosines_RT = read.embeds @ texts_TE.T
        ranked = [
            schemas.RankedRegion(box=box, ranking=_ranking(asked.labels, row, scale=engine.scale(reader)))
            for box, row in zip(read.boxes, cosines_RT, strict=True)
        ]
        return schemas.ClassifyAnswer(model=engine.name, reader=reader, regions=ranked)

    @router.post("/api/embed", tags=["models"], summary="Embeddings of boxes and points")
    async def embed(asked: schemas.EmbedRequest) -> schemas.EmbedAnswer:
        engine, picture = service.engine(asked.model), service.picture(asked.image)
        reader = reader_of(engine, asked.reader, default=engine.reader)
        read = await engine.read(picture, [item.place for item in asked.regions], reader)
        return schemas.EmbedAnswer(model=engine.name, reader=reader, embeddings=read.embeds.tolist())

    @router.post("/api/find", tags=["models"], summary="Find what a phrase describes: its box and its heat map")
    async def find(asked: schemas.FindRequest) -> schemas.FindAnswer:
        engine, picture = service.engine(asked.model), service.picture(asked.image)
        reader = reader_of(engine, asked.reader, default=engine.dense_reader)
        found = await engine.find(picture, asked.phrase, reader)
        painted = await asyncio.to_thread(_painted, picture, found.heat)
        values = found.heat.values_YX
        return schemas.FindAnswer(
            model=engine.name,
            reader=reader,
            box=found.box,
            peak=found.heat.peak,
            low=float(values.min()),
            high=float(values.max()),
            picture=painted,
        )

    @router.post("/api/search", tags=["data"], summary="Search the data by a text or by a region")
    async def search(asked: schemas.SearchRequest) -> schemas.SearchAnswer:
        engine = service.engine(asked.model)
        index = service.index(engine.name)
        if asked.text is not None:
            query_E = (await engine.embed_texts([asked.text]))[0]
        else:
            assert asked.image is not None
            assert asked.region is not None
            read = await engine.read(service.picture(asked.image), [asked.region.place], engine.dense_reader)
            query_E = read.embeds[0]
        hits = await asyncio.to_thread(index.search, query_E, asked.count)
        results = [schemas.Hit(sample=hit.sample, box=hit.box, text=hit.text, score=hit.score) for hit in hits]
        return schemas.SearchAnswer(model=engine.name, results=results)

    return router


async def _added(service: Service, body: bytes, name: str) -> schemas.ImageAnswer:
    found = await service.pictures.add(body)
    if isinstance(found, str):
        raise HTTPException(422, f"{name}: {found}")
    return schemas.ImageAnswer(image=found.name, width=found.width, height=found.height)


def _ranking(labels: list[str], cosines_T: Floats, *, scale: float) -> list[schemas.Label]:
    logits_T = scale * cosines_T.astype(np.float64)
    powers_T = np.exp(logits_T - logits_T.max())
    scores_T = powers_T / powers_T.sum()
    return [
        schemas.Label(label=labels[place], score=float(scores_T[place]), cosine=float(cosines_T[place]))
        for place in np.argsort(-cosines_T, kind="stable").tolist()
    ]


def _painted(picture: Picture, heat: heatmap.Heat) -> str:
    return data_url(heatmap.paint(fit(picture.image, side=_HEAT), heat))


def _state(service: Service) -> schemas.State:
    indexer = service.indexer
    models = [
        schemas.ModelState(
            name=engine.name,
            source=engine.model.folder,
            readers=list(engine.model.readers),
            reader=engine.reader,
            dense_reader=engine.dense_reader,
            grounds=engine.model.grounds,
            points=engine.takes_points,
            indexed=indexer.done[engine.name] if indexer else 0,
            searchable=bool(indexer and engine.name in indexer.indexes),
        )
        for engine in service.engines.values()
    ]
    data = None
    if indexer:
        taken = indexer.collection
        data = schemas.DataState(name=taken.name, images=taken.images, total=taken.total, failure=indexer.failure)
    return schemas.State(version=__version__, models=models, data=data)
