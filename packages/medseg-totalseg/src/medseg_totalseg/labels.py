"""Which structure has which id: TotalSegmentator's two lists, their groups, mirror images, and files for viewers."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

from medseg_core.colours import colour_of
from medseg_core.errors import MedsegError, meant
from medseg_core.io import write_text
from medseg_core.labelmaps import read_labels, write_labels

NAMED_AT_ONCE = 8  # unknown names in one message; the rest is counted

_V2 = """
spleen kidney_right kidney_left gallbladder liver stomach pancreas adrenal_gland_right adrenal_gland_left
lung_upper_lobe_left lung_lower_lobe_left lung_upper_lobe_right lung_middle_lobe_right lung_lower_lobe_right
esophagus trachea thyroid_gland small_bowel duodenum colon urinary_bladder prostate kidney_cyst_left kidney_cyst_right
sacrum vertebrae_S1 vertebrae_L5 vertebrae_L4 vertebrae_L3 vertebrae_L2 vertebrae_L1 vertebrae_T12 vertebrae_T11
vertebrae_T10 vertebrae_T9 vertebrae_T8 vertebrae_T7 vertebrae_T6 vertebrae_T5 vertebrae_T4 vertebrae_T3 vertebrae_T2
vertebrae_T1 vertebrae_C7 vertebrae_C6 vertebrae_C5 vertebrae_C4 vertebrae_C3 vertebrae_C2 vertebrae_C1
heart aorta pulmonary_vein brachiocephalic_trunk subclavian_artery_right subclavian_artery_left
common_carotid_artery_right common_carotid_artery_left brachiocephalic_vein_left brachiocephalic_vein_right
atrial_appendage_left superior_vena_cava inferior_vena_cava portal_vein_and_splenic_vein
iliac_artery_left iliac_artery_right iliac_vena_left iliac_vena_right
humerus_left humerus_right scapula_left scapula_right clavicula_left clavicula_right femur_left femur_right
hip_left hip_right spinal_cord gluteus_maximus_left gluteus_maximus_right gluteus_medius_left gluteus_medius_right
gluteus_minimus_left gluteus_minimus_right autochthon_left autochthon_right iliopsoas_left iliopsoas_right brain skull
rib_left_1 rib_left_2 rib_left_3 rib_left_4 rib_left_5 rib_left_6 rib_left_7 rib_left_8 rib_left_9 rib_left_10
rib_left_11 rib_left_12 rib_right_1 rib_right_2 rib_right_3 rib_right_4 rib_right_5 rib_right_6 rib_right_7 rib_right_8
rib_right_9 rib_right_10 rib_right_11 rib_right_12 sternum costal_cartilages
"""
_V1 = """
spleen kidney_right kidney_left gallbladder liver stomach aorta inferior_vena_cava portal_vein_and_splenic_vein
pancreas adrenal_gland_right adrenal_gland_left lung_upper_lobe_left lung_lower_lobe_left lung_upper_lobe_right
lung_middle_lobe_right lung_lower_lobe_right vertebrae_L5 vertebrae_L4 vertebrae_L3 vertebrae_L2 vertebrae_L1
vertebrae_T12 vertebrae_T11 vertebrae_T10 vertebrae_T9 vertebrae_T8 vertebrae_T7 vertebrae_T6 vertebrae_T5
vertebrae_T4 vertebrae_T3 vertebrae_T2 vertebrae_T1 vertebrae_C7 vertebrae_C6 vertebrae_C5 vertebrae_C4 vertebrae_C3
vertebrae_C2 vertebrae_C1 esophagus trachea heart_myocardium heart_atrium_left heart_ventricle_left
heart_atrium_right heart_ventricle_right pulmonary_artery brain iliac_artery_left iliac_artery_right iliac_vena_left
iliac_vena_right small_bowel duodenum colon
rib_left_1 rib_left_2 rib_left_3 rib_left_4 rib_left_5 rib_left_6 rib_left_7 rib_left_8 rib_left_9 rib_left_10
rib_left_11 rib_left_12 rib_right_1 rib_right_2 rib_right_3 rib_right_4 rib_right_5 rib_right_6 rib_right_7 rib_right_8
rib_right_9 rib_right_10 rib_right_11 rib_right_12 humerus_left humerus_right scapula_left scapula_right
clavicula_left clavicula_right femur_left femur_right hip_left hip_right sacrum face gluteus_maximus_left
gluteus_maximus_right gluteus_medius_left gluteus_medius_right gluteus_minimus_left gluteus_minimus_right
autochthon_left autochthon_right iliopsoas_left iliopsoas_right urinary_bladder
"""

CLASS_LISTS: dict[str, dict[int, str]] = {"v2": dict(enumerate(_V2.split(), 1)), "v1": dict(enumerate(_V1.split(), 1))}
"""TotalSegmentator's `total` (117 names) and `total_v1` (104), ids as in its releases (Wasserthal et al., 2023)."""

_STARTS = {
    "bones": "vertebrae rib sacrum humerus scapula clavicula femur hip skull sternum costal",
    "vessels": "aorta pulmonary brachiocephalic subclavian common_carotid superior_vena inferior_vena portal iliac_",
    "muscles": "gluteus autochthon iliopsoas",
}
GROUP_NAMES = ("organs", "bones", "vessels", "muscles")


def group_of(name: str) -> str:
    """organs, bones, vessels or muscles for a name of the official lists; "" for any other name."""
    if name not in _OFFICIAL:
        return ""
    return next((group for group, starts in _STARTS.items() if name.startswith(tuple(starts.split()))), "organs")


def groups(labels: Mapping[int, str]) -> dict[str, str]:
    """Structure name -> group, for the names that have one."""
    return {name: group_of(name) for name in labels.values() if group_of(name)}


def mirror_pairs(labels: Mapping[int, str]) -> dict[int, int]:
    """Label id -> id of the same structure on the other side, by name, in both directions.

    >>> mirror_pairs({1: "kidney_left", 2: "liver", 3: "kidney_right"})
    {1: 3, 3: 1}
    """
    ids = {name: label for label, name in labels.items()}
    mirrored = {label: ids.get(_other_side(name), label) for label, name in labels.items()}
    return {label: other for label, other in mirrored.items() if other != label}


def one_sided(labels: Mapping[int, str]) -> list[str]:
    """The structures of one side, by name, whose partner on the other is not among the labels."""
    return [name for name in labels.values() if _other_side(name) not in labels.values()]


def choose(names: Iterable[str], how: str | Path = "official") -> dict[int, str]:
    """The class list that holds all of `names`: id -> name.

    Args:
        names: the structures that the files of a cohort are named after.
        how: "official" (v2, else v1), "folder" (the names themselves, sorted, from 1 on), or a file: JSON
            {name: id} or {id: name}, or text with a name per line.

    Raises:
        MedsegError: a name that no list holds, with the nearest right one, or a file that is no class list.
    """
    wanted = set(names)
    if str(how) == "folder":
        return dict(enumerate(sorted(wanted), 1))
    lists = CLASS_LISTS if str(how) == "official" else {str(how): read_labels(Path(how))}
    unknown = {which: sorted(wanted - set(labels.values())) for which, labels in lists.items()}
    best = min(lists, key=lambda which: len(unknown[which]))
    if unknown[best]:
        said = _with_nearest(unknown[best], lists[best].values())
        fix = "--labels folder takes the names as they are, --labels FILE a list of your own"
        which = "both official class lists lack" if len(lists) > 1 else f"class list {best} lacks"
        raise MedsegError(f"{which} names that masks have ({best}: {said}); {fix}")
    return dict(lists[best])


def select(labels: Mapping[int, str], structures: Sequence[str]) -> dict[int, str]:
    """The labels that `structures` names, by name or by group; all of them where it is empty.

    >>> select(CLASS_LISTS["v2"], ("liver", "muscles"))[5]
    'liver'

    Raises:
        MedsegError: a word that is neither a structure of the list nor a group with members in it.
    """
    if not structures:
        return dict(labels)
    words = [word.strip() for part in structures for word in part.split("|") if word.strip()]
    member = groups(labels)
    known = {*labels.values(), *member.values()}
    for word in words:
        if word not in known:
            near = meant(word, known) or f"; groups are {', '.join(sorted(set(member.values()))) or 'none here'}"
            raise MedsegError(f"no structure or group {word!r} among the {len(labels)} of this class list{near}")
    return {label: name for label, name in labels.items() if name in words or member.get(name) in words}


def write_label_files(folder: Path, labels: Mapping[int, str]) -> None:
    """What lies beside masks, so that viewers show names and the colours of our own pictures.

    `labels.json` (id -> name), `labels_itksnap.txt` (ITK-SNAP: Segmentation > Import Label Descriptions),
    `labels_slicer.ctbl` (3D Slicer: a colour table to load with the label map).
    """
    write_labels(Path(folder) / "labels.json", labels)
    write_text(Path(folder) / "labels_itksnap.txt", _itksnap(labels))
    write_text(Path(folder) / "labels_slicer.ctbl", _slicer(labels))


def _itksnap(labels: Mapping[int, str]) -> str:
    lines = ["# ITK-SnAP Label Description File", "# IDX   -R-  -G-  -B-  -A--  VIS MSH  LABEL"]
    lines.append(f'{0:5d} {0:5d} {0:4d} {0:4d} {0:8d} {0:3d} {0:3d}    "Clear Label"')
    for label, name in sorted(labels.items()):
        red, green, blue = colour_of(label)
        lines.append(f'{label:5d} {red:5d} {green:4d} {blue:4d} {1:8d} {1:3d} {1:3d}    "{name}"')
    return "\n".join(lines) + "\n"


def _slicer(labels: Mapping[int, str]) -> str:
    lines = ["# Color table file labels_slicer.ctbl", f"# {max(labels) + 1} values", "0 background 0 0 0 0"]
    for label, name in sorted(labels.items()):
        lines.append(" ".join(map(str, (label, re.sub(r"\s", "_", name), *colour_of(label), 255))))
    return "\n".join(lines) + "\n"


def _other_side(name: str) -> str:
    swap = {"left": "right", "right": "left", "Left": "Right", "Right": "Left"}
    return re.sub(r"(?<![A-Za-z])([Ll]eft|[Rr]ight)(?![A-Za-z])", lambda side: swap[side[0]], name)


def _with_nearest(unknown: Sequence[str], known: Collection[str]) -> str:
    near = {name: get_close_matches(name, known, n=1) for name in unknown[:NAMED_AT_ONCE]}
    said = [f"{name} (nearest: {match[0]})" if match else name for name, match in near.items()]
    return ", ".join(said) + f" and {len(unknown) - NAMED_AT_ONCE} more" * (len(unknown) > NAMED_AT_ONCE)


_OFFICIAL = frozenset(name for labels in CLASS_LISTS.values() for name in labels.values())
