"""The schema of `params.yaml`: the single source of settings of the CLI, DVC and the pipeline.

Defaults are the paper's (METHOD, ViT-B/16) where the paper fixes a value, and this project's decision where it does
not. Presets (`presets/*.yaml`) name only what differs from these defaults.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from cloc.config.base import Section

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[int, Field(ge=0)]
Weight = Annotated[float, Field(ge=0)]
Names = Annotated[tuple[str, ...], Field(strict=False)]
RegionReaders = Annotated[
    tuple[Literal["crop", "roi_align", "masked", "prompter", "region_head"], ...], Field(strict=False)
]
RegionSamplerKind = Literal["none", "prompter", "roi_align"]


class ScenesConfig(Section):
    """The embedded demo data set: rendered scenes with exact boxes, captions and noisy alt-text."""

    seed: NonNegative = 0
    """Seed of everything rendered."""
    image_size: Annotated[int, Field(ge=32, le=1024)] = 128
    """Long side of the pictures, pixels."""
    closeup_share: Share = 0.5
    """Share of close-ups of one or two objects; the others are scenes of three to eight."""
    train_images: NonNegative = 16000
    """Pictures of the bulk that is captioned, grounded and trained on."""
    seed_images: NonNegative = 512
    """Pictures of the labelled seed split (for fitting labelling models)."""
    val_images: NonNegative = 512
    """Pictures of the split that choices are made on."""
    test_images: NonNegative = 600
    """Pictures of the split that is reported and that no choice was made on."""
    unseen_pairs_images: NonNegative = 300
    """Pictures with pairs of object and colour that training never shows."""
    unseen_kinds_images: NonNegative = 300
    """Pictures of kinds of object that training never shows."""
    class_images: NonNegative = 0
    """Pictures a kind of the classification set `classes` beside the splits, one kind a picture; 0 makes none."""


class DataConfig(Section):
    """How images become a data set, and which splits the later stages use."""

    train_split: str = "train"
    """Split that is labelled and trained on."""
    test_splits: Names = ("test",)
    """Splits that are evaluated; the first one is the one the gate looks at."""
    images_per_shard: Positive = 1000
    """Images in a tar at most."""
    bytes_per_shard: NonNegative = 1_000_000_000
    """Bytes of source images in a tar at most; 0 sets no limit."""
    min_side: Positive = 16
    """Images with a shorter side (pixels) are quarantined."""
    max_pixels: Positive = 89_478_485
    """Images with more pixels are quarantined (decompression bombs)."""
    max_text_bytes: Positive = 1_048_576
    """A caption file, or a sample's JSON, with more bytes is quarantined."""
    near_duplicate_bits: Annotated[int, Field(ge=0, le=16)] = 6
    """Images whose 64-bit perceptual hashes differ in at most this many bits are near-duplicates."""
    quarantine_limit: Share = 0.05
    """A stage fails when a larger share of the images had to be quarantined."""
    processes: NonNegative = 0
    """Processes that ingest, render, and label from annotations; 0 takes one a core."""
    decode_threads: NonNegative = 0
    """Threads that decode and prepare images ahead of a labelling model, a process; 0 takes one a core, at most 8."""
    scenes: ScenesConfig = ScenesConfig()


class GuardsConfig(Section):
    """What a generated caption must be like; what is not is left out and counted."""

    min_words: Positive = 3
    """Shorter captions are left out, words."""
    max_words: Positive = 400
    """Longer captions are left out, words."""
    repeated_ngram: NonNegative = 4
    """Length of the n-grams whose repetition betrays a stuck captioner, words; 0 switches the guard off."""
    max_repeats: Positive = 3
    """How often one n-gram may occur in a caption."""
    language: str = ""
    """Language that captions must be in, as an ISO 639-1 code ("en"); empty takes any."""
    copied_prompt: bool = True
    """Leave out captions that say the prompt again instead of what is seen."""


class GenerationConfig(Section):
    """How the captioner chooses its words; what is 0 is left to the checkpoint or the endpoint."""

    max_new_tokens: Positive = 77
    """Longest caption, tokens of the captioner."""
    num_beams: Positive = 1
    """Beams of the search; 1 is greedy (backend transformers)."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """Above 0 samples words; 0 leaves it to the checkpoint or the endpoint, which mostly take the likeliest."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the probability that is sampled from."""
    repetition_penalty: Annotated[float, Field(ge=1)] = 1.0
    """Above 1 makes words that were said less likely (backend transformers)."""
    seed: NonNegative = 0
    """Seed of the sampling."""


class EndpointConfig(Section):
    """An OpenAI-compatible vision endpoint: vLLM, SGLang, KServe, or a provider's (backend openai)."""

    base_url: str = ""
    """URL of the API, as in http://vllm:8000/v1."""
    api_key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; unset sends none."""
    concurrency: Positive = 16
    """Requests under way at once."""
    requests_per_minute: NonNegative = 0
    """Rate limit; 0 sets none."""
    timeout: Annotated[float, Field(gt=0)] = 120.0
    """Seconds that one request may take."""
    retries: NonNegative = 5
    """Further attempts after a failed one, each after a longer pause."""
    image_side: NonNegative = 1024
    """Long side that larger images are sent with, pixels; 0 sends them as they are."""


class CaptioningConfig(Section):
    """Stage: a caption for every image."""

    backend: Literal["annotations", "transformers", "openai"] = "transformers"
    """`annotations` takes the human captions that the data has; `transformers` runs a captioning model; `openai` asks
    an OpenAI-compatible endpoint."""
    model: str = "Salesforce/blip-image-captioning-large"
    """Hub id or folder of the captioning model, or the endpoint's name for it; empty takes the captioner that
    `cloc teachers fit` made."""
    prompt: str = ""
    """What a chat model is asked, or the text that another captioner continues; empty asks a chat model for a detailed
    description and gives the others nothing."""
    alt_text_prompt: str = ""
    """Fusion as in VeCap: prompt for images with an alt-text, which stands for `{alt_text}` in it, so that names and
    facts survive; empty shows the captioner no alt-text."""
    batch_size: Positive = 16
    """Images a batch."""
    generation: GenerationConfig = GenerationConfig()
    guards: GuardsConfig = GuardsConfig()
    endpoint: EndpointConfig = EndpointConfig()
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the captioner runs."""
    device_map: Literal["", "auto", "balanced", "sequential"] = ""
    """Spreads a large captioner over the GPUs, as accelerate does; empty puts it on one device."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Precision of the captioner."""
    processes: Positive = 1
    """Processes that run a captioner each: one a GPU, or on processors several where it is small."""

    @model_validator(mode="after")
    def _check(self) -> "CaptioningConfig":
        if self.backend == "openai" and not self.endpoint.base_url:
            raise ValueError("backend openai needs endpoint.base_url, as in http://vllm:8000/v1")
        if self.alt_text_prompt and "{alt_text}" not in self.alt_text_prompt:
            raise ValueError("alt_text_prompt has no {alt_text}, which the image's alt-text would stand for")
        return self


class GroundingConfig(Section):
    """Stage: phrases of the captions, and a box for each that is seen (VESL steps 2 and 3)."""

    backend: Literal["annotations", "transformers"] = "transformers"
    """`annotations` takes the human boxes that the data has; `transformers` runs an open-vocabulary detector."""
    model: str = "google/owlv2-large-patch14-ensemble"
    """Hub id or folder of the detector (backend transformers); empty takes the one that `cloc teachers fit` made."""
    tagger: Literal["lexicon", "nltk", "spacy"] = "lexicon"
    """Part-of-speech tagger of the phrase step: `lexicon` needs nothing downloaded, `nltk` its averaged perceptron,
    `spacy` a pipeline."""
    nltk_data: str = ""
    """Folder with NLTK's data (tagger nltk); empty looks where `nltk.download` puts it."""
    spacy_model: str = "en_core_web_sm"
    """Name or folder of the spaCy pipeline (tagger spacy)."""
    phrases: Literal["captions", "captions_and_alt_text", "alt_text_ngrams"] = "captions"
    """What regions are named by: noun phrases of the captions (VESL); those of the alt-text besides, which helps where
    the captioner is weak; or the alt-text's word n-grams (the paper's labels without VESL; backend annotations keeps
    the human boxes that the alt-text names)."""
    max_phrases: Positive = 20
    """Phrases of the captions an image at most (METHOD, VESL step 2)."""
    max_ngram_words: Positive = 10
    """Longest n-gram of the alt-text, words (OWLv2, appendix A.2)."""
    max_ngrams: Positive = 300
    """N-grams of the alt-text an image at most (OWLv2, appendix A.2)."""
    score_threshold: Share = 0.1
    """Boxes with a lower confidence are dropped (METHOD, VESL step 3)."""
    nms_iou: Share = 0.7
    """Class-agnostic non-maximum suppression; 1 switches it off, as in the paper."""
    min_box_side: Share = 0.01
    """Boxes with a shorter side, as a share of the image, are quarantined."""
    image_size: NonNegative = 448
    """Side of the detector's square input, pixels; 0 takes the checkpoint's own size."""
    batch_size: Positive = 8
    """Images a batch."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the detector runs."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the detector."""
    processes: Positive = 1
    """Processes that run a detector each: one a GPU, or on processors several where it is small."""


class ValidationConfig(Section):
    """Stage: the gate between labelling and training. Shares are of what the check looks at: rows, images, captions."""

    warn: Names = ()
    """Checks that only warn, by id ("set/repeated_captions") or by a prefix that ends in "/" ("captions/")."""
    fail: Names = ()
    """Checks that end the pipeline, likewise; the longer name wins over the shorter, and either over the default."""
    mostly: Share = 0.999
    """Least share of rows that must keep a row-wise rule which has no limit of its own."""
    max_repeated_rows: Share = 0.01
    """Largest share of captions or regions that stand more than once for their image."""
    min_images: Positive = 100
    """Fewer images fail the gate."""
    max_quarantined: Share = 0.05
    """Largest share of quarantined images."""
    max_empty_shards: Share = 0.0
    """Largest share of shards (of 20 images or more) whose captions or regions are empty."""
    max_repeated_keys: Share = 0.0
    """Largest share of images whose key occurs again in the set."""
    max_duplicate_images: Share = 0.1
    """Largest share of images that occur earlier in the set, equal or nearly."""
    max_leaked_images: Share = 0.0
    """Largest share of the test splits' images that occur in the training data, equal or nearly."""
    min_caption_coverage: Share = 0.95
    """Least share of images with a caption that is not the alt-text."""
    min_caption_words: NonNegative = 2
    """Shorter captions are a fault, words."""
    max_caption_words: Positive = 300
    """Longer captions are a fault, words."""
    max_duplicate_captions: Share = 0.5
    """Largest share of one and the same caption."""
    max_repeated_captions: Share = 0.4
    """Largest share of captions whose text occurs more than once in the set."""
    max_garbled: Share = 0.005
    """Largest share of texts in a wrong encoding, or with replacement characters."""
    max_markup: Share = 0.01
    """Largest share of texts with control characters, markup or web addresses."""
    max_incomplete: Share = 0.02
    """Largest share of captions that end in the middle."""
    max_length_pileup: Share = 0.1
    """Largest share of (different) captions of exactly the greatest length, where that is no short one."""
    language: str = ""
    """Language that captions are in, as an ISO 639-1 code ("en"); empty takes any."""
    min_language: Share = 0.9
    """Least share of a sample of captions that are in that language."""
    min_region_coverage: Share = 0.5
    """Least share of images with at least one region."""
    min_regions_per_image: Annotated[float, Field(ge=0)] = 1.0
    """Least mean number of regions an image."""
    max_region_words: Positive = 77
    """Longer texts of regions are a fault, words."""
    max_small_boxes: Share = 0.05
    """Largest share of boxes with a shorter side than `grounding.min_box_side`."""
    max_pixel_boxes: Share = 0.0
    """Largest share of boxes that look like pixels: a coordinate of 2 or more."""
    max_same_box: Share = 0.3
    """Largest share of one and the same box."""
    max_whole_image_boxes: Share = 0.5
    """Largest share of boxes that cover their image."""
    max_side_bias: Share = 0.1
    """How much larger the share of boxes that touch the left border may be than that of the right one, or the other way
    round; and how far from the middle of its image the mean box may be, horizontally."""
    max_vertical_bias: Share = 0.3
    """How much larger the share of boxes that touch the upper border may be than that of the lower one, or the other
    way round."""
    max_same_score: Share = 0.9
    """Largest share of one and the same score among detected regions."""
    max_region_text: Share = 0.5
    """Largest share of one and the same text of a region."""
    max_label: Share = 0.9
    """Largest share of one class among regions with a class."""
    min_effective_texts: Annotated[float, Field(ge=0)] = 3.0
    """Least effective number of texts of regions: one over the sum of squared shares."""
    min_phrase_support: Share = 0.5
    """Least share of detected regions whose text occurs in a text of its image."""
    min_phrase_lift: Share = 0.03
    """How much more often the texts of regions must occur in texts of their own image than of its neighbours."""
    reference: str = ""
    """Folder or URL of another validation's report, or of its validation.json, that the data must look like; empty
    compares with nothing."""
    max_drift: Share = 0.1
    """Largest Jensen-Shannon distance from the reference, a histogram (0 is equal, 1 is disjoint)."""
    max_mean_drift: Annotated[float, Field(ge=0)] = 0.25
    """How far a mean may be from the reference's, in its standard deviations."""
    processes: NonNegative = 0
    """Processes that check shards; 0 takes one a core. The findings are the same whatever their number."""

    @model_validator(mode="after")
    def _check(self) -> "ValidationConfig":
        if both := sorted(set(self.warn) & set(self.fail)):
            raise ValueError(f"warn and fail both name {both[0]!r}; leave it in one of them")
        if self.min_caption_words > self.max_caption_words:
            raise ValueError(
                f"min_caption_words {self.min_caption_words} is above max_caption_words {self.max_caption_words}"
            )
        return self


class TowerConfig(Section):
    """Sizes of one transformer."""

    width: Positive = 768
    """Width of the residual stream."""
    layers: Positive = 12
    """Number of blocks."""
    heads: Positive = 12
    """Number of attention heads."""
    mlp_ratio: Annotated[float, Field(gt=0)] = 4.0
    """Width of the MLP over the width of the stream."""

    @model_validator(mode="after")
    def _check(self) -> "TowerConfig":
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be divisible by heads {self.heads}")
        return self


class VisionConfig(TowerConfig):
    """The image encoder."""

    image_size: Positive = 224
    """Side of the square network input, pixels."""
    patch_size: Positive = 16
    """Side of a patch, pixels."""

    @model_validator(mode="after")
    def _check_patches(self) -> "VisionConfig":
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} must be divisible by patch_size {self.patch_size}")
        return self


class TextConfig(TowerConfig):
    """The text encoder."""

    width: Positive = 512
    """Width of the residual stream."""
    heads: Positive = 8
    """Number of attention heads."""
    context_length: Annotated[int, Field(ge=4)] = 77
    """Longest text, tokens."""
    tokenizer: str = ""
    """Hub id or folder of a tokenizer; empty trains a BPE tokenizer on the captions."""
    vocab_size: Annotated[int, Field(ge=300)] = 49408
    """Entries of the vocabulary that is trained when no tokenizer is named."""


class PrompterConfig(Section):
    """The Prompter: what turns spatial tokens and a prompt into a region embedding."""

    kind: Literal["transformer", "roi_align"] = "transformer"
    """`transformer` is the paper's; `roi_align` is the paper's ablation without a Prompter."""
    layers: Positive = 1
    """Transformer layers (METHOD: one)."""
    heads: Positive = 1
    """Attention heads (METHOD: one)."""
    pool: Literal["all", "image", "prompt"] = "all"
    """Outputs that the global average pool takes."""
    spatial_bias: Literal["none", "box"] = "none"
    """Extension: `box` raises attention on the tokens inside the box, adds the box's pooled tokens to its prompt, and
    biases text prompts by the similarity of token and text. Off in the paper; decisive at small budgets."""


class ModelConfig(Section):
    """The CLOC model."""

    init_from: str = ""
    """Hub id or folder of a CLIP, SigLIP or fixed-resolution SigLIP 2 checkpoint to start from, which brings its own
    family, sizes and tokenizer; empty trains from scratch."""
    init_image_size: NonNegative = 0
    """Side of the network input of a model that starts from a checkpoint, pixels: its position embeddings are
    interpolated; 0 keeps the checkpoint's."""
    family: Literal["clip", "siglip"] = "clip"
    """Architecture of a model trained from scratch: the paper's CLIP, or SigLIP (no [CLS], attention pooling, texts
    padded to the full length)."""
    embed_dim: Positive = 512
    """Width of the shared embedding space."""
    vision: VisionConfig = VisionConfig()
    text: TextConfig = TextConfig()
    prompter: PrompterConfig = PrompterConfig()

    @model_validator(mode="after")
    def _check_widths(self) -> "ModelConfig":
        if self.init_from:  # brings its own widths
            return self
        width, heads = self.vision.width, self.prompter.heads
        if width % heads:
            raise ValueError(f"prompter.heads {heads} must divide vision.width {width}")
        if width % 4:
            raise ValueError(f"vision.width {width} must be a multiple of 4 for the Prompter's positional encoding")
        if self.family == "siglip" and self.embed_dim != width:
            raise ValueError(
                f"embed_dim {self.embed_dim}: SigLIP's image embedding is as wide as its encoder; set it to {width}"
            )
        return self


class LossConfig(Section):
    """The objective (METHOD, Losses)."""

    max_regions: Positive = 4
    """M: regions sampled at random an image at most."""
    point_share: Share = 0.0
    """Share of the regions that are prompted by a point inside their box instead of the box (METHOD, point prompt; the
    paper trains none)."""
    image: Literal["infonce", "sigmoid"] = "infonce"
    """Image-text loss: the paper's symmetric InfoNCE, or SigLIP's pairwise sigmoid."""
    region: Literal["infonce", "sigmoid"] = "infonce"
    """Region-text loss, as `image`."""
    region_weight: Annotated[float, Field(ge=0)] = 1.0
    """Lambda before it is multiplied by the share of images with regions."""
    similar_text_threshold: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Negatives whose text is more similar than this are dropped; 1 switches the filter off."""
    grounding: Literal["none", "l2", "l1_giou"] = "l2"
    """Loss of the box head; `l2` is the paper's."""
    temperature: Literal["separate", "shared"] = "separate"
    """Whether image and region losses have their own learnable scale."""
    init_scale: Annotated[float, Field(gt=0)] = 14.285714
    """Logit scale at the start (CLIP: 1 / 0.07; SigLIP: 10); a checkpoint keeps its image scale."""
    init_bias: float = -10.0
    """Logit bias of sigmoid losses at the start (SigLIP: -10); a checkpoint keeps its image bias."""
    max_scale: Annotated[float, Field(gt=0)] = 100.0
    """Logit scale at most (CLIP: 100)."""


RECORDING = frozenset(
    {
        "checkpoint_every", "keep_checkpoints", "keep_best", "best_metric", "checkpoint_async", "storage", "log_every",
        "evaluate_every", "evaluate_images", "evaluate_split", "workers", "processes", "nodes", "scheduler",
        "max_retries", "kubernetes", "slurm", "port", "stall_seconds", "timeout_seconds", "device",
        "strategy", "micro_batch", "gradient_checkpointing", "compile",
        "on_nonfinite", "on_spike", "spike_deviations", "max_skipped",
    }
)  # fmt: skip
"""Settings of `train` that change what is written down, where it runs or how fast, and not what is trained; nor what
happens at a bad batch. A run goes on with others: what ran out of memory, or met a NaN, need not start anew."""
TUNING_RECORDING = frozenset(
    {
        "log_every", "checkpoint_every", "processes", "nodes", "device", "gradient_checkpointing", "cache_gigabytes",
        "repeats", "eval_images", "eval_batch_size", "test_files", "test_file_images", "test_file_split",
    }
)  # fmt: skip
"""The same of `adapter`."""


class AugmentationConfig(Section):
    """Random changes of training images that boxes follow (extension); off by default, as in the paper."""

    min_crop_area: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Least share of an image's area that a random crop keeps; 1 crops nothing."""
    max_stretch: Annotated[float, Field(ge=1, le=10)] = 1.33
    """A crop is at most this much wider, or higher, for its other side than the image is."""
    min_visible: Share = 0.5
    """Regions of which a crop leaves a smaller share of the area are left out."""
    flip: Share = 0.0
    """Probability of a horizontal flip; images whose chosen texts name left or right are never flipped."""
    color_jitter: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Brightness, contrast and saturation vary by at most this share; 0 leaves the colours."""


class ResolutionConfig(Section):
    """A part of the training at a smaller network input."""

    share: Annotated[float, Field(gt=0, lt=1)]
    """Share of the steps."""
    image_size: Annotated[int, Field(ge=16)]
    """Side of the network input in that part, pixels; a multiple of the patch size."""


class KubernetesConfig(Section):
    """How a training job runs on Kubernetes (Volcano, through TorchX)."""

    namespace: str = "default"
    """Namespace of the job."""
    queue: str = "default"
    """Volcano queue."""
    image: str = ""
    """Container image of the ranks, with cloc's extra `train`."""
    service_account: str = ""
    """Service account of the pods; empty takes the namespace's."""
    priority_class: str = ""
    """Priority class of the pods."""
    gpu_resource: str = "nvidia.com/gpu"
    """Resource of which a pod asks as many as it has processes (train.device: cpu asks for none)."""
    cpu: Positive = 8
    """Cores a pod asks for."""
    memory_mib: Positive = 65536
    """Memory a pod asks for, MiB."""
    shm_mib: Positive = 16384
    """Size of /dev/shm, MiB: decoding processes and NCCL use it."""
    node_selector: Names = ()
    """Labels of the nodes, as label=value."""
    tolerations: Names = ()
    """Taints that are tolerated, as key=value:Effect, or key:Effect for any value."""
    secrets: Names = ()
    """Secrets whose keys become environment variables (S3 and MLflow credentials); only their names are in the job."""
    environment: Names = ()
    """Further environment variables, as NAME=value (NCCL_SOCKET_IFNAME=eth0); no secrets here."""
    volume_claims: Names = ()
    """Volumes, as claim:/path."""
    grace_seconds: Positive = 300
    """Seconds between SIGTERM and SIGKILL: a preempted rank saves in them."""


class SlurmConfig(Section):
    """How a training job runs on Slurm (through TorchX)."""

    partition: str = ""
    """Partition; empty takes the cluster's default."""
    time: str = ""
    """Time limit, as Slurm writes it (2-00:00:00); empty takes the partition's."""
    cpus: Positive = 8
    """Cores a node's part of the job asks for."""
    memory_mib: Positive = 65536
    """Memory a node's part of the job asks for, MiB."""
    gpus: bool = True
    """Whether each process is given a GPU."""
    job_dir: str = "work/slurm"
    """Folder on a shared file system for the job's scripts and logs."""


class TrainConfig(Section):
    """Pre-training (METHOD, Table A)."""

    steps: Positive = 439_087
    """Optimiser steps of CLOC and of the CLIP baseline at equal steps."""
    batch_size: Annotated[int, Field(ge=2)] = 32_768
    """Images a step over all processes."""
    micro_batch: NonNegative = 0
    """Images that a process puts through the model at once; 0: all of its part of the batch. Embeddings are computed
    first and again with gradients (GradCache): the contrastive losses stay those of the whole batch."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """`adamw` is the paper's; `muon` (extension) orthogonalises the updates of the weights of linear layers and leaves
    the rest to AdamW: it learns much faster at small budgets."""
    learning_rate: Annotated[float, Field(gt=0)] = 5e-4
    """Peak learning rate."""
    muon_rate: Annotated[float, Field(gt=0)] = 1.0
    """Learning rate of Muon's weights, as a multiple of `learning_rate`."""
    text_rate: Annotated[float, Field(ge=0)] = 1.0
    """Learning rate of the text encoder, as a multiple of `learning_rate`."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Learning rate of a tower's layer, as a multiple of that of the layer above it (fine-tuning); 1 is none."""
    lock: Literal["none", "image", "text"] = "none"
    """Tower that stays as it is: `image` is LiT's."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay of a moving average of the weights, which is then the model that is saved; 0 keeps none."""
    resolutions: Annotated[tuple[ResolutionConfig, ...], Field(strict=False)] = ()
    """Smaller network inputs at the start, in order; what is left of the steps is at the model's own size."""
    warmup_steps: NonNegative = 2000
    """Steps of linear warm-up; cosine decay to zero after."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.2
    """AdamW's weight decay, on matrices only."""
    betas: Annotated[tuple[float, float], Field(strict=False)] = (0.9, 0.98)
    """AdamW's beta 1 and beta 2."""
    grad_clip: Annotated[float, Field(gt=0)] = 1.0
    """Largest norm of the gradient."""
    alt_text_share: Share = 0.5
    """Share of samples that take the alt-text for caption; the others take the generated or human one."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """bfloat16 is autocast; weights and optimiser stay in float32. `auto` takes it where matrices multiply faster in it
    (CUDA; processors with AMX) and float32 elsewhere."""
    strategy: Literal["ddp", "fsdp2"] = "ddp"
    """How several processes share the work: `ddp` has the whole model in each, `fsdp2` a part of it, its gradients and
    its optimiser state."""
    gradient_checkpointing: bool = False
    """Keep a layer's input alone and compute the rest again in backward: less memory, about a third more time."""
    compile: bool = False
    """Compile the towers with torch.compile: minutes at the start, faster steps."""
    seed: NonNegative = 0
    """Seed of weights, order and sampling."""
    workers: NonNegative = 0
    """Processes a rank that decode images and make batches; 0 does it in a thread of the rank itself. The batches are
    the same whatever their number."""
    shuffle_buffer: Positive = 2048
    """Samples (encoded) of a stream that are shuffled together."""
    streams: NonNegative = 0
    """Streams of samples that a batch is drawn from in equal parts; the processes must divide them, and the batches are
    the same whatever the processes. 0 takes one a process; a run that goes on keeps its number."""
    augmentation: AugmentationConfig = AugmentationConfig()
    processes: Positive = 1
    """Processes (ranks) a machine: one a GPU."""
    nodes: Positive = 1
    """Machines; more than one needs the scheduler `kubernetes` or `slurm`."""
    scheduler: Literal["local_cwd", "kubernetes", "slurm"] = "local_cwd"
    """TorchX scheduler that runs the job."""
    port: Annotated[int, Field(ge=1, le=65535)] = 29500
    """Port of the first machine at which several machines find each other; one machine takes a free one."""
    kubernetes: KubernetesConfig = KubernetesConfig()
    slurm: SlurmConfig = SlurmConfig()
    max_retries: NonNegative = 0
    """How often a job that was preempted, or lost a process, is started again; it goes on from its last checkpoint."""
    storage: str = ""
    """Folder or s3:// prefix, reachable from every machine, for checkpoints, metrics and the model while it trains; a
    folder named after the run is made in it. Empty: the output folder."""
    checkpoint_every: Positive = 1000
    """Steps between checkpoints."""
    checkpoint_async: bool = True
    """Write checkpoints while training goes on."""
    keep_checkpoints: Positive = 2
    """Newest checkpoints that are kept."""
    keep_best: NonNegative = 0
    """Checkpoints that are kept besides because their `best_metric` is the best; each evaluation then writes one."""
    best_metric: str = "region_retrieval/r2t_R1"
    """Figure of the evaluation while training by which checkpoints are best: `retrieval/i2t_R1`, `grounding/acc_0.5`,
    `loss/total`, ...; higher is better, but of a loss."""
    log_every: Positive = 50
    """Steps between metric records."""
    evaluate_every: NonNegative = 0
    """Steps between evaluations on a small set while training; 0 makes none."""
    evaluate_images: Positive = 512
    """Images of that set."""
    evaluate_split: str = "val"
    """Split of the collection that it is taken from."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """What happens at a loss or gradient that is not finite: training stops, or the batch is skipped; either says which
    samples it held."""
    on_spike: Literal["ignore", "skip", "stop"] = "ignore"
    """What happens at a loss far above those before it."""
    spike_deviations: Annotated[float, Field(gt=0)] = 8.0
    """How far: standard deviations of the recent losses above their mean."""
    max_skipped: Positive = 20
    """Batches in a row that may be skipped; then training stops."""
    stall_seconds: NonNegative = 600
    """Seconds without a step after which every process prints the stack of its threads; 0 never does."""
    timeout_seconds: Positive = 1800
    """Seconds that processes wait for each other before they give up."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where training runs."""

    @model_validator(mode="after")
    def _check(self) -> "TrainConfig":
        if sum(part.share for part in self.resolutions) >= 1:
            raise ValueError("resolutions: the shares must leave steps for the model's own size (sum below 1)")
        if self.nodes > 1 and self.scheduler == "local_cwd":
            raise ValueError(f"nodes {self.nodes} needs the scheduler kubernetes or slurm, not local_cwd")
        if self.scheduler != "local_cwd" and not self.storage:
            raise ValueError(f"scheduler {self.scheduler} needs train.storage, which all machines can reach")
        if self.scheduler == "kubernetes" and not self.kubernetes.image:
            raise ValueError("scheduler kubernetes needs train.kubernetes.image")
        if self.strategy == "fsdp2" and self.optimizer == "muon":
            raise ValueError("optimizer muon works on whole matrices and cannot be used with strategy fsdp2; use ddp")
        return self


class EvaluationConfig(Section):
    """Stage: protocols and the gate before registration."""

    batch_size: Positive = 128
    """Images a batch."""
    pictures: NonNegative = 12
    """Pictures a gallery of the report."""
    min_region_gain: Annotated[float, Field(ge=0)] = 1.0
    """Gate: CLOC's region mAcc over the best plain-CLIP row must be at least this; 0 switches this rule off."""
    max_image_loss: Share = 0.05
    """Gate: mean image-text R@1 may be this much (absolute) below CLIP's at equal steps; 1 switches this rule off."""
    promote_figure: str = "region/mAcc"
    """Registry: figure of the headline split by which one beats the champion, as in `differences` of metrics.json."""
    promote_by: Literal["interval", "value"] = "interval"
    """Registry: `interval`: the 95 % interval of the paired difference must be above the margin; `value`: it alone."""
    promote_margin: Annotated[float, Field(ge=-1, le=1)] = 0.0
    """Registry: by how much (absolute) the champion must be beaten; below 0 lets a slightly worse model follow it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where evaluation runs."""
    models: dict[str, str] = Field(default_factory=dict)
    """More rows, by name: folders or hub ids of any CLIP or SigLIP, beside the models that the stage is given."""
    readers: RegionReaders = ()
    """Ways to read regions; empty takes all that a model has (crop, roi_align, masked, and its own)."""
    workers: NonNegative = 0
    """Processes over shards, one a GPU where there are any; 0 decides by the number of images and cores."""
    cache: str = ""
    """Folder or s3:// prefix that keeps features; empty takes $CLOC_CACHE or ~/.cache/cloc, `none` keeps nothing."""
    cache_gigabytes: Annotated[float, Field(gt=0)] = 20.0
    """What the cache may hold; the features that were not used for longest go first."""
    probe_items: NonNegative = 4000
    """Labelled regions (and images of a classification set) that a linear probe is fitted on at most; 0 fits none."""
    classification: str = ""
    """A classification set for zero-shot classification: class folders or WebDataset tars; empty for none."""
    templates: str = ""
    """Text file of templates for class names, one a line, with {} for the name; empty takes eight general ones."""


class DecoderConfig(TowerConfig):
    """A language model made from its config when no checkpoint is named."""

    context_length: Positive = 512
    """Longest sequence, image tokens included."""
    vocab_size: Annotated[int, Field(ge=300)] = 2048
    """Entries of the vocabulary that is trained on the instructions."""


class InstructionsConfig(Section):
    """What an adapter is asked: how often, relative to the others; 0 never. The evaluation asks what is above 0."""

    describe: Weight = 0.5
    """The image in a caption."""
    refer: Weight = 2.0
    """What a region shows."""
    attribute: Weight = 1.0
    """How a region's object looks."""
    relation: Weight = 0.5
    """Where a region lies as seen from another one."""
    count: Weight = 0.5
    """How many of a kind there are, in the image or in a region."""
    ground: Weight = 2.0
    """The box of a phrase."""
    ground_all: Weight = 0.5
    """The boxes of all that a phrase fits."""
    absent: Weight = 0.5
    """The box of what is not there."""
    grounded_caption: Weight = 0.5
    """The image in a caption, with boxes."""
    verify: Weight = 1.0
    """Yes or no, about the image or a region."""

    @property
    def weights(self) -> dict[str, float]:
        """By the name of the task."""
        return {name: float(value) for name, value in self.model_dump().items()}


class AdapterConfig(Section):
    """Stage: a LLaVA-style model that refers and grounds, on the frozen encoder."""

    language_model: str = ""
    """Hub id or folder of a causal language model; empty makes a small Llama from `decoder`."""
    decoder: DecoderConfig = DecoderConfig()
    lora_rank: NonNegative = 16
    """Rank of LoRA on a named language model; 0 trains the projector only. A made one is trained whole."""
    region_sampler: RegionSamplerKind = "none"
    """What stands for a region behind its box: nothing, the encoder's Prompter, or the mean of the tokens under it."""
    tasks: InstructionsConfig = InstructionsConfig()
    steps: Positive = 2000
    """Optimiser steps."""
    align: Literal["none", "closed_form"] = "none"
    """How projector and region sampler start: `closed_form` fits them onto the words of regions by regression, and
    starts a made decoder's output layer at what words look like; the sampler of a made one is not trained then."""
    align_images: Positive = 4000
    """Training images that `closed_form` looks at, at most."""
    align_steps: NonNegative = 0
    """How many of them come first and train projector and region sampler alone, as LLaVA's stage 1."""
    align_learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """Peak learning rate of these."""
    batch_size: Positive = 32
    """Images a step."""
    questions: Positive = 8
    """Questions about an image of a step at most; they share the image's tokens."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """Peak learning rate."""
    warmup_steps: NonNegative = 50
    """Steps of linear warm-up of each stage; cosine decay to zero after."""
    train_encoder: bool = False
    """Whether the vision tower is trained, too, after `align_steps`."""
    encoder_learning_rate: Annotated[float, Field(gt=0)] = 2e-6
    """Peak learning rate of the vision tower."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory for a third more time."""
    grouping: Literal["length", "none"] = "length"
    """Batches of conversations of like length, which hold less padding."""
    cache_gigabytes: Annotated[float, Field(ge=0)] = 1.0
    """Features of all training images are kept in so much memory at most, where the encoder is frozen and images come
    more than once; 0 keeps none."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """As in `train.precision`."""
    seed: NonNegative = 0
    """Seed of weights, order and templates."""
    repeats: Positive = 1
    """How many are tuned alike, with seeds `seed`, `seed` + 1 and so on; the report shows how far they differ."""
    files: Names = ()
    """Instruction files in LLaVA's format (LLaVA, Ferret, ViP-LLaVA) that are mixed into the training."""
    file_images: str = ""
    """Folder of their images; empty: that of the first file."""
    file_share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of a step's images that are theirs."""
    file_boxes: Literal["auto", "image", "square", "bins", "pixels"] = "auto"
    """What the numbers of boxes in their texts mean: shares of the image, shares of it padded to a square (LLaVA-1.5),
    0 to 1000 (Ferret), or pixels; "auto" tells by the numbers, but cannot tell "image" from "square"."""
    test_files: Names = ()
    """RefCOCO-style JSON files whose expressions are grounded in the evaluation, too."""
    test_file_images: str = ""
    """Folder of their images; empty: the file's own."""
    test_file_split: str = ""
    """Which of their splits (val, testA, ...); empty takes all."""
    eval_images: Positive = 300
    """Test images of the adapter's evaluation at most, and images of each file."""
    eval_batch_size: Positive = 64
    """Questions answered together in the evaluation."""
    log_every: Positive = 50
    """Steps between metric records."""
    checkpoint_every: Positive = 500
    """Steps between checkpoints; `train` says how many are kept, and where."""
    processes: NonNegative = 0
    """Processes a machine; 0 takes `train.processes`. Scheduler, retries and the like are those of `train`."""
    nodes: NonNegative = 0
    """Machines; 0 takes `train.nodes`."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where tuning runs."""


class TeacherDetectorConfig(Section):
    """The small detector that `cloc teachers fit` makes."""

    text: TowerConfig = TowerConfig(width=96, layers=1, heads=4)
    """The tower that reads queries."""
    steps: Positive = 600
    """Optimiser steps."""
    batch_size: Positive = 32
    """Images a step; the texts of the others are an image's negatives."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-3
    """Peak learning rate."""
    muon_rate: Annotated[float, Field(gt=0)] = 4.0
    """Learning rate of Muon's weights, as a multiple of `learning_rate`."""
    threads: NonNegative = 0
    """Threads of a step on processors, besides the one that reads ahead; 0 takes one a core."""


class TeacherCaptionerConfig(Section):
    """The small captioner that `cloc teachers fit` makes: the detector's vision tower and a text decoder."""

    decoder: TowerConfig = TowerConfig(width=128, layers=2, heads=4)
    """The decoder, with cross-attention to the image; wider than the vision tower."""
    context_length: Annotated[int, Field(ge=8)] = 80
    """Longest caption, tokens."""
    alt_text_prompt: str = "{alt_text} :"
    """How it is told an image's alt-text, so that names survive; `captioning.alt_text_prompt` must say the same. Empty
    tells it none."""
    steps: Positive = 600
    """Optimiser steps."""
    batch_size: Positive = 32
    """Images a step."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-3
    """Peak learning rate."""
    muon_rate: Annotated[float, Field(gt=0)] = 4.0
    """Learning rate of Muon's weights, as a multiple of `learning_rate`."""
    threads: NonNegative = 0
    """Threads of a step on processors, besides the one that reads ahead; 0 takes one a core."""


class TeachersConfig(Section):
    """Stage: a small detector and a small captioner, fitted on a labelled split."""

    fit: Annotated[tuple[Literal["detector", "captioner"], ...], Field(strict=False)] = ("detector", "captioner")
    """Which teachers are made; the captioner sees with the detector's tower, which is then fitted, too."""
    split: str = "seed"
    """Split with human captions and human boxes that they learn from."""
    vision: VisionConfig = VisionConfig(width=96, layers=3, heads=8, image_size=96, patch_size=8)
    """The vision tower of both; images are stretched to its square."""
    distances: Annotated[tuple[NonNegative, ...], Field(strict=False)] = (1, 1, 2)
    """How far the heads of each vision layer look at the start, patches; 0 leaves a layer at random. Empty starts the
    whole tower at random, which takes far more images."""
    detector: TeacherDetectorConfig = TeacherDetectorConfig()
    captioner: TeacherCaptionerConfig = TeacherCaptionerConfig()
    vocab_size: Annotated[int, Field(ge=600)] = 4096
    """Entries of the vocabulary at most, which is trained on captions and box texts."""
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the images that is kept for the evaluation."""
    cache_images: Positive = 20_000
    """Images that are kept decoded and shuffled together; of a larger split every epoch decodes anew."""
    seed: NonNegative = 0
    """Seed of weights and order."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the teachers are fitted."""

    @model_validator(mode="after")
    def _check(self) -> "TeachersConfig":
        if self.distances and len(self.distances) != self.vision.layers:
            raise ValueError(f"distances {self.distances} must be empty or one for each of {self.vision.layers} layers")
        if self.captioner.decoder.width <= self.vision.width:
            raise ValueError(
                f"captioner.decoder.width {self.captioner.decoder.width} must be larger than vision.width "
                f"{self.vision.width}: what the tower sees is projected into it whole"
            )
        return self


class TrackingConfig(Section):
    """MLflow."""

    uri: str = ""
    """Tracking server or store; empty takes MLFLOW_TRACKING_URI, else SQLite in the working directory."""
    experiment: str = "cloc"
    """Experiment that runs are filed under."""
    model_name: str = "cloc"
    """Name in the model registry."""


class PipelineConfig(Section):
    """The pipeline as a whole: what is left out of it, and where labels are kept between runs."""

    baselines: bool = True
    """Whether plain CLIP is trained to compare with; without it nothing is gated on a comparison."""
    adapters: bool = True
    """Whether MLLM adapters are tuned."""
    labels_at: str = ""
    """Folder or s3:// prefix that all tasks reach, where captions and regions are kept for later runs: these label new
    shards alone. Empty keeps them with the run."""
    label_parts: NonNegative = 0
    """Tasks that label side by side, each a share of the shards, into `labels_at`; 0 labels in one task."""

    @model_validator(mode="after")
    def _check(self) -> "PipelineConfig":
        if self.label_parts and not self.labels_at:
            raise ValueError(
                f"label_parts {self.label_parts} needs labels_at: a folder or s3:// prefix that all tasks reach"
            )
        return self


class Config(Section):
    """All settings."""

    data: DataConfig = DataConfig()
    teachers: TeachersConfig = TeachersConfig()
    captioning: CaptioningConfig = CaptioningConfig()
    grounding: GroundingConfig = GroundingConfig()
    validation: ValidationConfig = ValidationConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    train: TrainConfig = TrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    adapter: AdapterConfig = AdapterConfig()
    tracking: TrackingConfig = TrackingConfig()
    pipeline: PipelineConfig = PipelineConfig()

    @model_validator(mode="after")
    def _check(self) -> "Config":
        if self.train.lock != "none" and not self.model.init_from:
            raise ValueError(
                f"train.lock {self.train.lock} keeps a tower as it is, which without model.init_from is random: name a "
                "checkpoint there, or set train.lock to none"
            )
        return self
