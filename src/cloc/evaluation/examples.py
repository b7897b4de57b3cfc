"""Pictures of the report as files with their boxes drawn, and what the models said of them as a table: see
`cloc.pages.examples`."""

from collections.abc import Iterator, Mapping, Sequence

from PIL import Image

from cloc.evaluation.gallery import Box, GroundingCard, RegionCard
from cloc.pages.examples import MOST, Cell, Example, jpeg
from cloc.pages.pictures import Mark, draw, fit

_SIDE = 480  # long side, pixels: small images are made larger, so that tags can be read
_COLORS = {"right": "#00a878", "wrong": "#d5392b", "labelled": "#0090d4", "predicted": "#e69f00"}


def examples(
    images: Mapping[str, Image.Image],
    regions: Sequence[RegionCard],
    groundings: Sequence[GroundingCard],
    *,
    candidate: str,
    baseline: str = "",
) -> Iterator[Example]:
    """Boxes that were to be named (green where the candidate is right, red where it is wrong), then phrases that were
    to be found (blue the labelled box, orange the found one), half of the pictures each.

    Args:
        images: RGB images by key.
        regions, groundings: of the report, in its order.
        candidate: model whose answers the boxes are coloured by.
        baseline: model beside it; "" for none.
    """
    for card in regions[: MOST // 2 if groundings else MOST]:
        rows = list[Mapping[str, Cell]]()
        for name in card.names:
            rows.append(
                _row(card.key, f"name box {name.tag}", name.label, candidate, name.candidate, name.candidate_right)
            )
            if baseline:
                rows.append(
                    _row(card.key, f"name box {name.tag}", name.label, baseline, name.baseline, name.baseline_right)
                )
        yield Example(_drawn(images[card.key], card.boxes), rows)
    for found in groundings:
        said = f"IoU {found.iou:.2f}" if found.valid else "no box"
        row = _row(found.key, "find the phrase", found.phrase, candidate, said, found.right)
        yield Example(_drawn(images[found.key], found.boxes), [row])


def _row(key: str, task: str, truth: str, model: str, answer: str, right: bool) -> Mapping[str, Cell]:
    return {"key": key, "task": task, "truth": truth, "model": model, "answer": answer, "right": right}


def _drawn(image: Image.Image, boxes: Sequence[Box]) -> bytes:
    small = fit(image, side=_SIDE).copy()
    draw(small, [Mark((box.x1, box.y1, box.x2, box.y2), _COLORS[box.kind], box.tag) for box in boxes])
    return jpeg(small)
