"""Adapter tuning: tokens a second with and without length grouping and kept features, the encoder's share, memory.

    python benchmarks/adapter_tuning.py                # the demo's encoder, a decoder of 3 layers of width 128
    python benchmarks/adapter_tuning.py --encoder b16 --decoder-width 512 --decoder-layers 8 --steps 4 --rounds 2

On rendered scenes with their true captions and boxes, all tasks asked, weights random. The baseline of every ratio is
the first row: batches of like length, the frozen encoder run in each step. Rows take turns, so that a noisy machine
disturbs all alike, and the ratio is the median over the rounds, of processor time. Tokens that count are those of
conversations and images; padding does not. Memory is the peak of a fresh process over what it had when the model stood.
"""

import argparse
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from cloc.config import load_preset, parse
from cloc.config.schema import AdapterConfig, InstructionsConfig
from cloc.data.dataset import Dataset
from cloc.data.scenes import stage as scenes
from cloc.mllm.building import make_adapter
from cloc.mllm.features import known_features
from cloc.mllm.instructions import PhrasePool
from cloc.mllm.model import Adapter
from cloc.mllm.stream import ChatSettings, ChatStreams
from cloc.mllm.texts import region_texts, vocabulary_texts
from cloc.mllm.tokenizer import train_tokenizer
from cloc.model.configuration import from_settings
from cloc.model.factory import AnyCLOCModel
from cloc.model.modeling import CLOCModel
from cloc.model.processing import CLOCProcessor
from cloc.model.processing import train_tokenizer as train_text_tokenizer

CONTEXT = 2048


@dataclass(frozen=True)
class Row:
    """A way to tune.

    Attributes:
        name: of the row.
        by_length: whether batches are of like length.
        kept: whether features are known.
        checkpointing: whether activations are computed again.
    """

    name: str
    by_length: bool = True
    kept: bool = False
    checkpointing: bool = False


ROWS = (
    Row("by length, encoder in each step"),
    Row("in random order", by_length=False),
    Row("by length, features kept", kept=True),
    Row("by length, gradient checkpointing", checkpointing=True),
)


def everything(key: str, image: bytes) -> bool:
    """Of the images, all are used."""
    return True


def make_encoder(folder: Path, data: Dataset, preset: str) -> str:
    """A CLOC model of a preset's sizes with random weights."""
    settings = load_preset(preset).model
    text = settings.text
    tokenizer = train_text_tokenizer(region_texts(data), vocab_size=2048, context_length=text.context_length)
    ids = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id, "pad": tokenizer.pad_token_id}
    torch.manual_seed(0)
    model: AnyCLOCModel = CLOCModel(from_settings(settings, vocab_size=len(tokenizer), **ids))
    model.save_pretrained(folder)
    size = settings.vision.image_size
    CLOCProcessor(tokenizer, image_size=size, context_length=text.context_length).save_pretrained(folder)
    return str(folder)


class Run:
    """One row: its adapter, its batches, and steps as tuning makes them."""

    def __init__(self, row: Row, encoder: str, data: Dataset, settings: AdapterConfig) -> None:
        decoder = settings.decoder
        tokenizer = train_tokenizer(
            vocabulary_texts(data), vocab_size=decoder.vocab_size, context_length=decoder.context_length
        )
        self.adapter: Adapter = make_adapter(encoder, tokenizer, decoder, seed=0, region_sampler="roi_align")
        self.parameters = self.adapter.trainable("tune")
        if row.checkpointing:
            self.adapter.checkpoint_gradients()
        self.adapter.parts.train()
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-4, fused=True)
        self.known: Mapping[str, torch.Tensor] | None = None
        if row.kept:
            self.known = known_features(self.adapter, data, settings, keep=everything)
        streams = ChatStreams(
            data,
            self.adapter.chat(),
            PhrasePool.of(region_texts(data)),
            ChatSettings(
                image_size=self.adapter.image_size,
                batch_size=settings.batch_size,
                questions=settings.questions,
                tasks=settings.tasks.weights,
                region_tokens=True,
                seed=0,
                by_length=row.by_length,
                decode=not row.kept,
            ),
            keep=everything,
        )
        self.batches = streams.batches()
        self.useful = self.padded = self.answers = 0
        self.encoder_seconds = self.seconds = 0.0

    def step(self) -> None:
        """A step."""
        batch = next(self.batches)
        began = time.thread_time()
        if self.known is None:
            assert batch.batch.pixels_BSS3 is not None
            with torch.no_grad():
                features_BND = self.adapter.features(batch.batch.pixels_BSS3)
        else:
            features_BND = torch.stack([self.known[key] for key in batch.keys])
        seen = time.thread_time()
        total, tokens = self.adapter.answer_loss(batch.batch, features_BND)
        (total / tokens).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.encoder_seconds += seen - began
        self.seconds += time.thread_time() - began
        here = int((batch.batch.segments_BL >= 0).sum())
        self.useful, self.padded = self.useful + here, self.padded + batch.batch.ids_BL.numel() - here
        self.answers += int(tokens)

    def round(self, steps: int) -> float:
        """Tokens a processor second over so many steps, what makes batches included."""
        useful, began = self.useful, time.process_time()
        for _ in range(steps):
            self.step()
        return (self.useful - useful) / (time.process_time() - began)


def _peak(row: Row, encoder: str, data: str, settings: dict[str, Any], steps: int, told: Any) -> None:
    """In a process of its own: MiB at the peak over what it had with the model."""
    torch.set_num_threads(1)
    run = Run(row, encoder, Dataset.open(data), AdapterConfig(**settings))
    before = psutil.Process().memory_info().rss / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # from here on the peak is that of the steps
    run.round(steps)
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    told.put(int(line.split()[1]) / 2**10 - before)


def peak(row: Row, encoder: str, data: str, settings: AdapterConfig, *, steps: int) -> float:
    """Memory of a row; see `_peak`."""
    context = multiprocessing.get_context("spawn")
    told = context.Queue()
    process = context.Process(target=_peak, args=(row, encoder, data, settings.model_dump(), steps, told))
    process.start()
    found: float = told.get(timeout=3600)
    process.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="demo", help="preset whose sizes the encoder has")
    parser.add_argument("--decoder-width", type=int, default=128)
    parser.add_argument("--decoder-layers", type=int, default=3)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=24, help="of a round; a multiple of 8 takes whole groups")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)  # so that processor time is that of the work
    with tempfile.TemporaryDirectory() as folder:
        sizes = {f"{split}_images": 0 for split in ("train", "val", "test", "unseen_pairs", "unseen_kinds")}
        config = parse({"data": {"scenes": {**sizes, "seed_images": options.images}}}, source="benchmark")
        scenes.run(config, inputs=scenes.Inputs(), outputs=scenes.Outputs(data=f"{folder}/data"))
        path = f"{folder}/data/seed"
        data = Dataset.open(path)
        encoder = make_encoder(Path(folder) / "encoder", data, options.encoder)
        settings = AdapterConfig(
            decoder={
                "width": options.decoder_width,
                "layers": options.decoder_layers,
                "heads": 4,
                "context_length": CONTEXT,
                "vocab_size": 2048,
            },
            batch_size=options.batch_size,
            precision="float32",
            tasks=InstructionsConfig(),
        )
        runs = [Run(row, encoder, data, settings) for row in ROWS]
        for run in runs:
            run.round(2)  # warm
            run.useful = run.padded = run.answers = 0
            run.encoder_seconds = run.seconds = 0.0
        rounds = [[run.round(options.steps) for run in runs] for _ in range(options.rounds)]
        memory = [peak(row, encoder, path, settings, steps=4) for row in ROWS]
        print("| way | tokens/CPU-s | over the first | padding | encoder's share of a step | MiB over the first |")
        print("|---|---:|---:|---:|---:|---:|")
        for number, (row, run) in enumerate(zip(ROWS, runs, strict=True)):
            speed = statistics.median(speeds[number] for speeds in rounds)
            ratios = sorted(speeds[number] / speeds[0] for speeds in rounds)
            ratio = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
            padding, share = run.padded / (run.useful + run.padded), run.encoder_seconds / run.seconds
            print(
                f"| {row.name} | {speed:,.0f} | {ratio} | "
                f"{padding:.0%} | {share:.0%} | {memory[number]:,.0f} ({memory[number] / memory[0]:.2f}) |"
            )


if __name__ == "__main__":
    main()
