"""The examples of CONTRIBUTING.md run against the real registries and interfaces."""

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil, MetaClip2Model

from cloc.config import Config
from cloc.config.schema import LossConfig, ModelConfig
from cloc.data.dataset import write_manifest
from cloc.data.schema import Manifest
from cloc.data.shards import Sample, ShardWriter
from cloc.data.storage import open_storage
from cloc.evaluation.statistics import difference, draws, scores
from cloc.labeling import captioning, grounding
from cloc.labeling.captioners import CAPTIONERS
from cloc.labeling.detectors import DETECTORS, QUERIES
from cloc.model import factory
from cloc.model.processing import train_tokenizer
from tests.conftest import assert_same

TEXT = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()


def example(heading: str) -> dict[str, Any]:
    """What the example under a heading defines."""
    (section,) = re.findall(rf"^## {heading}\n(.*?)(?=^## )", TEXT, re.DOTALL | re.MULTILINE)
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(code, f"CONTRIBUTING.md, {heading}", "exec"), names)
    return names


def pictures(folder: Path, described: str) -> None:
    """Two catalogue pictures: a red rectangle on white, one of them with a description in the file."""
    writer, storage = ShardWriter(), open_storage(folder)
    for key, text in (("000000", described), ("000001", "")):
        image, exif, stream = Image.new("RGB", (80, 40), "white"), Image.Exif(), io.BytesIO()
        image.paste((200, 30, 30), (20, 10, 40, 30))
        if text:
            exif[0x010E] = text
        image.save(stream, format="PNG", exif=exif)
        writer.add(Sample(key=key, image=stream.getvalue(), suffix="png"))
    write_manifest(storage, Manifest(shards=(writer.write(storage, "00000"),), made_by={"tool": "tests"}))


def with_backend(section: str, name: str) -> Config:
    """Settings that name a backend which the schema does not have."""
    tree = {"captioning": {"backend": "annotations"}, "grounding": {"backend": "annotations"}}
    config = Config.model_validate({**tree, "data": {"processes": 1, "quarantine_limit": 0.5}})
    changed = getattr(config, section).model_copy(update={"backend": name, "processes": 1})
    return config.model_copy(update={section: changed})


def test_captioner_and_detector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures(tmp_path / "data", "a red key")
    captioner, detector = example("A captioner")["EmbeddedCaptioner"], example("A detector")["PlainBackgroundDetector"]
    monkeypatch.setitem(CAPTIONERS, "embedded", lambda config: captioner())  # type: ignore[arg-type]  # a dict
    monkeypatch.setitem(DETECTORS, "plain", lambda config: detector(QUERIES["captions"](config)))  # type: ignore[arg-type]  # a dict
    data, captions, regions = (str(tmp_path / name) for name in ("data", "captions", "regions"))
    done = captioning.run(
        with_backend("captioning", "embedded"),
        inputs=captioning.Inputs(data=data),
        outputs=captioning.Outputs(captions=captions),
    )
    assert (done.counts["labelled"], done.counts["quarantined"]) == (1, 1)
    quarantined = pq.read_table(tmp_path / "captions/quarantine/00000.parquet").to_pylist()
    assert [(row["key"], row["reason"]) for row in quarantined] == [("000001", "no description in the file")]
    grounding.run(
        with_backend("grounding", "plain"),
        inputs=grounding.Inputs(data=data, captions=captions),
        outputs=grounding.Outputs(regions=regions),
    )
    (row,) = pq.read_table(tmp_path / "regions/regions/00000.parquet").to_pylist()
    assert (row["key"], row["text"], row["source"]) == ("000000", "red key", "plain_background")
    assert [row[side] for side in ("x1", "y1", "x2", "y2")] == pytest.approx([0.25, 0.25, 0.5, 0.75])


def test_protocol() -> None:
    score = example("An evaluation protocol")["score"]
    images_R = np.repeat(np.arange(10), 3)
    images_R[-1] = 10  # alone in its image
    texts_RE = np.tile(np.eye(3), (10, 1))
    drawn = draws(11)
    right = score(texts_RE, texts_RE, images_R, draws_SN=drawn)
    blind = score(np.ones_like(texts_RE) / 3**0.5, texts_RE, images_R, draws_SN=drawn)
    assert scores(right) == {"accuracy": 1.0, "n": 29, "images": 10, "interval": {"accuracy": [1.0, 1.0]}}
    assert blind["accuracy"].value == pytest.approx((27 / 3 + 2 / 2) / 29)
    assert difference(right["accuracy"], blind["accuracy"]).better == "a"


def test_backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = example("A backbone")
    monkeypatch.setattr(factory, "FAMILIES", names["FAMILIES"])
    tokenizer = train_tokenizer(["a red key", "a blue box"] * 3, vocab_size=300, context_length=12)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    torch.manual_seed(0)
    public = MetaClip2Model(
        MetaClip2Model.config_class(
            projection_dim=32,
            vision_config={**sizes, "image_size": 32, "patch_size": 8, "projection_dim": 32},
            text_config={**sizes, **ids, "vocab_size": len(tokenizer), "max_position_embeddings": 12},
        )
    ).eval()
    hub = tmp_path / "hub"
    public.save_pretrained(hub)
    tokenizer.save_pretrained(hub)
    CLIPImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(hub)
    assert json.loads((hub / "config.json").read_text())["model_type"] == "metaclip_2"

    model, processor = factory.create(ModelConfig(init_from=str(hub)), LossConfig(), tokenizer=str(hub))
    model.eval()
    pixels, texts = torch.randn(2, 3, 32, 32), processor.tokenize(["a red key", "a blue box"])
    assert_same(model.encode_image(pixels).embeds_BE, public.get_image_features(pixels).pooler_output)
    assert_same(model.encode_text(texts), public.get_text_features(texts).pooler_output)
    boxes = torch.tensor([[[0.1, 0.1, 0.5, 0.5], [0.0, 0.0, 1.0, 1.0]]] * 2)
    assert model.get_region_features(pixels, boxes).shape == (2, 2, 32)
    assert ((found := model.ground(pixels, texts)) > 0).all()
    assert found.shape == (2, 2, 4)
    kept = model.encode_image(pixels, keep_pooled=True)
    assert_same(model.embed_masked(kept.pooled_BND, boxes)[:, 1], kept.embeds_BE)

    saved = tmp_path / "saved"
    model.save_pretrained(saved)
    processor.save_pretrained(saved)
    assert_same(MetaClip2Model.from_pretrained(saved).get_image_features(pixels).pooler_output, kept.embeds_BE)
    loaded = factory.load_any(saved)
    assert loaded.has_regions
    assert_same(loaded.model.get_region_features(pixels, boxes), model.get_region_features(pixels, boxes))
