"""The cine of one slice with the tracked contours, as an animated GIF."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from medseg_cardiac.orientation import Directions, upright
from medseg_cardiac.pictures import REFERENCE, box_about, line_colours
from medseg_core.errors import MedsegError
from medseg_core.io import replacing

ENLARGED = 3.0
MOST_PIXELS = 480  # along a side
MOST_FRAMES = 30
MOST_BYTES = 1_500_000
# share of the size, greys: what is tried until the file is small enough
TRIES = ((1.0, 96), (1.0, 64), (1.0, 40), (0.8, 40), (0.65, 32), (0.5, 24), (0.4, 16))
FINER = 4  # lines are drawn this much larger and shrunk, which smooths them
LINE_PIXELS = 1.8
DASH_PIXELS = 7.0
CAPTION_PIXELS = 24
LEAST_WIDTH = 260


def animate(
    frames: np.ndarray,
    path: Path,
    *,
    contours: Mapping[str, np.ndarray],
    reference: Mapping[int, Mapping[str, np.ndarray]] | None = None,
    spacing_mm: tuple[float, float] = (1.0, 1.0),
    directions: Directions | None = None,
    times_s: np.ndarray | None = None,
    marks: Mapping[int, str] | None = None,
    cycle_s: float = 2.0,
) -> Path:
    """Write the cine, cropped about the heart and three times enlarged, with contours that follow it.

    Of more than 30 frames 30 are shown, evenly spaced. A file above 1.5 MB is written again with fewer greys, then
    smaller.

    Args:
        frames: (T, H, W).
        path: ends in .gif.
        contours: name ("endo", "epi") -> (T, P, 2) points (h, w) in pixels, closed without repeating the first.
        reference: frame -> name -> (P, 2), dashed white in that frame.
        directions: septum left and anterior up, as nearly as quarter turns can; None: array axis 0 downwards.
        times_s: (T,), for the caption.
        marks: frame -> word for the caption, such as {18: "ED", 7: "ES"}.
        cycle_s: how long one turn of the film takes.

    Raises:
        MedsegError: contours that do not fit the frames, or a disk that refuses.
    """
    frames = np.asarray(frames)
    _check(frames, contours)
    turn = upright(directions)
    box = box_about(list(contours.values()), frames.shape[1:], spacing_mm)
    grey = _grey(turn.plane(frames[:, box[0], box[1]]))
    size = (box[0].stop - box[0].start, box[1].stop - box[1].start)

    def placed(points: np.ndarray) -> np.ndarray:
        """Points of the file's plane -> of the cropped and turned one."""
        return turn.points(np.asarray(points, float) - (box[0].start, box[1].start), size)

    num = len(frames)
    shown = np.unique(np.linspace(0, num - 1, min(num, MOST_FRAMES)).round().astype(int)).tolist()
    colours = line_colours(list(contours))
    keys = [*colours.items(), *([("reference", REFERENCE)] if reference else [])]
    lines = {t: [(placed(points[t]), colours[name], False) for name, points in contours.items()] for t in shown}
    for t in shown:
        lines[t] += [(placed(points), REFERENCE, True) for points in (reference or {}).get(t, {}).values()]

    def drawn(share: float) -> list[Image.Image]:
        scale = share * _scale(grey.shape[1:], turn.spacing(spacing_mm))
        pictures = [_with_lines(_enlarged(grey[t], scale), lines[t], scale) for t in shown]
        words = [_caption(t, num, times_s, marks or {}) for t in shown]
        return [_captioned(picture, text, keys) for picture, text in zip(pictures, words, strict=True)]

    step_ms = max(20, round(100 * cycle_s / len(shown)) * 10)
    return _write(drawn, Path(path), step_ms, [*colours.values(), REFERENCE])


def _check(frames: np.ndarray, contours: Mapping[str, np.ndarray]) -> None:
    if frames.ndim != 3 or not len(frames):
        raise MedsegError(f"a film needs frames (T, H, W), not {frames.shape}; give the cine of one slice")
    for name, points in contours.items():
        if np.ndim(points) != 3 or np.shape(points)[::2] != (len(frames), 2):
            raise MedsegError(
                f"contour {name} has shape {np.shape(points)} beside {len(frames)} frames; give (frames, points, 2)"
            )


def _scale(shape: tuple[int, int], spacing_mm: tuple[float, float]) -> np.ndarray:
    """(2,) picture pixels per array pixel, square in mm."""
    scale = ENLARGED * np.asarray(spacing_mm) / min(spacing_mm)
    return scale * min(1.0, MOST_PIXELS / (scale * shape).max())


def _grey(frames: np.ndarray) -> np.ndarray:
    """(T, H, W) uint8 with one window for all frames."""
    frames = np.nan_to_num(frames.astype(np.float32))
    low, high = np.percentile(frames, (1, 99.5))
    return np.round(255 * np.clip((frames - low) / max(high - low, 1e-6), 0, 1)).astype(np.uint8)


def _enlarged(grey: np.ndarray, scale: np.ndarray) -> Image.Image:
    height, width = np.maximum(1, np.round(scale * grey.shape)).astype(int).tolist()
    return Image.fromarray(grey).resize((width, height), Image.Resampling.BICUBIC).convert("RGB")


def _with_lines(picture: Image.Image, lines: list[tuple[np.ndarray, str, bool]], scale: np.ndarray) -> Image.Image:
    """Closed smooth lines through points (h, w) of the picture before it was enlarged: (points, colour, dashed).

    A line with a point that is not finite is left out.
    """
    for points, colour, dashed in lines:
        at = ((points + 0.5) * scale)[:, ::-1]
        if len(at) < 2 or not np.isfinite(at).all():
            continue
        ground = Image.new("L", (picture.width * FINER, picture.height * FINER))
        draw = ImageDraw.Draw(ground)
        width = round(LINE_PIXELS * FINER * (0.8 if dashed else 1.0))
        for part in _dashes(at) if dashed else [np.concatenate([at, at[:2]])]:
            draw.line([tuple(point) for point in (part * FINER).tolist()], fill=255, width=width, joint="curve")
        share = ground.resize(picture.size, Image.Resampling.BOX)
        picture = Image.composite(Image.new("RGB", picture.size, colour), picture, share)
    return picture


def _dashes(points: np.ndarray) -> Iterator[np.ndarray]:
    """Every other piece of a closed line, each about DASH_PIXELS long."""
    closed = np.concatenate([points, points[:1]])
    along = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(closed, axis=0), axis=1))])
    num = max(1, round(along[-1] / (2 * DASH_PIXELS)))
    for start in np.arange(num) * along[-1] / num:
        at = np.linspace(start, start + along[-1] / (2 * num), 5)
        yield np.stack([np.interp(at, along, closed[:, i]) for i in range(2)], axis=-1)


def _caption(t: int, num: int, times_s: np.ndarray | None, marks: Mapping[int, str]) -> str:
    when = f"{t + 1}/{num}" if times_s is None else f"{1000 * times_s[t]:.0f} ms"
    return f"{when}  {marks.get(t, '')}".rstrip()


def _captioned(picture: Image.Image, text: str, keys: list[tuple[str, str]]) -> Image.Image:
    """A black strip below with the text on the left and the names of the lines, in their colours, on the right."""
    width = max(picture.width, LEAST_WIDTH)
    whole = Image.new("RGB", (width, picture.height + CAPTION_PIXELS))
    whole.paste(picture, ((width - picture.width) // 2, 0))
    draw, font = ImageDraw.Draw(whole), ImageFont.load_default(13)
    middle = picture.height + CAPTION_PIXELS // 2
    draw.text((8, middle), text, fill="#d5dae0", font=font, anchor="lm")
    right = width - 8
    for name, colour in reversed(keys):
        draw.text((right, middle), name, fill=colour, font=font, anchor="rm")
        right -= round(draw.textlength(name, font=font)) + 12
    return whole


def _palette(greys: int, colours: list[str]) -> Image.Image:
    """So many greys, and each colour mixed with some of them: no dither, and the same colours in every frame."""
    levels = np.linspace(0, 255, greys)
    entries = [(level,) * 3 for level in levels]
    each = (256 - greys) // len(colours)
    grounds = 5
    shares = np.linspace(1, 0, each // grounds + 1)[:-1]
    for colour in colours:
        rgb = np.array(ImageColor.getrgb(colour))
        entries += [tuple(share * rgb + (1 - share) * g) for share in shares for g in np.linspace(0, 255, grounds)]
    flat = np.round(np.array(entries)).astype(np.uint8).ravel()
    holder = Image.new("P", (1, 1))
    holder.putpalette(np.resize(flat, 768).tobytes())
    return holder


def _write(drawn: Callable[[float], list[Image.Image]], path: Path, step_ms: int, colours: list[str]) -> Path:
    pictures, last = [], None
    with replacing(path) as beside:
        for share, greys in TRIES:
            if share != last:
                pictures, last = drawn(share), share
            palette = _palette(greys, colours)
            first, *rest = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
            first.save(beside, format="GIF", save_all=True, append_images=rest, duration=step_ms, loop=0)
            if beside.stat().st_size <= MOST_BYTES:
                break
    return path
