"""Every setting of every training command, with its unit and meaning; that text is the `--help`."""

from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self


@dataclass(frozen=True)
class Views:
    """How a view is made from an image, in the order of MoCo v2 and BYOL: crop, jitter, gray, blur, solarize, flip."""

    size: int = 224
    """Side of a view, pixels."""
    scale: tuple[float, float] = (0.2, 1.0)
    """Smallest and largest crop, as a fraction of the image's area."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest width / height of a crop."""
    jitter: float = 0.8
    """Probability of colour jitter, whose four parts come in random order."""
    brightness: float = 0.4
    """Brightness factor is uniform in 1 -+ this."""
    contrast: float = 0.4
    """Contrast factor is uniform in 1 -+ this, around the image's own mean gray."""
    saturation: float = 0.4
    """Saturation factor is uniform in 1 -+ this."""
    hue: float = 0.1
    """Hue shift is uniform in -+ this, in turns of the HSV circle."""
    gray: float = 0.2
    """Probability of grayscale."""
    blur: float = 0.5
    """Probability of Gaussian blur; the paper's CIFAR setting has none."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Smallest and largest standard deviation of the blur, pixels."""
    solarize: float = 0.0
    """Probability of solarization, which inverts every channel value from 0.5 (128 of 255) up; BYOL's second view."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    resize: int = 256
    """Shorter side before the centre crop of an evaluation image, pixels; equal to `size` crops nothing away."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Mean of red, green and blue that normalisation subtracts, in 0..1."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Standard deviation of red, green and blue that normalisation divides by, in 0..1."""


@dataclass(frozen=True)
class SmallViews:
    """Multi-crop: further views that show a part of the image, made as `views` says but for size and scale."""

    count: int = 0
    """Small views of an image, besides the method's own views; SwAV takes 6."""
    size: int = 96
    """Side of a small view, pixels."""
    scale: tuple[float, float] = (0.05, 0.14)
    """Smallest and largest crop, as a fraction of the image's area."""


@dataclass(frozen=True)
class Optim:
    """The optimiser and its rate over time."""

    name: Literal["sgd", "lars", "adam", "adamw"] = "sgd"
    """sgd; LARS (from batch 1024 up, and for linear classification); adam; adamw."""
    lr: float = 0.05
    """Base learning rate, for 256 images a step; the optimiser gets lr x batch_size / 256."""
    head_lr: float = 0.0
    """semisup.py: base rate of the classifier, where the encoder has `lr`; 0 takes `lr` for both."""
    momentum: float = 0.9
    """Momentum of SGD and LARS, without dampening or Nesterov; the first beta of Adam(W), whose second is 0.999."""
    weight_decay: float = 1e-4
    """Weight decay, added to the gradient (by adamw to the step); the paper decays every parameter, batch-norm and bias
    included."""
    exclude_1d: bool = False
    """Leave biases and batch-norm parameters out of weight decay and of LARS adaptation."""
    trust_coefficient: float = 0.001
    """LARS: the rate of a tensor is lr x this x |w| / (|g| + weight_decay |w|)."""
    schedule: Literal["cosine", "steps", "constant"] = "cosine"
    """cosine to `final_lr` over `epochs`; steps multiplies by `decay` at `milestones`; constant."""
    final_lr: float = 0.0
    """Base rate that the cosine ends at, in every group that moves; of no effect on `steps` and `constant`."""
    per: Literal["epoch", "step"] = "epoch"
    """How often the cosine moves; the official code moves it once an epoch."""
    warmup_epochs: float = 0.0
    """Epochs of linear warm-up from 0, always moved once a step; the paper warms up for 10 from batch 1024."""
    milestones: tuple[float, ...] = ()
    """Epochs at which `steps` lowers the rate."""
    decay: float = 0.1
    """What `steps` multiplies the rate by at a milestone."""
    predictor_lr: Literal["constant", "cosine"] = "constant"
    """constant keeps the predictor at the initial rate from the first step (68.1 top-1); cosine is 67.7."""


@dataclass(frozen=True)
class Health:
    """When a run is called unwell. The measures are in docs/metrics.md."""

    on_collapse: Literal["warn", "stop"] = "warn"
    """What to do when the verdict is `collapsed`: say so and go on, or save and stop."""
    collapsed_std: float | None = None
    """Collapsed below this std of z/|z| x sqrt(d): 1 is an even spread, 0 one point, and 0.6 a mean cosine similarity
    between different images of about 1 - 0.6^2 = 0.64. By default the method's: 0.6, as batch norm on the output keeps
    a collapse from reaching 0, and 0.2 for MoCo, BYOL and SwAV, which have none there."""
    warn_std: float | None = None
    """A warning below this std of z/|z| x sqrt(d). By default the method's: 0.8, and 0.5 for MoCo, BYOL and SwAV."""
    warn_rank: float = 3.0
    """A warning below this effective rank of a batch's projections."""
    stuck: float = 0.6
    """Stuck where predictions are nearer to chance than this times what the projections of two views agree by:
    SimSiam with a fixed random predictor stays at 0.2 to 0.4, with a trained one it comes to 1."""
    stuck_after: int = 100
    """Steps before which no run is called stuck."""


@dataclass(frozen=True)
class Knn:
    """The kNN monitor: training images under the test transform vote on the validation images."""

    k: int = 200
    """Neighbours that vote."""
    temperature: float = 0.1
    """A vote weighs exp(cosine similarity / temperature)."""


@dataclass(frozen=True)
class Checkpoint:
    """When a checkpoint is written and how many stay."""

    every_epochs: float = 1.0
    """Epochs between checkpoints; 0 is never."""
    every_steps: int = 0
    """Steps between checkpoints; 0 is never."""
    every_minutes: float = 0.0
    """Minutes between checkpoints; 0 is never."""
    keep: int = 2
    """Newest complete checkpoints that stay on disk."""
    keep_every_epochs: float = 0.0
    """Epochs between checkpoints that stay for good, as checkpoints/epoch_0100; 0 is never."""
    folder: str = ""
    """Where checkpoints are: a folder or an fsspec URL (s3://, gs://). Default: checkpoints in the run folder."""


@dataclass(frozen=True)
class Dali:
    """The DALI loader."""

    threads: int = 0
    """Decoding threads per rank; 0 takes `workers`."""
    prefetch: int = 2
    """Batches made ahead."""
    hw_decoder_load: float = 0.65
    """Part of the JPEGs that go to the GPU's hardware decoder, where it has one."""


@dataclass(frozen=True)
class Job:
    """What every training command has, of whatever task."""

    data: str = ""
    """Where the images are. Default: $DATA."""
    out: str = ""
    """Run folder. Default: $LOG, or runs, and in it the recipe's name."""
    batch_size: int = 512
    """Images per optimiser step over all ranks, nodes and micro-batches."""
    accumulate: int = 1
    """Micro-batches per step; batch-norm statistics are then those of a micro-batch."""
    max_steps: int = 0
    """Stop after this many steps with the schedule unchanged; 0 is no limit."""
    seed: int = 0
    """Seed of the initial weights, the sample order and every view."""
    workers: int = 8
    """Loader worker processes per rank; 0 loads in the training process."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto is cuda where there is one."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Autocast type of the network; loss and batch-norm statistics stay in float32; fp16 scales the loss; convolutions
    of fp32 are TF32 on a GPU; auto is bf16 where the device computes in it, else fp32."""
    resume: str = "auto"
    """auto goes on from the newest checkpoint of the run folder, never starts anew, PATH takes that one."""
    allow_change: list[str] = field(default_factory=list)
    """Settings that may differ from those that the run in the folder began with, such as optim.lr,epochs."""
    max_wall_time: str = ""
    """Save and end before this much time has passed, as Slurm writes it: minutes, HH:MM:SS or D-HH:MM:SS."""
    hang_timeout: float = 30.0
    """Seconds without a step after which a run hangs (and at least five of its slowest steps): it tells which rank is
    missing, writes all stacks and ends, for torchrun to start it again; 0 is never."""
    world_size: int = 0
    """Ranks that must be there; 0 takes any number. A node that is lost at the start is noticed by this alone."""
    skip_preflight: bool = False
    """Begin without comparing the ranks (code, settings, data, clocks, room on the disk)."""
    log_every: int = 50
    """Steps between lines in metrics.jsonl."""
    hide_progress: bool = False
    """Neither a progress bar nor lines of progress."""
    debug: bool = False
    """A trial of everything in seconds: a few images, two steps, then every later stage."""
    checkpoint: Checkpoint = field(default_factory=Checkpoint)

    def debugged(self, world_size: int) -> Self:
        """The settings of that trial."""
        return replace(
            self,
            batch_size=8 * max(2, world_size) * self.accumulate,
            max_steps=2,
            workers=min(self.workers, 1),
            log_every=1,
            out=self.out.rstrip("/") + "-debug",
            resume="never",
        )


@dataclass(frozen=True)
class Run(Job):
    """What training on images or on labelled images shares."""

    data: str = ""
    """Image folder (with train/ and val/), folder or URL (s3://, gs://, hf://) of shards, or built in: shapes, digits,
    cifar10[:ROOT], cifar100, stl10, flowers102, pets, food101, dtd, aircraft, cars. Default: $DATA."""
    subset: str = ""
    """Part of the training images: a fraction (balanced over the classes), 1pct or 10pct (the published ImageNet
    lists), or a file of names. All by default."""
    checksums: bool = False
    """Compare each image file with the checksum of the index, made on first use: nothing else notices flipped bits."""
    epochs: int = 100
    """Length of the run and of the learning-rate schedule."""
    loader: Literal["auto", "dali", "torchvision", "resident"] = "auto"
    """dali decodes JPEG on the GPU, or by threads without one; torchvision decodes in worker processes; resident keeps
    a small decoded set in memory; auto takes one and says why."""
    shuffle: Literal["full", "shards"] = "full"
    """full orders an epoch at random; shards orders shards at random, and samples within `shuffle_buffer`, for storage
    that is fast only where it is read in sequence."""
    shuffle_buffer: int = 10_000
    """Samples over which `shuffle: shards` mixes."""
    download: bool = False
    """Download a built-in dataset that is not on disk."""
    deterministic: bool = False
    """The same run twice gives the same bits on GPUs too, and a resumed one those of an undisturbed one, at some cost
    in speed; two CPU ranks, or up to eight of one Linux host with x86-64, do so without it."""
    reduce_dtype: Literal["fp32", "bf16"] = "fp32"
    """What ranks average gradients in; bf16 halves their bytes, for a slow network: ranks then step as on rounded
    gradients, no longer as one rank on the whole batch to 1e-5."""
    views: Views = field(default_factory=Views)
    optim: Optim = field(default_factory=Optim)
    dali: Dali = field(default_factory=Dali)

    def debugged(self, world_size: int) -> Self:
        return replace(super().debugged(world_size), epochs=1)


@dataclass(frozen=True)
class Pretrain(Run):
    """Settings of pretrain.py."""

    encoder: str = "resnet50"
    """A torchvision ResNet, cifar_resnet18, cifar_resnet34, cifar_resnet50, resnet8, 20, 32, 56, 110, or timm:NAME."""
    init: str = ""
    """What the encoder begins with: run folder, encoder file or checkpoint of others; random weights by default."""
    zero_init_residual: bool = True
    """Begin with the last batch-norm scale of each residual block at 0, where there is no `init`."""
    method: dict[str, Any] = field(default_factory=lambda: {"name": "simsiam"})
    """name of the method, and its own options as method.OPTION."""
    branches: list[dict[str, Any]] = field(default_factory=list)
    """What is different from `views` in each view of the method, a mapping a view, such as [{blur: 1.0}, {blur: 0.1,
    solarize: 0.2}]; an empty list makes all views alike."""
    small_views: SmallViews = field(default_factory=SmallViews)
    views_schedule: list[dict[str, Any]] = field(default_factory=list)
    """What is different in `views` in the first epochs, such as [{until: 10, blur: 0.0}]: below epoch 10, counted from
    0. Entries hold in turn, each from where the one before it ends; `branches` in an entry are its own."""
    compile: bool = False
    """Compile residual blocks and heads by torch.compile, which takes minutes at the start; off for evaluations."""
    cuda_graphs: bool = False
    """With `compile` on one GPU, without `accumulate`: record a block's kernels and replay them, for batches so small
    that the GPU waits for launches."""
    recompute: bool = False
    """Keep only what enters each residual block, and compute the rest again in the backward pass: a larger batch fits,
    and a step makes its forward pass twice."""
    profile: int = 0
    """Steps, soon after the start, that torch.profiler traces into `profile/` of the run folder; 0 is none."""
    knn_every: int = 1
    """Epochs between runs of the kNN monitor; 0 is never."""
    knn: Knn = field(default_factory=Knn)
    health: Health = field(default_factory=Health)


@dataclass(frozen=True)
class Classify(Run):
    """What lincls.py and semisup.py share. `views` describes the training crops."""

    pretrained: str = ""
    """Encoder to measure: run folder, encoder file or official checkpoint; `random` takes random weights."""
    encoder: str = ""
    """Name of the encoder where the file does not say it."""
    evaluate_only: bool = False
    """Only validate the classifier of the run folder."""
    val_every: int = 1
    """Epochs between validations."""
    sweep: str = ""
    """Rates to choose from in one job: `lr=1,3,10`, in semisup.py also `lr=0.01,0.1 head_lr=0.1,1`. The best on
    held-out training images is taken; validation images have no say."""
    held_out: int = 0
    """Training images that are kept out of training for a sweep to choose on, equally many of each class; 0 is none, or
    in a sweep a fifth, at most 10000."""


@dataclass(frozen=True)
class Linear(Classify):
    """Settings of lincls.py. The encoder is frozen, its batch-norm in evaluation mode."""

    batchnorm: bool = False
    """A batch-norm without scale and shift before the classifier: rates then carry over between encoders."""
    cache_features: bool = False
    """Features of centre crops, computed once into the run folder (float16), in place of augmented crops: a variant of
    the protocol, in minutes."""


@dataclass(frozen=True)
class FineTune(Classify):
    """Settings of semisup.py. The whole network trains: the encoder at `optim.lr`, the head at `optim.head_lr`."""

    batchnorm: Literal["synced", "per_rank"] = "synced"
    """Statistics of batch-norm over the images of all ranks, or of each rank."""


@dataclass(frozen=True)
class FewShot(Classify):
    """Settings of transfer/classify.py --protocol few-shot: logistic regression on features of a few images a class."""

    shots: tuple[int, ...] = (1, 5, 10)
    """Training images of each class."""
    trials: int = 10
    """Draws of those images; the answer is their mean, with its 95% interval."""
    inverse_l2: float = 10.0
    """1 / strength of the L2 penalty, for features of length 1."""
