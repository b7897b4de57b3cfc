"""What /metrics tells, in Prometheus' text format."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SIZES = (1, 2, 4, 8, 16, 32, 64)


class Meters:
    """The meters of one server, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = own = CollectorRegistry()
        ProcessCollector(registry=own)
        self.requests = Counter(
            "cloc_requests", "Requests that were answered.", ("method", "route", "status"), registry=own
        )
        self.seconds = Histogram(
            "cloc_request_seconds", "Time to the answer.", ("route",), buckets=_SECONDS, registry=own
        )
        self.running = Gauge("cloc_requests_running", "Requests that are being answered.", registry=own)
        self.batches = Histogram(
            "cloc_batch_size", "Items that a model was given at once.", ("model", "kind"), buckets=_SIZES, registry=own
        )
        self.waiting = Gauge("cloc_queue_items", "Items that wait for a model.", ("model", "kind"), registry=own)
        self._pictures = Gauge("cloc_pictures", "Pictures in memory.", registry=own)
        self._indexed = Gauge("cloc_index_images", "Images that a model's index holds.", ("model",), registry=own)

    def watch(self, *, pictures: Callable[[], int], indexed: dict[str, Callable[[], int]]) -> None:
        """Has numbers read when they are asked for: pictures in memory, and images in the index of each model."""
        self._pictures.set_function(pictures)
        for model, count in indexed.items():
            self._indexed.labels(model).set_function(count)

    def text(self) -> bytes:
        """All of them."""
        return generate_latest(self._registry)
