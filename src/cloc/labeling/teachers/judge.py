"""How good teachers are, on images that they did not learn from, through the backends that will label with them."""

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from cloc.config.schema import CaptioningConfig, GenerationConfig, GroundingConfig, TeacherCaptionerConfig
from cloc.labeling.captioners import CAPTIONERS
from cloc.labeling.detectors import DETECTORS
from cloc.labeling.names import Names
from cloc.labeling.quality import LABELLED_F1, caption_counts, quality_counts, quality_metrics
from cloc.labeling.worker import Item

_BATCH, _HELD = 64, 512
_LEAST = 0.05  # boxes of a lower score are no candidates for any threshold
_THRESHOLDS = tuple(round(_LEAST + 0.01 * number, 2) for number in range(46))
NMS_IOU = 0.3  # of the judged detector's boxes: a small one is unsure where a thing ends


def judge_detector(folder: Path, items: Iterable[Item], names: Names) -> tuple[dict[str, float], int, str]:
    """The detector's quality when it is asked for the phrases of people's captions.

    Returns:
        Metrics at the threshold with the best labelled F1, which is among them; number of images; a line for people.
    """
    detector = DETECTORS["transformers"](
        GroundingConfig(model=str(folder), score_threshold=_LEAST, image_size=0, nms_iou=NMS_IOU, batch_size=_BATCH)
    )
    counts: dict[float, Counter[str]] = defaultdict(Counter)
    images = 0
    for part in _parts(items):
        found = _in_batches(detector, detector.detect, part)
        images += len(part)
        for item, regions in zip(part, found, strict=True):
            for threshold in _THRESHOLDS:
                kept = [region for region in regions if region.score > threshold]
                counts[threshold].update(quality_counts(kept, item.sample.regions, names=names))
    judged = {threshold: quality_metrics(each) for threshold, each in counts.items()}
    best = max(judged, key=lambda threshold: judged[threshold].get(LABELLED_F1, 0.0), default=_LEAST)
    metrics = {**judged.get(best, {}), "labels/best_score_threshold": best}
    message = (
        f"labelled precision {metrics.get('labels/labelled_precision', 0.0):.2f} and recall "
        f"{metrics.get('labels/labelled_recall', 0.0):.2f} at score_threshold {best:g}, nms_iou {NMS_IOU:g}"
    )
    return metrics, images, message


def judge_captioner(
    folder: Path, settings: TeacherCaptionerConfig, items: Iterable[Item], names: Names
) -> tuple[dict[str, float], int, str]:
    """How many of an image's classes the captioner names, beside how many the alt-text does.

    Returns:
        Metrics, number of images, a line for people.
    """
    captioner = CAPTIONERS["transformers"](
        CaptioningConfig(
            model=str(folder),
            alt_text_prompt=settings.alt_text_prompt,
            dtype="float32",
            generation=GenerationConfig(max_new_tokens=settings.context_length),
        )
    )
    counts: Counter[str] = Counter()
    images = 0
    for part in _parts(items):
        images += len(part)
        for item, said in zip(part, _in_batches(captioner, captioner.caption, part), strict=True):
            counts.update(caption_counts(said.texts, item.sample.regions, alt_texts=item.alt_texts, names=names))
    metrics = quality_metrics(counts)
    message = (
        f"names {metrics.get('labels/named_objects', 0.0):.0%} of the classes, the alt-text "
        f"{metrics.get('labels/named_objects_alt_text', 0.0):.0%}"
    )
    return metrics, images, message


def _parts(items: Iterable[Item]) -> Iterator[list[Item]]:
    iterator = iter(items)
    while part := list(islice(iterator, _HELD)):
        yield part


def _in_batches(backend: Any, label: Any, items: Sequence[Item]) -> list[Any]:
    """What a backend says of each item, in order, in batches of its buckets."""
    buckets: dict[Hashable, list[tuple[int, Any]]] = defaultdict(list)
    for place, item in enumerate(items):
        prepared = backend.prepare(item)
        buckets[backend.bucket(prepared)].append((place, prepared))
    said: dict[int, Any] = {}
    for members in buckets.values():
        for first in range(0, len(members), _BATCH):
            batch = members[first : first + _BATCH]
            said |= dict(zip((place for place, _ in batch), label([value for _, value in batch]), strict=True))
    return [said[place] for place in range(len(items))]
