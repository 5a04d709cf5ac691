"""Voxels of each structure, against NumPy's own search of the whole volume."""

import numpy as np
import pytest

from medseg_totalseg import places
from medseg_totalseg.places import places_of


def label_map(shape=(9, 8, 7), ids=(0, 3, 7, 300), seed=0):
    rng = np.random.default_rng(seed)
    return np.asfortranarray(rng.choice(np.array(ids, np.uint16), shape, p=(0.7, 0.2, 0.05, 0.05)))


def all_voxels(*layers):
    return {(int(layer[at]), *map(int, at)) for layer in layers for at in zip(*np.nonzero(layer), strict=True)}


def test_few_voxels_are_all_kept_and_each_once():
    label = label_map()
    rows = places_of([label])
    assert len(rows) == np.count_nonzero(label)
    assert set(map(tuple, rows.tolist())) == all_voxels(label)
    assert (np.diff(rows[:, 0].astype(int)) >= 0).all()


def test_many_voxels_are_thinned_out_evenly(monkeypatch):
    """Half of 50 planes hold id 1: 100 of 10,000 voxels, about 4 in each plane, none elsewhere."""
    monkeypatch.setattr(places, "PER_STRUCTURE", 100)
    label = np.zeros((20, 20, 50), np.uint8)
    label[:, :, ::2] = 1
    rows = places_of([label])
    assert len(set(map(tuple, rows.tolist()))) == len(rows) == 100
    assert set(map(tuple, rows.tolist())) <= all_voxels(label)
    assert len(np.unique(rows[:, 3])) > 20
    assert np.abs(rows[:, 1:3].mean(0) - 9.5).max() < 2  # 3.5 standard errors


def test_further_layers_are_searched_too(monkeypatch):
    first, second = label_map(), label_map(seed=1)
    rows = places_of([first, second])
    assert set(map(tuple, rows.tolist())) == all_voxels(first, second)
    monkeypatch.setattr(places, "PER_STRUCTURE", 5)
    thinned = places_of([first, second])
    assert np.unique(thinned[:, 0], return_counts=True)[1].tolist() == [5, 5, 5]
    assert set(map(tuple, thinned.tolist())) <= all_voxels(first, second)


def test_equal_labels_give_equal_places():
    assert np.array_equal(places_of([label_map()]), places_of([label_map()]))


@pytest.mark.parametrize("order", ["C", "F"])
def test_memory_order_changes_nothing(order):
    label = label_map()
    assert np.array_equal(places_of([np.asarray(label, order=order)]), places_of([label]))


def test_an_empty_label_has_no_places():
    assert places_of([np.zeros((3, 4, 5), np.uint8)]).shape == (0, 4)
