"""Pictures of what an adapter answered: one self-contained HTML file. All texts are escaped: they come from the web."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
from PIL import Image

from cloc.boxes import Letterbox
from cloc.mllm.evaluation import Prediction, Scores
from cloc.mllm.instructions import Task
from cloc.mllm.stream import Picture
from cloc.pages.pictures import Mark, data_url, draw, fit

_SIDE = 320  # long side of the pictures shown, pixels
_TRUTH, _RIGHT, _WRONG = "#ffffff", "#22c55e", "#ef4444"

_PAGE = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title><style>
body{font:14px/1.4 system-ui,sans-serif;margin:2rem;max-width:90rem;color:#1f2937}
main{display:grid;grid-template-columns:repeat(auto-fill,minmax(20rem,1fr));gap:1.2rem}
article{border:1px solid #d1d5db;border-radius:6px;padding:.8rem}img{max-width:100%;display:block;margin:0 auto .6rem}
p{margin:.35rem 0}.q{color:#6b7280}.right{color:#15803d}.wrong{color:#b91c1c}
td,th{padding:.1rem .8rem .1rem 0;text-align:left}
</style></head><body><h1>{{ title }}</h1>
<table>{% for name, value in scores %}<tr><th>{{ name }}</th><td>{{ value }}</td></tr>{% endfor %}</table>
<p>White: the region. Green and red: right and wrong answers to "where is ...". Boxes in texts are bins (0 to 99) of the
square network input.</p>
<main>{% for card in cards %}<article><img alt="{{ card.key }}" src="{{ card.source }}">
{% for item in card.predictions %}<p><span class="q">{{ item.question }}</span><br>
<b class="{{ 'right' if item.correct else 'wrong' }}">{{ item.answer or '(nothing)' }}</b>
{% if not item.correct %} &nbsp;truth: {{ item.truth }}{% endif %}
{% if item.iou is not none %} &nbsp;IoU {{ '%.2f' | format(item.iou) }}{% endif %}</p>{% endfor %}
</article>{% endfor %}</main></body></html>
""")


@dataclass(frozen=True)
class _Card:
    key: str
    source: str
    predictions: list[Prediction]


def write_gallery(
    pictures: Sequence[Picture], predictions: Sequence[Prediction], scores: Scores, path: Path, *, title: str
) -> None:
    """Writes the page.

    Args:
        pictures: those to show.
        predictions: answers, at least those about the pictures.
        scores: over all answers, for the table at the top.
        path: of the HTML file.
        title: heading of the page.
    """
    cards = []
    for picture in pictures:
        own = [item for item in predictions if item.key == picture.key]
        cards.append(_Card(picture.key, _draw(picture, own), own))
    rows = [(name.replace("_", " "), _number(value)) for name, value in vars(scores).items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_PAGE.render(title=title, scores=rows, cards=cards), encoding="utf-8")


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.3f}"


def _draw(picture: Picture, predictions: Sequence[Prediction]) -> str:
    """The picture without its padding, with boxes, as a data URL."""
    frame: Letterbox = picture.frame
    width, height = frame.resized
    pixels = picture.pixels_SS3.numpy()[:height, :width]
    image = fit(Image.fromarray(pixels), side=_SIDE)
    found = [item for item in predictions if item.task == Task.GROUND.value]
    marks = [
        Mark(item.answered, _RIGHT if item.correct else _WRONG, width=2) for item in found if item.answered is not None
    ]
    draw(image, [*marks, *(Mark(item.box, _TRUTH, width=1) for item in predictions)])
    return data_url(image)
