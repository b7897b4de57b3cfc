"""The report folder: validation.json for programs, index.html for people (self-contained, no network)."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from cloc import __version__
from cloc.pages import environment
from cloc.pages.charts import Chart, chart
from cloc.validation.drift import Reference
from cloc.validation.gallery import Shown
from cloc.validation.pictures import Picture
from cloc.validation.results import CheckResult, failures_first
from cloc.validation.summary import Summary

JSON_FILE = "validation.json"
PAGE_FILE = "index.html"
# Great Expectations' Data Docs: the site, and the same as one file.
DOCS_FOLDER, DOCS_FILE = "data_docs", "data_docs.html"

Verdict = Literal["passed", "passed with warnings", "failed"]
_TABLES = ("images", "captions", "regions")


@dataclass(frozen=True)
class Source:
    """What was validated, so that it can be done again.

    Attributes:
        data, captions, regions: as they were given to the stage.
        settings: the sections that the stage reads, as YAML.
    """

    data: str
    captions: str
    regions: str
    settings: str

    @property
    def command(self) -> str:
        """What a shell would be told."""
        places = {"data": self.data, "captions": self.captions, "regions": self.regions}
        options = [f"--{name} {shlex.quote(place)}" for name, place in places.items()]
        return " ".join(["cloc validate --params config.yaml", *options, "--out report"])


@dataclass(frozen=True)
class Report:
    """Everything the report shows.

    Attributes:
        source: what was validated.
        results: the verdicts, in any order.
        summary: the whole set in numbers.
        findings: pictures of broken checks, by their ids.
        samples: a random choice of pictures.
        reference: what the distributions are shown beside.
    """

    source: Source
    results: tuple[CheckResult, ...]
    summary: Summary
    findings: Mapping[str, Shown] = field(default_factory=dict)
    samples: tuple[Picture, ...] = ()
    reference: Reference | None = None

    @property
    def failed(self) -> list[CheckResult]:
        """The checks that end the pipeline, worst first."""
        return [result for result in failures_first(self.results) if result.fatal]

    @property
    def warned(self) -> list[CheckResult]:
        """The checks that warn, worst first."""
        return [result for result in failures_first(self.results) if result.warned]

    @property
    def verdict(self) -> Verdict:
        """All in a word or three."""
        return "failed" if self.failed else "passed with warnings" if self.warned else "passed"

    def write(self, folder: Path) -> None:
        """Writes both files; the page last, so that it never stands beside another run's JSON."""
        folder.mkdir(parents=True, exist_ok=True)
        body = json.dumps(self._body(), indent=1, ensure_ascii=False, allow_nan=False)
        write_text(folder / JSON_FILE, body + "\n")
        write_text(folder / PAGE_FILE, self._page())

    def _body(self) -> dict[str, Any]:
        text, count = self.summary.common.top()
        return {
            "passed": not self.failed,
            "verdict": self.verdict,
            "data": self.source.data,
            "checks": [asdict(result) for result in failures_first(self.results)],
            "numbers": self.summary.numbers(),
            "counts": counts(self.summary),
            "most_common_caption": {"text": text[:500], "count": count},
            "histograms": {
                name: {"title": item.title, "bins": list(item.labels), "counts": item.counts.tolist()}
                for name, item in self.summary.histograms.items()
            },
        }

    def _page(self) -> str:
        text, count = self.summary.common.top()
        template = environment("cloc.validation").get_template("report.html.j2")
        return template.render(
            report=self,
            within=[result for result in failures_first(self.results) if result.passed and result.unexpected],
            tables=by_table(self.results),
            names={result.id: result.name for result in self.results},
            summary=self.summary,
            numbers=self.summary.numbers(),
            common={"text": text[:200], "count": count},
            charts=self._charts(),
            version=__version__,
            files={"json": JSON_FILE, "docs": DOCS_FILE},
        )

    def _charts(self) -> list[Chart]:
        other = self.reference.counts if self.reference else {}
        return [chart(item, other=other.get(name)) for name, item in self.summary.histograms.items()]


def by_table(results: Sequence[CheckResult]) -> dict[str, list[CheckResult]]:
    """Results by their table, the broken ones first: images, captions, regions, then the rest."""
    tables: dict[str, list[CheckResult]] = {name: [] for name in _TABLES}
    for result in failures_first(results):
        tables.setdefault(result.table, []).append(result)
    return {name: members for name, members in tables.items() if members}


def counts(summary: Summary) -> dict[str, int]:
    """What went through the stage."""
    return {
        "shards": summary.shards,
        "images": summary.images,
        "captions": summary.captions,
        "alt_texts": summary.alt_texts,
        "regions": summary.regions,
        "quarantined": summary.quarantined,
    }


def write_text(path: Path, text: str) -> None:
    """Writes a file of the report whole: under another name first."""
    temporary = path.with_name(f".tmp-{path.name}")
    # Text from the web may hold lone surrogates, which UTF-8 cannot carry.
    temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    temporary.replace(path)
