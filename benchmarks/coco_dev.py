"""Real photographs at the demo's size: COCO's val2017 (a part of it) as a collection, and two models trained on it.

    python benchmarks/coco_dev.py data --out /tmp/coco_dev                          # a collection: train, val
    python benchmarks/coco_dev.py train --data /tmp/coco_dev --out /tmp/coco_models  # {clip,cloc}, 200 steps each
    cloc evaluate --preset demo --data /tmp/coco_dev -S 'data.test_splits=[val]' \
        --model CLIP=/tmp/coco_models/clip --model CLOC=/tmp/coco_models/cloc --out /tmp/coco_report

`--coco` is a folder with `images/`, `instances.json` and `captions.json` in COCO's schema, `annotations.jsonl` with
hard negatives (see `cloc data attributes`), and `train.txt` and `val.txt` with file names. The commands are a user's
own, `cloc data ingest`, `cloc data attributes` and `cloc pretrain`, and are printed. Where the photographs are absent
it says so and ends.
"""

import argparse
import subprocess
import sys
from pathlib import Path

COCO = Path(__file__).parents[2] / "shared" / "data" / "coco_val2017_dev"
NEEDED = ("images", "instances.json", "captions.json", "annotations.jsonl", "train.txt", "val.txt")
# Photographs are few and their captions are people's: all are learned from, in one process.
SETTINGS = ("train.alt_text_share=0", "train.processes=1", "train.checkpoint_every=100")


def cloc(*arguments: str) -> None:
    """Runs a command of the command line beside this interpreter, by the demo's preset; ends with it when it fails."""
    command = [str(Path(sys.executable).with_name("cloc")), *arguments, "--preset", "demo"]
    print("$ " + " ".join(["cloc", *command[1:]]), flush=True)
    done = subprocess.run(command, check=False)
    if done.returncode:
        sys.exit(done.returncode)


def make_data(coco: Path, out: Path, *, processes: int) -> None:
    """Ingests both splits; `val` is given its hard negatives. Finished shards are kept."""
    for split in ("train", "val"):
        source = ["--images", str(coco / "images"), "--coco-instances", str(coco / "instances.json")]
        source += ["--coco-captions", str(coco / "captions.json"), "--only", str(coco / f"{split}.txt")]
        limits = ["-S", "data.images_per_shard=200", "-S", f"data.processes={processes}"]
        cloc("data", "ingest", "--source", "coco", *source, "--out", str(out / split), *limits)
    questions = str(coco / "annotations.jsonl")
    cloc("data", "attributes", str(out / "val"), questions, "-S", f"data.processes={processes}")


def train(data: Path, out: Path, *, steps: int, settings: list[str]) -> None:
    """Trains a plain CLIP and a CLOC of the demo's size for as many steps; goes on from their checkpoints."""
    given = [part for setting in (*SETTINGS, f"train.steps={steps}", *settings) for part in ("-S", setting)]
    for objective in ("clip", "cloc"):
        tables = ["--data", str(data), "--captions", str(data / "train"), "--regions", str(data / "train")]
        cloc("pretrain", *tables, "--objective", objective, "--out", str(out / objective), *given)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    data = verbs.add_parser("data", help="make the collection")
    data.add_argument("--coco", type=Path, default=COCO, help="folder of the photographs and their annotations")
    data.add_argument("--out", type=Path, required=True, help="folder of the collection")
    data.add_argument("--processes", type=int, default=1)
    models = verbs.add_parser("train", help="train a CLIP and a CLOC")
    models.add_argument("--data", type=Path, required=True, help="the collection")
    models.add_argument("--out", type=Path, required=True, help="folder of the models")
    models.add_argument("--steps", type=int, default=200)
    models.add_argument("-S", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    given = parser.parse_args()
    if given.verb == "train":
        train(given.data, given.out, steps=given.steps, settings=given.settings)
        return
    absent = [name for name in NEEDED if not (given.coco / name).exists()]
    if absent:
        print(f"coco_dev: skipped: {given.coco} lacks {', '.join(absent)}; name another folder with --coco")
        return
    make_data(given.coco, given.out, processes=given.processes)


if __name__ == "__main__":
    main()
