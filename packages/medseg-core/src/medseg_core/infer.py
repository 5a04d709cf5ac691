"""From an image to an answer by a sliding window, without ever holding the logits of the whole image.

Windows come row by row along a slow axis, and in a row band by band along a middle one. A voxel that no window to come
reaches goes through `reduce` and is forgotten. A window of 1 along an axis runs a 2D net plane by plane, several planes
at a time. Where each voxel lies in one window, its logits are the net's own, unweighted, and nothing is held. Sums are
those of a buffer of all logits, term by term, so the answer is the same to the last bit.

Memory for logits: 4 K (L + c B W) bytes, of B windows in a batch with W voxels each (c = 1, or 3 under mirroring), and
of L = t (k S + f w) voxels held between windows. Along the slow axis two rows have k planes in common and a row adds f;
S and w are the image and the window along the middle axis, and t is the image along the fast one. Axes are taken in the
order that makes L least. Above `logits_gb` batches get smaller; then the image is cut along the fast axis into tiles,
each worked off by itself, whose common windows are computed twice.

So 118 classes (472 bytes a voxel) of a scan of 512 x 512 x 824, at 0.8 x 0.8 x 1.0 mm, need
- planes of 512 x 512 (a 2D net): L = 0; 0.12 GB for each of a batch, however long the scan is;
- at 1.5 mm (273 x 273 x 549) windows of 96, overlap 0.5: L = 273 (51 * 273 + 46 * 96), 2.36 GB, and 0.42 GB for each of
  a batch; 1.63 GB in all in two tiles, with 1.4 times the windows;
- windows of 128 there: 3.40 GB and 0.99 GB; in two tiles 2.79 GB, with 1.5 times the windows.
The first window tells K; what does not fit into memory is refused before more is taken.

Axes: N windows, C input channels, K classes, W the axes of a window, S those of the image (two or three).
"""

import contextlib
import itertools
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medseg_core.blend import Blend
from medseg_core.budget import within
from medseg_core.checkpoint import Card
from medseg_core.device import autocast, choose_device, choose_precision, is_out_of_memory
from medseg_core.errors import MedsegError
from medseg_core.memory import free_bytes
from medseg_core.progress import track
from medseg_core.windows import Corner, Plan, plan_windows, read_windows

Net = Callable[[Tensor], Tensor]
Reduce = Callable[[Tensor], Tensor]

LOGITS_GB = 2.5  # on a CPU: with PyTorch, the scan, a mask and a net of half a gigabyte, a process stays below 4
REDUCE_BYTES = 2**24  # of logits that `reduce` sees at once: small blocks need no fresh memory


def infer(
    net: Net,
    image: np.ndarray,
    *,
    window: Sequence[int],
    reduce: Reduce,
    overlap: float = 0.5,
    batch_size: int = 4,
    device: str = "cpu",
    precision: str = "fp32",
    mirror: Sequence[int] = (),
    swap: Mapping[int, int] | None = None,
    outside: float = 0.0,
    logits_gb: float | None = None,
    what: str = "",
) -> np.ndarray:
    """Run `net` over windows, blend what it returns, and reduce it slab by slab; method and memory stand above.

    Args:
        net: (N, C, *W) float32 on `device` -> (N, K, *W): what is blended. Its weights already lie on `device`.
        image: (C, *S), any real type and memory order, a memory map too; windows are cast to float32 as they are read.
        window: its edges in voxels, one for each axis of S. An image that is smaller is padded, evenly on both sides,
            and the answer cropped.
        reduce: (K, *slab) float32 -> (*slab) or (M, *slab), always of one type. A slab has all axes of S and
            may end anywhere, so each voxel is judged by itself.
        overlap: the least share of its edge that a window has in common with the next, in [0, 1).
        batch_size: windows in one forward; the first has one.
        precision: fp32, bf16, fp16, or auto for what is fast on `device`.
        mirror: axes of S; the net's output is averaged over all combinations of flips along them.
        swap: channel -> channel, to be exchanged in a flip along `mirror[0]`, the axis from left to right.
        outside: the value of voxels outside the image, in the image's (normalised) units.
        logits_gb: memory for logits; above it, windows come in smaller batches and then in tiles, down to the least
            that they can do with. None: 2.5 on a CPU, without limit on a GPU.
        what: words for a progress bar; none without.

    Returns:
        (*S) or (M, *S) in the type that `reduce` returns, and each in the memory order of `image`.

    Raises:
        MedsegError: arguments that do not fit each other, logits that are not finite, too little memory.

    Source: Gaussian weights with a standard deviation of an eighth of the window, and evenly spread windows, as in
    nnU-Net (Isensee et al., 2021).
    """
    _check(net, image, window=window, overlap=overlap, batch_size=batch_size)
    place = choose_device(device)
    precision = choose_precision(precision, place)
    if mirror:
        net = _mirrored(net, mirror, swap=swap or {}, num_axes=len(window))
    plan = plan_windows(image.shape[1:], tuple(window), overlap=overlap, batch_size=batch_size)
    answer = _Answer(image, plan, reduce)

    def forward(corners: Sequence[Corner]) -> Tensor:
        x_NCW = read_windows(image, corners, plan, outside=outside, device=place)
        with autocast(place, precision):
            y_NKW = net(x_NCW)
        _check_shape(y_NKW, x_NCW)
        return y_NKW

    with torch.inference_mode(), _memory_named(batch_size, plan.window):
        first = forward([(0,) * len(window)])
        num_classes = first.shape[1]
        most = LOGITS_GB if place.type == "cpu" else math.inf
        limit = most if logits_gb is None else logits_gb
        plan = within(plan, first, limit_bytes=1e9 * limit, copies=3 if mirror else 1)
        steps = [(tile, batch) for tile in plan.tiles() for batch in tile.batches]
        for tile, group in itertools.groupby(track(steps, what) if what else steps, operator.itemgetter(0)):
            blend = None if plan.is_plain else Blend(plan, tile, num_classes=num_classes, device=place, put=answer.put)
            for _, batch in group:
                y_NKW, first = forward(batch) if first is None else first, None
                for corner, y_KW in zip(batch, y_NKW, strict=True):
                    (blend.add if blend else answer.put)(y_KW, corner)
                del y_NKW, y_KW  # before the next are made
            if blend:
                blend.finish()
            del blend
    return answer.cropped()


def decide(card: Card) -> Reduce:
    """The ids that logits stand for: (K, *slab) -> (*slab) uint8, or uint16 where an id is above 255.

    Softmax: the id of the largest logit. Sigmoid: the id of the largest logit among those whose probability is above
    `card.chosen["threshold"]` (0.5 without), 0 where there is none. Among equals the first channel wins.

    Raises:
        MedsegError: a head without classes; later, logits that have not one channel for each of `card.channels`.
    """
    if card.head not in ("softmax", "sigmoid") or not all(0 <= i < 2**16 for i in card.channels):
        got = f"head {card.head!r} and channels {card.channels}"
        raise MedsegError(f"model {card.model!r} has {got}; ids need softmax or sigmoid, and channels from 0 to 65535")
    threshold = _logit(card.chosen.get("threshold", 0.5))
    kind = torch.uint8 if max(card.channels, default=0) < 2**8 else torch.uint16
    ids = torch.tensor(card.channels, dtype=torch.int32)

    def reduce(y_KS: Tensor) -> Tensor:
        if len(y_KS) != len(ids):
            raise MedsegError(
                f"the net gives {len(y_KS)} channels, its card names {len(ids)}; take the card of this net"
            )
        best, channel = y_KS.max(0)  # three times as fast as argmax on a CPU
        found = ids.to(y_KS.device)[channel]
        if card.head == "sigmoid":
            found = torch.where(best > threshold, found, 0)
        return found.to(kind)

    return reduce


def entropy(card: Card) -> Reduce:
    """How undecided logits are, from 0 (sure) to 1: (K, *slab) -> (*slab) float32.

    Softmax: the entropy of the K probabilities over log K, its largest value. Sigmoid: the binary entropy, in bits, of
    the most undecided channel, so that one doubtful structure shows among a hundred that are surely absent.
    """
    if card.head == "sigmoid":
        return lambda y_KS: _bits(y_KS.abs().amin(0))
    return lambda y_KS: _nats(y_KS) / math.log(max(len(y_KS), 2))


def mean_of(nets: Sequence[nn.Module], *, head: str = "softmax") -> Net:
    """An ensemble as one net: its probabilities are the mean of those of `nets`.

    It returns logits again, for `decide` and `entropy`: the log of the mean for softmax, its logit for sigmoid.

    Args:
        nets: each (N, C, *W) -> (N, K, *W) logits, with the same meaning of the channels.
        head: softmax or sigmoid.
    """
    if not nets or head not in ("softmax", "sigmoid"):
        raise MedsegError(
            f"an ensemble takes one net or more with head softmax or sigmoid, got {len(nets)} with {head!r}"
        )
    for net in nets:
        _check_eval(net)
    return nets[0] if len(nets) == 1 else lambda x_NCW: _mean(nets, x_NCW, head=head)


def _mean(nets: Sequence[nn.Module], x_NCW: Tensor, *, head: str) -> Tensor:
    yes = no = None  # logs of the sums of p and of 1 - p
    for net in nets:
        y = net(x_NCW).float()
        if yes is not None and y.shape != yes.shape:
            raise MedsegError(f"nets of an ensemble must agree, got logits {tuple(yes.shape)} and {tuple(y.shape)}")
        log_p = F.logsigmoid(y) if head == "sigmoid" else y.log_softmax(1)
        yes = log_p if yes is None else torch.logaddexp(yes, log_p)
        if head == "sigmoid":
            no = F.logsigmoid(-y) if no is None else torch.logaddexp(no, F.logsigmoid(-y))
    return yes - math.log(len(nets)) if no is None else yes - no


def _nats(y_KS: Tensor) -> Tensor:
    log_p = y_KS.log_softmax(0)
    return -(log_p.exp().mul_(log_p)).sum(0)


def _bits(y: Tensor) -> Tensor:
    p = torch.sigmoid(y)
    return (p * F.softplus(-y) + (1 - p) * F.softplus(y)) / math.log(2)


def _logit(p: float) -> float:
    return math.log(p / (1 - p)) if 0 < p < 1 else math.copysign(math.inf, p - 0.5)


def _mirrored(net: Net, axes: Sequence[int], *, swap: Mapping[int, int], num_axes: int) -> Net:
    if len(set(axes)) < len(axes) or not set(axes) <= set(range(num_axes)):
        raise MedsegError(f"mirror {tuple(axes)} must be different axes from 0 to {num_axes - 1}")
    if set(swap) != set(swap.values()):
        raise MedsegError(f"swap {dict(swap)} must name each channel once on either side, like {{2: 3, 3: 2}}")
    flips = [flip for n in range(len(axes) + 1) for flip in itertools.combinations(axes, n)]

    def averaged(x_NCW: Tensor) -> Tensor:
        total = None
        for flip in flips:
            dims = [axis + 2 for axis in flip]
            y_NKW = net(x_NCW.flip(dims)).float().flip(dims)
            if swap and axes[0] in flip:
                if max(swap) >= y_NKW.shape[1]:
                    raise MedsegError(f"swap names channel {max(swap)}, the net gives {y_NKW.shape[1]}")
                y_NKW = y_NKW[:, [swap.get(k, k) for k in range(y_NKW.shape[1])]]
            total = y_NKW if total is None else total.add_(y_NKW)
        return total.div_(len(flips))

    return averaged


class _Answer:
    """The reduced image; its type and channels are known from the first slab on."""

    def __init__(self, image: np.ndarray, plan: Plan, reduce: Reduce) -> None:
        self.image, self.plan, self.reduce = image, plan, reduce
        self.array: np.ndarray | None = None

    def put(self, y_KS: Tensor, corner: Corner) -> None:
        """Reduce the block that begins at `corner`, piece by piece."""
        num_axes = len(self.plan.size)
        axes = sorted(range(1, num_axes + 1), key=lambda axis: axis != self.plan.slow + 1)
        for at, block in _blocks(y_KS, axes[:-1]):
            y = block.float().contiguous()
            first = [a + c for a, c in zip(at[1:], corner, strict=True)]
            if not torch.isfinite(y.sum()):
                where = tuple(f - b for f, b in zip(first, self.plan.before, strict=True))
                fix = "look for NaN in the image, or take precision bf16 or fp32"
                raise MedsegError(f"logits are not finite near voxel {where}; {fix}")
            slab = self.reduce(y).cpu().numpy()
            lead = slab.shape[: slab.ndim - num_axes]
            if len(lead) > 1 or slab.shape != (*lead, *y.shape[1:]):
                raise MedsegError(f"reduce gave {slab.shape} for logits {tuple(y.shape)}; only axis 0 may change or go")
            if self.array is None:
                self._begin(lead, slab.dtype)
            place = (slice(f, f + n) for f, n in zip(first, y.shape[1:], strict=True))
            self.array[..., *place] = slab

    def _begin(self, lead: tuple[int, ...], kind: np.dtype) -> None:
        """Room for the answer, in the image's memory order."""
        num_axes, num_bytes = len(self.plan.size), math.prod((*lead, *self.plan.size)) * kind.itemsize
        free = free_bytes(torch.device("cpu"))
        if num_bytes > free:
            raise MedsegError(
                f"the answer of {(*lead, *self.plan.size)} {kind} needs {num_bytes / 1e9:.2f} GB, "
                f"{free / 1e9:.2f} GB are free; let reduce give ids (`decide`), or fewer channels"
            )
        order = np.argsort([-abs(stride) for stride in self.image.strides[1:]], kind="stable")
        array = np.empty((*lead, *np.array(self.plan.size)[order]), kind)
        self.array = np.moveaxis(array, range(-num_axes, 0), order - num_axes)

    def cropped(self) -> np.ndarray:
        """The answer without the padding."""
        shape = self.image.shape[1:]
        if self.plan.size == shape:
            return self.array
        inner = tuple(slice(b, b + n) for b, n in zip(self.plan.before, shape, strict=True))
        return self.array[..., *inner].copy(order="K")


def _blocks(y_KS: Tensor, axes: Sequence[int]) -> Iterator[tuple[list[int], Tensor]]:
    """(first index on each axis, block) of at most REDUCE_BYTES, cut along the first of `axes`, then the next."""
    if not axes:
        yield [0] * y_KS.ndim, y_KS
        return
    axis, size = axes[0], y_KS.shape[axes[0]]
    count = max(1, REDUCE_BYTES * size // (4 * y_KS.numel()))
    for start in range(0, size, count):
        part = y_KS.narrow(axis, start, min(count, size - start))
        for at, block in _blocks(part, axes[1:]):
            at[axis] = start
            yield at, block


def _check(net: Net, image: np.ndarray, *, window: Sequence[int], overlap: float, batch_size: int) -> None:
    if image.ndim != len(window) + 1 or not image.size or len(window) not in (2, 3):
        axes = "one edge for each axis after the channels, two or three"
        raise MedsegError(f"window {tuple(window)} does not fit an image {image.shape} of (C, *space); give {axes}")
    if min(window) < 1 or not 0 <= overlap < 1 or batch_size < 1:
        got = f"window {tuple(window)}, overlap {overlap}, batch_size {batch_size}"
        raise MedsegError(f"{got}: edges and batch_size must be at least 1, overlap in [0, 1)")
    _check_eval(net)


def _check_eval(net: Net) -> None:
    if isinstance(net, nn.Module) and net.training:
        raise MedsegError(
            f"{type(net).__name__} is in training mode: its answers depend on its batch; call .eval() first"
        )


def _check_shape(y_NKW: Tensor, x_NCW: Tensor) -> None:
    if y_NKW.ndim != x_NCW.ndim or (len(y_NKW), *y_NKW.shape[2:]) != (len(x_NCW), *x_NCW.shape[2:]):
        need = ", ".join(map(str, (len(x_NCW), "K", *x_NCW.shape[2:])))
        raise MedsegError(f"the net gave {tuple(y_NKW.shape)} for {tuple(x_NCW.shape)}; it must give ({need})")


@contextlib.contextmanager
def _memory_named(batch_size: int, window: tuple[int, ...]) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        now = f"batch_size (now {batch_size}) or window (now {window})"
        if isinstance(error, torch.OutOfMemoryError):
            raise MedsegError(f"the GPU ran out of memory; lower {now}, or take device cpu") from None
        raise MedsegError(f"this machine ran out of memory; lower {now}") from None
