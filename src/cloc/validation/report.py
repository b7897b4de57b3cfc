"""The report folder: validation.json for programs, index.html for people (self-contained, no network)."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from cloc.pages import environment
from cloc.pages.charts import chart
from cloc.validation.pictures import Picture
from cloc.validation.results import CheckResult, failures_first
from cloc.validation.summary import Summary

JSON_FILE = "validation.json"
PAGE_FILE = "index.html"
# Great Expectations' Data Docs: the site, and the same as one file.
DOCS_FOLDER, DOCS_FILE = "data_docs", "data_docs.html"

Verdict = Literal["passed", "passed with warnings", "failed"]


@dataclass(frozen=True)
class Report:
    """Everything the report shows. Results stand failures first."""

    data: str
    results: tuple[CheckResult, ...]
    summary: Summary
    findings: tuple[Picture, ...] = ()
    samples: tuple[Picture, ...] = ()

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
            "data": self.data,
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
            results=failures_first(self.results),
            summary=self.summary,
            numbers=self.summary.numbers(),
            common={"text": text[:200], "count": count},
            histograms=[chart(item) for item in self.summary.histograms.values()],
            json_file=JSON_FILE,
            docs=f"{DOCS_FOLDER}/{PAGE_FILE}",
        )


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
