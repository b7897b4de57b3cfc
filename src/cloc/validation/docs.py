"""Great Expectations' Data Docs of all suites, made from verdicts summed over shards; they need no network.

The suites run a few shards at a time, so Great Expectations never sees one result of a whole table. Here its result
objects are made from the sums, kept in a context's store, and rendered by its own site builder. What it renders loads
styles and scripts from five hosts (unstyled without them, and the index empty) and does not escape values: values are
escaped here, and the pages get one small style sheet of their own and no scripts.

    data_docs/index.html    the suites, with links to Great Expectations' page of each
    data_docs.html          the same as one file, for places that show a single file (KFP, MLflow)
"""

import html
import logging
import re
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cloc.pages import environment
from cloc.validation.checks import RowCheck, SetCheck  # first: it settles what great_expectations reads on import
from cloc.validation.report import DOCS_FILE, DOCS_FOLDER, PAGE_FILE, by_table, write_text
from cloc.validation.results import CheckResult, shown

import great_expectations as gx  # isort: skip
from great_expectations.core import ExpectationSuiteValidationResult, ExpectationValidationResult  # isort: skip
from great_expectations.core.run_identifier import RunIdentifier  # isort: skip
from great_expectations.data_context.types.resource_identifiers import (  # isort: skip
    ExpectationSuiteIdentifier,
    ValidationResultIdentifier,
)

_SITE, _RUN, _BATCH = "site", "validation", "all_shards"
_SEVERITY = {"fail": "critical", "warn": "warning"}
# What Great Expectations' pages load from elsewhere, and what does nothing without it.
_FOREIGN = re.compile(
    r"<script\b.*?</script>|<style\b.*?</style>|<link\b[^>]*>|<footer\b.*?</footer>|<img\b[^>]*>"
    r"|<title></title>|\sonclick=\"[^\"]*\"",
    re.DOTALL,
)
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


@dataclass(frozen=True)
class SuitePage:
    """A suite in the index.

    Attributes:
        name: of the suite: a table, or the data set.
        results: its verdicts.
        place: its page, relative to the site's folder.
        body: that page, whole.
    """

    name: str
    results: tuple[CheckResult, ...]
    place: str
    body: str

    @property
    def passed(self) -> int:
        """Checks that were kept."""
        return sum(result.passed for result in self.results)

    @property
    def failed(self) -> int:
        """Checks whose breaking ends the pipeline, broken."""
        return sum(result.fatal for result in self.results)

    @property
    def warned(self) -> int:
        """Checks that only warn, broken."""
        return sum(result.warned for result in self.results)


def build_docs(report: Path, *, checks: Iterable[RowCheck | SetCheck], results: Sequence[CheckResult]) -> None:
    """Writes the Data Docs of a validation beside its report, in place of those of an earlier one.

    Args:
        report: the report's folder.
        checks: the rules that were judged.
        results: their verdicts over the whole set, in any order.
    """
    expectations = {check.id: check.expectation for check in checks}
    report.mkdir(parents=True, exist_ok=True)
    # Built aside and moved in: pages of an earlier run would otherwise stay listed, and a page half written be seen.
    with tempfile.TemporaryDirectory(dir=report, prefix=".tmp-") as folder:
        site = Path(folder).resolve() / _SITE
        _render(site, expectations=expectations, results=results)
        shutil.rmtree(site / "static")
        style = environment("cloc.validation").get_template("data_docs.css").render()
        for path in site.rglob("*.html"):
            write_text(path, _own_look(path.read_text(encoding="utf-8"), style=style))
        pages = _suite_pages(site, results)
        write_text(site / PAGE_FILE, _index(pages, whole=False))
        write_text(report / DOCS_FILE, _index(pages, whole=True))
        docs = report / DOCS_FOLDER
        if docs.exists():
            shutil.rmtree(docs)
        site.replace(docs)


def _render(site: Path, *, expectations: dict[str, Any], results: Sequence[CheckResult]) -> None:
    """Great Expectations' own pages: one a suite, and one a suite's results."""
    # It announces every step.
    logging.getLogger("great_expectations").setLevel(logging.WARNING)
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    run = RunIdentifier(run_name=_RUN, run_time=datetime.now(UTC))
    for name, members in by_table(results).items():
        described = [_described(expectations[result.id], result) for result in members]
        context.suites.add(gx.ExpectationSuite(name=_file_name(name), expectations=described))
        outcome = _suite_result(name, members, described, run=run)
        key = ValidationResultIdentifier(
            expectation_suite_identifier=ExpectationSuiteIdentifier(_file_name(name)),
            run_id=run,
            batch_identifier=_BATCH,
        )
        context.validation_results_store.set(key, outcome)
    context.add_data_docs_site(
        _SITE,
        {
            "class_name": "SiteBuilder",
            "show_how_to_buttons": False,
            "store_backend": {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(site)},
        },
    )
    context.build_data_docs(site_names=[_SITE])


def _file_name(suite: str) -> str:
    return suite.replace(" ", "_")


def _described(expectation: Any, result: CheckResult) -> Any:
    """The expectation with its rule in words, what a failure means, and whether it ends the pipeline."""
    text = html.escape(f"{result.name} ({result.limit})" if result.limit else result.name)
    notes = html.escape(result.hint) if result.hint else None
    update = {
        # A dollar would begin the name of a parameter in Great Expectations' string templates.
        "description": text.replace("$", "&#36;"),
        "notes": notes,
        "severity": _SEVERITY[result.level],
        "meta": {"check": result.id},
    }
    return expectation.copy(update=update)


def _suite_result(
    name: str, members: Sequence[CheckResult], described: Sequence[Any], *, run: RunIdentifier
) -> ExpectationSuiteValidationResult:
    outcomes = [
        ExpectationValidationResult(
            success=result.passed,
            expectation_config=expectation.configuration,
            result=_observed(result),
            exception_info={"raised_exception": False, "exception_message": None, "exception_traceback": None},
            meta={},
        )
        for result, expectation in zip(members, described, strict=True)
    ]
    passed = sum(result.passed for result in members)
    return ExpectationSuiteValidationResult(
        success=passed == len(members),
        results=outcomes,
        suite_name=_file_name(name),
        statistics={
            "evaluated_expectations": len(members),
            "successful_expectations": passed,
            "unsuccessful_expectations": len(members) - passed,
            "success_percent": 100 * passed / len(members),
        },
        meta={
            "run_id": run,
            "great_expectations_version": gx.__version__,
            "batch_kwargs": {"data_asset_name": f"{name}, all shards"},
        },
    )


def _observed(result: CheckResult) -> dict[str, Any]:
    """What Great Expectations calls a result, summed over the shards. Its pages do not escape: this does."""
    examples = [html.escape(f"{item.shard} / {shown(item.key)}: {item.value}") for item in result.examples]
    if not result.elements:
        # Its table of examples is for rows: it asks for counts that a number of the whole set does not have.
        return {"observed_value": "; ".join([html.escape(result.observed), *examples])}
    percent = 100 * result.unexpected / result.elements
    return {
        "element_count": result.elements,
        "unexpected_count": result.unexpected,
        "unexpected_percent": percent,
        "unexpected_percent_total": percent,
        "partial_unexpected_list": examples,
    }


def _own_look(page: str, *, style: str) -> str:
    """A page without anything that is loaded from elsewhere, and with a style of its own."""
    head = f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n<style>\n{style}\n</style>\n</head>'
    return _FOREIGN.sub("", page).replace("</head>", head, 1)


def _suite_pages(site: Path, results: Sequence[CheckResult]) -> list[SuitePage]:
    pages = []
    for name, members in by_table(results).items():
        (path,) = (site / "validations" / _file_name(name)).rglob("*.html")
        body = path.read_text(encoding="utf-8")
        pages.append(SuitePage(name, tuple(members), str(path.relative_to(site)), body))
    return pages


def _index(pages: Sequence[SuitePage], *, whole: bool) -> str:
    template = environment("cloc.validation").get_template("data_docs.html.j2")
    bodies = [page.body.replace("<html", '<html class="inside"', 1) for page in pages] if whole else []
    return template.render(pages=pages, bodies=bodies)
