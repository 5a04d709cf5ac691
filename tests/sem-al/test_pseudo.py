"""Semi-supervision: what the teacher sees, what is taught, and that boxes bring their classes along."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from medseg_core.checkpoint import read_card
from medseg_core.draw import Draw
from medseg_core.errors import MedsegError
from medseg_core.io import write_text
from medseg_core.run import read_history
from medseg_sem_al.index import build_index, read_index
from medseg_sem_al.phantom import phantom
from medseg_sem_al.pretrain import pretrain
from medseg_sem_al.pseudo import Both, PseudoStep, moved_only, pasted, pseudo, rise
from medseg_sem_al.samples import intensity_of
from medseg_sem_al.settings import IndexConfig, PretrainConfig, PseudoConfig, SegConfig
from medseg_sem_al.train import card_of, windows_of

SMALL = {"size": 32, "epochs": 1, "epoch_windows": 8, "batch_size": 4, "val_every": 1, "device": "cpu"}


@pytest.fixture(scope="module")
def both(index):
    whole, config = read_index(index), PseudoConfig(**SMALL)
    card = card_of(whole, whole.cases, SegConfig(width=2))
    labelled = [case for case in whole.cases if case.split == "train"]
    pool = [case for case in whole.cases if "label" not in case.files]
    return Both(windows_of(whole, labelled, card, config), windows_of(whole, pool, card, moved_only(config)))


def step_of(student, teacher, *, ids=2, **settings):
    """Losses of one labelled and one unlabelled window of two pixels; logits are of (K, 2)."""
    label = torch.zeros(1, 1, 2, dtype=torch.uint8)
    views = {"weak": torch.zeros(1, 1, 1, 2), "strong": torch.zeros(1, 1, 1, 2)}
    batch = {"image": torch.zeros(1, 1, 1, 2), "label": label, **views, "beyond": torch.tensor([[[False, True]]])}
    of = lambda logits: torch.tensor(logits)[None, :, None]  # noqa: E731
    model = lambda image: torch.cat([torch.zeros(1, ids, 1, 2), of(student)])  # noqa: E731
    at = SimpleNamespace(teacher=lambda image: of(teacher), progress=1.0, rng=torch.Generator())
    return PseudoStep(PseudoConfig(mix_chance=0.0, **settings), ids)(model, batch, at)


def test_the_student_learns_the_class_the_teacher_is_sure_of():
    # teacher: p 0.99 of class 1 in the first pixel; the second is beyond. Student: p 0.75 of it
    found = step_of([[0.0, 0.0], [np.log(3.0), 0.0]], [[0.0, 0.0], [np.log(99.0), np.log(99.0)]])
    assert float(found["unlabelled"]) == pytest.approx(-np.log(0.75) / 2)
    assert float(found["sure"]) == pytest.approx(0.5)


def test_what_the_teacher_is_not_sure_of_is_not_taught():
    found = step_of([[0.0, 0.0], [5.0, 0.0]], [[0.0, 0.0], [np.log(9.0), 0.0]])  # p 0.9 below 0.95
    assert float(found["unlabelled"]) == 0
    assert float(found["sure"]) == 0


def test_the_loss_is_labelled_and_the_weighted_unlabelled():
    found = step_of([[0.0, 0.0], [1.0, 0.0]], [[0.0, 0.0], [9.0, 0.0]], pseudo_weight=0.3)
    assert float(found["loss"]) == pytest.approx(float(found["labelled"]) + 0.3 * float(found["unlabelled"]))


def test_the_weight_rises_as_laine_and_aila_have_it():
    assert rise(0.0, 0.3) == pytest.approx(np.exp(-5))
    assert rise(0.15, 0.3) == pytest.approx(np.exp(-5 / 4))
    assert rise(0.3, 0.3) == 1
    assert rise(0.0, 0.0) == 1


def test_a_pasted_box_brings_its_classes_and_its_certainty():
    image = torch.arange(3.0).reshape(3, 1, 1, 1).expand(3, 1, 16, 16)
    ids = torch.arange(3).reshape(3, 1, 1).expand(3, 16, 16)
    sure = ids == 2
    mixed, classes, taught = pasted(image, ids, sure, 1.0, torch.Generator().manual_seed(0))
    assert torch.equal(mixed[:, 0].long(), classes)
    assert torch.equal(taught, classes == 2)
    for n in range(3):
        values, counts = classes[n].unique(return_counts=True)
        assert values.tolist() == sorted({n, (n - 1) % 3})  # the window before it
        share = float(counts[values != n].sum() / 256)
        assert 0.25**2 <= share <= 0.75**2


def test_no_box_is_pasted_where_its_chance_does_not_come():
    image, ids = torch.rand(2, 1, 8, 8), torch.zeros(2, 8, 8, dtype=torch.long)
    mixed, _, _ = pasted(image, ids, ids > 0, 0.0, torch.Generator())
    assert torch.equal(mixed, image)


def test_both_views_lie_on_each_other(both):
    found = [both[Draw(0, 0, place, 3)] for place in range(6)]
    for sample in found:
        weak, strong = (sample[name][0][4:-4, 4:-4].ravel().numpy() for name in ("weak", "strong"))
        assert not np.array_equal(weak, strong)
    alike = [np.corrcoef(s["weak"].ravel(), s["strong"].ravel())[0, 1] for s in found]
    others = [np.corrcoef(found[n]["weak"].ravel(), found[n - 1]["strong"].ravel())[0, 1] for n in range(6)]
    assert np.median(alike) > 0.6
    assert np.median(alike) > np.median(np.abs(others)) + 0.3


def test_the_pool_is_drawn_apart_from_the_labels_and_each_time_alike(both):
    one, again, other = both[Draw(0, 0, 1, 3)], both[Draw(0, 0, 1, 3)], both[Draw(0, 0, 2, 3)]
    assert torch.equal(one["weak"], again["weak"])
    assert torch.equal(one["strong"], again["strong"])
    assert not torch.equal(one["weak"], other["weak"])


def test_the_teacher_sees_no_changed_greys(both, index):
    assert (both.pool.how.brightness_chance, both.pool.how.noise_chance, both.pool.how.blur_chance) == (0, 0, 0)
    assert both.pool.intensity == intensity_of([c for c in read_index(index).cases if c.split in ("train", "")])


def test_a_run_goes_on_from_the_model_with_the_pool(index, run, tmp_path):
    result = pseudo(index, tmp_path / "run", PseudoConfig(**SMALL), model=run)
    assert result.epochs == 1
    history = read_history(tmp_path / "run")
    assert 0 <= history["train_sure"][0] <= 1
    assert history["val_iou"][0] is not None


def test_the_network_and_its_scale_are_those_of_the_model(index, run, tmp_path):
    pseudo(index, tmp_path / "run", PseudoConfig(**SMALL), model=run)
    one, other = read_card(run), read_card(tmp_path / "run")
    assert (other.model, other.arguments, other.intensity) == (one.model, one.arguments, one.intensity)


def test_a_run_without_classes_is_refused(index, tmp_path):
    config = PretrainConfig(**SMALL, width=2)
    pretrain(index, tmp_path / "encoder", config)
    with pytest.raises(MedsegError, match=r"autoencoder of medseg-sem-al, which makes no classes"):
        pseudo(index, tmp_path / "run", PseudoConfig(**SMALL), model=tmp_path / "encoder")
    assert not (tmp_path / "run").exists()


def test_a_model_of_other_classes_is_refused(index, run, tmp_path):
    colours = {"matrix": "#0000ff", "grains": ["#00ffff", "#ff7e7e"]}
    write_text(tmp_path / "classes.json", json.dumps(colours))
    build_index(index.parent / "data", IndexConfig(), colours=tmp_path / "classes.json").write(tmp_path / "index.json")
    with pytest.raises(MedsegError, match=r"classes matrix, grains, the run carbon, SE, AM"):
        pseudo(tmp_path / "index.json", tmp_path / "run", PseudoConfig(**SMALL), model=run)


def test_settings_that_cannot_be_cost_no_run(index, run, tmp_path):
    write_text(tmp_path / "run" / "mine.txt", "kept")
    config = PseudoConfig(**SMALL, gamma_range=(2.0, 1.0))
    with pytest.raises(MedsegError, match="gamma_range"):
        pseudo(index, tmp_path / "run", config, model=run, overwrite=True)
    assert (tmp_path / "run" / "mine.txt").read_text() == "kept"


def test_an_index_without_a_pool_is_refused(run, tmp_path):
    root = phantom(tmp_path / "data", num_images=9, num_labelled=9, size=64)
    build_index(root, IndexConfig()).write(tmp_path / "index.json")
    with pytest.raises(MedsegError, match=r"0 without masks.*needs both"):
        pseudo(tmp_path / "index.json", tmp_path / "run", PseudoConfig(**SMALL), model=run)
    assert not (tmp_path / "run").exists()


def test_without_an_average_there_is_no_teacher(index, run, tmp_path):
    with pytest.raises(MedsegError, match="--ema"):
        pseudo(index, tmp_path / "run", PseudoConfig(**SMALL, ema=0.0), model=run)
