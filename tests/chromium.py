"""A headless Chromium, driven by its DevTools protocol: real pages, real pointers, real keys.

with chromium(tmp_path) as browser:
    page = browser.open("http://127.0.0.1:7860/")
    page.drag((100, 100), (200, 180))
    page.wait("document.title")
"""

import base64
import itertools
import json
import re
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import websocket

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_PATIENCE = 60  # seconds
_ADDRESS = re.compile(r"DevTools listening on ws://([^/]+)/")


def find_chromium() -> str:
    """The program; a test that asks for it is skipped where there is none."""
    found = next((path for name in _NAMES if (path := shutil.which(name))), "")
    if not found:
        pytest.skip("no Chromium is installed (Debian: apt-get install chromium)")
    return found


class Page:
    """A tab. Numbers are CSS pixels of its window."""

    def __init__(self, address: str) -> None:
        self._socket = websocket.create_connection(address, timeout=_PATIENCE, suppress_origin=True)
        self._numbers = itertools.count(1)
        self.problems: list[str] = []
        for domain in ("Page", "Runtime", "Log", "DOM", "Network"):
            self.send(f"{domain}.enable")

    def close(self) -> None:
        self._socket.close()

    def send(self, method: str, **params: Any) -> Any:
        """A command of the protocol; errors of the page that come in meanwhile are kept in `problems`."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv())
            if message.get("id") == number:
                assert "error" not in message, f"{method}: {message['error']}"
                return message["result"]
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        params = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(params["exceptionDetails"])[:500])
        elif message.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.problems.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")

    def evaluate(self, script: str) -> Any:
        """The value of an expression; promises are awaited."""
        found = self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, f"{script}: {found['exceptionDetails']}"
        return found["result"].get("value")

    def wait(self, script: str) -> Any:
        """The value of an expression, once it is true."""
        deadline = time.monotonic() + _PATIENCE
        while not (found := self.evaluate(script)):
            assert time.monotonic() < deadline, f"never true: {script}; the page has {self.evaluate(_SHOWN)!r}"
            time.sleep(0.05)
        return found

    def go(self, url: str) -> None:
        self.send("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def place(self, selector: str, x: float = 0.5, y: float = 0.5) -> tuple[float, float]:
        """A point of an element, in shares of it; the element is scrolled into the window."""
        frame = self.evaluate(
            f"(() => {{ const item = document.querySelector({json.dumps(selector)}); item.scrollIntoView({{block: "
            "'center', behavior: 'instant'}); const {left, top, width, height} = item.getBoundingClientRect(); "
            "return [left, top, width, height]; })()"
        )
        left, top, width, height = frame
        return left + x * width, top + y * height

    def click(self, selector: str, x: float = 0.5, y: float = 0.5) -> None:
        self.drag([self.place(selector, x, y)])

    def drag(self, places: Sequence[tuple[float, float]]) -> None:
        """Presses the mouse at the first place and lets go at the last."""
        for number, (x, y) in enumerate(places):
            if number == 0:
                self._mouse("mouseMoved", x, y, held=False)
                self._mouse("mousePressed", x, y)
            self._mouse("mouseMoved", x, y)
        self._mouse("mouseReleased", *places[-1])

    def _mouse(self, kind: str, x: float, y: float, *, held: bool = True) -> None:
        more = {"button": "left", "buttons": 1, "clickCount": 1} if held else {}
        self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def swipe(self, places: Sequence[tuple[float, float]]) -> None:
        """A finger goes down at the first place and up at the last."""
        for number, (x, y) in enumerate(places):
            kind = "touchMove" if number else "touchStart"
            self.send("Input.dispatchTouchEvent", type=kind, touchPoints=[{"x": x, "y": y}])
        self.send("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def type(self, selector: str, text: str) -> None:
        """Replaces a field's text."""
        self.evaluate(f"document.querySelector({json.dumps(selector)}).select()")
        self.send("Input.insertText", text=text)

    def press(self, key: str, *, shift: bool = False) -> None:
        text = {"Enter": "\r"}.get(key, "")
        for kind in ("keyDown", "keyUp"):
            more = {"text": text} if text and kind == "keyDown" else {}
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, modifiers=8 if shift else 0, **more)

    def choose_file(self, selector: str, path: str | Path) -> None:
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.send("DOM.setFileInputFiles", files=[str(path)], nodeId=node)

    def drop_file(self, selector: str, path: str | Path) -> None:
        x, y = self.place(selector)
        data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.send("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def resize(self, width: int, height: int, *, phone: bool = False, dark: bool = False) -> None:
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )
        self.send("Emulation.setTouchEmulationEnabled", enabled=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, path: str | Path, *, whole: bool = False) -> None:
        found = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        Path(path).write_bytes(base64.b64decode(found["data"]))


_SHOWN = "document.body ? document.body.innerText.slice(0, 500) : ''"


class Browser:
    """A running browser."""

    def __init__(self, address: str) -> None:
        self._address = address

    @contextmanager
    def open(self, url: str) -> Iterator[Page]:
        """A new tab."""
        request = urllib.request.Request(f"http://{self._address}/json/new?about:blank", method="PUT")
        with urllib.request.urlopen(request, timeout=_PATIENCE) as answer:
            address = json.load(answer)["webSocketDebuggerUrl"]
        with closing(Page(address)) as page:
            page.go(url)
            yield page


@contextmanager
def chromium(folder: Path) -> Iterator[Browser]:
    """A browser whose profile is in a folder; it ends with the block."""
    arguments = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--window-size=1400,1000",
        "--remote-debugging-port=0",
        f"--user-data-dir={folder / 'profile'}",
        "about:blank",
    ]
    log = folder / "chromium.log"
    with log.open("wb") as stream:
        process = subprocess.Popen([find_chromium(), *arguments], stdout=stream, stderr=stream)
    try:
        deadline = time.monotonic() + _PATIENCE
        while not (found := _ADDRESS.search(log.read_text(errors="replace"))):
            assert process.poll() is None, log.read_text(errors="replace")[-2000:]
            assert time.monotonic() < deadline, "Chromium does not start"
            time.sleep(0.1)
        yield Browser(found[1])
    finally:
        process.terminate()
        process.wait()
