"""A network run over a whole volume: slices plane by plane, patches by a sliding window, an ensemble of both at once.

Axes: N windows, C input channels, K classes, X Y Z the axes of a window.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from medseg_core.checkpoint import Card
from medseg_core.errors import MedsegError
from medseg_core.infer import Net, Reduce, infer, mean_of
from medseg_totalseg.labels import mirror_pairs, one_sided

WHOLE = 768  # pixels of an edge; a larger plane is worked off in windows
BATCH_SIZE = {"slices": 8, "patches": 2}
PIXELS = 8 * 256**2  # of a batch of slices in prediction: larger planes come in smaller batches, which are as fast
MIRROR_AXES = {"none": (), "left-right": (0,), "all": (0, 1, 2)}


def infer_volume(
    nets: Sequence[nn.Module],
    image: np.ndarray,
    cards: Sequence[Card],
    *,
    reduce: Reduce,
    batch_size: int | None = None,
    mirror: str = "none",
    **more: Any,
) -> np.ndarray:
    """What `reduce` makes of the logits of one net, or of several with their probabilities averaged.

    Args:
        nets: in eval mode on their device.
        image: (X, Y, Z) normalised, on the cards' grid.
        cards: of the nets, in their order; alike in head and channels.
        batch_size: windows per forward pass; None is `BATCH_SIZE`, and of slices no more than `PIXELS`.
        mirror: a key of `MIRROR_AXES`; the mean over all combinations of flips. Slices are not flipped along Z.
        more: see `medseg_core.infer.infer`.

    Returns:
        (X, Y, Z), or (M, X, Y, Z) where `reduce` gives several.

    Raises:
        MedsegError: a mirror for a net that knows only one side of a structure; what `infer` raises.
    """
    kind = "patches" if any("patch" in card.grid for card in cards) else "slices"
    axes = MIRROR_AXES[mirror] if kind == "patches" else MIRROR_AXES[mirror][:2]
    window = window_of(cards, image.shape)
    if batch_size is None:
        batch_size = BATCH_SIZE[kind] if kind == "patches" else min(BATCH_SIZE[kind], -(-PIXELS // math.prod(window)))
    return infer(
        mean_of([on_volumes(net, card) for net, card in zip(nets, cards, strict=True)], head=cards[0].head),
        image[None],
        window=window,
        reduce=reduce,
        batch_size=batch_size,
        mirror=axes,
        swap=mirror_channels(cards[0]) if axes else {},
        **more,
    )


def on_volumes(net: nn.Module, card: Card) -> Net:
    """(N, C, X, Y, Z) -> (N, K, X, Y, Z) of any net; one of slices takes each axial plane by itself."""
    if "patch" in card.grid:
        return net

    def by_planes(x_NCXYZ: Any) -> Any:
        planes = x_NCXYZ.movedim(4, 1)
        y = net(planes.flatten(0, 1))
        return y.unflatten(0, planes.shape[:2]).movedim(1, 4)

    return by_planes


def window_of(cards: Sequence[Card], shape: Sequence[int]) -> tuple[int, int, int]:
    """The window that all nets take: a whole plane, unless it is very large; with a net of patches the largest patch.

    Args:
        cards: of the nets.
        shape: of the volume.
    """
    strides = [stride_of(card) for card in cards]
    x, y, z = (max(axis) for axis in zip(*strides, strict=True))  # powers of two: the largest is a multiple of all
    patches = [card.grid["patch"] for card in cards if "patch" in card.grid]
    if patches:
        edges = [max(axis) for axis in zip(*patches, strict=True)]
    else:
        size = max(card.grid["size"] for card in cards)
        edges = [*(n if n <= WHOLE else size for n in shape[:2]), 1]
    a, b, c = (-(-edge // stride) * stride for edge, stride in zip(edges, (x, y, z), strict=True))
    return a, b, c


def stride_of(card: Card) -> tuple[int, int, int]:
    """What the edges of a window must be multiples of, along X, Y and Z."""
    halvings = len(card.arguments["widths"]) - 1
    if "patch" not in card.grid:
        return 2**halvings, 2**halvings, 1
    steps = card.arguments.get("strides") or [(2, 2, 2)] * halvings
    x, y, z = (int(np.prod(axis)) for axis in zip(*steps, strict=True)) if steps else (1, 1, 1)
    return x, y, z


def mirror_channels(card: Card) -> Mapping[int, int]:
    """Output channel -> channel of the same structure on the other side, both ways.

    Raises:
        MedsegError: a structure of which the net knows one side: its mirror image has no channel to come from.
    """
    alone = one_sided(card.labels)
    if alone:
        few = ", ".join(itertools.islice(alone, 5))
        raise MedsegError(f"a mirror needs both sides of a structure, and the run knows one of {few}; use mirror none")
    channel = {label: number for number, label in enumerate(card.channels)}
    return {channel[label]: channel[other] for label, other in mirror_pairs(card.labels).items()}
