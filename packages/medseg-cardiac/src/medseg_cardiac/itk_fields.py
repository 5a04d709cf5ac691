"""Displacements as ITK fields: vectors in mm, which SimpleITK, ANTs and 3D Slicer read and apply.

Axes: H W a plane; D the two components of a displacement, of which component i moves along array axis i, in pixels.
"""

from pathlib import Path

import numpy as np

from medseg_core.errors import MedsegError
from medseg_core.grid import Grid
from medseg_core.io import replacing

TO_LPS = np.array([-1.0, -1.0, 1.0])


def write_field(flow: np.ndarray, affine: np.ndarray, path: Path) -> None:
    """Writes a displacement as a MetaImage of one slice, 3 x float32 a voxel, raw, whole or not at all.

    A point of the plane where the field lives goes to itself plus the vector there. So do ITK's transforms: the field
    of ED to ES, used to resample a picture of ES, brings it onto ED.

    Args:
        flow: (D, H, W).
        affine: (4, 4), index (h, w, 0) -> RAS+ mm.
        path: ends in .mha.

    Raises:
        MedsegError: another suffix, an affine that is none, or a disk that refuses.
    """
    path = Path(path)
    if path.suffix != ".mha":
        raise MedsegError(f"cannot write a field to {path}; name it .mha")
    affine = Grid((*flow.shape[1:], 1), affine).affine
    vectors_HW3 = np.einsum("ij,jhw->hwi", affine[:3, :2], flow) * TO_LPS
    spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
    directions = affine[:3, :3] / spacing_mm * TO_LPS[:, None]
    fields = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": "False",
        "TransformMatrix": _numbers(directions.T.ravel()),
        "Offset": _numbers(affine[:3, 3] * TO_LPS),
        "CenterOfRotation": "0 0 0",
        "ElementSpacing": _numbers(spacing_mm),
        "DimSize": f"{flow.shape[1]} {flow.shape[2]} 1",
        "ElementNumberOfChannels": "3",
        "ElementType": "MET_FLOAT",
        "ElementDataFile": "LOCAL",
    }
    header = "".join(f"{name} = {value}\n" for name, value in fields.items())
    voxels = np.ascontiguousarray(vectors_HW3.transpose(1, 0, 2), dtype="<f4")  # the first axis runs fastest
    with replacing(path) as beside:
        beside.write_bytes(header.encode("ascii") + voxels.tobytes())


def _numbers(values: np.ndarray) -> str:
    return " ".join(repr(float(value)) for value in values)
