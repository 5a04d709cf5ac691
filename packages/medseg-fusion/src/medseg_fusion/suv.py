"""Standardised uptake values by body weight (SUVbw) of a PET series: what a gram of the patient took up of the dose.

The rules are QIBA's vendor-neutral pseudo-code (RSNA QIBA FDG-PET/CT profile 1.13, appendix G), which computes nothing
where a tag is missing, empty or zero; terms and units are those of DICOM PS3.3 C.8.9. Only the tags named here are
read, so no message can hold a patient's name.
"""

import math
import re
import warnings
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from medseg_core.dicom import is_dicom, read_dicom
from medseg_core.errors import MedsegError
from medseg_core.volume import Volume

if TYPE_CHECKING:
    from pydicom import Dataset


class _Tag(NamedTuple):
    number: int
    words: str
    of_tracer: bool = False  # in the item of the Radiopharmaceutical Information Sequence


TAGS = {
    "modality": _Tag(0x0008_0060, "Modality"),
    "series_date": _Tag(0x0008_0021, "Series Date"),
    "series_time": _Tag(0x0008_0031, "Series Time"),
    "acquisition_date": _Tag(0x0008_0022, "Acquisition Date"),
    "acquisition_time": _Tag(0x0008_0032, "Acquisition Time"),
    "time_zone": _Tag(0x0008_0201, "Timezone Offset From UTC"),
    "ge_scan": _Tag(0x0009_100D, "GE's PET scan date and time"),
    "weight": _Tag(0x0010_1030, "Patient's Weight"),
    "corrected": _Tag(0x0028_0051, "Corrected Image"),
    "tracers": _Tag(0x0054_0016, "Radiopharmaceutical Information Sequence"),
    "units": _Tag(0x0054_1001, "Units"),
    "suv_type": _Tag(0x0054_1006, "SUV Type"),
    "decay": _Tag(0x0054_1102, "Decay Correction"),
    "philips_suv": _Tag(0x7053_1000, "Philips' SUV Scale Factor"),
    "philips_activity": _Tag(0x7053_1009, "Philips' Activity Concentration Scale Factor"),
    "start_time": _Tag(0x0018_1072, "Radiopharmaceutical Start Time", of_tracer=True),
    "dose": _Tag(0x0018_1074, "Radionuclide Total Dose", of_tracer=True),
    "half_life": _Tag(0x0018_1075, "Radionuclide Half Life", of_tracer=True),
    "start": _Tag(0x0018_1078, "Radiopharmaceutical Start DateTime", of_tracer=True),
}
CREATORS = {  # who must have reserved the private block, for a number in it to mean what is read here
    0x0009_0010: ("GEMS_PETD_01", ("ge_scan",)),
    0x7053_0010: ("Philips PET Private Group", ("philips_suv", "philips_activity")),
}
OF_EACH_SLICE = ("acquisition_date", "acquisition_time", "ge_scan")
SERIES_UID, ROWS = 0x0020_000E, 0x0028_0010
LEAST_BQ = 1e4  # mice get megabecquerels; a number below is in MBq or mCi
MOST_KG = 700.0  # no human was heavier; a number above is in grams
FADED = 10  # half-lives that leave a thousandth of the dose, of which nobody makes an image
CLOCKS_S = 60  # how far two times of one injection may lie apart: 0.6 % of SUV for F-18
DAY_S = 86400.0
MOMENT = re.compile(r"(\d{8})(\d\d)(\d\d)?(\d\d)?(\.\d+)?([+-]\d{4})?")


def suv_factor(dose_bq: float, weight_kg: float, *, half_life_s: float = math.inf, elapsed_s: float = 0.0) -> float:
    """SUVbw in g/ml of 1 Bq/ml: body weight in grams over what is left of the dose.

    Args:
        dose_bq: injected activity; what stayed in the syringe is not subtracted.
        weight_kg: body weight.
        half_life_s: 6586.2 for F-18.
        elapsed_s: from the injection to the moment the voxels are decay-corrected to.

    Raises:
        MedsegError: a dose below 10 kBq, a weight that is not in (0, 700] kg, a half-life that is not above 0, or an
            image before the injection or more than ten half-lives after it.
    """
    if not LEAST_BQ <= dose_bq < math.inf:
        raise MedsegError(
            f"{_named('dose')} is {dose_bq:g} Bq, less than anybody injects; give it in Bq, so 370 MBq as 3.7e8"
        )
    if not 0 < weight_kg <= MOST_KG:
        raise MedsegError(f"{_named('weight')} is {weight_kg:g} kg; give the weight at the scan, in kg")
    if not half_life_s > 0:
        raise MedsegError(f"{_named('half_life')} is {half_life_s:g} s; give it in seconds, 6586.2 for F-18")
    if not 0 <= elapsed_s <= FADED * half_life_s:
        raise MedsegError(
            f"the scan starts {elapsed_s:g} s after the injection, which is not from 0 to {FADED} half-lives of "
            f"{half_life_s:g} s; mend {_named('start_time')} or {_named('half_life')}"
        )
    return weight_kg * 1000 / (dose_bq * 2 ** (-elapsed_s / half_life_s))


def read_suv(folder: Path, *, series: str | None = None) -> Volume:
    """The PET series of a folder in SUVbw, g/ml, as float32, on the grid and in the memory order of `read_dicom`.

    Units BQML are divided by the dose per gram: decayed to the start of the scan where Decay Correction is START, as
    injected where it is ADMIN. Units CNTS become SUV by Philips' private factors, GML is SUV already. The scan starts
    at the series' date and time, or, where those are later than the first acquisition (a series made afterwards), at
    GE's private scan date and time or else at the first acquisition. An injection with a time and no date is the last
    one before the scan, over midnight too. Slopes and intercepts count slice by slice.

    Args:
        folder: a folder, or one file of the series, as `read_dicom` takes it.
        series: the SeriesInstanceUID to take, where there are several.

    Raises:
        MedsegError: what `read_dicom` refuses; not PET; other units, or SUV not by body weight; no attenuation or
            decay correction; a tag that is missing, impossible, or differs between slices; an injection after the
            scan, or so long before it, that nothing was left; one whose day is open, as of slow nuclides.
    """
    folder = Path(folder)
    volume = read_dicom(folder, series=series)
    try:
        factor = _factor(_headers(folder, series))
    except MedsegError as error:
        raise MedsegError(f"{folder}: {error}") from None
    return volume.like(np.multiply(volume.voxels, factor, dtype=np.float32))


def _factor(headers: Sequence[dict[str, str]]) -> float:
    """SUVbw of one unit of the rescaled voxels."""
    tags = _common(headers)
    if tags["modality"] != "PT":
        raise MedsegError(f"{_named('modality')} is {tags['modality']!r}, and only PT has SUV; give the PET series")
    units = _text(tags, "units")
    corrections = _text(tags, "corrected").split("\\")
    for needed, what in (("ATTN", "attenuation"), ("DECY", "decay")):
        if needed not in corrections:
            raise MedsegError(
                f"{_named('corrected')} is {tags['corrected']!r}, without {needed} ({what}), so voxels are no "
                f"activity; take the reconstruction with {what} correction"
            )
    if _text(tags, "decay") not in ("START", "ADMIN"):
        raise MedsegError(
            f"{_named('decay')} is {tags['decay']!r}, where START or ADMIN says what moment voxels are corrected to; "
            "take the reconstruction with decay correction"
        )
    if units == "BQML":
        return _grams_per_becquerel(tags, headers)
    if units == "CNTS":
        return _of_counts(tags, headers)
    if units == "GML":
        if tags["suv_type"] in ("", "BW"):
            return 1.0
        raise MedsegError(
            f"{_named('suv_type')} is {tags['suv_type']!r}, so SUV is not by body weight; take the series in BQML"
        )
    raise MedsegError(
        f"{_named('units')} is {units!r}; SUV comes from BQML, from GML, or from Philips' CNTS: export the series in "
        "Bq/ml"
    )


def _of_counts(tags: dict[str, str], headers: Sequence[dict[str, str]]) -> float:
    """Philips: counts to SUV, or to Bq/ml and on; a factor of 0 is one that the scanner could not compute."""
    for key in ("philips_suv", "philips_activity"):
        factor = _number(tags, key) if tags[key] else 0.0
        if factor > 0:
            return factor if key == "philips_suv" else factor * _grams_per_becquerel(tags, headers)
    raise MedsegError(
        f"{_named('units')} is 'CNTS', and what makes SUV of counts is missing or not above 0: "
        f"{_named('philips_suv')} is {tags['philips_suv']!r}, {_named('philips_activity')} is "
        f"{tags['philips_activity']!r}; export the series in BQML, or anonymise it with these private tags kept"
    )


def _grams_per_becquerel(tags: dict[str, str], headers: Sequence[dict[str, str]]) -> float:
    if tags["tracers"] != "1":
        found = "missing" if tags["tracers"] == "0" else f"there with {tags['tracers']} injections"
        raise MedsegError(f"{_named('tracers')} is {found}, and SUV needs the dose of one; export the series with it")
    dose_bq, weight_kg = _number(tags, "dose"), _number(tags, "weight")
    if tags["decay"] == "ADMIN":
        return suv_factor(dose_bq, weight_kg)
    half_life_s = _number(tags, "half_life")
    suv_factor(dose_bq, weight_kg, half_life_s=half_life_s)  # a half-life of 0 is told before what it does to the times
    elapsed_s = _elapsed_s(tags, _scan_start(tags, headers), half_life_s)
    return suv_factor(dose_bq, weight_kg, half_life_s=half_life_s, elapsed_s=elapsed_s)


def _scan_start(tags: dict[str, str], headers: Sequence[dict[str, str]]) -> datetime:
    """What START means, in the local time of the scanner."""
    series = _moment(tags, "series_date", "series_time")
    first = min(_moment(each, "acquisition_date", "acquisition_time") for each in headers)
    if series <= first:
        return series
    return min((_moment(each, "ge_scan") for each in headers if each["ge_scan"]), default=first)


def _elapsed_s(tags: dict[str, str], scan: datetime, half_life_s: float) -> float:
    """Seconds from the injection to the start of the scan."""
    faded_s = FADED * half_life_s
    told = f"the scan starts {scan:%Y-%m-%d %H:%M:%S}, and the half-life is {half_life_s:g} s"
    if not tags["start"]:
        clock = _moment(tags, "start_time", day=scan)
        elapsed_s = (scan - clock).total_seconds() % DAY_S
        if elapsed_s > faded_s:
            raise MedsegError(
                f"{_named('start_time')} is {tags['start_time']!r}, after the scan or more than {FADED} half-lives "
                f"before it: {told}; {_mend('start_time')}"
            )
        if elapsed_s + DAY_S <= faded_s:
            raise MedsegError(
                f"{_named('start')} is missing, and {_named('start_time')} {tags['start_time']!r} leaves the day open: "
                f"{told}; {_mend('start')}"
            )
        return elapsed_s
    start = _moment(tags, "start")
    elapsed_s = (scan - start).total_seconds()
    if not 0 <= elapsed_s <= faded_s:
        raise MedsegError(
            f"{_named('start')} is {tags['start']!r}, after the scan or more than {FADED} half-lives before it: "
            f"{told}; {_mend('start')}, or delete it where anonymising moved its date, so that "
            f"{_named('start_time')} counts"
        )
    if tags["start_time"]:
        clock = _moment(tags, "start_time", day=start)
        apart_s = (clock - start).total_seconds() % DAY_S
        if min(apart_s, DAY_S - apart_s) > CLOCKS_S:
            raise MedsegError(
                f"{_named('start')} is {tags['start']!r} and {_named('start_time')} is {tags['start_time']!r}, which "
                "are two times of one injection; mend or delete the wrong one"
            )
    return elapsed_s


def _moment(tags: dict[str, str], *keys: str, day: datetime | None = None) -> datetime:
    """YYYYMMDDHH[MM[SS[.F]]][+HHMM], which the tags `keys` make together, on `day` where they say none; local time."""
    text = "".join(_text(tags, key) for key in keys)
    found = MOMENT.fullmatch((f"{day:%Y%m%d}" if day else "") + text.replace(":", ""))
    try:
        if not found:
            raise ValueError
        date, hour, minute, second, fraction, offset = found.groups(default="")
        moment = datetime.strptime(date + hour + (minute or "00") + (second or "00"), "%Y%m%d%H%M%S")
        moment += timedelta(seconds=float(fraction or 0))
        if offset and tags["time_zone"]:
            ours, theirs = (datetime.strptime(zone, "%z").utcoffset() for zone in (tags["time_zone"], offset))
            moment += ours - theirs
    except (ValueError, OverflowError):
        names = f"{' and '.join(map(_named, keys))} {'is' if len(keys) == 1 else 'are'}"
        raise MedsegError(f"{names} {text!r}, which is no time; {_mend(keys[-1])}") from None
    return moment


def _named(key: str) -> str:
    number = TAGS[key].number
    return f"{TAGS[key].words} ({number >> 16:04X},{number & 0xFFFF:04X})"


def _mend(key: str) -> str:
    number = TAGS[key].number
    where = "(0054,0016)[0]." * TAGS[key].of_tracer + f"({number >> 16:04X},{number & 0xFFFF:04X})"
    return f"export the series again, or write it by dcmodify -i '{where}=VALUE'"


def _text(tags: dict[str, str], key: str) -> str:
    if not tags[key]:
        raise MedsegError(f"{_named(key)} is missing or empty, and there is no SUV without it; {_mend(key)}")
    return tags[key]


def _number(tags: dict[str, str], key: str) -> float:
    text = _text(tags, key)
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise MedsegError(f"{_named(key)} is {text!r}, which is no number; {_mend(key)}")
    return number


def _common(headers: Sequence[dict[str, str]]) -> dict[str, str]:
    """What all slices say; what they may say differently, as the first of them does."""
    first = headers[0]
    for each in headers:
        for key in TAGS:
            if key not in OF_EACH_SLICE and each[key] != first[key]:
                raise MedsegError(
                    f"{_named(key)} differs within the series: {first[key]!r} in {first['file']}, {each[key]!r} in "
                    f"{each['file']}; take out what does not belong"
                )
    return first


def _headers(path: Path, series: str | None) -> list[dict[str, str]]:
    """The tags of each file of the series that `read_dicom` took."""
    if path.is_file():
        series, path = series or _header(path)["series"], path.parent
    folders = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    images = _images(path) or [header for folder in folders for header in _images(folder)]
    return [header for header in images if series in (None, header["series"])]


def _images(folder: Path) -> list[dict[str, str]]:
    found = (_header(p) for p in sorted(folder.iterdir()) if not p.name.startswith(".") and is_dicom(p))
    return [header for header in found if header["rows"]]


def _header(file: Path) -> dict[str, str]:
    """The tags of one file as texts; "" where one is missing."""
    import pydicom

    numbers = [SERIES_UID, ROWS, *CREATORS, *(tag.number for tag in TAGS.values() if not tag.of_tracer)]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            source = pydicom.dcmread(file, specific_tags=numbers, stop_before_pixels=True)
            tracers = source.get("RadiopharmaceuticalInformationSequence") or []
            tracer = tracers[0] if tracers else pydicom.Dataset()
            tags = {
                key: _raw(tracer if tag.of_tracer else source, tag.number)
                for key, tag in TAGS.items()
                if key != "tracers"
            }
            tags |= {"tracers": str(len(tracers)), "file": file.name, "rows": "yes" if ROWS in source else ""}
            tags |= {"series": _raw(source, SERIES_UID)}
            for number, (creator, keys) in CREATORS.items():
                if _raw(source, number) != creator:
                    tags |= dict.fromkeys(keys, "")
    except Exception as error:  # there is none that damaged bytes do not raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise MedsegError(f"{file.name} is damaged: {reason}; copy or export it again") from None
    return tags


def _raw(source: "Dataset", number: int) -> str:
    """A value as the file spells it; pydicom would raise at a weight that is no number, before it could be shown."""
    if number not in source:
        return ""
    value = source.get_item(number).value
    if isinstance(value, bytes):
        return value.decode("ascii", "replace").strip(" \0")
    many = isinstance(value, Sequence) and not isinstance(value, str)
    return "\\".join(map(str, value)) if many else str(value if value is not None else "").strip()
