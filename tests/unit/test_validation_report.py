"""What a validation shows: Data Docs, the page, its pictures, the console; and that docs/validation.md is true."""

import base64
import io
import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from rich.console import Console

from cloc.config import Config
from cloc.config.schema import ValidationConfig
from cloc.data.shards import Sample
from cloc.pages.charts import Histogram, chart

pytest.importorskip("great_expectations")

from cloc.validation.checks import RowCheck
from cloc.validation.console import print_verdict
from cloc.validation.docs import build_docs
from cloc.validation.drift import Reference
from cloc.validation.frames import ShardFrames
from cloc.validation.gallery import RandomSamples, Shown, _choose
from cloc.validation.pictures import Picture, flaw, make_picture
from cloc.validation.report import Report, Source
from cloc.validation.results import DATA_SET, CheckResult, Example
from cloc.validation.suites import suites
from cloc.validation.summary import Summary

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> $x ${y} {{ z }} \u202e"
RED = (229, 72, 77)
DOC = Path(__file__).parents[2] / "docs" / "validation.md"


def result(id: str = "regions/text_set", **values: Any) -> CheckResult:
    table = id.partition("/")[0]
    fields = {"name": f"Rule of {id}", "observed": "12 of 240 rows", "limit": "at most 0.1%", "severity": 0.05}
    return CheckResult(
        **{"id": id, "table": DATA_SET if table in ("set", "drift") else table, "passed": False, **fields, **values}
    )


def example(key: str = "im1", *, shard: str = "00000", row: int = 0, value: str = "x") -> Example:
    return Example(shard=shard, key=key, value=value, row=row)


def report(*results: CheckResult, **values: Any) -> Report:
    summary = Summary(images=747, captions=3737, regions=6787, captioned=747, with_regions=740, shards=2)
    source = Source(data="/data/a b", captions="/c", regions="/r", settings="validation: {}\n")
    return Report(source=source, results=results, summary=summary, **values)


# Data Docs


def all_results(*, bad: int) -> list[CheckResult]:
    found = []
    for check in suites(Config()).all:
        common = {"name": check.name, "hint": check.hint + HOSTILE, "level": check.level, "passed": not bad}
        if isinstance(check, RowCheck):
            examples = (example(HOSTILE, value=HOSTILE),) if bad else ()
            found.append(result(check.id, elements=240, unexpected=bad, examples=examples, **common))
        else:
            examples = (example("im77", shard="test", value="im3"),) if bad else ()
            found.append(result(check.id, observed=f"12.3% {HOSTILE}", examples=examples, **common))
    return found


class Complaints(logging.Handler):
    """What Great Expectations says of results that it cannot show: it goes on without them."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(record.getMessage())


@pytest.fixture(scope="module")
def docs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, complaints = tmp_path_factory.mktemp("docs"), Complaints()
    logging.getLogger("great_expectations").addHandler(complaints)
    for bad in (3, 12):  # the second in place of the first
        build_docs(folder, checks=suites(Config()).all, results=all_results(bad=bad))
    logging.getLogger("great_expectations").removeHandler(complaints)
    assert complaints.found == []
    return folder


def test_docs_hold_every_suite_with_its_sums(docs: Path) -> None:
    assert {path.name for path in docs.iterdir()} == {"data_docs", "data_docs.html"}
    index = (docs / "data_docs" / "index.html").read_text()
    places = re.findall(r'href="(validations/[^"]+)"', index)
    assert [place.split("/")[1] for place in places] == ["images", "captions", "regions", "data_set"]
    text = "".join((docs / "data_docs" / place).read_text() for place in places)
    for check in suites(Config()).all:
        assert check.name.replace("'", "&#x27;") in text
    assert text.count("12 unexpected values found. 5% of 240 total rows.") == len(suites(Config()).rows)
    assert "12.3%" in text
    assert "test / &quot;im77&quot;: im3" in text
    for link in re.findall(r'href="(\.[^"]+)"', text):
        assert (docs / "data_docs" / places[0]).parent.joinpath(link).exists()


def test_docs_need_no_network_and_run_nothing(docs: Path) -> None:
    pages = list(docs.rglob("*.html"))
    assert len(pages) == 2 + 2 * 4
    for page in pages:
        text = page.read_text()
        assert "default-src 'none'" in text
        assert not re.search(r"(?i)<script|<link|<img|\son\w+=\"|https?://", text)
        assert "$x" in text or "index" in page.name or "docs" in page.name


def test_docs_in_one_file_hold_the_pages(docs: Path) -> None:
    text = (docs / "data_docs.html").read_text()
    assert text.count("<iframe") == 4
    assert text.count('sandbox srcdoc="') == 4
    assert len(re.findall(r"&lt;/html&gt;", text)) == 4


# The console


def printed(shown: Report, *, width: int = 100, colour: bool = False) -> str:
    stream = io.StringIO()
    print_verdict(shown, Path("/out"), console=Console(file=stream, width=width, force_terminal=colour))
    return stream.getvalue()


def test_the_verdict_fits_on_one_screen() -> None:
    broken = [
        result(f"regions/rule{number}", severity=number / 10, hint="Do this. " * 40, examples=(example("k\x1b[31m"),))
        for number in range(9)
    ]
    text = printed(report(*broken, result("set/x", level="warn", severity=1.0), result(passed=True)))
    lines = text.splitlines()
    assert len(lines) <= 24
    assert all(len(line) <= 100 for line in lines)
    assert lines[0] == "validation failed  11 checks: 1 passed, 1 warned, 9 failed"
    assert "747 images, 3,737 captions, 6,787 regions" in lines[1]
    assert [line.split()[1] for line in lines if line.startswith("FAIL")] == [
        f"regions/rule{number}" for number in (8, 7, 6, 5, 4)
    ]
    assert "12 of 240 rows; limit: at most 0.1%" in text
    assert r"e.g. 00000/k\x1b[31m" in text
    assert lines[-2:] == ["report     /out/index.html (5 more findings)", "data docs  /out/data_docs.html"]


def test_colour_is_for_terminals() -> None:
    assert "\x1b[" not in printed(report(result()))
    assert "\x1b[" in printed(report(result()), colour=True)


def test_markup_of_the_console_is_text() -> None:
    assert "[red]no[/red]" in printed(report(result(name="[red]no[/red]")))


# Pictures


@pytest.mark.parametrize(
    ("box", "told"),
    [
        ((0.1, 0.1, 0.9, 0.9), ""),
        ((0, 0, 1 + 1e-6, 1), ""),
        ((0.5, 0.1, 1.3, 0.9), "reaches out: right"),
        ((-0.2, 0.1, 0.5, 1.2), "reaches out: left, bottom"),
        ((64, 32, 320, 200), "wholly outside: right, bottom"),
        ((0.2, -0.5, 0.4, -0.1), "wholly outside: top"),
        ((0.9, 0.1, 0.2, 0.3), "corners swapped: x"),
        ((0.1, float("nan"), 0.2, 0.3), "not four numbers"),
    ],
)
def test_what_is_wrong_with_a_box(box: tuple[float, ...], told: str) -> None:
    assert flaw(box) == told


def sample(key: str = "im1", size: tuple[int, int] = (320, 240)) -> Sample:
    stream = io.BytesIO()
    Image.new("RGB", size, "white").save(stream, "PNG")
    return Sample(key=key, image=stream.getvalue(), suffix="png", meta={"alt_text": HOSTILE})


def frames(*boxes: tuple[float, ...], text: str = "thing") -> ShardFrames:
    rows = [dict(zip(("x1", "y1", "x2", "y2"), box, strict=True), key="im1", text=text, score=0.5) for box in boxes]
    columns = ["x1", "y1", "x2", "y2", "key", "text", "score"]
    captions = pd.DataFrame([{"key": "im1", "kind": "human", "text": text}])
    return ShardFrames("00000", pd.DataFrame(), captions, pd.DataFrame(rows, columns=columns), lost=0)


def pixels(picture: Picture) -> np.ndarray:
    body = base64.b64decode(picture.source.partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(body)).convert("RGB")).astype(int)


def red(picture: Picture) -> np.ndarray:
    """Where a picture is red; shape (H, W)."""
    return np.abs(pixels(picture) - RED).sum(axis=2) < 60


def test_the_offending_box_is_red_where_it_lies_and_first() -> None:
    picture = make_picture(
        sample(), frames((0, 0, 0.2, 0.2), (0.25, 0.25, 0.75, 0.75)), max_pixels=10**6, bad={"regions": [1]}
    )
    assert [(line.number, line.bad, line.flaw) for line in picture.regions] == [(1, True, ""), (2, False, "")]
    rows, columns = np.nonzero(red(picture))
    assert pixels(picture).shape == (360, 480, 3)
    assert (columns.min(), columns.max(), rows.max()) == pytest.approx((120, 359, 269), abs=3)


def test_a_box_that_reaches_out_is_seen_to_do_so() -> None:
    picture = make_picture(sample(), frames((0.5, 0.25, 1.05, 0.75)), max_pixels=10**6)
    assert pixels(picture).shape == (360 + 88, 480 + 88, 3)  # a border around it
    assert picture.regions[0].bad
    right = np.nonzero(red(picture))[1].max()
    assert 44 + 480 < right == pytest.approx(44 + 1.05 * 480, abs=4)


@pytest.mark.parametrize(
    "box", [(5000, 5000, 9000, 9000), (-3, 0.4, -2, 0.6), (1e30, 0, -1e30, 1), (0.5, 0.5, 0.5, 0.5)]
)
def test_boxes_from_anywhere_leave_a_red_trace(box: tuple[float, ...]) -> None:
    assert red(make_picture(sample(), frames(box), max_pixels=10**6, bad={"regions": [0]})).sum() > 20


def test_what_cannot_be_drawn_is_told() -> None:
    picture = make_picture(sample(), frames((0.1, float("nan"), 0.2, float("inf"))), max_pixels=10**6)
    assert (picture.regions[0].flaw, bool(red(picture).any())) == ("not four numbers", False)
    assert make_picture(sample(), frames(), max_pixels=100).source == ""
    broken = make_picture(replace(sample(), image=b"no image"), frames(), max_pixels=10**6)
    assert (broken.source, broken.size) == ("", "cannot be opened")


def test_random_samples_do_not_depend_on_who_saw_which_shard() -> None:
    keys = [f"im{number}" for number in range(40)]
    whole, parts = RandomSamples(size=6, max_pixels=10**6), [RandomSamples(size=6, max_pixels=10**6) for _ in range(3)]
    for number, key in enumerate(keys):
        for chosen in (whole, parts[number % 3]):
            chosen.offer(sample(key, size=(32, 32)))
            chosen.draw(frames())
    for part in parts[1:]:
        parts[0].merge(part)
    assert [item.key for item in parts[0].pictures()] == [item.key for item in whole.pictures()]
    assert len(whole.pictures()) == 6


def test_an_image_is_shown_once_and_referred_to() -> None:
    first = result("regions/a", severity=0.9, examples=(example("im1"), example("im1"), example("im2")))
    second = result("regions/b", severity=0.5, examples=(example("im1"),))
    nameless = result("regions/c", severity=0.4, examples=(example(""),))
    chosen, elsewhere = _choose([nameless, second, first])
    assert [(item.result.id, item.example.key) for item in chosen] == [("regions/a", "im1"), ("regions/a", "im2")]
    assert elsewhere == {"regions/b": "regions/a"}


def test_pictures_come_from_few_shards() -> None:
    found = [
        result(f"regions/{number}", examples=tuple(example(f"k{number}{at}", shard=f"{number}{at}") for at in range(5)))
        for number in range(30)
    ]
    chosen, _ = _choose(found)
    assert len({item.example.shard for item in chosen}) == 8
    assert len(chosen) <= 24


# The page


def page(shown: Report, folder: Path) -> str:
    shown.write(folder)
    return (folder / "index.html").read_text()


@pytest.mark.parametrize(
    ("results", "verdict"),
    [
        ([result(passed=True)], "passed"),
        ([result(passed=True), result("set/x", level="warn")], "passed with warnings"),
        ([result("set/x", level="warn"), result()], "failed"),
    ],
)
def test_the_verdict_stands_first(results: list[CheckResult], verdict: str, tmp_path: Path) -> None:
    text = page(report(*results), tmp_path)
    assert f"<h1>Validation {verdict}</h1>" in text
    assert ("<h2>Failed</h2>" in text, "<h2>Warnings</h2>" in text) == (
        verdict == "failed",
        any(item.warned for item in results),
    )


def test_the_page_tells_all_of_a_finding_and_how_to_do_it_again(tmp_path: Path) -> None:
    picture = make_picture(sample(), frames((0.5, 0.25, 1.3, 0.75)), max_pixels=10**6)
    broken = result(hint="Look there.", examples=(example("im1", value="x2 1.3"),))
    other = result("regions/other")
    findings = {broken.id: Shown((picture,)), other.id: Shown(elsewhere=broken.id)}
    text = page(report(broken, other, findings=findings), tmp_path)
    for part in ("12 of 240 rows", "at most 0.1%", "Look there.", "00000 / im1: x2 1.3", "reaches out: right"):
        assert part in text
    assert f'<a href="#{broken.id}">{broken.name}</a>' in text
    assert "cloc validate --params config.yaml --data &#39;/data/a b&#39; --captions /c --regions /r" in text
    for anchor in re.findall(r'href="#([^"]+)"', text):
        assert f'id="{anchor}"' in text


def test_hostile_text_is_escaped_on_the_page(tmp_path: Path) -> None:
    picture = make_picture(sample(HOSTILE), frames((0, 0, 1, 1), text=HOSTILE), max_pixels=10**6)
    broken = result(observed=HOSTILE, hint=HOSTILE, examples=(example(HOSTILE, value=HOSTILE),))
    text = page(report(broken, findings={broken.id: Shown((picture,))}, samples=(picture,)), tmp_path)
    assert not re.search(r"(?i)<script|<link|<img src=x|https?://", text)
    assert "&lt;script&gt;alert(1)" in text


def test_hundreds_of_checks_are_folded_by_table(tmp_path: Path) -> None:
    many = [result(f"{table}/{number}", passed=True) for table in ("regions", "images", "set") for number in range(200)]
    text = page(report(*many), tmp_path)
    assert re.findall(r"<summary>(\w[\w ]*): 200 checks", text) == ["Images", "Regions", "Data set"]
    assert "<details open" not in text


def test_distributions_are_shown_beside_the_reference(tmp_path: Path) -> None:
    counts = {name: [1] * len(item.labels) for name, item in Summary().histograms.items()}
    reference = Reference(source="/before", bins={}, counts=counts, numbers={})
    text = page(report(result(passed=True), reference=reference), tmp_path)
    assert "are the reference" in text
    assert text.count('<b style="bottom:') == sum(map(len, counts.values()))
    assert '<b style="bottom:' not in page(report(result(passed=True)), tmp_path)


def test_compared_bars_are_shares_on_one_scale() -> None:
    histogram = Histogram("x", ("a", "b"), (0, 1, 2))
    histogram.add(np.asarray([0.5, 0.5, 0.5, 1.5]))
    first, second = chart(histogram, other=[0, 7]).bars
    assert (first.share, first.height, first.other_height) == (0.75, 75, 0)
    assert (second.share, second.height, second.other_height, second.other_share) == (0.25, 25, 100, 1)


# The documentation


def table_lines() -> list[str]:
    """The table of docs/validation.md, from the code and its defaults; drift is one line for all quantities."""
    lines = ["| check | rule | limit | level |", "|---|---|---|---|"]
    for check in suites(Config(validation=ValidationConfig(language="en"))).all:
        if not check.id.startswith("drift/"):
            limit = f"at most {1 - check.mostly:.1%} of rows" if isinstance(check, RowCheck) else check.limit
            lines.append(f"| `{check.id}` | {check.name} | {limit} | {check.level} |")
    return lines


def test_the_documentation_names_every_check() -> None:
    text = DOC.read_text()
    for name in Summary().histograms:
        assert f"`{name}`" in text
    assert "\n".join(table_lines()) in text, f"put these lines into {DOC.name}:\n" + "\n".join(table_lines())
