"""`cloc plan`: counts that are exact, memory that torch confirms, and the limit that binds."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch.autograd.graph import saved_tensors_hooks

from cloc.cli import cloc
from cloc.config import Config, dump, load_preset, parse
from cloc.errors import ConfigError
from cloc.model import factory
from cloc.stage import StageResult
from cloc.training.plan import Plan, Request, estimate
from cloc.training.plan import measure as measuring
from cloc.training.plan.figures import Figure, Figures
from cloc.training.plan.measured import read_measured
from cloc.training.plan.memory import Setting, held, memory
from cloc.training.plan.sizes import sizes
from cloc.training.task import CLOCTask
from tests.conftest import write_dataset

SMALL: dict[str, Any] = {
    "embed_dim": 32,
    "vision": {"image_size": 48, "patch_size": 8, "width": 32, "layers": 3, "heads": 2},
    "text": {"width": 24, "layers": 2, "heads": 2, "context_length": 16, "vocab_size": 540},
}


def settings(*, model: dict[str, Any] | None = None, loss: dict[str, Any] | None = None, **train: Any) -> Config:
    tree = {"model": {**SMALL, **(model or {})}, "loss": loss or {}, "train": {"batch_size": 64, "steps": 100, **train}}
    return parse(tree, source="test")


def plan(config: Config | None = None, **asked: Any) -> Plan:
    return estimate(config or settings(), Request(**{"images": 10_000, "gpus": 8, **asked}))


# The numbers of open_clip's docs/model_profile.csv, in millions; at 336 px with the position embeddings of that size.
@pytest.mark.parametrize(
    ("preset", "millions"), [("b16", 149.62), ("l14", 427.94), ("h14", 986.52), ("finetune", 149.62)]
)
def test_parameters_of_the_plain_clip_are_those_of_open_clip(preset: str, millions: float) -> None:
    from cloc.training.plan.sizes import known_checkpoint

    config, _ = known_checkpoint(load_preset(preset))
    found = sizes(config, objective="cloc")
    assert round(found.clip / 1e6, 2) == millions
    assert found.parameters == found.trained + _untrained(found.vision.width)


def _untrained(width: int) -> int:
    """The two biases of the sigmoid losses, and the type of point prompts."""
    return 2 + width


@pytest.fixture(scope="module")
def b16() -> Plan:
    return estimate(load_preset("b16"), Request(images=2_000_000_000, gpus=64))


def test_the_papers_b16(b16: Plan) -> None:
    assert b16.speed.steps == 439_087
    assert b16.speed.steps * b16.config.train.batch_size == 439_087 * 32_768
    # open_clip's profile: 35.13 and 5.96 GFLOP forward; region texts are read besides.
    assert b16.speed.flops.image / 32_768 / 3 == pytest.approx(35.13e9, rel=0.01)
    captions = 5.96e9
    assert captions < b16.speed.flops.text / 32_768 / 3 < captions * (1 + 4 * 12 / 77 + 0.02)
    # Adam's moments are twice the weights, and a checkpoint is all three.
    assert b16.memory.parts["optimiser"] == pytest.approx(2 * b16.memory.parts["weights"], rel=1e-4)
    assert b16.kept.checkpoint == pytest.approx(12 * b16.sizes.parameters, rel=1e-4)
    # Regions are computed by 8 prompts of 197 tokens in a layer of the ViT's width: more than half of the ViT's work.
    assert b16.speed.flops.regions > 0.5 * b16.speed.flops.image
    assert b16.speed.images_per_second == pytest.approx(b16.config.train.batch_size / b16.speed.step_seconds)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("prompter", "loss", "objective"),
    [
        ({"pool": "all"}, {}, "cloc"),
        ({"pool": "prompt", "spatial_bias": "box"}, {}, "cloc"),
        ({"pool": "all", "heads": 2, "layers": 2}, {"grounding": "none"}, "cloc"),
        ({"pool": "all"}, {"point_share": 0.5}, "cloc"),
        ({"kind": "roi_align"}, {}, "cloc"),
        ({}, {}, "clip"),
        ({"pool": "all"}, {"checkpointing": True}, "cloc"),
        ({"pool": "prompt"}, {"checkpointing": True}, "clip"),
    ],
)
def test_activations_are_what_torch_keeps(
    precision: str, prompter: dict[str, Any], loss: dict[str, Any], objective: Any
) -> None:
    checkpointing = bool(loss.get("checkpointing"))
    loss = {name: value for name, value in loss.items() if name != "checkpointing"}
    config = settings(model={"prompter": prompter}, loss=loss, batch_size=8, gradient_checkpointing=checkpointing)
    half = precision == "bfloat16"
    known = {"caption_tokens": Figure(16, "", "", ""), "region_tokens": Figure(6, "", "", "")}
    model = sizes(config, objective=objective)
    setting = Setting(config, objective, ranks=1, bfloat16=half)
    estimated = 8 * held(model, setting, Figures(known)).kept
    if half and not checkpointing:  # copies of all weights; with checkpointing layers make theirs again
        estimated += 2 * model.linear
    assert estimated == pytest.approx(_kept_by_torch(config, precision, objective), rel=0.15)


def _kept_by_torch(config: Config, precision: str, objective: Any) -> int:
    """Bytes of all storages that autograd keeps for the backward pass of a batch, parameters left out."""
    shape = factory.architecture(config.model)
    shape._attn_implementation = "sdpa"
    shape.cloc = (shape.cloc or {}) | {"points": bool(config.loss.point_share)}
    task = CLOCTask(factory.from_architecture(shape), config.loss, objective=objective).train()
    if config.train.gradient_checkpointing:
        task.model.activation_checkpointing_enable({"use_reentrant": False})
    own = {parameter.untyped_storage().data_ptr() for parameter in task.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if (where := tensor.untyped_storage().data_ptr()) not in own:
            kept.setdefault(where, tensor)
        return tensor

    model = sizes(config, objective=objective)
    batch = measuring._batch(config, model, 8)
    batch = type(batch)(**{**vars(batch), "text_ids_UL": torch.randint(3, 300, (32, 6))})
    with saved_tensors_hooks(pack, lambda tensor: tensor), factory.autocast(precision, torch.device("cpu")):
        task(batch)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def test_the_largest_micro_batch_is_the_largest() -> None:
    config = settings(batch_size=4096)
    figures = Figures({"gpu_memory": Figure(2.0, "", "", "")})
    model = sizes(config, objective="cloc")

    def with_parts(micro: int) -> Any:
        train = config.train.model_copy(update={"micro_batch": micro})
        return memory(model, Setting(config.model_copy(update={"train": train}), "cloc", 1, True), figures)

    largest = with_parts(0).largest
    assert 1 < largest < 4096
    assert with_parts(largest).fits
    assert not with_parts(largest + 1).fits


def test_what_sharding_checkpointing_and_frozen_towers_save() -> None:
    def needs(**train: Any) -> dict[str, float]:
        plain = settings()
        config = plain.model_copy(update={"train": plain.train.model_copy(update=train)})
        setting = Setting(config, "cloc", ranks=8, bfloat16=True)
        figures = Figures({"gpu_memory": Figure(80, "", "", "")})
        return dict(memory(sizes(config, objective="cloc"), setting, figures).parts)

    plain, sharded = needs(), needs(strategy="fsdp2")
    assert sharded["optimiser"] == plain["optimiser"] / 8
    assert sharded["weights"] == plain["weights"] / 8
    assert "whole layers" in sharded
    assert needs(gradient_checkpointing=True)["activations"] < 0.9 * plain["activations"]
    assert needs(ema=0.999)["moving average"] == pytest.approx(plain["weights"], rel=0.01)
    locked = needs(lock="image")
    assert locked["activations"] < plain["activations"]
    assert locked["optimiser"] < plain["optimiser"]
    assert needs(optimizer="muon")["optimiser"] < plain["optimiser"], "Muon has one moment"
    assert needs(micro_batch=2)["activations"] == pytest.approx(plain["activations"] / 4)


@pytest.mark.parametrize(
    ("figure", "binds"),
    [
        ("gpu_peak=0.0001", "compute"),
        ("decode=0.01", "loader"),
        ("storage_read=0.00001", "storage"),
        ("gpu_link=0.0000001", "network"),
        ("gpu_memory=0.1", "memory"),
    ],
)
def test_the_limit_that_binds(figure: str, binds: str) -> None:
    free = plan(assume=["gpu_peak=900"])
    found = plan(assume=[*(() if binds == "compute" else ("gpu_peak=900",)), figure])
    assert found.binding == binds
    assert found.remarks[0].startswith(binds)
    if binds != "memory":
        assert found.speed.hours > 5 * free.speed.hours, "what binds also sets the time"
        slowest = found.speed.limits[0]
        assert found.speed.images_per_second == pytest.approx(slowest.images_per_second, rel=0.05)
    name = figure.partition("=")[0]
    assert found.figures[name].origin == "given"
    assert found.figures["reserve"].origin == "assumed"


def test_a_batch_that_does_not_fit_gets_a_micro_batch() -> None:
    config = settings(batch_size=4096)
    found = plan(config, gpus=1, assume=["gpu_memory=2.2"])
    assert found.config.train.micro_batch
    assert found.memory.fits
    assert 4096 % found.config.train.micro_batch == 0
    assert f"train.micro_batch: {found.config.train.micro_batch}" in found.remarks[0]
    assert found.speed.flops.recomputed > 0.2 * found.speed.flops.total, "the second forward pass is counted"


def test_shards_steps_and_epochs() -> None:
    config = parse(
        {"model": SMALL, "data": {"images_per_shard": 100}, "train": {"batch_size": 64, "workers": 2}}, source="t"
    )
    found = plan(config, samples=64_000)
    assert (found.speed.steps, found.kept.shards, found.epochs) == (1000, 100, 6.4)
    assert found.kept.objects == 501
    assert any("warmup" in text for text in found.remarks)
    assert not any(text.startswith("shards") for text in found.remarks)
    assert any("shards: 10 are fewer than 16 readers" in text for text in plan(config, images=1000).remarks)
    smaller = settings(resolutions=[{"share": 0.5, "image_size": 24}])
    slow = ["gpu_peak=0.001"]
    frozen = load_preset("finetune")
    frozen = frozen.model_copy(update={"train": frozen.train.model_copy(update={"lock": "image"})})
    assert estimate(frozen, Request(images=10**6, gpus=8)).speed.hours > 0, "sizes stand for the checkpoint"
    assert plan(smaller, assume=slow).speed.hours < 0.9 * plan(assume=slow).speed.hours


def test_labels_cost_by_backend_and_measured_rate(tmp_path: Path) -> None:
    people = parse({"model": SMALL, "captioning": {"backend": "annotations"}}, source="t")
    assert plan(people.model_copy(update={"train": settings().train})).label_hours["caption"] == 0
    report = tmp_path / "report"
    StageResult("grounding", metrics={"speed/images_per_second": 50.0}).save(report)
    (report / "config.yaml").write_text(dump(parse({"grounding": {"processes": 2}}, source="t")))
    measured = read_measured([str(report)], here=False)
    assert measured["ground_rate"].value == 25
    found = plan(measured=measured)
    assert found.label_hours["ground"] == pytest.approx(10_000 / 25 / 3600)
    assert found.figures["ground_rate"].origin == "measured"
    assert "detector_tflop" not in found.figures


def _trained(folder: Path, *, device: str = "gpu", mfu: float | None = 0.3) -> str:
    folder.mkdir()
    (folder / "config.yaml").write_text(dump(settings()))
    (folder / "training.json").write_text(json.dumps({"objective": "cloc", "processes": 4}))
    row = {"speed/images_per_second": 100.0, "speed/data_wait_share": 0.25}
    row |= {"system/gpu_memory_gib" if device == "gpu" else "system/memory_gib": 1.0}
    row |= {} if mfu is None else {"speed/mfu": mfu}
    (folder / "metrics.jsonl").write_text("".join(json.dumps({"step": n, **row}) + "\n" for n in (1, 2, 3)))
    return str(folder)


def test_a_training_that_ran_tells_the_utilisation(tmp_path: Path) -> None:
    measured = read_measured([_trained(tmp_path / "gpu")], here=False)
    assert measured["utilisation"].value == pytest.approx(0.3 / 0.75)
    assert plan(measured=measured).figures["utilisation"].origin == "measured"
    cpu = _trained(tmp_path / "cpu", device="cpu")
    assert "utilisation" in read_measured([cpu], here=True)
    with pytest.raises(ConfigError, match="trained on processors"):
        read_measured([cpu], here=False)
    with pytest.raises(ConfigError, match="tells no mfu"):
        read_measured([_trained(tmp_path / "old", mfu=None)], here=False)
    with pytest.raises(ConfigError, match="neither a trained model"):
        read_measured([str(tmp_path)], here=False)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"gpu": "tpu"}, "--gpu 'tpu' is unknown; there are: l4"),
        ({"assume": ["decod=1"]}, "there is no figure 'decod'; there are: "),
        ({"assume": ["decode=fast"]}, "'fast' is no number"),
        ({"assume": ["decode=0"]}, "decode must be above 0"),
        ({"gpus": 7}, "64 cannot be shared equally by 7 GPUs; take 8 GPUs"),
        ({"gpus": 128}, "gives nothing to some of 128 GPUs"),
    ],
)
def test_what_cannot_be_planned(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(**asked)


def test_the_command_measures_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(measuring, "_DECODE_S", 0.05)
    monkeypatch.setattr(measuring, "_READ_BYTES", 4 << 20)
    data = write_dataset(tmp_path / "data", 8, shard_size=2)
    (tmp_path / "params.yaml").write_text(dump(settings(batch_size=4)))
    options = ["plan", "--data", data, "--params", "params.yaml"]
    result = CliRunner().invoke(cloc, [*options, "--measure", "--json"])
    assert result.exception is None, result.exception
    found = json.loads(result.stdout)
    assert found["storage"]["shards"] == 4
    figures = found["figures"]
    measured = {name for name, figure in figures.items() if figure["origin"] == "measured"}
    assert {"gpu_peak", "utilisation", "decode", "storage_read", "image_bytes"} <= measured
    assert 0 < figures["utilisation"]["value"] < 1.5
    assert list(tmp_path.glob(".cloc-plan-*")) == []
    (tmp_path / "plan.json").write_text(result.stdout)
    other = CliRunner().invoke(cloc, [*options, "--measured", "plan.json", "--gpus", "2"])
    assert other.exception is None, other.exception
    assert "\x1b" not in other.stdout
    for part in ("2 x NVIDIA H100", "Memory of a GPU", "What each limit would allow", "binds", "What to do"):
        assert part in other.stdout
    assert "measured   decoded and resized by a core" in other.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "say how large the data set is"),
        (["--images", "1e3", "--steps", "1", "--samples", "5"], "--steps or --samples, not both"),
        (["--images", "1e3", "--params", "x", "--model", "b16"], "--params or --model, not both"),
    ],
)
def test_contradictions_of_the_command(options: list[str], message: str) -> None:
    result = CliRunner().invoke(cloc, ["plan", *options])
    assert isinstance(result.exception, ConfigError)
    assert message in str(result.exception)


def test_counts_are_read_as_people_write_them() -> None:
    for text in ("0", "many", "-3", "1e"):
        assert "is no number of things" in CliRunner().invoke(cloc, ["plan", "--images", text]).output


def test_help_is_light_and_fits_a_screen() -> None:
    script = (
        "import sys\nfrom cloc.cli import cloc\ncloc.main(['plan', '--help'], standalone_mode=False)\n"
        "print('HEAVY', sorted(set(sys.modules) & {'torch', 'transformers', 'mlflow', 'boto3', 'rich.console'}))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "HEAVY []" in done.stdout
    assert len(done.stdout.splitlines()) < 45
