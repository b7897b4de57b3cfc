"""The playground under many clients: requests a second when models are given batches, over one item at a time.

    python benchmarks/playground.py                                # the demo's sizes, random weights (a minute)
    python benchmarks/playground.py --preset b16 --requests 50
    python benchmarks/playground.py --model runs/demo/model --clients 8

A request is a picture of its own (a JPEG of 640 x 480 pixels), sent, and one box of it named among five labels of its
own: two HTTP requests over a connection that is kept. Both servers are fresh processes of this program; rounds take
turns between them, and the figure is each one's median round. Models compute on one thread.
"""

import argparse
import http.client
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

BATCHES = {"one at a time": 1, "batches": 32}
WORDS = ("red", "green", "blue", "yellow", "white", "black"), ("box", "ball", "key", "apple", "dog", "car", "tree")
SIZE = (640, 480)


@dataclass(frozen=True)
class Round:
    """Requests a second, and the seconds of each."""

    rate: float
    seconds: Sequence[float]


def make_model(folder: Path, preset: str) -> str:
    """A model of a preset's sizes with random weights."""
    import torch

    from cloc.config import load_preset
    from cloc.model.configuration import from_settings
    from cloc.model.modeling import CLOCModel
    from cloc.model.processing import CLOCProcessor, train_tokenizer

    torch.manual_seed(0)
    settings = load_preset(preset).model
    length = settings.text.context_length
    texts = [f"a {color} {thing}" for color in WORDS[0] for thing in WORDS[1]]
    tokenizer = train_tokenizer(texts, vocab_size=600, context_length=length)
    ids = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id, "pad": tokenizer.pad_token_id}
    CLOCModel(from_settings(settings, vocab_size=len(tokenizer), **ids)).save_pretrained(folder)
    size = settings.vision.image_size
    CLOCProcessor(tokenizer, image_size=size, context_length=length).save_pretrained(folder)
    (folder / "training.json").write_text(json.dumps({"objective": "cloc", "steps": 0, "cpu_seconds": 0}))
    return str(folder)


@contextmanager
def serving(model: str, *, batch: int) -> Iterator[int]:
    """A server in a process of its own; yields its port."""
    code = (
        "import sys\nfrom cloc.playground.server import serve\nfrom cloc.playground.settings import Settings\n"
        "serve(Settings({'model': sys.argv[1]}, port=0, cache='none', batch=int(sys.argv[2])))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, model, str(batch)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        assert process.stdout is not None
        line = next(line for line in process.stdout if line.startswith("playground: http"))
        yield int(line.partition("127.0.0.1:")[2].partition(" ")[0])
    finally:
        process.terminate()
        process.wait()


def photo(number: int) -> bytes:
    """A picture that no other number has."""
    pixels = np.random.default_rng(number).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).resize(SIZE, Image.Resampling.BICUBIC).save(stream, "JPEG")
    return stream.getvalue()


def ask(connection: http.client.HTTPConnection, number: int, body: bytes) -> float:
    """Sends a picture and names a box of it; returns the seconds that took."""
    started = time.perf_counter()
    image = _post(connection, "/api/images", body)["image"]
    colors, things = WORDS
    labels = [f"a {colors[(number + k) % len(colors)]} {things[k]} {number}" for k in range(5)]
    asked = {"model": "model", "image": image, "regions": [{"box": [0.1, 0.1, 0.6, 0.7]}], "labels": labels}
    answer = _post(connection, "/api/classify", json.dumps(asked).encode())
    assert len(answer["regions"][0]["ranking"]) == len(labels)
    return time.perf_counter() - started


def _post(connection: http.client.HTTPConnection, path: str, body: bytes) -> dict:
    connection.request("POST", path, body=body, headers={"content-type": "application/json"})
    response = connection.getresponse()
    answer = json.loads(response.read())
    assert response.status == 200, answer
    return answer


def run(port: int, *, clients: int, numbers: range) -> Round:
    """All requests of a round by so many clients at once."""
    local = threading.local()
    bodies = {number: photo(number) for number in numbers}

    def one(number: int) -> float:
        if not hasattr(local, "connection"):
            local.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
        return ask(local.connection, number, bodies[number])

    with ThreadPoolExecutor(clients) as pool:
        started = time.perf_counter()
        seconds = list(pool.map(one, numbers))
        return Round(len(seconds) / (time.perf_counter() - started), seconds)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="demo")
    parser.add_argument("--model", default="", help="folder of a model instead of a preset's sizes")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--requests", type=int, default=100, help="of a round")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = args.model or make_model(Path(folder) / "model", args.preset)
        rounds: dict[str, list[Round]] = {name: [] for name in BATCHES}
        with serving(model, batch=1) as first, serving(model, batch=BATCHES["batches"]) as second:
            ports = dict(zip(BATCHES, (first, second), strict=True))
            for port in ports.values():
                run(port, clients=2, numbers=range(10_000, 10_004))
            for number in range(args.rounds):
                numbers = range(number * args.requests, (number + 1) * args.requests)
                for name, port in ports.items():
                    rounds[name].append(run(port, clients=args.clients, numbers=numbers))
    print(f"{args.clients} clients, {args.requests} requests a round, {args.model or args.preset}; no request failed")
    print("| models are given | requests/s | median s | 95 % within s |\n|---|---|---|---|")
    for name, found in rounds.items():
        seconds = sorted(second for item in found for second in item.seconds)
        rate = statistics.median(item.rate for item in found)
        late = seconds[int(0.95 * len(seconds))]
        print(f"| {name} | {rate:.1f} | {statistics.median(seconds):.2f} | {late:.2f} |")
    gains = [b.rate / a.rate for a, b in zip(rounds["one at a time"], rounds["batches"], strict=True)]
    print(f"batches over one at a time: {statistics.median(gains):.2f} ({min(gains):.2f} to {max(gains):.2f})")


if __name__ == "__main__":
    main()
