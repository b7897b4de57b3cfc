"""`cloc storage`: whether a place will do for data sets."""

import json
from dataclasses import asdict

import click

from cloc.data.storage_check import StorageReport, check_storage
from cloc.errors import DataError


@click.group()
def storage() -> None:
    """Try out where data sets shall lie: a folder, or an S3 endpoint.

    \b
    cloc storage check s3://bucket/data
    """


@storage.command(short_help="Try everything that cloc needs of a place, and clean up.")
@click.argument("url")
@click.option("--quick", is_flag=True, help="4 MiB instead of 12, and no upload in parts.")
@click.option("--json", "as_json", is_flag=True, help="The report as JSON.")
def check(url: str, quick: bool, as_json: bool) -> None:
    """Try everything that cloc needs of a folder or s3://bucket/prefix, and clean up.

    \b
    AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY   where and who (AWS_SESSION_TOKEN, AWS_REGION)
    SSL_CERT_FILE                                                CA bundle of a private certificate
    CLOC_S3_PATIENCE, CLOC_S3_TIMEOUT                            seconds: of trying again (120), of silence (30)

    \b
    cloc storage check s3://bucket/data
    """
    report = check_storage(url, quick=quick)
    if as_json:
        reason = report.failure.detail if report.failure else ""
        found = {"url": report.url, "ok": not reason, "reason": reason, "checks": [asdict(c) for c in report.checks]}
        print(json.dumps(found, indent=1))
    else:
        _print(report)
    if report.failure:
        raise DataError(f"storage check: {report.failure.name}: {report.failure.detail}")


def _print(report: StorageReport) -> None:
    print(report.url)
    for item in report.checks:
        print(item.line)
    if not report.failure:
        print(f"{report.url} will do")
