"""A rank of adapter tuning: tunes with each seed in turn, and asks about test images.

Started by the agent on every rank as `python -m cloc.mllm.trainer OUTPUT`; the job in that output is all a rank knows.
"""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from transformers import AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from cloc.boxes import Letterbox
from cloc.config import Config, parse
from cloc.config.schema import TUNING_RECORDING
from cloc.data.fetching import sending
from cloc.data.storage import open_storage
from cloc.errors import DataError
from cloc.mllm import report
from cloc.mllm.aligning import Sight, align, look
from cloc.mllm.building import make_adapter, name_adapter
from cloc.mllm.evaluation import evaluate
from cloc.mllm.features import known_features, pays
from cloc.mllm.foreign import BoxFrame, ConversationStore
from cloc.mllm.instructions import PhrasePool
from cloc.mllm.job import ENCODER, SUMMARY_FILE, TuningJob, adapter_folder
from cloc.mllm.judging import write_predictions
from cloc.mllm.model import Adapter
from cloc.mllm.questions import EvaluationQuestions
from cloc.mllm.saving import load_adapter, save_adapter
from cloc.mllm.splits import Splits, open_splits
from cloc.mllm.stream import ChatSettings, ChatStreams, Mixed
from cloc.mllm.texts import region_texts
from cloc.mllm.tuning import Tuning, TuningReport
from cloc.model.factory import uses_bfloat16
from cloc.training.distributed import Rank, gathered
from cloc.training.jobfile import TOKENIZER
from cloc.training.preemption import Preemption
from cloc.training.process import run_rank


def train(job: TuningJob, config: Config, rank: Rank, preemption: Preemption) -> None:
    """Does a rank's part of a job.

    Raises:
        Preempted: told to stop; a checkpoint was written.
        ClocError: it cannot be done; the message says why.
    """
    disable_progress_bar()  # the recorder tells the progress
    splits = open_splits(config.data, data=job.data, captions=job.captions, regions=job.regions)
    pool = PhrasePool.of(region_texts(splits.train))
    with ExitStack() as stack:
        encoder = stack.enter_context(job.source(ENCODER, job.encoder))
        named = config.adapter.language_model
        tokenizer = "" if named else stack.enter_context(job.source(TOKENIZER))
        parts = Parts(splits, pool, encoder, tokenizer)
        for number, seeded in enumerate(job.seeds()):
            _Seed(seeded, parts, rank=rank, preemption=preemption, live=not number).run()


@dataclass
class Parts:
    """What all seeds have in common.

    Attributes:
        splits: training and test data.
        pool: phrases of the corpus.
        encoder: its folder, or hub id.
        tokenizer: folder of a made decoder's.
        sights: what the encoder, as all seeds start with it, sees of the images to align on; once a seed has looked.
    """

    splits: Splits
    pool: PhrasePool
    encoder: str
    tokenizer: str
    sights: Sequence[Sight] = ()


class _Seed:
    """The work on one seed."""

    def __init__(self, job: TuningJob, parts: Parts, *, rank: Rank, preemption: Preemption, live: bool) -> None:
        self.job, self.config, self.parts = job, parse(job.config, source="training job"), parts
        self.settings, self.rank, self.preemption, self.live = self.config.adapter, rank, preemption, live

    def run(self) -> None:
        """Tunes, where that is not done, and asks."""
        adapter = self._tuned() or self._tune()
        questions = EvaluationQuestions(
            adapter, self.settings, self.parts.splits, self.parts.pool, rank=self.rank.rank, ranks=self.rank.world_size
        )
        own = evaluate(
            adapter,
            adapter.chat(),
            questions,
            batch_size=self.settings.eval_batch_size,
            precision=self.settings.precision,
            quiet=not self.rank.is_first,
        )
        places = {image: place for part in gathered(questions.places) for image, place in part.items()}
        answered = [prediction for part in gathered(own) for prediction in part]
        found = sorted(answered, key=lambda prediction: places[prediction.source, prediction.key])
        if not found:
            raise DataError(
                f"{self.parts.splits.test.regions.url}: nothing can be asked about any test image (adapter.tasks)"
            )
        pictures = [item for part in gathered(questions.shown) for item in part.items()]
        if self.rank.is_first:
            with sending(self.job.output) as folder:
                write_predictions(found, folder / report.PREDICTIONS)
                report.save_pictures(dict(sorted(pictures, key=lambda item: places["", item[0]])), folder)

    def _tuned(self) -> Adapter | None:
        """What an earlier attempt tuned; None where none came to the end."""
        storage = open_storage(self.job.output)
        if not storage.exists(SUMMARY_FILE):
            return None
        summary = json.loads(storage.read_bytes(SUMMARY_FILE))
        if summary["identity"] != self.job.identity():
            return None
        if self.rank.is_first:
            print(f"adapter: seed {self.settings.seed} is tuned already", flush=True)
        with adapter_folder(self.job.output) as folder:
            dtype = torch.bfloat16 if uses_bfloat16(self.settings.precision, self.rank.device) else torch.float32
            return load_adapter(folder, device=self.rank.device, dtype=dtype)

    def _tune(self) -> Adapter:
        """Tunes a new adapter, and saves it."""
        settings, rank = self.settings, self.rank
        if rank.is_first:
            sampler = "" if settings.region_sampler == "none" else f", region sampler {settings.region_sampler}"
            print(f"adapter: {self.job.about['encoder_objective']} encoder{sampler}, seed {settings.seed}", flush=True)
        adapter, known, train = self._made(), None, self.parts.splits.train
        if settings.align != "none":
            if not self.parts.sights:
                keep = self.parts.splits.is_trained_on
                own = look(adapter, train, settings, keep=keep, rank=rank.rank, ranks=rank.world_size)
                self.parts.sights = [sight for part in gathered(own) for sight in part]
            align(adapter, self.parts.sights, seed=settings.seed)
        adapter.trainable("tune", train_encoder=settings.train_encoder)
        if pays(adapter, settings, images=train.manifest.images):
            keep = self.parts.splits.is_trained_on
            kept = known_features(adapter, train, settings, keep=keep, rank=rank.rank, ranks=rank.world_size)
            known = {key: features_ND for part in gathered(kept) for key, features_ND in part.items()}
            if rank.is_first:
                print(f"adapter: features of {len(known)} images are kept", flush=True)
        tuning = Tuning(
            self.job,
            self.config,
            adapter,
            self._streams(adapter, decode=known is None),
            rank=rank,
            preemption=self.preemption,
            known=known,
            live=self.live,
        )
        told = tuning.run()
        if rank.is_first:
            self._save(adapter, told)
        return adapter

    def _made(self) -> Adapter:
        settings, device, encoder = self.settings, self.rank.device, self.parts.encoder
        if settings.language_model:
            return name_adapter(encoder, settings, device=device).to(device)
        tokenizer = AutoTokenizer.from_pretrained(self.parts.tokenizer)
        made = make_adapter(
            encoder, tokenizer, settings.decoder, seed=settings.seed, region_sampler=settings.region_sampler
        )
        return made.to(device)

    def _streams(self, adapter: Adapter, *, decode: bool) -> ChatStreams:
        settings, train, ranks = self.settings, self.config.train, self.rank.world_size
        return ChatStreams(
            self.parts.splits.train,
            adapter.chat(),
            self.parts.pool,
            ChatSettings(
                image_size=adapter.image_size,
                batch_size=settings.batch_size // ranks,
                questions=settings.questions,
                tasks=settings.tasks.weights,
                region_tokens=adapter.sampler is not None,
                seed=settings.seed,
                rank=self.rank.rank,
                world_size=ranks,
                streams=train.streams,
                buffer=train.shuffle_buffer,
                by_length=settings.grouping == "length",
                decode=decode,
            ),
            keep=self.parts.splits.is_trained_on,
            mixed=self._mixed(adapter),
        )

    def _mixed(self, adapter: Adapter) -> Mixed | None:
        settings, splits = self.settings, self.parts.splits
        if not settings.files:
            return None
        items = ConversationStore(
            settings.files,
            images=settings.file_images or Path(settings.files[0]).parent,
            frame_of=partial(Letterbox, size=adapter.image_size),
            region_tokens=adapter.sampler is not None,
            box_frame=BoxFrame(settings.file_boxes),
            test_keys=splits.test_keys,
        )
        if self.rank.is_first:
            left_out = "".join(f", {count} left out: {reason}" for reason, count in items.left_out.items())
            print(f"adapter: {len(items)} items of {len(settings.files)} files are mixed in{left_out}", flush=True)
        return Mixed(items, share=settings.file_share, check=partial(splits.check, source=settings.files[0]))

    def _save(self, adapter: Adapter, told: TuningReport) -> None:
        """Writes the adapter, and last what says that it is whole."""
        output, made = self.job.output, self.settings.model_dump(mode="json", exclude=set(TUNING_RECORDING))
        about = {**self.job.about, "seed": self.settings.seed, "settings": made}
        with sending(output) as folder:
            save_adapter(adapter, folder, about=about)
        summary = {**asdict(told), "processes": self.rank.world_size, "identity": self.job.identity()}
        open_storage(output).write_bytes(SUMMARY_FILE, (json.dumps(summary, indent=2) + "\n").encode())


if __name__ == "__main__":
    run_rank(TuningJob.load, train, section="adapter")
