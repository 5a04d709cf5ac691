"""Whether the JPEG, JPEG-LS and JPEG 2000 streams of a DICOM file say of their pictures what the file says.

Segments of markers are those of ITU-T T.81 annex B, T.87 annex C and T.800 annex A. GDCM ends the process where they
are damaged or contradict the file around them, so they are read before it sees them.
"""

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pydicom import Dataset

FRAMES = {0xC0, 0xC1, 0xC3, 0xF7}  # SOF of baseline, extended, lossless; of JPEG-LS
TABLES, SCAN, LS = 0xC4, 0xDA, 0xF7


class Said(NamedTuple):
    """Bits per number, rows, columns and numbers per pixel."""

    bits: int
    rows: int
    columns: int
    channels: int


def check_streams(source: "Dataset") -> None:
    """Compares each stream with its file; files of other kinds pass.

    Raises:
        ValueError: another size, or a stream whose header is damaged.
    """
    from pydicom import encaps, uid

    kinds = (*uid.JPEGTransferSyntaxes, *uid.JPEGLSTransferSyntaxes, *uid.JPEG2000TransferSyntaxes)
    if source.file_meta.TransferSyntaxUID not in kinds:
        return
    table = tuple(source.get(tag) for tag in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths"))
    num_frames = int(source.get("NumberOfFrames") or 1)
    for stream in encaps.generate_frames(
        source.PixelData, number_of_frames=num_frames, extended_offsets=table if all(table) else None
    ):
        said = said_by(stream)
        if said[1:] != (source.Rows, source.Columns, 1) or not 2 <= said.bits <= source.BitsAllocated <= 16:
            raise ValueError(f"its stream has {said.bits} bits, {said.rows} rows, {said.columns} columns")


def said_by(stream: bytes) -> Said:
    """The size in the header of a stream.

    Raises:
        ValueError: segments that are out of order, unknown or cut short, before the first scan.
    """
    if stream[:4] == b"\xff\x4f\xff\x51":
        return _said_by_jpeg_2000(stream)
    if stream[:2] != b"\xff\xd8":
        raise ValueError(f"a stream starts with {stream[:4].hex(' ')}, not as JPEG does")
    said, tables, at = None, False, 2
    while True:
        kind, length = stream[at + 1 : at + 2], _number(stream[at + 2 : at + 4])
        body = stream[at + 4 : at + 2 + length]
        if stream[at : at + 1] != b"\xff" or not kind or length < 2 or len(body) != length - 2:
            raise ValueError(f"there is no whole JPEG segment at byte {at} of a stream")
        if kind[0] in FRAMES:
            if said or len(body) < 6:
                raise ValueError("a JPEG frame is cut short, or there are two")
            said = Said(body[0], _number(body[1:3]), _number(body[3:5]), body[5])
        tables = tables or kind[0] in (TABLES, LS)  # JPEG-LS needs none
        if kind[0] == SCAN:
            break
        at += 2 + length
    if said is None or not tables:
        raise ValueError("a JPEG stream has no frame or no tables before its scan")
    return said


def _said_by_jpeg_2000(stream: bytes) -> Said:
    if len(stream) < 43:
        raise ValueError("a JPEG 2000 header is cut short")
    right, bottom, left, top, tile_width, tile_height = (_number(stream[at : at + 4]) for at in range(8, 32, 4))
    if not (tile_width and tile_height):
        raise ValueError("the tiles of a JPEG 2000 stream are empty")
    return Said((stream[42] & 0x7F) + 1, bottom - top, right - left, _number(stream[40:42]))


def _number(digits: bytes) -> int:
    return int.from_bytes(digits, "big")
