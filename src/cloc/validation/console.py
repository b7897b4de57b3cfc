"""The verdict on one screen: numbers, the worst findings with where to look, and where the report lies."""

from pathlib import Path

from rich.console import Console
from rich.text import Text

from cloc.validation.report import DOCS_FILE, PAGE_FILE, Report, Verdict
from cloc.validation.results import CheckResult, printable

_FINDINGS = 5
_EXAMPLES = 3
_LEAST, _MOST = 60, 100  # columns
_STYLE: dict[Verdict, str] = {"failed": "bold red", "passed with warnings": "bold yellow", "passed": "bold green"}


def print_verdict(report: Report, folder: Path, *, console: Console | None = None) -> None:
    """Prints at most 24 lines; with colour only on a terminal.

    Args:
        report: what was found.
        folder: where the report was written.
        console: where to print; standard output when None.
    """
    console = console or Console(highlight=False)
    width = max(_LEAST, min(console.width, _MOST))
    lines = [_head(report), _numbers(report)]
    broken = [*report.failed, *report.warned]
    for result in broken[:_FINDINGS]:
        lines += _finding(result)
    for line in lines:
        line.truncate(width, overflow="ellipsis")
    # Places are for copying: they are never cut.
    more = f" ({len(broken) - _FINDINGS} more findings)" if len(broken) > _FINDINGS else ""
    lines += [Text(f"report     {folder / PAGE_FILE}{more}"), Text(f"data docs  {folder / DOCS_FILE}")]
    for line in lines:
        console.print(line, soft_wrap=True)
    console.file.flush()


def _head(report: Report) -> Text:
    counts = [f"{len(report.results) - len(report.failed) - len(report.warned)} passed"]
    counts += [f"{len(report.warned)} warned"] if report.warned else []
    counts += [f"{len(report.failed)} failed"] if report.failed else []
    verdict = Text(f"validation {report.verdict}", style=_STYLE[report.verdict])
    return verdict.append(f"  {len(report.results)} checks: {', '.join(counts)}", style="not bold default")


def _numbers(report: Report) -> Text:
    summary = report.summary
    parts = [
        f"{summary.images:,} images",
        f"{summary.captions:,} captions" + (f" and {summary.alt_texts:,} alt-texts" if summary.alt_texts else ""),
        f"{summary.regions:,} regions",
        f"{summary.quarantined:,} images quarantined",
    ]
    return Text("  " + ", ".join(parts))


def _finding(result: CheckResult) -> list[Text]:
    word, style = ("FAIL", "red") if result.fatal else ("WARN", "yellow")
    lines = [
        Text.assemble((f"{word} ", style), f"{result.id}  ", (result.name, "bold")),
        Text(f"     {result.observed}; limit: {result.limit}"),
    ]
    if result.examples:
        places = list(dict.fromkeys(f"{item.shard}/{item.key or '(no key)'}" for item in result.examples))
        lines.append(Text(f"     e.g. {', '.join(printable(place) for place in places[:_EXAMPLES])}"))
    if result.hint:
        lines.append(Text(f"     {result.hint}", style="dim"))
    return lines
