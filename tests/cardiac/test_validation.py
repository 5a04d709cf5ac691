"""Scores of the three networks on held-out slices: what moving is worth, and that nothing flatters itself."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from medseg_cardiac import phantom, validation
from medseg_cardiac.cohort import LGE_ROLES, ROLES, Slice
from medseg_cardiac.validation import InfarctValidation, MotionValidation, RegistrationValidation, warped_mask
from medseg_core.store import Arrays, write_arrays
from medseg_core.trainer import At

SIZE, ED, ES = 64, 1, 3
AT = At(epoch=0, step=0, progress=0.0, rng=torch.Generator(), teacher=None)


def disc(radius, centre=(0.0, 0.0)):
    h, w = np.indices((SIZE, SIZE)) - (SIZE - 1) / 2
    return np.hypot(h - centre[0], w - centre[1]) < radius


def packed(folder, frames=None, *, case="", ed=ED, es=ES, lge=None, **masks):
    """One slice in a folder, as `cohort.pack` leaves it."""
    frames = np.zeros((5, SIZE, SIZE)) if frames is None else frames
    layers = np.stack([masks.get(role, np.zeros((SIZE, SIZE))) for role in (*ROLES, *LGE_ROLES)])
    arrays = {"cine-a": frames.astype(np.float16), "masks-a": layers.astype(np.uint8)}
    arrays |= {} if lge is None else {"lge-a": lge.astype(np.float16)}
    about = {"name": "a", "ed": ed, "es": es, "has": ["cine", *masks, *(["lge"] if lge is not None else [])]}
    write_arrays(folder, arrays, {"case": case, "slices": [about], "pixel_mm": 1.0})
    return Slice(Arrays(folder), case or folder.name, "a", about)


class Says(nn.Module):
    """A network whose answers are given, one for each call."""

    def __init__(self, *answers):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()), requires_grad=False)
        self.answers, self.seen = [torch.as_tensor(np.asarray(answer, np.float32))[None] for answer in answers], []

    def forward(self, first, second, *more):
        self.seen.append((first, second, *more))
        return self.answers[(len(self.seen) - 1) % len(self.answers)] * self.gain


STILL = np.zeros((2, SIZE, SIZE))


def shift(h, w):
    return np.stack([np.full((SIZE, SIZE), float(h)), np.full((SIZE, SIZE), float(w))])


@pytest.fixture(scope="module")
def heart(tmp_path_factory):
    """A slice of the phantom with its true displacement from ED to ES."""
    plane = phantom.scan(0, 1, size=SIZE, num_frames=6)
    masks, frames = phantom.masks(plane), phantom.pictures(plane)[0] / 1000
    roles = {"lv_ed": masks["cmr_LV_mask/{case}_ED"], "lv_es": masks["cmr_LV_mask/{case}_ES"]}
    one = packed(tmp_path_factory.mktemp("heart"), frames, ed=0, es=plane.es, **roles)
    return one, phantom.displacement(plane)[plane.es]


def test_a_net_that_moves_nothing_gains_nothing(heart):
    one, _ = heart
    score = MotionValidation([one])(Says(STILL), AT)
    assert score.value == 0
    assert score.metrics["dice"] == score.metrics["dice_unmoved"]
    assert score.metrics["explained"] == pytest.approx(0, abs=1e-6)


def test_the_true_motion_gains_what_the_pool_shrinks(heart):
    one, flow = heart
    ed, es = one.mask("lv_ed"), one.mask("lv_es")
    score = MotionValidation([one])(Says(flow), AT)
    assert score.metrics["dice_unmoved"] == pytest.approx(2 * es.sum() / (ed.sum() + es.sum()), abs=0.01)  # es in ed
    assert score.metrics["dice"] > 0.95
    assert score.value == pytest.approx(score.metrics["dice"] - score.metrics["dice_unmoved"])
    assert score.metrics["explained"] > 0.3
    assert score.metrics["folds"] == 0


def test_the_motion_net_is_given_es_to_move_and_ed_to_stay(tmp_path):
    frames = np.arange(5).reshape(-1, 1, 1) / 8 + np.zeros((5, SIZE, SIZE))
    model = Says(STILL)
    MotionValidation([packed(tmp_path / "p", frames)])(model, AT)
    moving, fixed = model.seen[0]
    assert moving.shape == fixed.shape == (1, 1, SIZE, SIZE)
    assert (moving.mean().item(), fixed.mean().item()) == (ES / 8, ED / 8)


def test_without_outlines_the_share_of_the_difference_that_is_gone_is_the_score(tmp_path):
    """ES is ED three columns on, so that a shift of three columns explains all but the edge."""
    ramp = np.random.default_rng(0).random((SIZE, SIZE))
    frames = np.stack([ramp, ramp, ramp, np.roll(ramp, 3, 1), ramp])
    one = packed(tmp_path / "p", frames)
    score = MotionValidation([one])(Says(shift(0, 3)), AT)
    assert 0.9 < score.value == score.metrics["explained"] < 1
    assert set(score.metrics) == {"explained", "folds"}
    assert MotionValidation([one])(Says(shift(0, -3)), AT).value < 0.2


def test_slices_with_outlines_alone_decide_where_there_are_any(heart, tmp_path):
    one, flow = heart
    both = MotionValidation([one, packed(tmp_path / "p")])(Says(flow, STILL), AT)
    assert both.value == MotionValidation([one])(Says(flow), AT).value


def test_folds_are_counted(tmp_path):
    fold = STILL.copy()
    fold[0, 30] = 5.0
    assert MotionValidation([packed(tmp_path / "p")])(Says(fold), AT).metrics["folds"] > 50


def test_registration_is_scored_on_the_wall_of_lge_against_the_wall_of_the_cine(tmp_path):
    """The wall of LGE lies 4 rows down and 3 columns left of the cine's: that is where the cine's is to be found."""
    wall, lge_wall = disc(18) & ~disc(11), disc(18, (4, -3)) & ~disc(11, (4, -3))
    one = packed(tmp_path / "p", lge=np.zeros((SIZE, SIZE)), myo=wall, lge_myo=lge_wall)
    unmoved = 2 * (wall & lge_wall).sum() / (wall.sum() + lge_wall.sum())
    right, still, wrong = (
        RegistrationValidation([one])(Says(flow), AT) for flow in (shift(4, -3), STILL, shift(-4, 3))
    )
    assert right.metrics["dice"] == 1
    assert right.value == pytest.approx(1 - unmoved)
    assert (still.value, still.metrics["dice_unmoved"]) == (0, pytest.approx(unmoved))
    assert wrong.value < 0


def test_the_registration_net_is_given_lge_to_move_and_ed_to_stay(tmp_path):
    frames = np.arange(5).reshape(-1, 1, 1) / 8 + np.zeros((5, SIZE, SIZE))
    one = packed(tmp_path / "p", frames, lge=np.full((SIZE, SIZE), 0.75), myo=disc(9), lge_myo=disc(9))
    model = Says(STILL)
    RegistrationValidation([one])(model, AT)
    assert [picture.mean().item() for picture in model.seen[0]] == [0.75, ED / 8]


def logits(mask):
    return np.where(mask, 5.0, -5.0)[None]


def infarct_score(slices, infarcts, answers):
    return InfarctValidation(slices, infarcts, [STILL] * len(slices))(Says(*map(logits, answers)), AT)


@pytest.fixture
def walls(tmp_path):
    """Three slices, the first two of one patient; the wall is everything within 20 pixels."""
    cases = {"one": "p", "two": "p", "three": "q"}
    return [packed(tmp_path / name, case=case, myo=disc(20)) for name, case in cases.items()]


def test_the_drawn_infarct_scores_one(walls):
    masks = [disc(6), disc(9), disc(4)]
    score = infarct_score(walls, masks, masks)
    assert (score.value, score.metrics["num_cases"], score.blank) == (1.0, 2, False)


def test_slices_of_a_patient_are_counted_together_and_patients_alike(walls):
    half = disc(9) & (np.arange(SIZE) < SIZE / 2)
    score = infarct_score(walls, [disc(6), disc(9), disc(4)], [disc(6), half, disc(4)])
    n6, n9, found = disc(6).sum(), disc(9).sum(), half.sum()
    assert score.value == pytest.approx((2 * (n6 + found) / (2 * n6 + n9 + found) + 1) / 2)


def test_a_missed_and_an_invented_infarct_count_zero_and_none_at_all_counts_nowhere(walls):
    none = disc(0)
    assert infarct_score(walls, [disc(6), none, none], [disc(6), none, disc(3)]).value == 0.5
    missed = infarct_score(walls, [disc(6), none, disc(3)], [disc(6), none, none])
    assert (missed.value, missed.metrics["num_cases"]) == (0.5, 2)
    healthy = infarct_score(walls, [disc(6), none, none], [disc(6), none, none])
    assert (healthy.value, healthy.metrics["num_cases"]) == (1.0, 1)


def test_a_net_that_never_finds_anything_is_told(walls):
    score = infarct_score(walls, [disc(6)] * 3, [disc(0)] * 3)
    assert (score.value, score.blank) == (0.0, True)
    nowhere = infarct_score(walls, [disc(0)] * 3, [disc(0)] * 3)
    assert (nowhere.value, nowhere.metrics["num_cases"], nowhere.blank) == (0.0, 0, True)


def test_what_is_found_outside_the_wall_does_not_count(walls):
    assert infarct_score(walls[:1], [disc(6)], [disc(6) | ~disc(20)]).value == 1


def test_the_infarct_net_is_given_end_diastole_first(tmp_path):
    frames = np.arange(5).reshape(-1, 1, 1) / 8 + np.zeros((5, SIZE, SIZE))
    model = Says(logits(disc(3)))
    InfarctValidation([packed(tmp_path / "p", frames, myo=disc(9))], [disc(3)], [shift(2, 2)])(model, AT)
    assert [picture.mean().item() for picture in model.seen[0]] == [ED / 8, ES / 8, 2]


def test_processes_exchange_what_json_holds(heart, walls, tmp_path, monkeypatch):
    """Each process has a part of the slices; what they tell each other is text."""
    told = []

    def gather(value):
        told.append(json.dumps(value))
        return [json.loads(told[-1])]

    monkeypatch.setattr(validation, "gather", gather)
    one, flow = heart
    assert MotionValidation([one, packed(tmp_path / "p")])(Says(flow, STILL), AT).value > 0.1
    lge = packed(tmp_path / "q", lge=np.zeros((SIZE, SIZE)), myo=disc(9), lge_myo=disc(9))
    assert RegistrationValidation([lge])(Says(STILL), AT).value == 0
    assert infarct_score(walls, [disc(6)] * 3, [disc(6)] * 3).value == 1
    assert len(told) == 3


def test_a_mask_is_looked_up_at_x_plus_flow():
    mask = disc(10, (4, -3))
    flow = torch.from_numpy(shift(4, -3)).float()[None]
    np.testing.assert_array_equal(warped_mask(mask, flow), disc(10))


def test_a_pixel_that_is_half_inside_belongs_to_the_mask():
    mask = np.broadcast_to(np.arange(SIZE) >= 20, (SIZE, SIZE))
    columns = [warped_mask(mask, torch.from_numpy(shift(0, w)).float()[None])[0].argmax() for w in (0.45, 0.55)]
    assert columns == [20, 19]
