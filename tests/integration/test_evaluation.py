"""The stage on tiny models of the real classes: figures, report, and what happens when inputs are broken."""

import html.parser
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from cloc.boxes import Letterbox
from cloc.data.dataset import Dataset
from cloc.data.fingerprints import ensure
from cloc.data.storage import open_storage
from cloc.data.tables import read_table, write_table
from cloc.errors import ConfigError, DataError
from cloc.evaluation import stage
from cloc.evaluation.cache import open_cache
from cloc.evaluation.encoding import crop
from cloc.evaluation.features import Encoder, encode_split
from cloc.evaluation.models import load_models
from cloc.evaluation.truth import open_splits
from cloc.tracking.names import problem
from tests.evaluated_models import settings as tiny_settings
from tests.evaluated_models import write_model


def settings(**evaluation):
    return tiny_settings(splits=("test", "other"), **evaluation)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {
        "CLIP (equal steps)": write_model(root / "clip", "clip", seed=1),
        "CLIP (equal compute)": write_model(root / "clip2", "clip", seed=2, steps=20),
        "CLOC": write_model(root / "cloc", "cloc", seed=3),
    }


@pytest.fixture
def collection(tmp_path, make_dataset):
    make_dataset(tmp_path / "data" / "test", 10)
    make_dataset(tmp_path / "data" / "other", 5, seed=1)
    return str(tmp_path / "data")


def evaluate(config, data, models, tmp_path):
    inputs = stage.Inputs(data=data, models=models)
    return stage.run(config, inputs=inputs, outputs=stage.Outputs(report=str(tmp_path / "report")))


def encode(data, models, *, batch_size=3):
    """The split, its items, and the features by model."""
    split, loaded = open_splits(data, ("test",))[0], load_models(models, device="cpu")
    with open_cache("none", gigabytes=1) as cache:
        encoded = encode_split(split, Encoder(loaded, cache, batch_size), quarantine_limit=0.5)
        return split, encoded.items, {model.name: encoded.features(model) for model in loaded}


class Page(html.parser.HTMLParser):
    """What a browser would load and run, and whether tags close."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_what_was_trained_on_is_told(tmp_path, collection, models, make_dataset):
    make_dataset(tmp_path / "data" / "train", 10)  # the same seed: the test images
    result = evaluate(settings(), collection, models, tmp_path)
    assert "data/leaked_images" not in result.metrics
    assert "is not known" in (tmp_path / "report" / "index.html").read_text()
    for split in ("train", "test", "other"):
        ensure(Dataset.open(tmp_path / "data" / split), processes=1)
    result = evaluate(settings(), collection, models, tmp_path)
    assert result.metrics["data/leaked_images"] == result.metrics["data/test/leaked_images"] == 10
    page = (tmp_path / "report" / "index.html").read_text()
    Page(page)
    assert "10 of the 10 test images occur in the split train that is trained on: 10 equal files" in page
    assert "10 of the 10 images of test occur in train" in (tmp_path / "report" / "summary.md").read_text()


def test_the_whole_stage(tmp_path, collection, models):
    result = evaluate(settings(pictures=4), collection, models, tmp_path)
    metrics = json.loads((tmp_path / "report" / "metrics.json").read_text())
    rows = [(row["model"], row["reader"]) for row in metrics["splits"]["test"]["rows"]]
    assert rows == [
        ("CLIP (equal steps)", "crop"),
        ("CLIP (equal steps)", "roi_align"),
        ("CLIP (equal steps)", "masked"),
        ("CLIP (equal compute)", "crop"),
        ("CLIP (equal compute)", "roi_align"),
        ("CLIP (equal compute)", "masked"),
        ("CLOC", "crop"),
        ("CLOC", "roi_align"),
        ("CLOC", "masked"),
        ("CLOC", "prompter"),
    ]
    assert metrics["headline"] == {"split": "test", "candidate": "CLOC", "baselines": list(models)[:2]}
    assert [split["regions"] for split in metrics["splits"].values()] == [20, 10]
    assert list(metrics["splits"]["test"]["grounding"]) == ["CLOC"]
    assert metrics["models"]["CLOC"]["steps"] == 10
    assert metrics["splits"]["test"]["retrieval"]["CLOC"]["i2t"]["candidates"] == 10
    assert list(result.models) == list(models)
    for model, name in (
        ("CLIP (equal compute)", "eval/region/test/roi_align/mAcc"),
        ("CLIP (equal compute)", "eval/region/test/mAcc"),
        ("CLOC", "eval/region/other/prompter/top1"),
        ("CLIP (equal steps)", "eval/retrieval/test/i2t_R1"),
        ("CLOC", "eval/grounding/test/acc_0.5"),
    ):
        assert 0 <= result.models[model].metrics[name] <= 1
    assert result.models["CLOC"].metrics.items() <= result.metrics.items()
    assert result.models["CLOC"].about["weights_sha256"] == metrics["models"]["CLOC"]["weights_sha256"]
    names = {name for own in (result, *result.models.values()) for name in own.metrics}
    assert not [wrong for name in names if (wrong := problem(name))]
    assert result.counts["images"] == 15
    page = Page((tmp_path / "report" / "index.html").read_text())
    assert page.open == []
    assert "script" not in page.tags
    assert page.tags.count("img") >= 12
    assert all(link.startswith(("data:image/jpeg;base64,", "#")) for link in page.links)
    text = (tmp_path / "report" / "index.html").read_text()
    assert text.count('class="peak" style=') == 4  # heat maps of two phrases by two models
    assert "| region mAcc |" in (tmp_path / "report" / "summary.md").read_text()
    for name in ("figures", "tables"):
        assert list((tmp_path / "report" / name).iterdir())
        assert result.artifacts[name] == str(tmp_path / "report" / name)


def test_features_are_those_of_one_image_at_a_time(collection, models):
    """Batching, sorting, padding and threads change nothing: each row is the plain call on its own image and box."""
    split, items, features = encode(collection, models)
    loaded = {model.name: model for model in load_models(models, device="cpu")}
    model, found = loaded["CLOC"], features["CLOC"]
    region = phrase = 0
    for number, sample in enumerate(split.dataset.read_all()):
        assert items.keys[number] == sample.sample.key
        image = Image.open(io.BytesIO(sample.sample.image)).convert("RGB")
        frame = Letterbox(image.width, image.height, 32)
        truth = split.truth[sample.sample.key]
        with torch.inference_mode():
            encoded = model.model.encode_image(model.processor.pixels([image]))
            unit = torch.nn.functional.normalize
            assert found.images_NE[number] == pytest.approx(unit(encoded.embeds_BE)[0].numpy(), abs=1e-5)
            kept = model.model.encode_image(model.processor.pixels([image]), keep_pooled=True)
            for place, labelled in enumerate(truth.regions):
                boxes = torch.from_numpy(frame.to_padded([labelled.box])).float()[None]
                crops = model.processor.pixels([crop(image, labelled.box)])
                expected = {
                    "prompter": model.model.embed_boxes(encoded.tokens_BND, boxes)[0, 0],
                    "roi_align": model.model.embed_roi(encoded.tokens_BND, boxes)[0, 0],
                    "masked": model.model.embed_masked(kept.pooled_BND, boxes)[0, 0],
                    "crop": model.model.encode_image(crops).embeds_BE[0],
                }
                for reader, embed in expected.items():
                    assert found.regions[reader][region] == pytest.approx(unit(embed, dim=0).numpy(), abs=1e-5)
                assert split.classes[items.labels[region]] == labelled.label
                assert items.label_rows[region] == region, "no box stands twice here"
                region += 1
                if place in truth.phrases:
                    ids = model.processor.tokenize([labelled.text])
                    text = unit(model.model.encode_text(ids), dim=-1)[None]
                    padded = model.model.ground_texts(encoded.tokens_BND, text)[0].numpy()
                    assert found.boxes[phrase] == pytest.approx(frame.from_padded(padded)[0], abs=1e-5)
                    assert items.phrase_boxes[phrase] == labelled.box
                    phrase += 1
    assert region == len(items.labels) == 20
    assert phrase == len(items.phrases)


def test_captions_keep_their_images(collection, models):
    split, items, features = encode(collection, models)
    with torch.inference_mode():
        plain = load_models({"CLOC": models["CLOC"]}, device="cpu")[0].embed_texts(list(items.captions), batch_size=1)
    for row, (text, image) in enumerate(zip(items.caption_text, items.caption_image, strict=True)):
        assert list(items.captions)[text] in split.truth[items.keys[image]].captions
        where = items.texts[list(items.captions)[text]]
        assert features["CLOC"].texts_UE[where] == pytest.approx(plain[text], abs=1e-5), row


def test_a_region_model_without_prompter_is_read_by_its_region_head(tmp_path, collection):
    models = {"RoI": write_model(tmp_path / "roi", "cloc", kind="roi_align")}
    evaluate(settings(pictures=2), collection, models, tmp_path)
    metrics = json.loads((tmp_path / "report" / "metrics.json").read_text())
    readers = [row["reader"] for row in metrics["splits"]["test"]["rows"]]
    assert readers == ["crop", "roi_align", "masked", "region_head"]
    assert metrics["splits"]["test"]["grounding"] == {}


def test_a_single_data_set_is_the_first_split(tmp_path, collection, models):
    evaluate(settings(pictures=0), f"{collection}/other", {"CLIP": models["CLIP (equal steps)"]}, tmp_path)
    metrics = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert list(metrics["splits"]) == ["test"]
    assert "There is no CLOC model" in (tmp_path / "report" / "index.html").read_text()


def test_texts_of_the_data_are_escaped(tmp_path, make_dataset, models):
    data = make_dataset(tmp_path / "data", 4)
    storage = open_storage(data)
    evil = "<script>alert(1)</script>"
    rows = [{**row, "text": evil} for row in read_table(storage, "captions", "00000").to_pylist()]
    write_table(storage, "captions", "00000", rows)
    evaluate(settings(pictures=8), data, models, tmp_path)
    page = (tmp_path / "report" / "index.html").read_text()
    assert "&lt;script&gt;" in page
    assert "script" not in Page(page).tags


def test_an_undecodable_image_is_left_out_and_counted(tmp_path, make_dataset, models):
    data = make_dataset(tmp_path / "data", 30, shard_size=15, broken=[4])
    result = evaluate(settings(pictures=0), data, {"CLOC": models["CLOC"]}, tmp_path)
    assert result.counts["quarantined"] == 1
    metrics = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert metrics["splits"]["test"]["images"] == 29
    assert metrics["splits"]["test"]["undecodable"][0]["key"] == "000004"


def test_too_many_undecodable_images(tmp_path, make_dataset, models):
    data = make_dataset(tmp_path / "data", 4, broken=[1, 2])
    with pytest.raises(DataError, match=r"2 of 4 images of the split 'test' cannot be decoded.*000001"):
        evaluate(settings(), data, models, tmp_path)


@pytest.mark.parametrize(
    ("parts", "present", "absent"),
    [
        ({"captions": False}, ("region", "region_retrieval", "probe"), "retrieval"),
        ({"regions": False}, (), "grounding"),
    ],
)
def test_a_split_is_tested_by_what_it_has(tmp_path, make_dataset, models, parts, present, absent):
    data = make_dataset(tmp_path / "data", 8, **parts)
    evaluate(settings(pictures=2), data, {"CLOC": models["CLOC"]}, tmp_path)
    split = json.loads((tmp_path / "report" / "metrics.json").read_text())["splits"]["test"]
    assert split[absent] == {}
    rows = split["rows"]
    assert [set(present) <= row.keys() for row in rows] == [True] * (4 if present else 0)


def test_a_split_without_truth(tmp_path, make_dataset, models):
    data = make_dataset(tmp_path / "data", 4, captions=False, regions=False)
    with pytest.raises(DataError, match="'test' has nothing to test against: no human captions, no labelled"):
        evaluate(settings(), data, models, tmp_path)


def test_boxes_in_pixels_are_told(tmp_path, make_dataset, models):
    data = make_dataset(tmp_path / "data", 4, captions=False)
    storage = open_storage(data)
    rows = [{**row, "x2": 40.0, "y2": 30.0} for row in read_table(storage, "regions", "00000").to_pylist()]
    write_table(storage, "regions", "00000", rows)
    with pytest.raises(DataError, match=r"all of its 8 labelled boxes are unusable \(8 times box outside its image\)"):
        evaluate(settings(), data, models, tmp_path)


def test_boxes_without_class_names(tmp_path, make_dataset, models, capsys):
    data = make_dataset(tmp_path / "data", 4)
    storage = open_storage(data)
    rows = [{**row, "label": ""} for row in read_table(storage, "regions", "00000").to_pylist()]
    write_table(storage, "regions", "00000", rows)
    evaluate(settings(pictures=2), data, {"CLOC": models["CLOC"]}, tmp_path)
    assert "test: its 8 boxes have no class names: no region recognition" in capsys.readouterr().out
    split = json.loads((tmp_path / "report" / "metrics.json").read_text())["splits"]["test"]
    assert all("region" not in row and "region_retrieval" in row for row in split["rows"])


def test_a_split_that_is_not_there(tmp_path, make_dataset, models):
    make_dataset(tmp_path / "data" / "test", 4)
    with pytest.raises(DataError, match="split 'other'"):
        evaluate(settings(), str(tmp_path / "data"), models, tmp_path)


def test_a_label_that_is_no_class(tmp_path, make_dataset, models):
    data = make_dataset(tmp_path / "data", 4)
    storage = open_storage(data)
    rows = read_table(storage, "regions", "00000").to_pylist()
    rows[0]["label"] = "zeppelin"
    write_table(storage, "regions", "00000", rows)
    with pytest.raises(DataError, match="'zeppelin' of its regions is not among its 4 classes"):
        evaluate(settings(), data, models, tmp_path)


def test_bad_boxes_and_labels_of_machines_are_no_truth(tmp_path, make_dataset):
    data = make_dataset(tmp_path / "data", 4)
    storage = open_storage(data)
    rows = read_table(storage, "regions", "00000").to_pylist()
    rows[0]["x2"], rows[1]["source"] = rows[0]["x1"], "owlv2"
    write_table(storage, "regions", "00000", rows)
    split = open_splits(data, ("test",))[0]
    assert split.bad_boxes == 1
    assert sum(len(item.regions) for item in split.truth.values()) == 6


@pytest.mark.parametrize(
    ("names", "message"), [({}, "no models given"), ({"A b": "x", "a-B": "y"}, "'A b' is empty or like another")]
)
def test_models_that_cannot_be_compared(tmp_path, collection, names, message):
    with pytest.raises(ConfigError, match=message):
        evaluate(settings(), collection, names, tmp_path)


def test_a_folder_that_is_no_model(tmp_path, collection):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"empty: no model here \(there is neither training\.json nor config\.json\)"):
        evaluate(settings(), collection, {"CLIP": str(tmp_path / "empty")}, tmp_path)
    with pytest.raises(ConfigError, match="nowhere: there is no such folder"):
        evaluate(settings(), collection, {"CLIP": str(tmp_path / "nowhere")}, tmp_path)


@pytest.mark.parametrize(
    ("box", "size"),
    [
        ((0, 0, 1, 1), (10, 6)),
        ((0.1, 0.5, 0.3, 1), (2, 3)),
        ((0.99, 0.99, 1, 1), (1, 1)),
        ((0.25, 0, 0.31, 0.1), (2, 1)),
    ],
)
def test_a_crop_holds_every_pixel_that_the_box_touches(box, size):
    assert crop(Image.new("RGB", (10, 6)), box).size == size


def test_crops_are_of_the_original_image():
    image = Image.fromarray(np.arange(200, dtype=np.uint8).reshape(10, 20)).convert("RGB")
    assert np.asarray(crop(image, (0.5, 0.2, 0.75, 0.4)))[..., 0].tolist() == [
        list(range(50, 55)),
        list(range(70, 75)),
    ]


def test_the_data_set_is_only_read(collection, models, tmp_path):
    before = Dataset.open(f"{collection}/test").manifest
    evaluate(settings(pictures=1), f"{collection}/test", {"CLOC": models["CLOC"]}, tmp_path)
    assert Dataset.open(f"{collection}/test").manifest == before
