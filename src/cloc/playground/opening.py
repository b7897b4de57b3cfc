"""From settings to an application: the models are loaded, the data is opened, and both are put away at the end."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from starlette.types import ASGIApp

from cloc.evaluation.cache import open_cache
from cloc.evaluation.models import load_models
from cloc.playground.app import make_app
from cloc.playground.collection import open_collection
from cloc.playground.engine import Engine
from cloc.playground.index import Indexer
from cloc.playground.meters import Meters
from cloc.playground.pictures import Pictures
from cloc.playground.routes import Service
from cloc.playground.settings import Settings

_CACHE_GIGABYTES = 20.0


@dataclass(frozen=True)
class Opened:
    """An application with its models loaded.

    Attributes:
        app: the ASGI application.
        indexer: of the data, not started; None without data.
    """

    app: ASGIApp
    indexer: Indexer | None


@contextmanager
def opened(settings: Settings) -> Iterator[Opened]:
    """Loads the models and makes the application; at the end the index stops and the models' thread ends.

    Raises:
        ConfigError: a model cannot be loaded.
        DataError: the data is none.
    """
    collection = open_collection(settings.data, limit=settings.limit) if settings.data else None
    models = load_models(settings.models, device=settings.device)
    meters = Meters()
    with (
        ThreadPoolExecutor(1, thread_name_prefix="playground-models") as pool,
        open_cache(settings.cache, gigabytes=_CACHE_GIGABYTES) as cache,
    ):
        engines = {model.name: Engine(model, pool, largest=settings.batch, meters=meters) for model in models}
        indexer = Indexer(collection, list(engines.values()), pool, cache) if collection else None
        service = Service(engines, Pictures(), indexer)
        try:
            yield Opened(make_app(service, meters=meters, names=settings.allowed_hosts), indexer)
        finally:
            if indexer:
                indexer.stop()
