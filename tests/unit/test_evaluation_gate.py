"""The gate: a pure function of `metrics.json`."""

import json

import pytest

from cloc.config.schema import Config, EvaluationConfig
from cloc.errors import ConfigError, DataError, GateFailed
from cloc.evaluation import registration
from cloc.evaluation.gate import judge
from cloc.evaluation.summary import slug
from cloc.model.provenance import read_training, weights_digest

STEPS, COMPUTE = "CLIP (equal steps)", "CLIP (equal compute)"


def _share(value, **more):
    return {**value, "interval": {key: [max(0, x - 0.03), min(1, x + 0.03)] for key, x in value.items()}, **more}


def _row(model, reader, macc):
    return {"model": model, "reader": reader, "region": _share({"mAcc": macc, "top1": macc / 2}, n=10, per_class={})}


def _recall(value):
    return _share({"R@1": value})


def make_metrics(*, steps=(0.05, 0.12), compute=(0.19, 0.10), cloc=0.70, recalls=(0.15, 0.33, 0.25), clip_steps=600):
    """Figures like those of a real run: (crop, RoIAlign) of each CLIP, the Prompter's, and R@1 of the three."""
    rows = [
        *(_row(STEPS, reader, x) for reader, x in zip(("crop", "roi_align"), steps, strict=True)),
        *(_row(COMPUTE, reader, x) for reader, x in zip(("crop", "roi_align"), compute, strict=True)),
        _row("CLOC", "crop", 0.3),
        _row("CLOC", "prompter", cloc),
    ]
    names = (STEPS, COMPUTE, "CLOC")
    split = {
        "digest": "set-a",
        "rows": rows,
        "retrieval": {
            name: {"i2t": _recall(x), "t2i": _recall(x - 0.02)} for name, x in zip(names, recalls, strict=True)
        },
        "grounding": {"CLOC": _share({"acc@0.5": 0.72})},
    }
    training = {
        STEPS: ("clip", clip_steps, 251.0),
        COMPUTE: ("clip", 1200, 496.0),
        "CLOC": ("cloc", 600, 450.0),
    }
    return {
        "headline": {"split": "test", "candidate": "CLOC", "baselines": [STEPS, COMPUTE]},
        "models": {
            name: {"objective": o, "steps": s, "cpu_seconds": c, "slug": slug(name), "weights_sha256": name}
            for name, (o, s, c) in training.items()
        },
        "splits": {"test": split, "unseen_pairs": split},
    }


class TestGate:
    def test_passes(self):
        verdict = judge(make_metrics(), EvaluationConfig(min_region_gain=3.0))
        assert verdict.passed
        assert len(verdict.reasons) == 2

    def test_a_split_without_captions_fails_the_rule_about_images_alone(self):
        metrics = make_metrics()
        metrics["splits"]["test"] = metrics["splits"]["test"] | {"retrieval": {}}
        verdict = judge(metrics, EvaluationConfig(min_region_gain=3.0))
        assert not verdict.passed
        assert verdict.reasons[0].startswith("max_image_loss: test has no captions")
        assert judge(metrics, EvaluationConfig(min_region_gain=3.0, max_image_loss=1)).passed

    def test_the_best_plain_row_is_the_one_to_beat(self):
        verdict = judge(make_metrics(), EvaluationConfig(min_region_gain=4.0))
        assert not verdict.passed
        assert verdict.reasons[0].startswith("min_region_gain")
        assert "3.68 times the 19.0 of CLIP (equal compute) (crop)" in verdict.reasons[0]

    def test_images_are_compared_at_equal_steps(self):
        assert judge(make_metrics(recalls=(0.29, 0.9, 0.25)), EvaluationConfig()).passed
        verdict = judge(make_metrics(recalls=(0.31, 0.2, 0.25)), EvaluationConfig())
        assert not verdict.passed
        assert verdict.reasons[0].startswith("max_image_loss")

    def test_no_clip_at_equal_steps_fails(self):
        verdict = judge(make_metrics(clip_steps=601), EvaluationConfig())
        assert not verdict.passed
        assert "no plain CLIP is known to be trained for the 600 steps" in verdict.reasons[0]

    def test_nothing_against_nothing_fails(self):
        metrics = make_metrics(steps=(0, 0), compute=(0, 0), cloc=0)
        for row in metrics["splits"]["test"]["rows"]:
            row["region"]["mAcc"] = 0.0
        assert not judge(metrics, EvaluationConfig()).passed
        metrics["headline"]["baselines"] = []
        assert not judge(metrics, EvaluationConfig()).passed


@pytest.fixture
def evaluated(tmp_path):
    model, evaluation = tmp_path / "model", tmp_path / "evaluation"
    model.mkdir()
    evaluation.mkdir()
    (model / "model.safetensors").write_bytes(b"weights")
    metrics = make_metrics()
    metrics["models"]["CLOC"]["weights_sha256"] = weights_digest(model)
    (evaluation / "metrics.json").write_text(json.dumps(metrics))
    return registration.Inputs(evaluation=str(evaluation), model=str(model))


def _register(tmp_path, inputs, **rules):
    config = Config(evaluation=EvaluationConfig(**rules))
    return registration.run(config, inputs=inputs, outputs=registration.Outputs(receipt=str(tmp_path / "receipt")))


class TestRegistration:
    def test_a_failing_candidate_gets_one_line_and_no_receipt(self, tmp_path, evaluated):
        with pytest.raises(GateFailed, match=r"min_region_gain.*70\.0.*19\.0.*index\.html") as failure:
            _register(tmp_path, evaluated, min_region_gain=5.0)
        assert "\n" not in str(failure.value)
        assert not (tmp_path / "receipt").exists()

    def test_other_weights_are_refused(self, tmp_path, evaluated):
        (tmp_path / "model" / "model.safetensors").write_bytes(b"other weights")
        with pytest.raises(DataError, match="none of those evaluated"):
            _register(tmp_path, evaluated)

    def test_no_evaluation(self, tmp_path, evaluated):
        (tmp_path / "evaluation" / "metrics.json").unlink()
        with pytest.raises(DataError, match=r"no evaluation here.*metrics\.json"):
            _register(tmp_path, evaluated)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "objective must be"),
        ('{"objective": "sigmoid"}', "'sigmoid'"),
        ('{"objective": "clip", "steps": "many", "cpu_seconds": 1}', "steps must be a number, got 'many'"),
    ],
)
def test_training_files_that_cannot_be_used(tmp_path, text, message):
    (tmp_path / "training.json").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_training(tmp_path)
