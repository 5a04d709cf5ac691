"""Networks that learn from pictures alone; what is kept of them is their `encoder`.

Axes: N pictures, C channels, K channels of the output, H W, h w of a grid of patches or of a level, T = h w tokens,
D their channels, P values of a patch.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medseg_core.errors import MedsegError
from medseg_sem_al.models.encoders import TOKEN, VIT, ViTEncoder, encoder_of
from medseg_sem_al.models.original import WIDTHS
from medseg_sem_al.models.segmenter import padded
from medseg_sem_al.models.unet import UNetEncoder

WIDEST, NARROWEST = 256, 16  # channels of the auto-encoder's decoder
LEAST_STD = 1e-3  # of a patch, in standard deviations of the data set


class MaskedAutoencoder(nn.Module):
    """(N, C, H, W) with hidden patches -> (N, C, H, W): any encoder, and a decoder that sees its deepest level only.

    Skip connections would carry the picture past the encoder, which then need not learn. Hidden patches are set to 0,
    the mean of a standardised picture.

    Args:
        in_channels: C.
        num_classes: the same, as it tells what it sees.
        encoder: of `encoders.ENCODERS`, or "six_levels".
        width: of a U-Net's finest level.
        patch: edge of a patch in pixels.

    Raises:
        MedsegError: an unknown encoder, or numbers that do not fit.
    """

    def __init__(
        self, in_channels: int = 1, num_classes: int = 1, *, encoder: str = "unet", width: int = 16, patch: int = 16
    ) -> None:
        super().__init__()
        _check_channels(in_channels, num_classes, width)
        self.encoder = _encoder(encoder, in_channels, width)
        stride, channels = self.encoder.strides[-1], min(self.encoder.widths[-1], WIDEST)
        self.patch, self.multiple = patch, math.lcm(stride, patch)
        layers: list[nn.Module] = [nn.Conv2d(self.encoder.widths[-1], channels, 1)]
        for _ in range(int(math.log2(stride))):
            after = max(channels // 2, min(NARROWEST, channels))
            layers += [nn.ConvTranspose2d(channels, after, 4, stride=2, padding=1, bias=False)]
            layers += [nn.BatchNorm2d(after), nn.GELU()]
            channels = after
        self.decoder = nn.Sequential(*layers, nn.Conv2d(channels, num_classes, 1))

    def forward(self, x_NCHW: Tensor, hidden_Nhw: Tensor | None = None) -> Tensor:
        """H and W are multiples of `multiple`.

        Args:
            hidden_Nhw: bool, the patches that it must not see; None hides nothing.
        """
        _check_shape(x_NCHW, self.multiple)
        if hidden_Nhw is not None:
            x_NCHW = x_NCHW.masked_fill(pixels_of(hidden_Nhw, self.patch), 0)
        return self.decoder(self.encoder(x_NCHW)[-1])


class MaskedViT(nn.Module):
    """(N, C, H, W) with hidden patches -> (N, C, H, W): a vision transformer that sees the other patches alone.

    After He et al. (2022): tokens that are hidden never enter the encoder; a light decoder gets one learnt token in the
    place of each. Positions are sines and cosines: fixed in the decoder, and what the encoder begins with. It tells the
    pixels of a patch with mean 0 and deviation 1, as there; and, which is ours, that mean and deviation, so that the
    picture it makes owes nothing to the answer.

    Args:
        in_channels: C.
        num_classes: the same, as it tells what it sees.
        encoder: of `encoders.VIT`.
        decoder_dim: channels of the decoder, a multiple of 32.
        depth: its blocks.

    Raises:
        MedsegError: an encoder that has no tokens, or numbers that do not fit.
    """

    patch = multiple = TOKEN

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 1,
        *,
        encoder: str = "vit_tiny",
        decoder_dim: int = 128,
        depth: int = 2,
    ) -> None:
        super().__init__()
        _check_channels(in_channels, num_classes)
        if encoder not in VIT:
            raise MedsegError(f"mae needs an encoder with tokens, and {encoder!r} has none; try {', '.join(VIT)}")
        if decoder_dim % 32 or min(decoder_dim, depth) < 1:
            raise MedsegError(f"decoder_dim {decoder_dim} must be a multiple of 32 and depth {depth} at least 1")
        self.encoder = encoder_of(encoder, in_channels)
        assert isinstance(self.encoder, ViTEncoder)
        body = self.encoder.body
        with torch.no_grad():  # timm's random ones are so small that the order of tokens is learnt late
            places = positions(body.patch_embed.grid_size, body.embed_dim)
            body.pos_embed[0, -len(places) :] = places
        self.to_decoder = nn.Linear(self.encoder.widths[-1], decoder_dim)
        self.unseen = nn.Parameter(0.02 * torch.randn(decoder_dim))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                decoder_dim, decoder_dim // 32, 4 * decoder_dim, 0.0, "gelu", batch_first=True, norm_first=True
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(decoder_dim)
        self.head = nn.Linear(decoder_dim, num_classes * TOKEN**2 + 2)

    def forward(
        self, x_NCHW: Tensor, hidden_Nhw: Tensor | None = None, *, parts: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """H and W are multiples of 16.

        Args:
            hidden_Nhw: bool, the patches that it must not see, as many in each picture; None hides nothing.
            parts: ask for what the loss takes: (N, T, P) values of mean 0 and deviation 1 of each patch, and (N, T, 2),
                that mean and deviation.
        """
        _check_shape(x_NCHW, TOKEN)
        grid = [edge // TOKEN for edge in x_NCHW.shape[2:]]
        if hidden_Nhw is None:
            hidden_Nhw = x_NCHW.new_zeros(len(x_NCHW), *grid, dtype=torch.bool)
        visible_NT = ~hidden_Nhw.flatten(1)
        seen_NtD = self.to_decoder(self.seen(x_NCHW, visible_NT))
        all_NTD = self.unseen.to(seen_NtD.dtype).expand(*visible_NT.shape, -1)
        all_NTD = all_NTD.masked_scatter(visible_NT[..., None], seen_NtD)
        all_NTD = all_NTD + positions(grid, all_NTD.shape[-1]).to(all_NTD)
        for block in self.blocks:
            all_NTD = block(all_NTD)
        told_NTP = self.head(self.norm(all_NTD))
        values_NTP, moments_NT2 = told_NTP[..., :-2], told_NTP[..., -2:]
        if parts:
            return values_NTP, moments_NT2
        mean_NT1, std_NT1 = moments_NT2.split(1, -1)
        return from_patches(values_NTP * std_NT1 + mean_NT1, grid, TOKEN)

    def seen(self, x_NCHW: Tensor, visible_NT: Tensor) -> Tensor:
        """(N, t, D): what the encoder makes of the t visible tokens of each picture, in their order."""
        body = self.encoder.body
        x_NTD = body.norm_pre(body._pos_embed(body.patch_embed(self.encoder.scaled(x_NCHW))))
        front, num = body.num_prefix_tokens, len(x_NCHW)
        picked_NtD = x_NTD[:, front:][visible_NT].reshape(num, -1, x_NTD.shape[-1])
        x_NTD = torch.cat([x_NTD[:, :front], picked_NtD], 1)
        for block in body.blocks:
            x_NTD = block(x_NTD)
        return body.norm(x_NTD)[:, front:]


class SelfDistilled(nn.Module):
    """(N, C, H, W) -> (N, K): how near a picture is to each of K learnt prototypes, cosines in [-1, 1].

    After DINO (Caron et al., 2021): the deepest level, averaged over the picture, a small head, prototypes of length 1.

    Args:
        in_channels: C.
        num_classes: K, prototypes.
        encoder: of `encoders.ENCODERS`, or "six_levels".
        width: of a U-Net's finest level.
        hidden: channels inside the head.
        bottleneck: channels in which prototypes lie.

    Raises:
        MedsegError: an unknown encoder, or numbers that do not fit.
    """

    multiple = 1

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 256,
        *,
        encoder: str = "unet",
        width: int = 16,
        hidden: int = 256,
        bottleneck: int = 64,
    ) -> None:
        super().__init__()
        _check_channels(in_channels, in_channels, width)
        self.encoder = _encoder(encoder, in_channels, width)
        # batch norm takes away what all pictures have in common, next to which they hardly differ at first
        first = [nn.BatchNorm1d(self.encoder.widths[-1]), nn.Linear(self.encoder.widths[-1], hidden, bias=False)]
        self.head = nn.Sequential(*first, nn.BatchNorm1d(hidden), nn.GELU(), nn.Linear(hidden, bottleneck))
        self.prototypes = nn.Parameter(F.normalize(torch.randn(num_classes, bottleneck)))

    def forward(self, x_NCHW: Tensor, *more: Tensor) -> Tensor:
        """For any H and W; answers for pictures of other sizes come after the first ones."""
        pooled_ND = torch.cat([self.pooled(x) for x in (x_NCHW, *more)])
        return F.normalize(self.head(pooled_ND), dim=1) @ F.normalize(self.prototypes, dim=1).T

    def pooled(self, x_NCHW: Tensor) -> Tensor:
        """(N, D): the mean of the deepest level over the picture."""
        x_NCHW, _ = padded(x_NCHW, self.encoder.multiple)
        return self.encoder(x_NCHW)[-1].mean((2, 3))


METHODS: dict[str, type[nn.Module]] = {"mae": MaskedViT, "autoencoder": MaskedAutoencoder, "dino": SelfDistilled}


def hidden_patches(num: int, grid: Sequence[int], share: float, rng: torch.Generator) -> Tensor:
    """(num, h, w) bool, on the generator's device: as many hidden patches in each, the nearest number to `share`.

    At least one is hidden, and at least one is not.
    """
    total = math.prod(grid)
    num_hidden = min(max(round(share * total), 1), total - 1)
    ranks = torch.rand(num, total, generator=rng, device=rng.device).argsort(1)
    return (ranks < num_hidden).reshape(num, *grid)


def pixels_of(hidden_Nhw: Tensor, patch: int) -> Tensor:
    """(N, 1, H, W) of the patches' pixels."""
    return hidden_Nhw.repeat_interleave(patch, 1).repeat_interleave(patch, 2)[:, None]


def to_patches(x_NCHW: Tensor, patch: int) -> Tensor:
    """(N, T, P) values, patches row by row."""
    return F.pixel_unshuffle(x_NCHW, patch).flatten(2).transpose(1, 2)


def from_patches(x_NTP: Tensor, grid: Sequence[int], patch: int) -> Tensor:
    """The way back from `to_patches`: (N, C, H, W)."""
    return F.pixel_shuffle(x_NTP.transpose(1, 2).unflatten(2, tuple(grid)), patch)


def normalised(x_NTP: Tensor) -> tuple[Tensor, Tensor]:
    """Patches with mean 0 and deviation 1; and (N, T, 2), what these were before."""
    mean_NT1 = x_NTP.mean(-1, keepdim=True)
    std_NT1 = x_NTP.std(-1, correction=0, keepdim=True).clamp(min=LEAST_STD)
    return (x_NTP - mean_NT1) / std_NT1, torch.cat([mean_NT1, std_NT1], -1)


def positions(grid: Sequence[int], dim: int) -> Tensor:
    """(T, dim): sines and cosines of row and column, whose wavelengths rise from 2 pi to 20000 pi (Vaswani, 2017)."""
    rates = 10000.0 ** -(torch.arange(dim // 4) / (dim // 4))
    rows, columns = (torch.arange(edge)[:, None] * rates for edge in grid)
    of_row, of_column = (torch.cat([angle.sin(), angle.cos()], 1) for angle in (rows, columns))
    parts = [of_row[:, None].expand(-1, grid[1], -1), of_column.expand(grid[0], -1, -1)]
    return torch.cat(parts, 2).flatten(0, 1)


def _encoder(name: str, in_channels: int, width: int) -> nn.Module:
    """As `Segmenter` and `SixLevels` have it."""
    if name == "six_levels":
        return UNetEncoder(in_channels, [width * factor // WIDTHS[0] for factor in WIDTHS])
    return encoder_of(name, in_channels, width)


def _check_channels(in_channels: int, num_classes: int, width: int = 1) -> None:
    if min(in_channels, width) < 1:
        raise MedsegError(f"channels {in_channels} and width {width} must be at least 1")
    if num_classes != in_channels:
        raise MedsegError(f"it tells what it sees: num_classes {num_classes} must be in_channels, {in_channels}")


def _check_shape(x_NCHW: Tensor, multiple: int) -> None:
    edges = x_NCHW.shape[2:]
    if any(edge % multiple or not edge for edge in edges):
        fixed = "x".join(str(max(1, round(edge / multiple)) * multiple) for edge in edges)
        raise MedsegError(f"a picture of {'x'.join(map(str, edges))} has no whole patches of {multiple}; try {fixed}")
