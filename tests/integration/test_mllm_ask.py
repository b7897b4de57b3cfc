"""`cloc chat` and `cloc.mllm.Chat`, with a tiny adapter that learned three answers about a picture by heart."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import cloc.mllm.api
from cloc.cli import cloc as cli
from cloc.cli.chat import chat as command
from cloc.data.transforms import letterbox
from cloc.errors import ClocError, ConfigError, DataError
from cloc.mllm import Chat, load_adapter
from cloc.mllm.answering import generate
from cloc.mllm.boxtext import box_to_text, write_region
from cloc.mllm.chat import collate
from cloc.mllm.conversation import Conversation, Task, Turn
from cloc.mllm.saving import save_adapter
from tests import tiny_adapters as tiny

# In pixels of the picture, which is 80 x 40: the lower half of the network's input is padding.
SIZE, KEY, PLACE = (80, 40), (8, 8, 40, 24), "[10 10 49 29]"
ELSEWHERE = (60, 20, 76, 36)


pytestmark = pytest.mark.usefixtures("one_thread")


def draw() -> Image.Image:
    pixels = np.full((40, 80, 3), 120, dtype=np.uint8)
    pixels[8:24, 8:40] = (220, 40, 40)
    pixels[20:36, 60:76] = (40, 60, 220)
    return Image.fromarray(pixels)


def padded(box) -> np.ndarray:
    return np.array(box) / 80  # the long side


def lessons() -> list[Conversation]:
    def refer(box, name) -> Conversation:
        turn = Turn(f"what is in {write_region(padded(box), tokens=True)}?", name)
        return Conversation(Task.REFER, (turn,), regions=padded(box)[None])

    where = Turn("where is the red key?", PLACE)
    follow = Conversation(Task.OTHER, (where, Turn("and what is its color?", "red")))
    both = Conversation(Task.GROUND_ALL, (Turn("find all", f"{PLACE} {box_to_text(padded(ELSEWHERE))}"),))
    padding = Conversation(Task.GROUND, (Turn("where is nothing?", "[10 70 49 99]"),))
    return [refer(KEY, "red key"), refer(ELSEWHERE, "blue box"), follow, both, padding]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("chat")
    adapter = tiny.make_tiny(tiny.save_encoder(root / "encoder"), region_sampler="roi_align")
    pixels = torch.from_numpy(letterbox(draw(), size=64)[0])
    batch = collate([pixels], [adapter.chat().encode(lessons(), key="a")], pad_id=0)
    parameters = adapter.trainable("tune")
    optimizer = torch.optim.AdamW(parameters, lr=3e-3)
    features = adapter.features(pixels[None])
    for _ in range(150):
        loss, tokens = adapter.answer_loss(batch, features)
        optimizer.zero_grad()
        (loss / tokens).backward()
        optimizer.step()
        if float(loss.detach() / tokens) < 0.01:
            break
    save_adapter(adapter, root / "adapter", about={})
    draw().save(root / "photo.png")
    draw().rotate(90, expand=True).save(root / "turned.jpg", exif=_turn())
    return root


def _turn() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees to the right
    return exif


@pytest.fixture
def ask(folder, monkeypatch):
    """`ask(*arguments, input=...)` -> click's result; errors that the command line would print are in `exception`."""
    monkeypatch.chdir(folder)

    def run(*arguments, input=None, image="photo.png"):
        arguments = ["--model", "adapter", "--image", image, "--device", "cpu", *arguments]
        return CliRunner().invoke(command, arguments, input=input)

    return run


def test_a_question_is_answered_with_boxes_in_pixels(ask):
    result = ask("where is the red key?")
    assert result.exit_code == 0, result.output
    assert result.output.splitlines() == [PLACE, "  box in pixels: 8,8,40,24"]
    result = ask("--json", "find all")
    body = json.loads(result.output)
    assert body == {
        "question": "find all",
        "asked_boxes": [],
        "answer": f"{PLACE} {box_to_text(padded(ELSEWHERE))}",
        "boxes": [list(KEY), list(ELSEWHERE)],
        "image_size": list(SIZE),
    }


def test_a_box_is_asked_about(ask):
    for box, name in ((KEY, "red key"), (ELSEWHERE, "blue box")):
        pixels = ",".join(map(str, box))
        assert ask("--box", pixels, "what is in <region>?").output.splitlines() == [name]
    result = ask("--json", "--box", "8 8 40 24", "--box", "60,20,76,36", "what is in <region> and <region>?")
    assert json.loads(result.output)["asked_boxes"] == [list(KEY), list(ELSEWHERE)]


def test_boxes_are_drawn(ask, tmp_path):
    """The answer's, and the question's."""
    out, before = tmp_path / "new" / "out.png", np.asarray(draw()).astype(int)

    def changed(*arguments) -> np.ndarray:
        assert ask("--draw", str(out), *arguments).exit_code == 0
        return np.abs(np.asarray(Image.open(out)).astype(int) - before).sum(axis=-1) > 30

    answered = changed("where is the red key?")
    assert answered[10:22, 6:11].any(axis=1).all()  # its left edge
    assert not answered[:, 45:].any()
    asked = changed("--box", "60,20,76,36", "what is in <region>?")
    assert asked[34:37, 60:76].any()
    assert not asked[:, :50].any()
    result = ask("--draw", str(tmp_path / "out.nothing"), "where is the red key?")
    assert isinstance(result.exception, ConfigError)


def test_a_conversation_keeps_what_was_said(ask):
    lines = [
        "where is the red key?",
        "and what is its color?",
        "/new",
        "/box 60,20,76,36",
        "what is in <region>?",
        "/box 0.1,0.2,0.3,0.4",
        "/image nowhere.png",
        "/image photo.png",
        "",
        "where is the red key?",
        "/what",
        "/quit",
        "where is the red key?",
    ]
    result = ask(input="\n".join(lines) + "\n")
    assert result.exit_code == 0, result.output
    box = "  box in pixels: 8,8,40,24"
    help_line = next(line for line in result.stdout.splitlines() if line.startswith("/box"))
    assert result.stdout.splitlines() == [PLACE, box, "red", "blue box", PLACE, box, help_line]
    errors = result.stderr.splitlines()
    assert [line.split(":")[0] for line in errors] == ["error", "error"]
    assert "shares" in errors[0]
    assert "nowhere.png" in errors[1]
    assert ask(input="where is the red key?\n").stdout.splitlines() == [PLACE, box]  # ends with the input


def test_a_turned_photo_is_asked_as_it_is_seen(ask):
    body = json.loads(ask("--json", "where is the red key?", image="turned.jpg").output)
    assert body["image_size"] == list(SIZE)
    assert body["boxes"] == [list(KEY)]


def test_the_modules_example_runs(folder, monkeypatch):
    """The lines of its docstring."""
    (folder / "photo.jpg").write_bytes((folder / "photo.png").read_bytes())
    monkeypatch.chdir(folder)
    block = cloc.mllm.api.__doc__.split("\n\n", 1)[1].split("\n\nBoxes are", 1)[0]
    scope: dict = {}
    exec(textwrap.dedent(block), scope)
    chat = scope["chat"]
    np.testing.assert_allclose(chat.ask("photo.jpg", "where is the red key?").boxes, [[0.1, 0.2, 0.5, 0.6]])
    shares = [[KEY[0] / 80, KEY[1] / 40, KEY[2] / 80, KEY[3] / 40]]
    assert chat.ask(draw(), "what is in <region>?", boxes=shares).text == "red key"
    # A box after the question, too.
    assert "[10 10 49 29] <region>" in cloc.mllm.api._written("what is it?", padded(KEY)[None], tokens=True)
    # A box in the padding is none of the image.
    answer = chat.ask(draw(), "where is nothing?")
    assert (answer.text, len(answer.boxes)) == ("[10 70 49 99]", 0)
    assert load_adapter("adapter").sampler is not None


def test_an_image_is_read_once(folder, monkeypatch):
    chat = Chat(folder / "adapter", device="cpu", precision="float32")
    talk, calls = chat.open(draw()), []
    chat.adapter.tower.register_forward_hook(lambda *_: calls.append(1))
    assert talk.ask("where is the red key?").text == PLACE
    assert talk.ask("and what is its color?").text == "red"
    talk.restart()
    assert talk.ask("where is the red key?").text == PLACE
    assert not calls


def test_answers_of_different_lengths_end_by_themselves(folder):
    """Together as alone, though those that have ended are let go of on the way."""
    adapter = load_adapter(folder / "adapter")
    chat, pixels = adapter.chat(), torch.from_numpy(letterbox(draw(), size=64)[0])[None]
    prompts = [chat.prompt(each, key="a") for each in [*lessons(), *lessons()[::-1]]]
    options = {"max_tokens": 40, "precision": "float32"}
    features, widths = adapter.features(pixels), []
    adapter.decoder.register_forward_hook(lambda *_: widths.append(len(_[2].last_hidden_state)))
    together = generate(adapter, chat, prompts, features, images=[0] * len(prompts), **options)
    assert together == [each.turns[-1].answer for each in [*lessons(), *lessons()[::-1]]]
    assert (widths[0], widths[1], widths[-1]) == (1, 10, 2)
    assert together == [generate(adapter, chat, [prompt], features, **options)[0] for prompt in prompts]


def one_line(error: BaseException | None) -> str:
    assert isinstance(error, ClocError)
    assert "\n" not in str(error)
    return str(error)


@pytest.mark.parametrize(
    ("box", "told"),
    [
        ("1,2,3", "four numbers"),
        ("a,b,c,d", "four numbers"),
        ("0.1,0.2,0.5,0.6", "shares"),
        ("0,0,81,40", "80x40"),
        ("nan,0,20,20", "80x40"),
        ("40,8,32,16", "not width and height"),
    ],
)
def test_a_wrong_box_is_told(ask, box, told):
    assert told in one_line(ask("--box", box, "what is in <region>?").exception)


def test_wrong_use_is_told(ask, folder, tmp_path):
    assert "no adapter here" in one_line(ask("--model", str(tmp_path), "what?").exception)
    assert "nowhere.jpg" in one_line(ask("what?", image="nowhere.jpg").exception)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a picture")
    assert "broken.jpg" in one_line(ask("what?", image="broken.jpg").exception)
    assert "empty" in one_line(ask(" ").exception)
    assert "1 <region>, but there are 0 boxes" in one_line(ask("what is in <region>?").exception)
    assert "context" in one_line(ask("what " * 100).exception)
    if not torch.cuda.is_available():
        assert "GPU" in one_line(ask("--device", "cuda", "what?").exception)
    chat = Chat(folder / "adapter", device="cpu", precision="float32")
    for boxes, told in (
        ([[8, 8, 40, 24]], "in pixels"),
        ([[0.1, 0.1, 1.2, 0.5]], "leaves its image"),
        ([0.1, 0.1, 0.5, 0.5], "shape"),
    ):
        with pytest.raises(DataError) as error:
            chat.ask(draw(), "what is in <region>?", boxes=boxes)
        assert told in one_line(error.value)


def test_models_without_a_sampler_are_told_boxes_as_text(folder, tmp_path):
    adapter = tiny.make_tiny(str(folder / "encoder"))
    chat = Chat(adapter, precision="float32", max_tokens=3)
    talk = chat.open(draw())
    talk.ask("what is in <region>?", boxes=[[0.1, 0.2, 0.5, 0.6]])
    assert talk._turns[0].question == f"what is in {PLACE}?"
    with pytest.raises(DataError):
        talk.ask("what " * 100)
    assert len(talk._turns) == 1  # a question that could not be asked was not asked


def test_the_package_is_light():
    code = "import sys, cloc.mllm; print('torch' in sys.modules, sorted(cloc.mllm.__all__))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False ['Answer', 'Chat', 'load_adapter']"
    assert "chat" in cli.list_commands(None)
    assert Path(sys.modules[command.callback.__module__].__file__).name == "chat.py"
