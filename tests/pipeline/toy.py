"""Settings of a toy run: everything as small as it can be, and gates that a model of four steps passes."""

from cloc.config import Config, apply_overrides, load_preset, parse

SETTINGS = {
    "data.test_splits": "[test]",
    "data.images_per_shard": "40",
    "data.processes": "1",
    "data.scenes.image_size": "64",
    "data.scenes.train_images": "40",
    "data.scenes.seed_images": "0",
    "data.scenes.val_images": "0",
    "data.scenes.test_images": "80",
    "data.scenes.unseen_pairs_images": "0",
    "data.scenes.unseen_kinds_images": "0",
    "captioning.backend": "annotations",
    "grounding.backend": "annotations",
    "teachers.fit": "[]",
    "validation.min_images": "10",
    "model.embed_dim": "16",
    "model.vision.image_size": "32",
    "model.vision.width": "16",
    "model.vision.layers": "1",
    "model.vision.heads": "2",
    "model.text.width": "16",
    "model.text.layers": "1",
    "model.text.heads": "2",
    "model.text.context_length": "16",
    "model.text.vocab_size": "400",
    "train.steps": "4",
    "train.batch_size": "8",
    "train.warmup_steps": "1",
    "train.processes": "1",
    "train.checkpoint_every": "2",
    "train.log_every": "1",
    "evaluation.batch_size": "16",
    "evaluation.pictures": "2",
    "evaluation.min_region_gain": "0.0",
    "evaluation.max_image_loss": "1.0",
    "adapter.decoder.width": "16",
    "adapter.decoder.layers": "1",
    "adapter.decoder.heads": "2",
    "adapter.decoder.context_length": "256",
    "adapter.decoder.vocab_size": "400",
    "adapter.steps": "3",
    "adapter.repeats": "1",
    "adapter.processes": "1",
    "adapter.batch_size": "4",
    "adapter.warmup_steps": "1",
    "adapter.eval_images": "4",
    "adapter.log_every": "1",
}


def overrides(**changes: str) -> list[str]:
    """The settings as `section.key=value`; `changes` names keys with two underscores for the dot."""
    values = SETTINGS | {key.replace("__", "."): value for key, value in changes.items()}
    return [f"{key}={value}" for key, value in values.items()]


def config(**changes: str) -> Config:
    """The settings, resolved."""
    tree = load_preset("demo").model_dump(mode="json")
    return parse(apply_overrides(tree, overrides(**changes)), source="toy settings")
