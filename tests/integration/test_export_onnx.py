"""ONNX graphs in onnxruntime against the model, at other sizes than they were traced with; the README's own code."""

import copy
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from cloc import CLOC
from cloc.cli import cloc
from cloc.config.schema import ModelConfig, PrompterConfig, TextConfig, VisionConfig
from cloc.errors import ClocError, ConfigError
from cloc.model.configuration import from_settings
from cloc.model.export import onnx, to_onnx
from cloc.model.export.graphs import graphs
from cloc.model.factory import AnyCLOCModel
from cloc.model.modeling import CLOCModel, CLOCSiglipModel
from cloc.model.processing import CLOCProcessor, train_tokenizer

WORDS = ["a red apple", "a blue key"]
VOCABULARY = 530


@pytest.fixture(scope="module")
def processor() -> CLOCProcessor:
    return CLOCProcessor(
        train_tokenizer(WORDS * 3, vocab_size=VOCABULARY, context_length=12), image_size=32, context_length=12
    )


def build(family: str = "clip", *, points: bool = False, **prompter: Any) -> AnyCLOCModel:
    config = ModelConfig(
        family=family,
        embed_dim=32,
        vision=VisionConfig(image_size=32, patch_size=8, width=32, layers=1, heads=2),
        text=TextConfig(width=16, layers=1, heads=2, context_length=12),
        prompter=PrompterConfig(heads=2, **prompter),
    )
    torch.manual_seed(0)
    settings = from_settings(config, vocab_size=VOCABULARY, bos=0, eos=1, pad=1)
    model = {"clip": CLOCModel, "siglip": CLOCSiglipModel}[family](settings).eval()
    model.config.cloc["points"] = points
    return model


def run(path: Path, **inputs: torch.Tensor) -> list[torch.Tensor]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return [torch.from_numpy(x) for x in session.run(None, {name: value.numpy() for name, value in inputs.items()})]


def boxes(batch: int, prompts: int) -> torch.Tensor:
    low = torch.rand(batch, prompts, 2) * 0.6
    return torch.cat([low, low + 0.05 + torch.rand(batch, prompts, 2) * 0.35], dim=-1)


def same(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    if len(expected) > 1:
        assert not torch.allclose(expected[0], expected[1], atol=1e-3), "the comparison must be able to fail"


def write(model: AnyCLOCModel, folder: Path, *names: str) -> None:
    for graph in graphs(model):
        if graph.name in names:
            onnx.write_graph(graph, model, folder / f"{graph.name}.onnx")


@torch.no_grad()
def check_prompts(model: AnyCLOCModel, folder: Path) -> None:
    """The graphs that take prompts, at sizes that no tracing saw."""
    for batch, prompts in ((1, 1), (2, 9), (5, 4)):
        tokens = model.encode_image(torch.randn(batch, 3, 32, 32)).tokens_BND
        if (path := folder / "regions.onnx").is_file():
            asked = boxes(batch, prompts)
            same(run(path, tokens=tokens, boxes=asked)[0], model.embed_boxes(tokens, asked))
        if (path := folder / "points.onnx").is_file():
            where = torch.rand(batch, prompts, 2)
            same(run(path, tokens=tokens, points=where)[0], model.embed_points(tokens, where))
        if (path := folder / "ground.onnx").is_file():
            texts = torch.randn(batch, prompts, 32)
            same(run(path, tokens=tokens, text_embeds=texts)[0], model.ground_texts(tokens, texts))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, processor: CLOCProcessor) -> tuple[AnyCLOCModel, Path, str]:
    """The demo's kind of model, through the command line: the model, the folder, and what was said."""
    folder, model = tmp_path_factory.mktemp("export"), build(pool="prompt", spatial_bias="box")
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    arguments = ["export", "--model", str(folder / "model"), "--format", "onnx", "--out", str(folder / "onnx")]
    said = CliRunner().invoke(cloc, arguments, catch_exceptions=False).stdout
    return model, folder / "onnx", said


@torch.no_grad()
def test_graphs_equal_the_model_at_other_sizes(exported: tuple[AnyCLOCModel, Path, str]) -> None:
    model, folder, _ = exported
    for batch in (1, 5):
        pixels = torch.randn(batch, 3, 32, 32)
        embeds, tokens = run(folder / "image.onnx", pixel_values=pixels)
        encoded = model.encode_image(pixels)
        same(embeds, encoded.embeds_BE)
        same(tokens, encoded.tokens_BND)
    for texts, length in ((1, 1), (4, 12), (2, 9)):
        ids = torch.randint(2, VOCABULARY, (texts, length))
        ids[:, length // 2] = 1
        same(run(folder / "text.onnx", input_ids=ids)[0], model.encode_text(ids))
    check_prompts(model, folder)


def test_the_folder_says_what_it_is(exported: tuple[AnyCLOCModel, Path, str]) -> None:
    model, folder, said = exported
    for name in ("image", "text", "regions", "ground"):
        assert re.search(rf"^{name}\.onnx: at most \d\.\de-0\d from the model", said, re.MULTILINE)
    facts = json.loads((folder / "onnx.json").read_text())
    assert facts["graphs"]["regions"]["inputs"] == {"tokens": ["batch", 17, 32], "boxes": ["batch", "prompts", 4]}
    assert facts["graphs"]["text"]["inputs"] == {"input_ids": ["texts", "length"]}
    assert facts["scales"]["region_logit_scale"] == pytest.approx(model.region_logit_scale.exp().item())
    for name, graph in facts["graphs"].items():
        session = onnxruntime.InferenceSession(folder / graph["file"], providers=["CPUExecutionProvider"])
        assert {value.name: value.shape for value in session.get_inputs()} == graph["inputs"]
        assert {value.name: value.shape for value in session.get_outputs()} == graph["outputs"]
        body = (folder / graph["file"]).read_bytes()
        assert b"site-packages" not in body, "no path of this machine"
        assert b"modeling.py" not in body, f"{name}: no stack trace"
    assert facts["opset"] == 18


def test_the_readmes_code_gives_what_the_model_gives(
    exported: tuple[AnyCLOCModel, Path, str], processor: CLOCProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Preprocessing included, and nothing of this package in it."""
    model, folder, _ = exported
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert code
    assert "cloc" not in code[1]
    picture = np.random.default_rng(0).integers(0, 256, (40, 57, 3), dtype=np.uint8)
    Image.fromarray(picture).save(folder / "photo.png")
    monkeypatch.chdir(folder)
    found: dict[str, Any] = {}
    exec(compile(code[1], "README.md", "exec"), found)
    photo = CLOC(model, processor).encode(Image.fromarray(picture))
    np.testing.assert_allclose(found["unit"](found["image_embeds"])[0], photo.embedding, atol=1e-4)
    label = photo.classify([[0.1, 0.2, 0.5, 0.9]], WORDS)[0]
    assert found["labels"][int(found["scores"][0, 0].argmax())] == label.text
    assert found["scores"][0, 0].max() == pytest.approx(label.score, abs=1e-4)
    np.testing.assert_allclose(found["found"][0], [photo.find(text) for text in WORDS], atol=1e-4)


def test_a_graph_that_differs_is_an_error(exported: tuple[AnyCLOCModel, Path, str]) -> None:
    model, folder, _ = exported
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.region_projection.weight[0, 0] += 0.1
    regions = next(graph for graph in graphs(other) if graph.name == "regions")
    assert onnx.check_graph(regions, model, folder / "regions.onnx").difference < 1e-5
    with pytest.raises(ClocError, match=r"regions\.onnx: region_embeds in onnxruntime differs from the model's by"):
        onnx.check_graph(regions, other, folder / "regions.onnx")
    with torch.no_grad():
        other.region_projection.weight[0, 0] = float("nan")
    with pytest.raises(ClocError, match="differs from the model's by nan"):
        onnx.check_graph(regions, other, folder / "regions.onnx")


def test_what_cannot_be_written_is_one_line(
    tmp_path: Path, exported: tuple[AnyCLOCModel, Path, str], processor: CLOCProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, folder, _ = exported
    with pytest.raises(ConfigError, match="is not empty"):
        to_onnx(model, processor, out=folder)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ConfigError, match=r"needs onnxscript .*pip install 'cloc\[export\]'"):
        to_onnx(model, processor, out=tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_roi_align_has_regions_and_no_grounding(tmp_path: Path) -> None:
    model = build(kind="roi_align")
    assert [graph.name for graph in graphs(model)] == ["image", "text", "regions"]
    write(model, tmp_path, "regions")
    check_prompts(model, tmp_path)


def test_the_papers_prompter(tmp_path: Path) -> None:
    model = build(pool="all", spatial_bias="none")
    write(model, tmp_path, "regions")
    check_prompts(model, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["all", "image", "prompt"])
@pytest.mark.parametrize("bias", ["none", "box"])
def test_every_prompter(tmp_path: Path, pool: str, bias: str) -> None:
    model = build(pool=pool, spatial_bias=bias)
    write(model, tmp_path, "regions", "ground")
    assert len(list(tmp_path.iterdir())) == 2
    check_prompts(model, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("bias", ["none", "box"])
def test_points_and_several_layers(tmp_path: Path, bias: str) -> None:
    model = build(spatial_bias=bias, layers=2, points=True)
    write(model, tmp_path, "regions", "points")
    assert len(list(tmp_path.iterdir())) == 2
    check_prompts(model, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["transformer", "roi_align"])
@torch.no_grad()
def test_siglip(tmp_path: Path, processor: CLOCProcessor, kind: str) -> None:
    model = build("siglip", kind=kind)
    checks = to_onnx(model, processor, out=tmp_path / "out").checks
    assert len(checks) == (4 if kind == "transformer" else 3)
    pixels, ids = torch.randn(4, 3, 32, 32), torch.randint(VOCABULARY, (5, 12))
    same(run(tmp_path / "out" / "image.onnx", pixel_values=pixels)[0], model.encode_image(pixels).embeds_BE)
    same(run(tmp_path / "out" / "text.onnx", input_ids=ids)[0], model.encode_text(ids))
    check_prompts(model, tmp_path / "out")
