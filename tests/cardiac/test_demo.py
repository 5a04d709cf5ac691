import pytest

from medseg_cardiac.demo import demo
from medseg_cardiac.train import card_of


@pytest.mark.slow
def test_the_demo_ends_in_a_report_and_can_be_called_again(tmp_path):
    told = demo(tmp_path / "demo", quick=True)
    page = (tmp_path / "demo" / "report.html").read_text()
    assert told["patients"] == 3
    assert {"dice", "dice_of_whole_wall", "minutes"} <= told.keys()
    assert page.count("data:image/png") >= 3  # bull's-eye, strain, contours
    assert "data:image/gif" in page  # the tracked contours
    assert card_of(tmp_path / "demo" / "motion", "motion").grid["size"] == 64
    again = demo(tmp_path / "demo", quick=True)
    assert again["dice"] == told["dice"]
