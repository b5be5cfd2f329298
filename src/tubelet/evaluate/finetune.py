"""Fine-tuning end to end: what an encoder reaches when all of it may move, the upper bound of a frozen probe.

The recipe is V-JEPA's (arXiv 2404.08471, appendix): AdamW with layer-wise decay of the
learning rate, warm-up and a half cosine, stochastic depth, mixup or cutmix, label smoothing. Its RandAugment and
random erasing are not offered; clips are random resized crops at random places of the video.
"""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tubelet.data.augment import Augment, CenterCrop
from tubelet.data.container import DecodeError
from tubelet.data.cores import cores
from tubelet.data.draws import Purpose, uniforms
from tubelet.data.manifest import Video
from tubelet.data.source import ClipReader
from tubelet.errors import UserError, nearest
from tubelet.evaluate.attentive import Rates, time_left
from tubelet.evaluate.metrics import macro_recall
from tubelet.evaluate.source import Views, read_views
from tubelet.evaluate.tasks import inner_folds
from tubelet.export.weights import Encoder
from tubelet.nn.block import Block
from tubelet.nn.heads import AttentivePooler, LinearHead
from tubelet.nn.vit import ViT

HEADS = ("attentive", "mean")
NOT_OFFERED = "fine-tuned without RandAugment and random erasing, which the published recipe has"
T = TypeVar("T")


@dataclass(frozen=True)
class FinetuneSettings:
    """How the encoder is fine-tuned. The defaults are ours, for small sets and small encoders.

    head: "attentive" (`AttentivePooler` of one block with 16 heads, or the largest common divisor with the width,
    on the normed tokens, then linear) or "mean" (VideoMAE's: the mean of the last block's tokens, a new
    LayerNorm, linear; the encoder's own last norm is not used); V-JEPA's is not stated. lrs: peak learning rates
    of head and last norm; several are compared on a validation cut. layer_decay: see `layer_scales`. wd: weight
    decay, of what has two dimensions or more (ours; the paper does not say). warmup: epochs from 0 to the peak;
    then half a cosine to 0.
    drop_path: chance that a sample skips a residual branch, per branch, rising linearly from 0 in the first block
    to this in the last. head_dropout: of the pooled features. smoothing: of labels. mixup, cutmix: their beta
    distributions' parameter, 0 for none; with both, a batch has one or the other with even chances. area, aspect:
    of the random resized crop. flip: probability; 0, because left and right can be what a class is about.
    segments, crops: views of a test clip, their softmax averaged. validation: share of the training clips for the
    choice among several lrs, about. bf16: forward passes in bfloat16. micro_batch: clips through the encoder at
    once (None: the whole batch).
    Raises UserError for numbers that make no sense.
    """

    head: Literal["attentive", "mean"] = "attentive"
    lrs: tuple[float, ...] = (2e-3,)
    layer_decay: float = 0.75
    wd: float = 0.05
    warmup: float = 2.0
    epochs: int = 20
    batch_size: int = 16
    drop_path: float = 0.1
    head_dropout: float = 0.0
    smoothing: float = 0.1
    mixup: float = 0.0
    cutmix: float = 0.0
    area: tuple[float, float] = (0.3, 1.0)
    aspect: tuple[float, float] = (0.75, 1.35)
    flip: float = 0.0
    segments: int = 1
    crops: int = 1
    validation: float = 0.25
    bf16: bool = False
    micro_batch: int | None = None

    def __post_init__(self) -> None:
        if self.head not in HEADS:
            raise UserError(
                f'head="{self.head}" is unknown{nearest(self.head, HEADS)} (known: {", ".join(HEADS)})'
            )
        for name in ("epochs", "batch_size", "segments", "crops", "micro_batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name}={value} of fine-tuning must be at least 1")
        if not self.lrs or not all(0 < lr < math.inf for lr in self.lrs):
            raise UserError(f"lrs={self.lrs}: fine-tuning needs one or more positive learning rates")
        if not 0 < self.layer_decay <= 1:
            raise UserError(f"layer_decay={self.layer_decay:g} is a factor per layer, above 0 and up to 1")
        for name in ("drop_path", "head_dropout", "smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name):g} must be at least 0 and less than 1")
        for name in ("wd", "mixup", "cutmix"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"{name}={getattr(self, name):g} must not be negative")
        if not 0 <= self.warmup < self.epochs:
            raise UserError(f"warmup={self.warmup:g} must be less than the {self.epochs} epochs, or 0")
        if not 0 < self.validation <= 0.5:
            raise UserError(f"validation={self.validation:g} is a share of the training clips, up to 0.5")


@dataclass(frozen=True)
class Epoch:
    """One epoch of the final training: its number from 0, mean training loss, learning rate at its end."""

    epoch: int
    loss: float
    lr: float


@dataclass(frozen=True)
class TriedRate:
    """A learning rate and its macro recall on the validation clips; None if it was not asked or diverged."""

    lr: float
    validation: float | None
    diverged: bool


@dataclass(frozen=True)
class FinetuneResult:
    """What fine-tuning reached.

    scores: float64 [m, classes] of the test clips. lr: the one chosen. tried: every rate, where there was a
    choice. history: of the training that gave the scores. note: what a reader must know.
    """

    scores: np.ndarray
    lr: float
    tried: tuple[TriedRate, ...]
    history: tuple[Epoch, ...]
    note: str


def finetune_scores(
    encoder: Encoder,
    videos: Sequence[Video],
    train: np.ndarray,
    label: np.ndarray,
    test: np.ndarray,
    classes: int,
    group: np.ndarray | None = None,
    settings: FinetuneSettings | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    *,
    frame_cache: Path | None = None,
    workers: int | None = None,
    progress: bool = False,
) -> FinetuneResult:
    """Fine-tunes a copy of ``encoder`` on ``videos[train]`` and scores ``videos[test]``; the encoder stays as it is.

    train: int64 [n], places in ``videos``; label, group: [n], theirs. test: int64 [m]. Clips have the encoder's
    geometry. With one learning rate all training clips are learned from; with several, each is first tried on a
    part of them and the best on the rest, which shares no group with it, is taken. Test clips are scored once,
    after the last epoch. Everything random follows from ``seed``. frame_cache: where decoded frames are kept,
    worth having: every epoch reads every video. workers: threads that read (default: all cores).
    Raises UserError if the encoder cannot be fine-tuned, if a video cannot be read (before training starts), or
    if the loss is not finite at every learning rate.
    """
    settings = settings or FinetuneSettings()
    model = _model_of(encoder)
    views = Views(settings.segments, settings.crops)
    clips = _Clips(encoder, videos, settings, views, seed, frame_cache, workers or cores())
    clips.refuse_unreadable(np.concatenate([train, test]))
    job = _Job(model, clips, classes, settings, seed, torch.device(device), progress)

    tried: list[TriedRate] = []
    lrs, note = list(settings.lrs), ""
    if len(lrs) > 1:
        folds, note = inner_folds(label, group, max(2, round(1 / settings.validation)), seed)
        lrs = [lrs[len(lrs) // 2]]
        if folds:
            learn, held = folds[0].train, folds[0].test
            for lr in settings.lrs:
                tried.append(job.attempt(lr, train[learn], label[learn], train[held], label[held]))
            usable = [t for t in tried if t.validation is not None]
            lrs = [t.lr for t in sorted(usable, key=lambda t: -(t.validation or 0.0))]
    for lr in lrs:
        fitted = job.fit(lr, train, label)
        scores = None if fitted is None else job.predict(fitted.model, test)
        if fitted is not None and scores is not None and np.isfinite(scores).all():
            told = "; ".join(part for part in (note, NOT_OFFERED) if part)
            return FinetuneResult(scores, lr, tuple(tried), tuple(fitted.history), told)
    raise UserError(
        f"fine-tuning {encoder.name} diverged at every learning rate ({', '.join(f'{x:g}' for x in settings.lrs)}): "
        "give lower lrs or a longer warmup"
    )


class EncoderClassifier(nn.Module):
    """A trainable copy of ``encoder`` and a new head; the head is drawn from torch's global generator."""

    def __init__(self, encoder: ViT, classes: int, settings: FinetuneSettings):
        super().__init__()
        self.encoder = copy.deepcopy(encoder).requires_grad_(True)
        depth, dim = encoder.depth, encoder.dim
        if settings.head == "attentive":
            self.pooler = AttentivePooler(dim, math.gcd(dim, 16))
        else:
            self.pooler = None
            self.encoder.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = LinearHead(dim, classes)
        self.drop_paths = [settings.drop_path * i / max(1, depth - 1) for i in range(depth)]
        self.head_dropout = settings.head_dropout

    def forward(self, clip: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """[B, C, T, H, W] -> class scores [B, classes]; ``generator`` (of the CPU): drop branches and features."""
        encoder = self.encoder
        tokens = encoder.embed(clip)
        rotation = encoder.rotation(encoder.grid(clip), None, clip.device)
        for block, p in zip(encoder.blocks, self.drop_paths, strict=True):
            assert isinstance(block, Block)
            tokens = tokens + _drop(block.attn(block.norm1(tokens), rotation), p, generator, whole=True)
            tokens = tokens + _drop(block.mlp(block.norm2(tokens)), p, generator, whole=True)
        pool = self.pooler
        pooled = encoder.norm(tokens.mean(dim=1)) if pool is None else pool(encoder.norm(tokens))
        return self.head(_drop(pooled, self.head_dropout, generator, whole=False))


def _drop(values: Tensor, p: float, generator: torch.Generator | None, whole: bool) -> Tensor:
    """Zeroes samples (``whole``) or single numbers with chance ``p``, and scales what stays by 1 / (1 - p)."""
    if generator is None or p == 0:
        return values
    shape = (len(values), *(1 for _ in values.shape[1:])) if whole else values.shape
    kept = torch.rand(shape, generator=generator) >= p  # on the CPU: the same draws on every device
    return values * (kept.to(values) / (1 - p))


def layer_scales(depth: int, decay: float) -> tuple[float, ...]:
    """Factors of the learning rate: of the embedding (0), of block i (1 to ``depth``), of the head (depth + 1).

    decay ** (depth + 1 - i): 1 for head and last norm, less and less towards the pixels (BEiT's, as in VideoMAE).
    """
    return tuple(decay ** (depth + 1 - i) for i in range(depth + 2))


def parameter_groups(model: EncoderClassifier, decay: float) -> list[dict[str, Any]]:
    """Every parameter once, by layer and whether it decays: ``params``, ``scale`` (`layer_scales`), ``decays``."""
    encoder = model.encoder
    layer = {id(p): 0 for p in encoder.embedding.parameters()}
    for number, block in enumerate(encoder.blocks, start=1):
        layer |= {id(p): number for p in block.parameters()}
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for p in model.parameters():
        groups.setdefault((layer.get(id(p), encoder.depth + 1), p.ndim > 1), []).append(p)
    scales = layer_scales(encoder.depth, decay)
    return [
        {"params": params, "scale": scales[number], "decays": decays}
        for (number, decays), params in sorted(groups.items(), key=lambda item: item[0])
    ]


def mix(
    clip: Tensor, truth: Tensor, mixup: float, cutmix: float, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Clips [B, C, T, H, W] mixed with those of the reversed batch, and their class shares [B, classes] likewise.

    mixup, cutmix: parameters of the symmetric beta distributions, 0 for neither. Cutmix takes one box of the
    picture for all frames; the shares are those of the pixels that are really left.
    """
    use_cutmix = cutmix > 0 and (mixup == 0 or rng.random() < 0.5)
    alpha = cutmix if use_cutmix else mixup
    if alpha == 0:
        return clip, truth
    share = float(rng.beta(alpha, alpha))
    if not use_cutmix:
        return share * clip + (1 - share) * clip.flip(0), share * truth + (1 - share) * truth.flip(0)
    height, width = clip.shape[-2:]
    side = math.sqrt(1 - share)
    y, x = int(rng.integers(height)), int(rng.integers(width))
    top, bottom = (min(max(round(y + s * side * height / 2), 0), height) for s in (-1, 1))
    left, right = (min(max(round(x + s * side * width / 2), 0), width) for s in (-1, 1))
    mixed = clip.clone()
    mixed[..., top:bottom, left:right] = clip.flip(0)[..., top:bottom, left:right]
    share = 1 - (bottom - top) * (right - left) / (height * width)
    return mixed, share * truth + (1 - share) * truth.flip(0)


def find_finetune(name: str) -> FinetuneSettings:
    """The settings of that name (one of `FINETUNE`); raises UserError for an unknown one, naming the nearest."""
    if name in FINETUNE:
        return FINETUNE[name]
    raise UserError(
        f'unknown fine-tuning preset "{name}"{nearest(name, FINETUNE)} (known: {", ".join(FINETUNE)})'
    )


def _published(
    lr: float, epochs: int, batch_size: int, drop_path: float, head_dropout: float
) -> FinetuneSettings:
    # Crops as in V-JEPA's probes: the fine-tuning table names none.
    return FinetuneSettings(
        lrs=(lr,),
        warmup=5,
        epochs=epochs,
        batch_size=batch_size,
        drop_path=drop_path,
        head_dropout=head_dropout,
        mixup=0.8,
        cutmix=1.0,
        area=(0.08, 1.0),
        aspect=(0.75, 4 / 3),
        micro_batch=16,
    )


# V-JEPA, arXiv 2404.08471, table of fine-tuning; micro-batches are ours and change no number but by rounding.
FINETUNE = {
    "cheap": FinetuneSettings(),
    "vjepa-k400-l": _published(lr=2e-3, epochs=35, batch_size=256, drop_path=0.1, head_dropout=0.0),
    "vjepa-k400-h": _published(lr=5e-4, epochs=25, batch_size=1024, drop_path=0.2, head_dropout=0.0),
    "vjepa-ssv2-l": _published(lr=5e-4, epochs=15, batch_size=256, drop_path=0.2, head_dropout=0.5),
    "vjepa-ssv2-h": _published(lr=5e-4, epochs=15, batch_size=256, drop_path=0.2, head_dropout=0.5),
}


def _model_of(encoder: Encoder) -> ViT:
    """The ViT, if clips of RGB video in the encoder's geometry can go through it."""
    model, geometry = encoder.model, encoder.geometry
    if not isinstance(model, ViT):
        raise UserError(
            f"{encoder.name} has no weights, so there is nothing to fine-tune; name a trained run"
        )
    if model.channels != 3:
        raise UserError(f"{encoder.name} reads {model.channels} channels; videos decode to 3 (RGB)")
    sides = {"frames": (geometry.frames, model.patch[0])}
    sides["crop_size"] = (geometry.crop_size, math.lcm(*model.patch[1:]))
    for name, (side, patch) in sides.items():
        if side % patch:
            raise UserError(f"{name}={side} is not a multiple of the patch's {patch}")
    return model


@dataclass
class _Clips:
    """Clips to learn from and to be tested on, read ahead in threads."""

    encoder: Encoder
    videos: Sequence[Video]
    settings: FinetuneSettings
    views: Views
    seed: int
    frame_cache: Path | None
    workers: int

    def __post_init__(self) -> None:
        geometry, settings = self.encoder.geometry, self.settings
        mean, std = geometry.mean, geometry.std
        assert len(mean) == 3 and len(std) == 3
        self.augment = Augment(geometry.crop_size, settings.area, settings.aspect, settings.flip, mean, std)
        # Shrunk as the test clips are, so that both share the frame cache.
        short_side = CenterCrop(geometry.crop_size, self.views.crops).short_side
        step = None if geometry.fps else geometry.frame_step
        self.reader = ClipReader(geometry.frames, geometry.fps, step, short_side, self.frame_cache)

    def refuse_unreadable(self, rows: np.ndarray) -> None:
        """Reads a clip of each video now rather than after hours of training."""

        def read(row: int) -> str:
            try:
                self.reader.read(self.videos[row], [0.5])
            except DecodeError as error:
                return str(error)
            return ""

        if bad := [why for why in self._ahead(read, np.unique(rows).tolist()) if why]:
            raise UserError(
                f"{len(bad)} of {len(np.unique(rows))} videos cannot be read ({bad[0]}); leave them out, "
                "`tubelet scan` finds them"
            )

    def train(self, rows: np.ndarray, samples: Sequence[tuple[int, int]]) -> Generator[Tensor]:
        """For each (clip, epoch): float32 [3, T, H, W] of ``videos[rows[clip]]``, a function of seed, clip, epoch."""

        def read(sample: tuple[int, int]) -> Tensor:
            clip, epoch = sample
            position = epoch * len(rows) + clip
            at = float(uniforms(self.seed, Purpose.START, position, 1)[0])
            frames = self._read(rows[clip], lambda video: self.reader.read(video, [at])[0])
            return self.augment([torch.from_numpy(frames)], self.seed, [position])[0]

        return self._ahead(read, samples)

    def test(self, rows: np.ndarray) -> Iterator[Tensor]:
        """For each row: all its views, float32 [views, 3, T, H, W]."""
        geometry = self.encoder.geometry

        def read(row: int) -> Tensor:
            return self._read(row, lambda video: read_views(video, geometry, self.views, self.frame_cache))

        return self._ahead(read, rows.tolist())

    def _read(self, row: int, how: Callable[[Video], T]) -> T:
        try:
            return how(self.videos[row])
        except DecodeError as error:
            raise UserError(f"{error}; leave this video out and start again") from error

    def _ahead(self, read: Callable[[Any], T], jobs: Iterable[Any]) -> Generator[T]:
        """``read`` of every job, in order, a few jobs ahead."""
        waiting: deque[Future[T]] = deque()
        with ThreadPoolExecutor(self.workers) as pool:
            try:
                for job in jobs:
                    waiting.append(pool.submit(read, job))
                    if len(waiting) > 2 * self.workers:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class _Fitted:
    model: EncoderClassifier
    history: list[Epoch]


@dataclass
class _Job:
    """One fine-tuning, for any learning rate and any part of the clips."""

    encoder: ViT
    clips: _Clips
    classes: int
    settings: FinetuneSettings
    seed: int
    device: torch.device
    progress: bool

    def attempt(
        self, lr: float, train: np.ndarray, label: np.ndarray, held: np.ndarray, truth: np.ndarray
    ) -> TriedRate:
        """How well ``lr`` does on videos ``held``."""
        fitted = self.fit(lr, train, label)
        scores = None if fitted is None else self.predict(fitted.model, held)
        if scores is None or not np.isfinite(scores).all():
            return TriedRate(lr, None, diverged=True)
        return TriedRate(lr, macro_recall(truth, scores.argmax(1) == truth), diverged=False)

    def fit(self, lr: float, rows: np.ndarray, label: np.ndarray) -> _Fitted | None:
        """Trains on ``videos[rows]``; None if a loss is not finite."""
        settings = self.settings
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = EncoderClassifier(self.encoder, self.classes, settings)
        model.to(self.device)
        groups = parameter_groups(model, settings.layer_decay)
        optimizer = torch.optim.AdamW(groups, fused=self.device.type in ("cpu", "cuda"))
        rates = Rates(lr, settings.wd, settings.warmup)
        epochs = [self._parts(len(rows), epoch) for epoch in range(settings.epochs)]
        samples = [
            (int(clip), epoch) for epoch, parts in enumerate(epochs) for part in parts for clip in part
        ]
        history: list[Epoch] = []
        with (
            time_left(f"fine-tuning, lr {lr:g}", self.progress) as bar,
            closing(self.clips.train(rows, samples)) as stream,
        ):
            task = bar.add_task("", total=sum(len(parts) for parts in epochs))
            for epoch, parts in enumerate(epochs):
                losses = []
                for number, part in enumerate(parts):
                    # the middle of the step: neither the first nor the last is taken at a rate of 0
                    now, wd = rates.at(epoch + (number + 0.5) / len(parts), settings.epochs)
                    for group in optimizer.param_groups:
                        group["lr"] = now * group["scale"]
                        group["weight_decay"] = wd if group["decays"] else 0.0
                    clip = torch.stack([next(stream) for _ in part])
                    losses.append(self._backward(model, clip, label[part], (epoch, number)))
                    if not math.isfinite(losses[-1]):
                        return None
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
                    bar.advance(task)
                history.append(Epoch(epoch, float(np.mean(losses)), rates.at(epoch + 1, settings.epochs)[0]))
        return _Fitted(model, history)

    def _parts(self, count: int, epoch: int) -> list[np.ndarray]:
        """The batches of an epoch, all of about the same size."""
        order = np.random.default_rng([self.seed, epoch]).permutation(count)
        return np.array_split(order, math.ceil(count / self.settings.batch_size))

    def _backward(
        self, model: EncoderClassifier, clip: Tensor, label: np.ndarray, step: tuple[int, int]
    ) -> float:
        """Adds the gradients of the batch's mean loss, and returns it."""
        settings = self.settings
        clip = clip.to(self.device)
        hard = F.one_hot(torch.as_tensor(label, device=self.device), self.classes).float()
        soft = hard * (1 - settings.smoothing) + settings.smoothing / self.classes
        rng = np.random.default_rng([self.seed, *step])
        clip, soft = mix(clip, soft, settings.mixup, settings.cutmix, rng)
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        size = settings.micro_batch or len(clip)
        total = 0.0
        for part, target in zip(clip.split(size), soft.split(size), strict=True):
            with self._precision():
                scores = model(part, generator)
            loss = F.cross_entropy(scores.float(), target) * (len(part) / len(clip))
            loss.backward()
            total += float(loss.detach())
        return total

    @torch.no_grad()
    def predict(self, model: EncoderClassifier, rows: np.ndarray) -> np.ndarray:
        """Class probabilities float64 [len(rows), classes], averaged over views."""
        size = self.settings.micro_batch or self.settings.batch_size
        scores = []
        for views in self.clips.test(rows):
            with self._precision():
                said = torch.cat([model(part.to(self.device)) for part in views.split(size)])
            scores.append(said.double().softmax(-1).mean(dim=0).cpu())
        return torch.stack(scores).numpy()

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.bf16)
