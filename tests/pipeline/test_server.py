"""The way to a Kubeflow server, the real client before a server over HTTP: who asks, what it is, what is wrong."""

import socket
from pathlib import Path

import pytest
from kfp.client import client as kfp_client

from cloc.errors import ConfigError
from pipelines import server as module
from pipelines.server import ServerError, connect
from tests.pipeline.fake_kfp import fake_kfp

NAMES = ("KFP_ENDPOINT", "KFP_NAMESPACE", "KFP_TOKEN", "KFP_COOKIE", *module.TOKEN_FILES, "KUBERNETES_SERVICE_HOST")
KFP_NAMES = ("KF_PIPELINES_ENDPOINT", "KF_PIPELINES_UI_ENDPOINT")


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (*NAMES, *KFP_NAMES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(kfp_client.Client, "_LOCAL_KFP_CONTEXT", str(tmp_path / "context.json"))
    monkeypatch.setattr(module, "_OWN_NAMESPACE", tmp_path / "namespace")


def _told(**how: str | None) -> str:
    """The one line of a server that cannot be used."""
    with pytest.raises(ServerError) as told:
        connect(**{"host": None, "namespace": None, "token": None, **how})
    assert "\n" not in str(told.value)
    return str(told.value)


def test_server_is_found() -> None:
    with fake_kfp() as kfp:
        server = connect(host=f"{kfp.url}/", namespace="team", token=None)
    assert (server.where, server.namespace, server.pods) == (kfp.url, None, "team")
    assert server.url("runs/details/1") == f"{kfp.url}/#/runs/details/1"


@pytest.mark.parametrize("name", ["KFP_ENDPOINT", "KF_PIPELINES_ENDPOINT"])
def test_server_is_named_by_the_environment(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    with fake_kfp() as kfp:
        monkeypatch.setenv(name, kfp.url)
        assert connect(host=None, namespace=None, token=None).where == kfp.url


def test_server_of_the_cluster_that_this_runs_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "namespace").write_text("team\n")
    (tmp_path / "token").write_text("from-a-file")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    with fake_kfp(multi_user=True, token="from-a-file") as kfp:
        monkeypatch.setattr(module, "IN_CLUSTER", kfp.url)
        monkeypatch.setattr(module.kfp_client, "KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "token"))
        server = connect(host=None, namespace=None, token=None)
    assert (server.where, server.namespace) == (kfp.url, "team")


def test_interface_has_an_address_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KF_PIPELINES_UI_ENDPOINT", "https://kubeflow.example/pipeline/")
    with fake_kfp() as kfp:
        page = connect(host=kfp.url, namespace=None, token=None).url("pipelines/details/1")
    assert page == "https://kubeflow.example/pipeline/#/pipelines/details/1"


def test_token_is_given() -> None:
    with fake_kfp(token="secret") as kfp:
        connect(host=kfp.url, namespace=None, token="secret")
        said = _told(host=kfp.url, token="wrong")
    assert "does not let you in (401" in said
    assert "give --token, or a browser's session cookie in KFP_COOKIE" in said
    assert "wrong" not in said


@pytest.mark.parametrize("name", module.TOKEN_FILES)
def test_token_of_a_file_is_read_for_each_request(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    path = tmp_path / "token"
    path.write_text("first")
    monkeypatch.setenv(name, str(path))
    with fake_kfp(token="first") as kfp:
        server = connect(host=kfp.url, namespace=None, token=None)
        kfp.token = "second"
        with pytest.raises(ServerError, match="401"):
            server.ask(server.client.runs.run_service_list_runs)
        path.write_text("second")
        assert server.ask(server.client.runs.run_service_list_runs).total_size == 0
        path.unlink()
        with pytest.raises(ConfigError, match=r"token cannot be read \(No such file or directory\)"):
            server.ask(server.client.runs.run_service_list_runs)


def test_token_file_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match=r"there is no token at .*none; correct KF_PIPELINES_SA_TOKEN_PATH"):
        connect(host="http://localhost:1", namespace=None, token=None)


def test_cookie_of_a_browser(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_kfp(multi_user=True, cookie="oauth2_proxy_kubeflow=abc") as kfp:
        assert "401" in _told(host=kfp.url, namespace="team")
        monkeypatch.setenv("KFP_COOKIE", "oauth2_proxy_kubeflow=abc")
        server = connect(host=kfp.url, namespace="team", token=None)
        assert server.ask(server.client.runs.run_service_list_runs, namespace="team").total_size == 0
    assert server.namespace == "team"


def test_several_users_need_a_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_kfp(multi_user=True) as kfp:
        with pytest.raises(ConfigError, match=r"serves several users.*give --namespace"):
            connect(host=kfp.url, namespace=None, token=None)
        monkeypatch.setenv("KFP_NAMESPACE", "team")
        assert connect(host=kfp.url, namespace=None, token=None).namespace == "team"


def test_no_server_is_named() -> None:
    with pytest.raises(ConfigError, match=r"give --host or set KFP_ENDPOINT"):
        connect(host=None, namespace=None, token=None)


@pytest.mark.parametrize("host", ["localhost:8888", "ftp://localhost", "http://"])
def test_no_address(host: str) -> None:
    with pytest.raises(ConfigError, match=r"is no address of a Kubeflow server; write it as http://localhost:8888"):
        connect(host=host, namespace=None, token=None)


def test_server_is_not_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host = f"http://127.0.0.1:{free.getsockname()[1]}"
    assert f"there is no Kubeflow server at {host}" in _told(host=host)


def test_server_refuses() -> None:
    with fake_kfp(refusal=403) as kfp:
        assert "does not let you in (403 Forbidden: Permission denied)" in _told(host=kfp.url)
        kfp.refusal = 500
        assert "refused: 500 Internal Server Error: Permission denied" in _told(host=kfp.url)


def test_server_answers_a_page() -> None:
    with fake_kfp(page="<html><body>Log in to Your Account</body></html>") as kfp:
        said = _told(host=kfp.url)
    assert "answers with a web page, not as a Kubeflow server" in said
    assert "<html>" not in said


def test_session_ends_in_a_page() -> None:
    with fake_kfp() as kfp:
        server = connect(host=kfp.url, namespace=None, token=None)
        kfp.page = "<html>run_id, display_name: log in</html>"
        with pytest.raises(ServerError) as told:
            server.ask(server.client.runs.run_service_get_run, "1")
    assert "\n" not in str(told.value)


def test_server_is_of_another_version() -> None:
    with fake_kfp(serves="v1beta1") as kfp:
        assert "is of Kubeflow Pipelines 1.8.5, without the API v2beta1; 2.0 or newer is needed" in _told(host=kfp.url)


def test_server_knows_no_api() -> None:
    with fake_kfp(refusal=404) as kfp:
        assert "refused: 404" in _told(host=kfp.url)


def test_no_tls() -> None:
    with fake_kfp() as kfp:
        said = _told(host=kfp.url.replace("http://", "https://"))
    assert "no safe connection to https://127.0.0.1" in said
    assert "SSL_CERT_FILE" in said
