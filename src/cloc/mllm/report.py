"""The report on adapters side by side: one page that needs no network, the same as Markdown and JSON.

    index.html     figures with intervals, answers on test pictures with their boxes, how each was made
    summary.md     the figures
    results.json   the same as data (`scores.compare`)
    examples/      a few of the pictures as files, and questions and answers as a table (`cloc.pages.examples`)

Answers and pictures come from the folders that tuning left, so that nothing is run again. All text is escaped.
No torch.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from cloc.data.storage import open_storage
from cloc.errors import DataError
from cloc.evaluation.summary import signed
from cloc.mllm import scores
from cloc.mllm.conversation import Task
from cloc.mllm.job import SEEDS
from cloc.mllm.judging import Prediction, read_predictions
from cloc.pages import environment
from cloc.pages.examples import Cell, Example, write_examples
from cloc.pages.pictures import COLORS, Mark, data_url, draw, fit

PAGE, SUMMARY, RESULTS = "index.html", "summary.md", "results.json"
PREDICTIONS, ABOUT, PICTURES = "predictions.jsonl", "adapter.json", "pictures"
_PICTURES_INDEX = "pictures.json"
_SIDE = 360  # long side of the pictures shown, pixels
_CARDS = 6  # questions shown of each task
_TRUTH, _ASKED = "#00a878", "#ffffff"
_GRADED = (Task.DESCRIBE, Task.GROUNDED_CAPTION, Task.GROUND_ALL)
_TITLES = {
    Task.DESCRIBE: "Describe the picture",
    Task.REFER: "Say what a box shows",
    Task.ATTRIBUTE: "Say how it looks",
    Task.RELATION: "Say where it lies",
    Task.COUNT: "Count",
    Task.GROUND: "Find what is named",
    Task.GROUND_ALL: "Find all of a kind",
    Task.ABSENT: "Find what is not there",
    Task.GROUNDED_CAPTION: "Describe, with boxes",
    Task.VERIFY: "Yes or no",
    Task.OTHER: "Other questions",
}


@dataclass(frozen=True)
class Said:
    """What a row answered to a question.

    Attributes:
        row, color: its name and its colour.
        text: the answer.
        value: what it counts; 1 is right, 0 wrong.
        graded: whether it counts for a part, as a caption or several boxes do.
    """

    row: str
    color: str
    text: str
    value: float
    graded: bool


@dataclass(frozen=True)
class Card:
    """A question with its picture, which is a data URL, and what all rows answered."""

    picture: str
    key: str
    question: str
    truth: str
    said: Sequence[Said]


def save_pictures(pictures: Mapping[str, Image.Image], folder: Path) -> None:
    """Keeps pictures for reports, beside the answers: by the key of the image."""
    place = folder / PICTURES
    place.mkdir(parents=True, exist_ok=True)
    names = {}
    for number, (key, image) in enumerate(pictures.items()):
        names[key] = f"{number:03d}.jpg"
        fit(image.convert("RGB"), side=_SIDE).save(place / names[key], quality=88)
    (place / _PICTURES_INDEX).write_text(json.dumps(names, ensure_ascii=False, indent=1) + "\n")


def _load_pictures(folder: Path) -> dict[str, Path]:
    index = folder / PICTURES / _PICTURES_INDEX
    if not index.is_file():
        return {}
    names: dict[str, str] = json.loads(index.read_text())
    return {key: folder / PICTURES / Path(name).name for key, name in names.items()}


def seeds_of(adapter: str | Path) -> list[Path]:
    """The folder of an adapter, and those of the same tuned with its further seeds, which lie in its `seeds`."""
    folder = Path(adapter)
    return [folder, *sorted((folder / SEEDS).glob("*"), key=lambda place: (len(place.name), place.name))]


def write_report(adapters: Mapping[str, str | Path], folder: str | Path, *, title: str) -> dict[str, Any]:
    """Compares adapters by what they answered, and writes the report.

    Args:
        adapters: folders that tuning left, by the name of their row. The first row is the baseline.
        folder: of the report.
        title: of the page.

    Returns:
        `scores.compare`.

    Raises:
        ConfigError: they were asked different questions.
        DataError: a folder holds no answers.
    """
    runs = {name: seeds_of(place) for name, place in adapters.items()}
    rows = [
        scores.Row(name, tuple(read_predictions(run / PREDICTIONS) for run in places)) for name, places in runs.items()
    ]
    comparison, folder = scores.compare(rows), Path(folder)
    about = {name: [_about(run) for run in places] for name, places in runs.items()}
    shown = _load_pictures(next(iter(runs.values()))[0])
    galleries = {_TITLES[task]: cards for task in Task if (cards := _cards(rows, task, shown))}
    page = _render(rows, comparison, about, galleries, title=title)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PAGE).write_text(page, encoding="utf-8")
    (folder / SUMMARY).write_text(markdown(comparison), encoding="utf-8")
    write_examples(open_storage(folder), _examples(galleries))
    (folder / RESULTS).write_text(json.dumps({**comparison, "about": about}, indent=1, sort_keys=True) + "\n")
    return comparison


def _about(folder: Path) -> dict[str, Any]:
    path = folder / ABOUT
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: no adapter here ({type(error).__name__}: {ABOUT})") from None
    return found


def _render(
    rows: Sequence[scores.Row],
    comparison: Mapping[str, Any],
    about: Mapping[str, Any],
    galleries: Mapping[str, Sequence[Card]],
    *,
    title: str,
) -> str:
    pages = environment("cloc.mllm")
    pages.filters["percent"] = lambda value: f"{100 * value:.1f}"
    pages.filters["signed"] = signed
    return pages.get_template("answers.html.j2").render(
        title=title,
        comparison=comparison,
        sentences=scores.sentences(comparison),
        images=len({(item.source, item.key) for item in rows[0].runs[0]}),
        questions=len(rows[0].runs[0]),
        colors={row.name: _color(place) for place, row in enumerate(rows)},
        galleries=galleries,
        about=about,
        truth_color=_TRUTH,
    )


def _examples(galleries: Mapping[str, Sequence[Card]]) -> Iterator[Example]:
    """A question of each task, then the next of each."""
    for turn in range(_CARDS):
        for title, cards in galleries.items():
            for card in cards[turn : turn + 1]:
                about = {"key": card.key, "task": title, "question": card.question, "truth": card.truth}
                rows = list[dict[str, Cell]]()
                for said in card.said:
                    rows.append({**about, "model": said.row, "answer": said.text, "counts": said.value})
                yield Example(card.picture, rows)


def _color(place: int) -> str:
    own = [color for color in COLORS if color != _TRUTH]
    return own[place % len(own)]


def _cards(rows: Sequence[scores.Row], task: Task, pictures: Mapping[str, Path]) -> list[Card]:
    """Questions of a task, one a picture as far as they go, right and wrong answers of the last row in turn."""
    candidate = rows[-1].runs[0]
    places = [
        place
        for place, item in enumerate(candidate)
        if item.task == task.value and not item.source and item.key in pictures
    ]
    first_of = {candidate[place].key: place for place in reversed(places)}
    fresh = sorted(first_of.values())
    ordered = [*fresh, *(place for place in places if place not in set(fresh))]
    kinds = [[place for place in ordered if candidate[place].correct is right] for right in (True, False)]
    turns = [place for pair in zip(*(_padded(kind, len(ordered)) for kind in kinds), strict=True) for place in pair]
    chosen = [place for place in turns if place is not None][:_CARDS]
    return [_card([row.runs[0][place] for row in rows], rows, pictures) for place in chosen]


def _padded(places: Sequence[int], length: int) -> list[int | None]:
    return [*places, *[None] * (length - len(places))]


def _card(items: Sequence[Prediction], rows: Sequence[scores.Row], pictures: Mapping[str, Path]) -> Card:
    first = items[0]
    with Image.open(pictures[first.key]) as opened:
        image = opened.convert("RGB")
    marks = [Mark(box, _ASKED, width=2, dashed=True) for box in first.asked]
    for place, item in enumerate(items):
        marks += [Mark(box, _color(place), width=2) for box in item.said]
    draw(image, [*marks, *(Mark(box, _TRUTH, width=4) for box in first.right)])
    said = [
        Said(row.name, _color(place), item.answer, item.value, graded=item.task in _GRADED)
        for place, (row, item) in enumerate(zip(rows, items, strict=True))
    ]
    return Card(data_url(image), first.key, first.question, first.truth, said)


def markdown(comparison: Mapping[str, Any]) -> str:
    """The figures as a Markdown table, and what they show."""
    names = [row["name"] for row in comparison["rows"]]
    lines = ["| | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    for entry in comparison["figures"]:
        cells = [_cell(entry, name) for name in names]
        source = f"{entry['source']}: " if entry["source"] else ""
        lines.append(f"| {source}{entry['label']} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "Percent, with 95 % intervals over images; bold where the paired difference from the first shows it.",
        "",
    ]
    lines += [f"- {sentence}" for sentence in scores.sentences(comparison)]
    return "\n".join(lines) + "\n"


def _cell(entry: Mapping[str, Any], name: str) -> str:
    score = entry["scores"][name]
    value, (low, high) = f"{100 * score['value']:.1f}", score["interval"]
    if entry["differences"].get(name, {}).get("better") == "a":
        value = f"**{value}**"
    return f"{value} ({100 * low:.1f}\N{EN DASH}{100 * high:.1f})"
