"""The report: one page that needs nothing, whatever the figures and texts, with a section for what there is."""

import html.parser
import json
import re

import numpy as np
import pytest
from PIL import Image

from cloc.config import parse
from cloc.data.storage import open_storage
from cloc.data.tables import read_table, write_table
from cloc.evaluation import charts, gallery, report
from tests.evaluation_data import CLOC, COMPUTE, PUBLIC, STEPS, make_metrics, make_result

VOID = {"meta", "img", "link", "br"}
HOSTILE = "<script>alert(1)</script><img src=http://evil.example/x onerror=alert(2)>'\"{{ 7 * 7 }}"


class Page(html.parser.HTMLParser):
    """What a browser would load and run, the ids of its sections, and whether tags close."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.ids, self.handlers, self.open = [], [], [], [], []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "poster", "action")]
        self.ids += [value for name, value in attrs if name == "id"]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def config(**evaluation):
    return parse({"evaluation": {"pictures": 4, **evaluation}}, source="test")


@pytest.fixture
def data(tmp_path, make_dataset):
    return make_dataset(tmp_path / "data", 10)


def render(data, metrics, **evaluation):
    split, result = make_result(data, metrics)
    return report.render(config(**evaluation), metrics, split, result, data=data)


def needs_nothing(text):
    page = Page(text)
    assert not page.handlers
    assert not {"script", "iframe", "object", "embed", "link", "base", "form"} & set(page.tags)
    assert all(link.startswith(("data:image/jpeg;base64,", "#")) for link in page.links)
    assert all(link[1:] in page.ids for link in page.links if link.startswith("#"))
    assert "url(" not in text
    assert "@import" not in text
    return page


def test_the_whole_page_needs_nothing(data):
    page = needs_nothing(render(data, make_metrics()))
    sections = ["headline", "protocol", "regions", "classes", "confusion", "images"]
    assert page.ids == [*sections, "named", "grounding", "retrieval", "provenance", "again"]
    assert page.tags.count("img") >= 12
    for text in ("+58.0", "3 of 10", "with templates", "all others", "evaluation.readers=[prompter]"):
        assert text in page.text, text


def test_better_is_said_where_the_paired_interval_says_so(data):
    metrics = make_metrics()
    assert 'class="gap gain">▲' in render(data, metrics)
    for split in metrics["splits"].values():
        for item in split["differences"]:
            item["better"] = ""
    text = render(data, metrics)
    body = text[text.index("<tbody>") : text.index("</tbody>")]
    assert 'class="gap open">≈' in body
    assert not re.search(r"▲|▼|class=\"best", body)


def _without(metrics, *names):
    for split in metrics["splits"].values():
        for name in names:
            split.pop(name, None)
            for row in split["rows"]:
                row.pop(name, None)
    return metrics


def _only(metrics, *models):
    metrics["models"] = {name: metrics["models"][name] for name in models}
    head = metrics["headline"]
    head["baselines"] = [name for name in head["baselines"] if name in models]
    head["candidate"] = head["candidate"] if head["candidate"] in models else ""
    metrics["classification"] = {}
    for split in metrics["splits"].values():
        split["rows"] = [row for row in split["rows"] if row["model"] in models]
        for name in ("retrieval", "grounding", "coherence"):
            split[name] = {model: found for model, found in split[name].items() if model in models}
        split["differences"] = [
            item for item in split["differences"] if {item["a"]["model"], item["b"]["model"]} <= {*models}
        ]
    return metrics


@pytest.mark.parametrize(
    ("change", "gone", "present"),
    [
        (lambda m: _only(m, CLOC), set(), "no plain CLIP in this comparison"),
        (lambda m: _only(m, STEPS), {"grounding"}, "no CLOC model in this comparison"),
        (lambda m: _only(m, STEPS, COMPUTE, PUBLIC), {"grounding"}, "no CLOC model in this comparison"),
        (lambda m: _without(m, "differences"), set(), "come without paired differences"),
        (lambda m: _without(m, "region_retrieval", "attributes", "probe", "coherence"), set(), "Region recognition"),
        (lambda m: {**m, "classification": {}}, set(), "Image-text retrieval"),
    ],
)
def test_what_is_absent_has_no_section(data, change, gone, present):
    page = needs_nothing(render(data, change(make_metrics())))
    assert present in page.text
    assert not gone & set(page.ids)
    assert {"headline", "regions", "classes", "named", "provenance", "again"} <= set(page.ids)


def test_a_split_without_captions_regions_or_pictures(data):
    metrics = make_metrics()
    for split in metrics["splits"].values():
        split.update(rows=[], retrieval={}, grounding={}, coherence={}, differences=[], leaked=None)
    metrics["classification"], metrics["headline"]["baselines"] = {}, []
    split, result = make_result(data, metrics)
    result.retrievals.clear()
    result.region_retrievals.clear()
    result.boxes.clear()
    page = needs_nothing(report.render(config(), metrics, split, result, data=data))
    assert page.ids == ["headline", "protocol", "provenance", "again"]
    assert "is not known" in page.text
    assert needs_nothing(render(data, make_metrics(), pictures=0)).tags.count("img") == 0


def test_hostile_texts_are_shown_and_do_nothing(data):
    storage = open_storage(data)
    for shard in ("00000", "00001", "00002"):
        for table in ("regions", "captions"):
            rows = [{**row, "text": HOSTILE} for row in read_table(storage, table, shard).to_pylist()]
            write_table(storage, table, shard, rows)
    metrics = json.loads(json.dumps(make_metrics()).replace(STEPS, json.dumps(HOSTILE)[1:-1]))
    metrics["splits"]["test"]["undecodable"][0]["reason"] = HOSTILE
    page = needs_nothing(render(data, metrics))
    assert page.text.count(HOSTILE) > 5


def test_the_folder_holds_the_same_as_tables_markdown_and_figures(data, tmp_path):
    metrics = make_metrics()
    split, result = make_result(data, metrics)
    storage = open_storage(str(tmp_path / "report"))
    written = report.write(config(), metrics, split, result, (), data=data, storage=storage)
    assert set(written) == {"report", "summary", "tables", "figures", "examples"}
    assert all((tmp_path / "report" / path).exists() for path in written.values())
    assert {path.name for path in (tmp_path / "report" / "figures").iterdir()} == {
        "headline.png",
        "per_class.png",
        "by_size.png",
        "confusion.png",
    }
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in (tmp_path / "report" / "figures").iterdir())
    assert (
        (tmp_path / "report" / "tables" / "attributes.csv")
        .read_text()
        .startswith("split,model,reader,3_attributes/accuracy,")
    )
    table = json.loads((tmp_path / "report" / "examples" / "examples.json").read_text())
    assert table["columns"] == ["picture", "key", "task", "truth", "model", "answer", "right"]
    assert {row[2].partition(" ")[0] for row in table["data"]} == {"name", "find"}
    assert {row[4] for row in table["data"]} >= {CLOC}
    for picture in {row[0] for row in table["data"]}:
        assert max(Image.open(tmp_path / "report" / "examples" / picture).size) <= 480
    markdown = (tmp_path / "report" / "summary.md").read_text()
    assert "### Region-text retrieval" in markdown
    assert "| region mAcc |" in markdown


def test_the_box_of_a_text_is_its_own(data):
    split, result = make_result(data, make_metrics())
    cards = gallery.region_text_cards(split, result, row=(CLOC, "prompter"), count=80)
    assert {card.right for card in cards} == {True, False}
    for card in cards:
        box = card.boxes[0]
        texts = {r.text for r in split.truth[card.key].regions if r.box == (box.x1, box.y1, box.x2, box.y2)}
        assert texts == {card.text if card.right else card.truth}
    assert gallery.region_text_cards(split, result, row=(CLOC, "telescope"), count=4) == []


def test_each_row_has_a_command(data):
    metrics = _only(make_metrics(), CLOC)
    metrics["models"][CLOC]["folder"] = "my models/cloc"
    text = Page(render(data, metrics)).text
    for reader in metrics["models"][CLOC]["readers"]:
        command = (
            f"--model 'CLOC=my models/cloc' -S 'evaluation.models={{}}' -S 'evaluation.readers=[{reader}]' --out again"
        )
        assert command in text


class TestConfusion:
    def test_rows_are_the_classes_with_most_errors(self):
        counts = np.array([[5, 1, 0, 0], [3, 1, 4, 0], [0, 0, 9, 0], [0, 0, 2, 8]])
        found = charts.confusion(counts, ["a", "b", "c", "d"], model="M", reader="crop")
        assert [row.name for row in found.rows] == ["b", "d", "a"]
        assert found.columns == ("b", "d", "a", "c", "all others")
        assert found.rows[0].taken == pytest.approx((1 / 8, 0, 3 / 8, 4 / 8, 0))
        assert [row.right for row in found.rows] == pytest.approx([1 / 8, 0.8, 5 / 6])
        assert all(row.taken[place] == row.right for place, row in enumerate(found.rows))

    def test_many_classes_leave_the_rest_to_all_others(self):
        rng = np.random.default_rng(0)
        found = charts.confusion(rng.integers(1, 9, (40, 40)), [str(n) for n in range(40)], model="M", reader="crop")
        assert len(found.rows) == charts.CONFUSED
        assert len(found.columns) == 15
        assert all(sum(row.taken) == pytest.approx(1) and row.taken[-1] > 0.3 for row in found.rows)

    def test_without_errors_there_is_none(self):
        assert charts.confusion(np.eye(3, dtype=int), ["a", "b", "c"], model="M", reader="crop") is None


@pytest.mark.parametrize(
    ("highest", "top", "last"),
    [(0.0, 0.02, "2"), (0.07, 0.08, "8"), (0.31, 0.4, "40"), (0.73, 0.8, "80"), (1, 1, "100")],
)
def test_axes_end_where_the_figures_do(highest, top, last):
    found, ticks = charts.axis(highest)
    assert found == pytest.approx(top)
    assert ticks[-1] == (pytest.approx(100), last)
    assert ticks[0] == (0, "0")
