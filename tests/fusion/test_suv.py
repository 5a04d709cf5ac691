"""SUV by numbers that are worked out by hand: 200 MBq, 50 kg, a half-life of an hour, an hour before the scan.

Half the dose is left then, 1e8 Bq in 50 000 g, so that 1 Bq/ml is 5e-4 g/ml.
"""

import re
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, PositronEmissionTomographyImageStorage

from medseg_core.errors import MedsegError
from medseg_core.io import read_volume
from medseg_fusion.suv import read_suv, suv_factor

STORED = np.arange(4 * 3 * 3, dtype=np.uint16).reshape(4, 3, 3) * 100  # X Y Z
SLOPES = np.array([1.0, 2.5, 0.25])
BQ_ML = STORED * SLOPES
NAME = "Secret^Sam"
PHILIPS = (0x7053, "Philips PET Private Group")
GE = (0x0009, "GEMS_PETD_01")


def tagged(source: pydicom.Dataset, tags: dict) -> pydicom.Dataset:
    """Sets tags by their keywords; None leaves one out."""
    for keyword, value in tags.items():
        if value is not None:
            setattr(source, keyword, value)
        elif keyword in source:
            delattr(source, keyword)
    return source


def tracer(**tags) -> pydicom.Dataset:
    base = {"RadiopharmaceuticalStartTime": "100000.00", "RadionuclideTotalDose": "2E8", "RadionuclideHalfLife": "3600"}
    return tagged(pydicom.Dataset(), base | tags)


def header(z: int, tags: dict) -> pydicom.Dataset:
    """Slice z, 3 mm above the one below; `tags` replace its own."""
    image = pydicom.Dataset()
    image.PatientName = image.PatientID = NAME
    image.SOPClassUID, image.SOPInstanceUID = PositronEmissionTomographyImageStorage, f"1.2.3.{z + 1}"
    image.SeriesInstanceUID, image.Modality, image.Units, image.PatientWeight = "1.2.3", "PT", "BQML", "50"
    image.CorrectedImage, image.DecayCorrection = ["DECY", "ATTN", "SCAT"], "START"
    image.SeriesDate, image.SeriesTime = "20240310", "110000"
    image.AcquisitionDate, image.AcquisitionTime = "20240310", f"110{z}00.5"
    image.RadiopharmaceuticalInformationSequence = [tracer()]
    image.Rows, image.Columns, image.PixelSpacing, image.SliceThickness = 3, 4, [2, 2], 3
    image.ImageOrientationPatient, image.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 3 * z]
    image.SamplesPerPixel, image.PhotometricInterpretation, image.PixelRepresentation = 1, "MONOCHROME2", 0
    image.BitsAllocated, image.BitsStored, image.HighBit = 16, 16, 15
    image.RescaleSlope, image.RescaleIntercept = SLOPES[z], 0
    return tagged(image, tags)


def pet(folder: Path, *, change=lambda z: {}, private=None, syntax=ExplicitVRLittleEndian, **tags) -> Path:
    """A series of three slices; `private` is ((group, creator), {element: (VR, value, or value of slice z)})."""
    folder.mkdir(parents=True, exist_ok=True)
    for z in range(3):
        image = header(z, tags | change(z))
        if private:
            block = image.private_block(*private[0], create=True)
            for element, (vr, value) in private[1].items():
                block.add_new(element, vr, value(z) if callable(value) else value)
        image.PixelData = STORED[:, :, z].T.tobytes()
        image["PixelData"].VR = "OW"
        image.file_meta = pydicom.dataset.FileMetaDataset()
        image.file_meta.TransferSyntaxUID = syntax
        image.save_as(folder / f"{9 - z}.dcm", enforce_file_format=True)
    return folder


def injected(**tags) -> dict:
    return {"RadiopharmaceuticalInformationSequence": [tracer(**tags)]}


def factor(folder: Path) -> float:
    """SUV of 1 Bq/ml."""
    suv = read_suv(folder).voxels
    np.testing.assert_allclose(suv, BQ_ML * (suv[3, 2, 1] / BQ_ML[3, 2, 1]), rtol=1e-6)
    return suv[3, 2, 1] / BQ_ML[3, 2, 1]


def refused(folder: Path, **how) -> str:
    with pytest.raises(MedsegError) as error:
        read_suv(folder, **how)
    message = str(error.value)
    assert "\n" not in message
    assert "Secret" not in message
    return message


def test_an_hour_of_fluorine_leaves_253_of_370_megabecquerels():
    assert suv_factor(370e6, 70, half_life_s=6586.2, elapsed_s=3600) == pytest.approx(70e3 / 253.314e6, rel=1e-5)


@pytest.mark.parametrize("elapsed_s", [0.0, 1000.0, 9000.0])
def test_a_tracer_that_spreads_evenly_has_suv_1_at_any_time(elapsed_s):
    bq_per_g = 370e6 / 70e3 * np.exp(-np.log(2) * elapsed_s / 6586.2)
    assert bq_per_g * suv_factor(370e6, 70, half_life_s=6586.2, elapsed_s=elapsed_s) == pytest.approx(1)


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ((370.0, 70.0, 6586.2, 0.0), r"Total Dose \(0018,1074\) is 370 Bq.*in Bq"),
        ((0.0, 70.0, 6586.2, 0.0), r"\(0018,1074\) is 0 Bq"),
        ((float("nan"), 70.0, 6586.2, 0.0), r"\(0018,1074\) is nan"),
        ((370e6, 0.0, 6586.2, 0.0), r"Patient's Weight \(0010,1030\) is 0 kg"),
        ((370e6, 70e3, 6586.2, 0.0), r"\(0010,1030\) is 70000 kg"),
        ((370e6, 70.0, 0.0, 0.0), r"Half Life \(0018,1075\) is 0 s"),
        ((370e6, 70.0, 6586.2, -1.0), r"-1 s after the injection.*\(0018,1072\)"),
        ((370e6, 70.0, 109.77, 3600.0), r"10 half-lives of 109.77 s"),
    ],
)
def test_impossible_numbers_are_named_with_their_tag(numbers, words):
    dose_bq, weight_kg, half_life_s, elapsed_s = numbers
    with pytest.raises(MedsegError, match=words):
        suv_factor(dose_bq, weight_kg, half_life_s=half_life_s, elapsed_s=elapsed_s)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_suv_is_activity_over_what_is_left_of_the_dose_per_gram_with_the_slope_of_each_slice(tmp_path, syntax):
    suv = read_suv(pet(tmp_path / "pet", syntax=syntax))
    assert suv.voxels.dtype == np.float32
    np.testing.assert_allclose(suv.voxels, BQ_ML * 5e-4, rtol=1e-6)
    np.testing.assert_array_equal(suv.affine, read_volume(tmp_path / "pet").affine)


def test_voxels_corrected_to_the_injection_meet_the_whole_dose(tmp_path):
    assert factor(pet(tmp_path / "pet", DecayCorrection="ADMIN")) == pytest.approx(2.5e-4)


def test_an_injection_before_midnight_belongs_to_a_scan_after_it(tmp_path):
    times = {"SeriesTime": "003000", "AcquisitionTime": "003000"}
    night = pet(tmp_path / "pet", **times, **injected(RadiopharmaceuticalStartTime="233000"))
    assert factor(night) == pytest.approx(5e-4)


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        ("20240310090000", 10e-4),
        ("20240310095959.5", 5e-4 * 2 ** (0.5 / 3600)),
        ("20240310100000.000+0100", 5e-4),
        ("20240310080000+0000", 10e-4),  # 9:00 where the clock is an hour before Greenwich
    ],
)
def test_the_date_and_time_of_the_injection_count_where_they_are_given(tmp_path, start, expected):
    given = injected(RadiopharmaceuticalStartTime=None, RadiopharmaceuticalStartDateTime=start)
    assert factor(pet(tmp_path / "pet", TimezoneOffsetFromUTC="+0100", **given)) == pytest.approx(expected)


def test_a_slow_nuclide_decays_over_the_days_that_its_dates_say(tmp_path):
    given = injected(RadiopharmaceuticalStartDateTime="20240308100000", RadionuclideHalfLife=str(49 * 3600))
    assert factor(pet(tmp_path / "pet", **given)) == pytest.approx(5e-4)


def test_a_series_made_after_the_scan_starts_with_its_earliest_acquisition(tmp_path):
    times = lambda z: {"AcquisitionTime": f"1{3 - z}0000"}  # noqa: E731
    assert factor(pet(tmp_path / "pet", SeriesTime="150000", change=times)) == pytest.approx(5e-4)


def test_a_series_made_after_a_ge_scan_starts_when_ges_private_tag_says(tmp_path):
    private = (GE, {0x0D: ("DT", lambda z: f"202403101{4 - z}0000.00")})
    late = pet(tmp_path / "pet", SeriesTime="150000", AcquisitionTime="121500", private=private)
    assert factor(late) == pytest.approx(10e-4)


def test_a_series_older_than_its_acquisitions_keeps_its_own_time(tmp_path):
    private = (GE, {0x0D: ("DT", "20240310120000.00")})
    assert factor(pet(tmp_path / "pet", AcquisitionTime="121500", private=private)) == pytest.approx(5e-4)


@pytest.mark.parametrize(
    ("factors", "expected"),
    [
        ({0x00: ("DS", "0.125")}, 0.125),
        ({0x00: ("DS", "0.125"), 0x09: ("DS", "4")}, 0.125),
        ({0x00: ("DS", "0"), 0x09: ("DS", "4")}, 20e-4),
        ({0x09: ("DS", "4")}, 20e-4),
    ],
)
def test_counts_of_philips_become_suv_by_its_suv_factor_or_else_by_its_activity_factor(tmp_path, factors, expected):
    assert factor(pet(tmp_path / "pet", Units="CNTS", private=(PHILIPS, factors))) == pytest.approx(expected)


def test_the_numbers_of_another_makers_private_block_are_not_philips(tmp_path):
    other = ((0x7053, "Somebody's Group"), {0x00: ("DS", "0.125")})
    assert "is 'CNTS'" in refused(pet(tmp_path / "pet", Units="CNTS", private=other))


@pytest.mark.parametrize("tags", [{}, {"SUVType": "BW"}])
def test_suv_stays_suv(tmp_path, tags):
    assert factor(pet(tmp_path / "pet", Units="GML", PatientWeight=None, **tags)) == pytest.approx(1)


REFUSED = [
    ({"Modality": "NM"}, r"Modality \(0008,0060\) is 'NM'.*give the PET series"),
    ({"Units": None}, r"Units \(0054,1001\) is missing.*dcmodify -i '\(0054,1001\)="),
    ({"Units": "PROPCPS"}, r"Units \(0054,1001\) is 'PROPCPS'.*export the series in Bq/ml"),
    ({"Units": "CNTS"}, r"\(0054,1001\) is 'CNTS'.*\(7053,1000\) is ''.*\(7053,1009\) is ''.*private tags kept"),
    ({"Units": "GML", "SUVType": "LBM"}, r"SUV Type \(0054,1006\) is 'LBM'.*BQML"),
    ({"CorrectedImage": None}, r"Corrected Image \(0028,0051\) is missing"),
    ({"CorrectedImage": ["DECY", "SCAT"]}, r"\(0028,0051\) is 'DECY\\\\+SCAT', without ATTN \(attenuation\)"),
    ({"CorrectedImage": "ATTN"}, r"\(0028,0051\) is 'ATTN', without DECY \(decay\).*with decay correction"),
    ({"DecayCorrection": None}, r"Decay Correction \(0054,1102\) is missing"),
    ({"DecayCorrection": "NONE"}, r"\(0054,1102\) is 'NONE'.*with decay correction"),
    ({"PatientWeight": None}, r"Patient's Weight \(0010,1030\) is missing.*dcmodify -i '\(0010,1030\)="),
    ({"PatientWeight": ""}, r"\(0010,1030\) is missing or empty"),
    ({"PatientWeight": "0"}, r"\(0010,1030\) is 0 kg"),
    ({"RadiopharmaceuticalInformationSequence": None}, r"\(0054,0016\) is missing"),
    ({"RadiopharmaceuticalInformationSequence": [tracer(), tracer()]}, r"\(0054,0016\) is there with 2 injections"),
    (injected(RadionuclideTotalDose=None), r"\(0018,1074\) is missing.*'\(0054,0016\)\[0\]\.\(0018,1074\)=VALUE'"),
    (injected(RadionuclideTotalDose="0"), r"\(0018,1074\) is 0 Bq"),
    (injected(RadionuclideHalfLife=None), r"\(0018,1075\) is missing"),
    (injected(RadionuclideHalfLife="0"), r"\(0018,1075\) is 0 s.*6586.2"),
    (injected(RadiopharmaceuticalStartTime=None), r"\(0018,1072\) is missing"),
    (injected(RadiopharmaceuticalStartTime="110001"), r"\(0018,1072\) is '110001', after the scan.*11:00:00"),
    (injected(RadiopharmaceuticalStartDateTime="20240310110001"), r"\(0018,1078\) is '20240310110001', after"),
    (injected(RadiopharmaceuticalStartDateTime="20100101100000"), r"\(0018,1078\) is '2010.*anonymising moved"),
    (injected(RadiopharmaceuticalStartDateTime="20240310090000"), r"'20240310090000' and .*1072\) is '100000.00'"),
    (
        injected(RadionuclideHalfLife="282240"),
        r"\(0018,1078\) is missing.*1072\) '100000.00' leaves the day open",
    ),
    ({"SeriesTime": None}, r"Series Time \(0008,0031\) is missing"),
    ({"SeriesDate": ""}, r"Series Date \(0008,0021\) is missing or empty"),
    ({"AcquisitionTime": None}, r"Acquisition Time \(0008,0032\) is missing"),
    ({"AcquisitionDate": None}, r"Acquisition Date \(0008,0022\) is missing"),
]


@pytest.mark.parametrize(("tags", "words"), REFUSED)
def test_a_tag_that_is_missing_or_impossible_is_named_with_its_number_its_value_and_the_fix(tmp_path, tags, words):
    message = refused(pet(tmp_path / "pet", **tags))
    assert message.startswith(f"{tmp_path / 'pet'}: ")
    assert re.search(words, message), message


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (b"DS\x02\x0050", b"DS\x02\x00kg", "Patient's Weight (0010,1030) is 'kg', which is no number"),
        (b"100000.00", b"254500.00", "Radiopharmaceutical Start Time (0018,1072) is '254500.00', which is no time"),
        (b"20240310", b"20241310", "Series Date (0008,0021) and Series Time (0008,0031) are '20241310110000', which"),
    ],
)
def test_what_is_no_number_and_no_time_is_shown_as_the_file_spells_it(tmp_path, before, after, words):
    folder = pet(tmp_path / "pet")
    for file in folder.iterdir():
        file.write_bytes(file.read_bytes().replace(before, after))
    assert words in refused(folder)


def test_slices_of_two_doses_are_refused(tmp_path):
    message = refused(pet(tmp_path / "pet", change=lambda z: injected(RadionuclideTotalDose=f"{2 + z % 2}E8")))
    assert "(0018,1074) differs within the series: '2E8' in 7.dcm, '3E8' in 8.dcm" in message


def test_of_several_series_one_is_taken_by_name(tmp_path):
    pet(tmp_path / "pet")
    other = pet(tmp_path / "other", SeriesInstanceUID="1.2.4", PatientWeight="100")
    for file in other.iterdir():
        file.rename(tmp_path / "pet" / f"other{file.name}")
    assert "2 series" in refused(tmp_path / "pet")
    np.testing.assert_allclose(read_suv(tmp_path / "pet", series="1.2.4").voxels, BQ_ML * 10e-4, rtol=1e-6)
    np.testing.assert_allclose(read_suv(tmp_path / "pet" / "9.dcm").voxels, BQ_ML * 5e-4, rtol=1e-6)


def test_a_folder_of_folders_gives_the_one_series_in_it(tmp_path):
    pet(tmp_path / "patient" / "pet")
    np.testing.assert_allclose(read_suv(tmp_path / "patient").voxels, BQ_ML * 5e-4, rtol=1e-6)


def test_the_real_series_has_the_suv_that_ibsi_gives_down_to_the_16_bits_it_was_kept_in(data, tmp_path):
    """IBSI kept each slice in 32767 steps up to its maximum, rounded down: ours may lie above by one step."""
    with zipfile.ZipFile(data / "ctpet_dicom_sts001" / "pet_dicom.zip") as file:
        file.extractall(tmp_path)
    suv, given = read_suv(tmp_path), nib.load(data / "ctpet" / "STS_001" / "PET_image.nii.gz")
    corner = np.linalg.solve(suv.affine, given.affine)
    np.testing.assert_allclose(corner[:3, :3], np.eye(3), atol=1e-6)
    np.testing.assert_allclose(corner[:3, 3], corner[:3, 3].round(), atol=1e-4)
    x, y, z = (slice(int(a), int(a) + n) for a, n in zip(corner[:3, 3].round(), given.shape, strict=True))
    step = suv.voxels[:, :, z].max((0, 1)) / 32767
    above = suv.voxels[x, y, z] - given.get_fdata()
    assert given.get_fdata().max() > 25
    assert (above <= 1.01 * step).all()
    assert (above >= -0.01 * step).all()
