import re

import numpy as np
import pytest

from medseg_core.config import resolve
from medseg_core.errors import MedsegError
from medseg_near.rules import Rule, boxes_of, judge, read_rules
from medseg_near.settings import MergeConfig
from medseg_near.whole_heart import WHOLE_HEART

NONE = {"priority": None, "touch": None, "near": None, "keep": None, "fill": None}
LA, AORTA, LAA, CORONARY, MYOCARDIUM = 2, 6, 8, 9, 1


def settings(**given):
    return resolve(MergeConfig, NONE | given)


def rules(labels=WHOLE_HEART, **given):
    return read_rules(settings(**given), labels)


def grid(shape=(12, 7, 7), **places):
    """A label map with single voxels or boxes: `c9=[(x, y, z), ...]`."""
    ids = np.zeros(shape, np.uint8)
    for name, points in places.items():
        for point in points:
            ids[point] = int(name[1:])
    return ids


def verdict(rule, ids, spacing_mm=(1, 1, 1)):
    return judge(rule, ids, boxes_of(ids), spacing_mm=spacing_mm)


def asked(rule, ids, spacing_mm=(1, 1, 1)):
    """Voxels that a rule asks for, as a set of places."""
    found = verdict(rule, ids, spacing_mm)
    if found.voxels is None:
        return set()
    start = [side.start for side in found.box]
    return {tuple(point) for point in (np.argwhere(found.voxels) + start).tolist()}


class TestReading:
    def test_the_defaults_hold_for_the_ten_classes_of_the_heart(self):
        found = read_rules(MergeConfig())
        assert ">".join(WHOLE_HEART[i] for i in found.priority) == "coronary>LAA>PV>LA>LV>myocardium>aorta>RA>RV>PA"
        assert {WHOLE_HEART[r.label]: r.most for r in found.steps if r.kind == "keep"} == {
            "aorta": 2,
            "PA": 1,
            "LAA": 1,
            "coronary": 2,
            "PV": 2,
            "myocardium": 1,
            "LA": 1,
            "LV": 1,
            "RA": 1,
            "RV": 1,
        }
        assert found.left_out == ()

    def test_rules_come_in_the_order_touch_near_keep_fill(self):
        kinds = [rule.kind for rule in read_rules(MergeConfig()).steps]
        assert kinds == ["touch"] * 2 + ["near"] + ["keep"] * 10 + ["fill"]

    def test_a_rule_may_name_several_others(self):
        assert rules(touch="LAA:LA/aorta").steps == (Rule("touch", LAA, (LA, AORTA), text="touch LAA:LA/aorta"),)

    def test_a_distance_is_read_in_mm(self):
        (rule,) = rules(near="coronary:aorta/myocardium:2.5mm").steps
        assert (rule.label, rule.others, rule.within_mm) == (CORONARY, (AORTA, MYOCARDIUM), 2.5)

    def test_names_are_read_without_regard_to_case_and_spaces(self):
        (rule,) = rules(keep=" Aorta = 2 ").steps
        assert (rule.label, rule.most) == (AORTA, 2)

    def test_an_id_stands_for_its_class(self):
        (rule,) = rules(keep="9=2").steps
        assert rule.label == CORONARY

    def test_a_rule_of_none_is_no_rule(self):
        assert read_rules(settings(touch="none", keep="none")).steps == ()

    def test_classes_without_priority_come_last_by_id(self):
        assert rules({1: "a", 2: "b", 3: "c"}, priority="c").priority == (3, 1, 2)

    def test_defaults_that_name_other_anatomy_are_left_out_and_told(self):
        found = read_rules(MergeConfig(), {1: "aorta", 2: "spleen"})
        assert [rule.text for rule in found.steps] == ["keep aorta=2"]
        assert {"touch LAA:LA", "fill myocardium", "near coronary:aorta/myocardium:3mm"} <= set(found.left_out)

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            ({"keep": "coronry=2"}, "'coronry'; did you mean 'coronary'?"),
            ({"keep": "MYOCARD=2"}, "'MYOCARD'; did you mean 'myocardium'?"),
            ({"keep": "spleen=2"}, "'spleen'; it has myocardium, LA, LV"),
            ({"keep": "aorta"}, "keep 'aorta' must be CLASS=NUMBER"),
            ({"keep": "aorta=0"}, "keep 'aorta=0' must be CLASS=NUMBER with a number of at least 1"),
            ({"keep": "aorta=2,Aorta=1"}, "keep names 'aorta' twice"),
            ({"touch": "LAA"}, "touch 'LAA' must be CLASS:OTHER"),
            ({"touch": "LAA:LA:3mm"}, "touch 'LAA:LA:3mm' must be CLASS:OTHER"),
            ({"touch": "LAA:"}, "touch 'LAA:' must be CLASS:OTHER"),
            ({"touch": "LAA:LA/"}, "touch 'LAA:LA/' must be CLASS:OTHER"),
            ({"touch": "LAA:LAA"}, "holds LAA against itself"),
            ({"near": "coronary:aorta:3"}, "must be CLASS:OTHER/OTHER:DISTANCEmm"),
            ({"near": "coronary:aorta"}, "must be CLASS:OTHER/OTHER:DISTANCEmm"),
            ({"fill": "myo"}, "fill 'myo' names no class"),
            ({"priority": "LA,aorta,la"}, "priority names 'LA' twice"),
        ],
    )
    def test_what_cannot_be_is_refused_with_the_fix(self, given, said):
        with pytest.raises(MedsegError, match=re.escape(said)):
            rules(**given)

    def test_two_names_that_are_one_are_refused(self):
        with pytest.raises(MedsegError, match="a name of its own for each"):
            rules({1: "Aorta", 2: "aorta"})


def test_boxes_are_the_same_in_either_memory_order():
    ids = grid(c2=[(1, 3, 4), (4, 1, 2)], c5=[(0, 0, 0)])
    expected = [None, (slice(1, 5), slice(1, 4), slice(2, 5)), None, None, (slice(0, 1),) * 3]
    assert boxes_of(ids) == expected
    assert boxes_of(np.asfortranarray(ids)) == expected


class TestKeep:
    rule = Rule("keep", CORONARY, most=2)

    def test_all_but_the_largest_go(self):
        ids = grid(c9=[(0, slice(0, 4), 0), (3, slice(0, 3), 0), (6, slice(0, 2), 0), (9, 0, 0)])
        assert asked(self.rule, ids) == {(6, 0, 0), (6, 1, 0), (9, 0, 0)}
        assert verdict(self.rule, ids).num_components == 2

    def test_parts_that_touch_at_a_corner_are_one(self):
        ids = grid(c9=[(0, 0, 0), (1, 1, 1), (4, 0, 0)])
        assert verdict(self.rule, ids).outcome == "nothing to do"

    def test_other_classes_are_not_counted(self):
        ids = grid(c9=[(0, 0, 0), (4, 0, 0)], c2=[(8, 0, 0)])
        assert asked(self.rule, ids) == set()

    def test_a_class_that_is_not_there_is_told(self):
        assert verdict(self.rule, grid(c2=[(0, 0, 0)])).outcome == "class absent"
        assert verdict(self.rule, grid()).outcome == "class absent"


class TestTouch:
    rule = Rule("touch", LAA, (LA,))

    def test_parts_that_touch_nothing_go_whole(self):
        ids = grid(c2=[(0, 3, 3)], c8=[(1, 3, 3), (5, 3, 3), (6, 3, 3)])
        assert asked(self.rule, ids) == {(5, 3, 3), (6, 3, 3)}
        assert verdict(self.rule, ids).num_components == 1

    @pytest.mark.parametrize("place", [(1, 0, 0), (1, 1, 0), (1, 1, 1)])
    def test_a_face_an_edge_or_a_corner_is_enough(self, place):
        ids = grid(c2=[(0, 0, 0)], c8=[place])
        assert verdict(self.rule, ids).outcome == "nothing to do"

    def test_a_voxel_between_is_too_much(self):
        ids = grid(c2=[(0, 3, 3)], c8=[(1, 3, 3), (2, 5, 3), (0, 1, 3)])
        assert asked(self.rule, ids) == {(2, 5, 3), (0, 1, 3)}

    def test_one_of_several_others_is_enough(self):
        ids = grid(c2=[(0, 3, 3)], c6=[(9, 3, 3)], c8=[(1, 3, 3), (8, 3, 3), (4, 3, 3)])
        assert asked(Rule("touch", LAA, (LA, AORTA)), ids) == {(4, 3, 3)}

    def test_a_rule_that_would_remove_the_whole_class_is_left(self):
        found = verdict(self.rule, grid(c2=[(0, 3, 3)], c8=[(5, 3, 3)]))
        assert (found.outcome, found.share) == ("left", 1)

    def test_without_the_others_the_rule_has_no_target(self):
        assert verdict(self.rule, grid(c8=[(5, 3, 3)])).outcome == "no target"


class TestShare:
    rule = Rule("keep", CORONARY, most=1)
    ids = grid(c9=[(slice(0, 3), 0, 0), (5, 0, 0)])  # a quarter would go

    @pytest.mark.parametrize(("max_removed", "outcome"), [(0.24, "left"), (0.25, "changed"), (0.0, "left")])
    def test_more_than_may_be_removed_is_left(self, max_removed, outcome):
        found = judge(self.rule, self.ids, boxes_of(self.ids), spacing_mm=(1, 1, 1), max_removed=max_removed)
        assert (found.outcome, found.share) == (outcome, 0.25)


class TestNear:
    rule = Rule("near", CORONARY, (AORTA, MYOCARDIUM), within_mm=3)

    def test_the_nearest_voxel_of_a_part_decides(self):
        ids = grid(c6=[(0, 3, 3)], c9=[(slice(3, 6), 3, 3), (7, 3, 3)])  # 3 mm and 7 mm away
        assert asked(self.rule, ids) == {(7, 3, 3)}

    def test_the_distance_is_measured_with_the_spacing(self):
        ids = grid(c6=[(0, 3, 3)], c9=[(3, 3, 3), (0, 0, 3)])  # 6 mm along x, 3 mm along y
        assert asked(self.rule, ids, spacing_mm=(2, 1, 1)) == {(3, 3, 3)}

    def test_the_distance_is_euclidean(self):
        ids = grid(c6=[(0, 0, 0)], c9=[(2, 2, 1), (0, 3, 1), (5, 5, 5)])  # 3.00, 3.16 and 8.66 mm
        assert asked(self.rule, ids) == {(0, 3, 1), (5, 5, 5)}

    def test_spacing_of_float32_does_not_push_a_part_over_the_bound(self):
        ids = grid(c6=[(0, 3, 3)], c9=[(10, 3, 3), (0, 0, 3)])
        spacing = float(np.float32(0.3)) * (1 + 1e-7)
        assert verdict(self.rule, ids, spacing_mm=(spacing, 1, 1)).outcome == "nothing to do"

    def test_targets_far_away_leave_the_class(self):
        ids = grid((40, 5, 5), c1=[(39, 2, 2)], c9=[(0, 2, 2)])
        assert verdict(self.rule, ids).outcome == "left"

    def test_without_the_others_the_rule_has_no_target(self):
        assert verdict(self.rule, grid(c9=[(0, 2, 2)], c2=[(1, 2, 2)])).outcome == "no target"


class TestFill:
    rule = Rule("fill", MYOCARDIUM)

    def test_holes_of_background_are_given(self):
        ids = grid(c1=[(slice(1, 7), slice(1, 6), slice(1, 6))], c0=[(3, 3, 3), (4, 4, 3)])
        assert asked(self.rule, ids) == {(3, 3, 3), (4, 4, 3)}
        assert verdict(self.rule, ids).num_components == 2

    def test_a_cavity_of_another_class_is_no_hole(self):
        ids = grid(c1=[(slice(1, 7), slice(1, 6), slice(1, 6))], c3=[(slice(2, 6), slice(2, 5), slice(2, 5))])
        assert verdict(self.rule, ids).outcome == "nothing to do"

    def test_a_hole_open_through_a_face_is_none(self):
        ids = grid(c1=[(slice(1, 7), slice(1, 6), slice(1, 6))], c0=[(3, 3, slice(3, 7))])
        assert verdict(self.rule, ids).outcome == "nothing to do"
