"""Makes the pipeline's user of MLflow, or gives it its password anew. The standard library is all it needs."""

import json
import os
import sys
from base64 import b64encode
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

TIMEOUT = 30


def call(method: str, path: str, **body: str) -> int:
    """Asks MLflow as its administrator. Returns the HTTP status."""
    who = b64encode(f"{os.environ['ADMIN_USERNAME']}:{os.environ['ADMIN_PASSWORD']}".encode()).decode()
    headers = {"Authorization": f"Basic {who}", "Content-Type": "application/json"}
    url = f"{os.environ['MLFLOW_TRACKING_URI']}/api/2.0/mlflow/users/{path}"
    request = Request(url, json.dumps(body).encode(), headers, method=method)  # noqa: S310 (an address of the manifests)
    try:
        with urlopen(request, timeout=TIMEOUT) as answer:  # noqa: S310 (an address of the manifests)
            return int(answer.status)
    except HTTPError as error:
        return error.code


def main() -> str:
    """Returns why it failed; empty when the user is there."""
    user = {"username": os.environ["USERNAME"], "password": os.environ["PASSWORD"]}
    try:
        status = call("POST", "create", **user)
        if status == 400:  # it exists, or the password is refused; then the change fails, too
            status = call("PATCH", "update-password", **user)
    except (URLError, TimeoutError) as error:
        return f"error: MLflow does not answer yet: {error}"
    return "" if status == 200 else f"error: MLflow answers {status}; see the log of its server"


if __name__ == "__main__":
    sys.exit(main() or 0)
