"""Surfaces where they belong, within their budget."""

import html
import json

import numpy as np
import pytest

from medseg_core import scene
from medseg_core.scene import figure, surfaces

LPS = np.array([[-2.0, 0, 0, 100], [0, -3, 0, 50], [0, 0, 4, -7], [0, 0, 0, 1]])


def box() -> np.ndarray:
    """Voxels 3..6, 2..8 and 4..5."""
    mask = np.zeros((12, 10, 8), np.uint8)
    mask[3:7, 2:9, 4:6] = 5
    return mask


def ball(edge: int, radius: float) -> np.ndarray:
    squares = np.arange(edge) - (edge - 1) / 2
    return (np.add.outer(np.add.outer(squares**2, squares**2), squares**2) < radius**2).astype(np.uint8)


def volume(surface: scene.Surface) -> float:
    """By the divergence theorem; positive where faces look outward."""
    a, b, c = surface.vertices.astype(float)[surface.faces].transpose(1, 0, 2)
    return float(np.einsum("ij,ij->i", a, np.cross(b, c)).sum() / 6)


def test_a_box_ends_half_a_voxel_beyond_the_centres_of_its_voxels():
    (surface,) = surfaces(box(), spacing=(1, 1, 2))
    assert surface.label_id == 5
    np.testing.assert_allclose(surface.vertices.min(axis=0), [2.5, 1.5, 7])
    np.testing.assert_allclose(surface.vertices.max(axis=0), [6.5, 8.5, 11])


def test_a_structure_at_the_edge_of_the_array_is_closed():
    (surface,) = surfaces(np.ones((3, 4, 5), np.uint8))
    edges = np.sort(surface.faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
    assert (np.unique(edges, axis=0, return_counts=True)[1] == 2).all()


def test_vertices_are_where_the_affine_puts_the_voxels():
    (surface,) = surfaces(box(), affine=LPS)
    corners = [LPS @ [*corner, 1] for corner in ([2.5, 1.5, 3.5], [6.5, 8.5, 5.5])]
    np.testing.assert_allclose(surface.vertices.min(axis=0), np.min(corners, axis=0)[:3])
    np.testing.assert_allclose(surface.vertices.max(axis=0), np.max(corners, axis=0)[:3])


@pytest.mark.parametrize("flip", [1, -1])
def test_faces_look_outward_in_mirrored_grids_too(flip: int):
    (surface,) = surfaces(box(), affine=np.diag([flip, 1.0, 1.0, 1.0]))
    assert volume(surface) == pytest.approx(4 * 7 * 2, rel=0.15)  # marching cubes cut the edges of a small box


def test_thinning_keeps_place_and_size_of_a_ball():
    (whole,) = surfaces(ball(64, 25))
    (thin,) = surfaces(ball(64, 25), max_faces=2000)
    assert len(thin.faces) <= 2000 < len(whole.faces) / 10
    radii = np.linalg.norm(thin.vertices - 31.5, axis=1)
    np.testing.assert_allclose(radii, 25, atol=1.5)
    assert volume(thin) == pytest.approx(4 / 3 * np.pi * 25**3, rel=0.05)


def test_the_budget_is_shared_so_that_a_small_structure_keeps_more_of_its_faces():
    mask = ball(64, 28)
    mask[:8, :8, :8] = 2 * ball(8, 3)
    whole = {s.label_id: len(s.faces) for s in surfaces(mask)}
    thin = {s.label_id: len(s.faces) for s in surfaces(mask, max_faces=3000)}
    assert sum(thin.values()) <= 3000
    assert thin[2] / whole[2] > 3 * thin[1] / whole[1]


def test_a_large_map_is_read_coarsely_and_stays_in_place(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scene, "MAX_VOXELS", 6000)
    (surface,) = surfaces(ball(64, 25), spacing=(1, 1, 2), affine=None)
    np.testing.assert_allclose(surface.vertices.mean(axis=0), [31.5, 31.5, 63], atol=3)


def test_an_empty_mask_has_no_surface():
    assert surfaces(np.zeros((4, 4, 4), np.uint8)) == []


def test_only_the_named_structures_are_shown():
    mask = box()
    mask[0, 0, 0] = 9
    assert {trace.name for trace in figure(mask, mask, {5: "liver"}).data} == {"liver"}


def test_every_view_lists_each_of_its_structures_once():
    label = box()
    label[0, 0, 0] = 2
    drawn = figure(box(), label, {2: "spleen", 5: "liver"})
    listed = {}
    for button in drawn.layout.updatemenus[0].buttons:
        look = button.args[0]
        names = [
            t.name for t, there, legend in zip(drawn.data, look["visible"], look["showlegend"], strict=True) if legend
        ]
        assert all(there or not legend for there, legend in zip(look["visible"], look["showlegend"], strict=True))
        listed[button.label] = sorted(names)
    assert listed == {"Prediction": ["liver"], "Reference": ["liver", "spleen"], "Both": ["liver", "spleen"]}


def test_the_page_opens_on_the_prediction():
    drawn = figure(box(), box(), {5: "liver"})
    assert {trace.meta: trace.visible for trace in drawn.data} == {"prediction": True, "reference": False}


def test_numbers_are_stored_as_bytes_and_not_as_text():
    mask = ball(40, 18)
    drawn = figure(mask, mask, {1: "liver"})
    faces = sum(len(trace.i) for trace in drawn.data)
    trace = json.loads(drawn.to_json())["data"][0]
    assert (trace["x"]["dtype"], trace["i"]["dtype"]) == ("f4", "u2")
    assert len(drawn.to_json()) < 20 * faces + 20_000


def test_a_structures_name_cannot_become_markup():
    name = "</script><b>x"
    drawn = figure(box(), box(), {5: name})
    assert drawn.data[0].name == html.escape(name)
    assert "</script><b>" not in drawn.to_html(full_html=False, include_plotlyjs=False)
