"""Colours of label ids."""

import itertools

import numpy as np
import pytest

from medseg_core import colours
from medseg_core.colours import DEUTAN, PROTAN, colour_of


def test_the_first_colours_are_those_of_okabe_and_ito():
    assert [colour_of(i) for i in (1, 2, 3)] == [(0xE6, 0x9F, 0x00), (0x56, 0xB4, 0xE9), (0x00, 0x9E, 0x73)]


def test_colours_of_a_whole_class_list_are_told_apart():
    table = np.array([colour_of(i) for i in range(1, 256)])
    assert len(np.unique(table, axis=0)) == 255
    # 0.02 in Oklab is taken for a just noticeable difference (Ottosson, 2020)
    seen = colours._oklab(colours._linear(table[:117]))
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 0.05


@pytest.mark.parametrize("eye", [DEUTAN, PROTAN])
def test_colour_blind_people_tell_the_first_thirty_apart(eye: tuple):
    seen = colours._oklab(colours._linear(np.array([colour_of(i) for i in range(1, 31)])) @ np.array(eye).T)
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 0.04


def test_the_background_is_black():
    assert colour_of(0) == (0, 0, 0)
