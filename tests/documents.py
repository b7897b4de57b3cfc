"""What the project's Markdown holds: its commands, its Python, its links, its code spans, and what source strings say.

for command in commands(ROOT / "README.md"): ...
"""

import ast
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "components/*/README.md", "infra/**/README.md", "benchmarks/*.md")
    for path in ROOT.glob(pattern)
)
_FENCE = re.compile(r"^[ ]{0,3}```[ ]*(\w*)[^\n]*\n(.*?)^[ ]{0,3}```[ ]*$", re.DOTALL | re.MULTILINE)
_SHELLS = ("", "sh", "bash", "console", "shell")
_PROGRAMS = ("cloc", "dvc", "make")
# Whatever separates commands in a line of shell, outside of quotes; a comment ends it.
_SEPARATORS = {"&&", "||", "|", ";", "&"}


@dataclass(frozen=True)
class Block:
    """A block of code.

    Attributes:
        language: of the fence; "" where it names none, and for an indented block.
        text: without indentation.
    """

    language: str
    text: str


def blocks(text: str) -> Iterator[Block]:
    """The fenced blocks of a page, then its indented ones."""
    for language, body in _FENCE.findall(text):
        yield Block(language, body)
    for lines in re.findall(r"(?:^\n|\A)((?:^[ ]{4}[^\n]*\n)+)", f"{without_fences(text)}\n", re.MULTILINE):
        if not re.match(r"[ ]*(?:[-*]|\d+\.) ", lines):  # a list in a list is no code
            yield Block("", re.sub(r"^[ ]{4}", "", lines, flags=re.MULTILINE))


def without_fences(text: str) -> str:
    """A page without its fenced blocks."""
    return _FENCE.sub("", text)


def spans(text: str) -> list[str]:
    """The code spans of a page, on one line each."""
    return [" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", without_fences(text))]


def is_python(block: Block) -> bool:
    """Whether a block is Python: by its fence, or where it begins with an import."""
    return block.language == "python" or bool(re.match(r"(?:from|import) \w", block.text) and not block.language)


def commands(page: Path) -> list[list[str]]:
    """The words of each command of cloc, dvc and make that a page shows, in blocks and in code spans."""
    text = page.read_text()
    shown = [block.text for block in blocks(text) if block.language in _SHELLS and not is_python(block)]
    lines = [line for body in shown for line in re.sub(r"\\\n\s*", " ", body).splitlines()]
    found = [words for line in lines for words in _split(line)]
    return found + [words for span in spans(text) if span.split()[0] in _PROGRAMS for words in _split(span)]


def _split(line: str) -> Iterator[list[str]]:
    """The commands of a line of shell that are ours."""
    lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars="&|;")
    lexer.whitespace_split, lexer.commenters = True, ""
    words: list[str] = []
    try:
        for word in [*lexer, ";"]:
            if word in _SEPARATORS or (word == "#" and words):
                while words and re.fullmatch(r"\w+=\S*", words[0]):
                    words = words[1:]
                if words and words[0] in _PROGRAMS:
                    yield words
                if word == "#":
                    return
                words = []
            else:
                words.append(word)
    except ValueError:  # an apostrophe of prose: no command
        return


def links(text: str) -> list[str]:
    """Targets of a page's links and pictures."""
    shown = re.sub(r"`[^`\n]*`", "", without_fences(text))
    return re.findall(r"\]\(<?([^)\s>]+)>?\)", shown) + re.findall(r'<img src="([^"]+)"', shown)


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ +(.+?) *$", without_fences(text), re.MULTILINE):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        number, numbered = 0, slug
        while numbered in found:
            number += 1
            numbered = f"{slug}-{number}"
        found.add(numbered)
    return found


def section(text: str, heading: str) -> str:
    """What stands below a heading, up to the next one of its level or above."""
    match = re.search(rf"^(#+) {re.escape(heading)}$(.*?)(?=^#{{1,2}} |\Z)", text, re.DOTALL | re.MULTILINE)
    assert match, f"no heading {heading!r}"
    return match[2]


def rows(text: str) -> list[list[str]]:
    """The cells of all tables' rows, without heads."""
    found: list[list[str]] = []
    for line in text.splitlines():
        if re.fullmatch(r"\|[\s:|-]+\|", line):
            found.pop()  # what stood before it is the head
        elif line.startswith("|"):
            found.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return found


@cache
def source_texts() -> tuple[str, ...]:
    """All strings of the source but docstrings; where a value is filled in stands a NUL."""
    found: list[str] = []
    for path in [*(ROOT / "src").rglob("*.py"), *(ROOT / "pipelines").rglob("*.py")]:
        tree = ast.parse(path.read_bytes())
        skip = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                skip |= {id(part) for part in node.values}
                found.append("".join(part.value if isinstance(part, ast.Constant) else "\0" for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skip:
                found.append(node.value)
    return tuple(found)


def is_said(message: str) -> bool:
    """Whether some string of the source has all of a message's fixed parts, in order; `...` stands for anything."""
    parts = [part.strip() for part in message.split("...") if part.strip()]
    assert sum(map(len, parts)) >= 10, f"{message!r} is too short to find"
    return any(_in_order(parts, text) for text in source_texts())


def _in_order(parts: list[str], text: str) -> bool:
    place = 0
    for part in parts:
        place = text.find(part, place)
        if place < 0:
            return False
        place += len(part)
    return True
