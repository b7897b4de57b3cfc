"""`cloc chat`: questions about an image to a tuned adapter."""

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cloc.errors import ClocError, ConfigError, DataError

if TYPE_CHECKING:
    from cloc.mllm.api import Answer, Chat, Talk

Pixels = tuple[float, float, float, float]
_HELP = "/box x1,y1,x2,y2 points at a box (pixels), /image FILE takes another image, /new forgets, /quit ends"


@click.command()
@click.option("--model", required=True, help="Folder of an adapter, as `cloc tune` writes it.")
@click.option("--image", required=True, help="A jpg, png or webp.")
@click.option("--box", "boxes", multiple=True, metavar="X1,Y1,X2,Y2", help="In pixels of the image; repeatable.")
@click.option("--draw", default="", metavar="FILE", help="Draw the boxes of the answer on the image, into this file.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one object an answer.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--max-tokens", type=click.IntRange(min=1), default=128, show_default=True, help="Of an answer.")
@click.argument("question", required=False)
def chat(
    model: str,
    image: str,
    boxes: tuple[str, ...],
    draw: str,
    as_json: bool,
    device: str,
    max_tokens: int,
    question: str | None,
) -> None:
    """Ask a tuned adapter about an image; without a QUESTION, in a conversation, line by line.

    Boxes take the places of <region> in the question, in their order, or follow it. Boxes of an answer are also
    printed in pixels of the image. In a conversation: /box, /image, /new and /quit.

    \b
    cloc chat --model work/adapter --image photo.jpg "where is the red key?"
    cloc chat --model work/adapter --image photo.jpg --box 40,60,210,300 "what is in <region>?"
    cloc chat --model work/adapter --image photo.jpg
    """
    from cloc.mllm.api import Chat

    session = _Session(Chat(model, device=device, max_tokens=max_tokens), image, draw=draw, as_json=as_json)
    for text in boxes:
        session.point(text)
    if question is None:
        session.converse()
    else:
        session.ask(question)


class _Session:
    """A conversation, and the boxes that the next question points at."""

    def __init__(self, chat: "Chat", image: str, *, draw: str, as_json: bool) -> None:
        self._chat, self._draw_to, self._as_json = chat, draw, as_json
        self._talk: Talk = chat.open(image)
        self._boxes: list[Pixels] = []

    def point(self, text: str) -> None:
        """The next question points at this box, too."""
        self._boxes.append(_box(text, size=self._talk.image.size))

    def ask(self, question: str) -> None:
        """Asks, and prints the answer."""
        width, height = self._talk.image.size
        shares = [[x1 / width, y1 / height, x2 / width, y2 / height] for x1, y1, x2, y2 in self._boxes]
        asked, answer = self._boxes, self._talk.ask(question, boxes=shares)
        self._boxes = []
        found = [
            [round(x1 * width), round(y1 * height), round(x2 * width), round(y2 * height)]
            for x1, y1, x2, y2 in answer.boxes.tolist()
        ]
        if self._as_json:
            body = {"question": question, "asked_boxes": asked, "answer": answer.text, "boxes": found}
            click.echo(json.dumps({**body, "image_size": [width, height]}, ensure_ascii=False))
        else:
            # What a model writes may be anything: no control codes for the terminal.
            click.echo("".join(char if char.isprintable() else " " for char in answer.text) or "(no answer)")
            for box in found:
                click.echo("  box in pixels: " + ",".join(map(str, box)))
        if self._draw_to:
            self._draw(answer, shares)

    def converse(self) -> None:
        """Reads questions and commands until the end of the input."""
        shown = sys.stdin.isatty()
        if shown:
            click.echo(_HELP)
        while True:
            try:
                line = input("> " if shown else "").strip()
            except EOFError:
                return
            if line == "/quit":
                return
            try:
                self._act(line)
            except ClocError as error:
                click.echo(f"error: {error}", err=True)

    def _act(self, line: str) -> None:
        command, _, rest = line.partition(" ")
        if command == "/box":
            self.point(rest)
        elif command == "/image":
            self._talk, self._boxes = self._chat.open(rest.strip()), []
        elif command == "/new":
            self._talk.restart()
            self._boxes = []
        elif command.startswith("/"):
            click.echo(_HELP)
        elif line:
            self.ask(line)

    def _draw(self, answer: "Answer", asked: list[list[float]]) -> None:
        from cloc.pages.pictures import COLORS, Mark, draw

        picture = self._talk.image.copy()
        marks: list[Any] = [
            Mark(box, COLORS[number % len(COLORS)], tag=str(number + 1))
            for number, box in enumerate(answer.boxes.tolist())
        ]
        draw(picture, [*marks, *(Mark(box, "#ffffff", dashed=True) for box in asked)])
        path = Path(self._draw_to)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)
        except (OSError, ValueError) as error:
            raise ConfigError(f"--draw {path}: {str(error).splitlines()[0]}") from None


def _box(text: str, *, size: tuple[int, int]) -> Pixels:
    """Four numbers in pixels of an image (width, height)."""
    width, height = size
    try:
        x1, y1, x2, y2 = (float(part) for part in re.split(r"[,\s]+", text.strip()))
    except ValueError:
        raise ConfigError(f"box {text!r}: give four numbers x1,y1,x2,y2 in pixels of the image") from None
    if max(x1, y1, x2, y2) <= 1 < min(width, height):
        raise DataError(f"box {text!r}: these are shares of the image; give pixels, the image is {width}x{height}")
    if not (0 <= x1 <= width and 0 <= x2 <= width and 0 <= y1 <= height and 0 <= y2 <= height):
        raise DataError(f"box {text!r}: not inside the image, which is {width}x{height} pixels")
    if x2 <= x1 or y2 <= y1:
        raise DataError(f"box {text!r}: empty; give x1,y1,x2,y2: left, top, right, bottom, not width and height")
    return x1, y1, x2, y2
