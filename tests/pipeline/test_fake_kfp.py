"""The server for tests holds requests and answers to the contract of the generated client."""

import json
import re
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import quote

import kfp_server_api
import pytest

from tests.pipeline.fake_kfp import MULTIPART, Kfp, fake_kfp, operations

RUNS = "/apis/v2beta1/runs"


def _ask(kfp: Kfp, method: str, path: str, body: Any = None) -> int:
    content = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{kfp.url}{path}", method=method, data=content, headers=headers)
    try:
        with urllib.request.urlopen(request) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def _one_request(method: str, path: str, body: Any) -> None:
    with fake_kfp() as kfp:
        _ask(kfp, method, quote(path, safe="/?=&"), body)


def _broken_answer() -> None:
    with fake_kfp() as kfp:
        run = kfp.new_run("theirs", {})
        run.display_name = 7
        _ask(kfp, "GET", f"{RUNS}/{run.run_id}")


@pytest.mark.parametrize(
    ("method", "path", "body", "fault"),
    [
        ("GET", "/apis/v2beta1/rums", None, "no operation GET /apis/v2beta1/rums"),
        ("DELETE", RUNS, None, "no operation DELETE"),
        ("GET", f"{RUNS}?limit=3", None, "run_service_list_runs takes no query 'limit'"),
        ("GET", RUNS, {"run_id": "1"}, "takes no body"),
        ("POST", RUNS, {"pipeline_id": "1"}, "V2beta1Run has no field .pipeline_id"),
        ("POST", RUNS, {"runtime_config": {"params": {}}}, "V2beta1RuntimeConfig has no field .runtime_config.params"),
        ("POST", RUNS, {"display_name": 3}, "is 3, no str"),
        ("POST", RUNS, {"state": "DONE"}, "is 'DONE', none of"),
        ("POST", "/apis/v2beta1/recurringruns", {"max_concurrency": 1}, "is 1, no str"),
        ("GET", '/apis/v2beta1/runs?filter={"predicates":[{"op":"EQUALS"}]}', None, "V2beta1Predicate has no field"),
        ("GET", f"{RUNS}/no-uuid", None, "badly formed"),
    ],
)
def test_broken_request_fails_the_test(method: str, path: str, body: Any, fault: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(fault)):
        _one_request(method, path, body)


def test_broken_answer_fails_the_test() -> None:
    with pytest.raises(AssertionError, match=r"the answer of run_service_get_run: \.display_name is 7, no str"):
        _broken_answer()


def test_all_operations_are_read_from_the_client() -> None:
    found = {item.name: item for item in operations()}
    assert found["run_service_create_run"].body == "V2beta1Run"
    assert found["run_service_list_runs"].answer == "V2beta1ListRunsResponse"
    assert found["upload_pipeline_version"].body == MULTIPART
    assert found["upload_pipeline_version"].queries >= {"name", "pipelineid", "description"}
    for item in found.values():
        assert item.method in ("GET", "POST", "DELETE", "PATCH")
        assert item.answer == "object" or hasattr(kfp_server_api, item.answer)
        assert item.body in (None, MULTIPART, "str") or hasattr(kfp_server_api, item.body)
