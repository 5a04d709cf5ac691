"""Memory of sliding windows: what is stated is what is taken, what does not fit is refused, and no answer changes."""

import dataclasses
import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import medseg_core.budget
import medseg_core.infer
import medseg_core.memory
from medseg_core.blend import Blend
from medseg_core.errors import MedsegError
from medseg_core.infer import infer
from medseg_core.memory import free_bytes
from medseg_core.windows import logits_bytes, plan_windows, thriftier

CPU = torch.device("cpu")


def random_image(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def one_by_one(num_axes, *, num_classes=4):
    """A convolution whose answer for a window does not hang on its neighbours in the batch, to the last bit."""
    torch.manual_seed(0)
    conv = (nn.Conv2d if num_axes == 2 else nn.Conv3d)(1, num_classes, 3, padding=1).eval()
    return lambda x: torch.cat([conv(window[None]) for window in x])


def many(x):
    """A hundred equal classes, at no cost."""
    return x.expand(-1, 100, *x.shape[2:])


def argmax(y):
    return y.argmax(0)


def everything(y):
    return y


def full_buffer(net, image, plan):
    """All logits of an image in one array of float32: windows are added in the order of the plan."""
    total = 0
    sides = [(b, n - b - s) for b, n, s in zip(plan.before, plan.size, image.shape[1:], strict=True)]
    padded = np.pad(image, [(0, 0), *sides])
    for corner in sorted(itertools.product(*plan.weights), key=lambda corner: [corner[axis] for axis in plan.order]):
        at = tuple(slice(start, start + edge) for start, edge in zip(corner, plan.window, strict=True))
        with torch.no_grad():
            y = net(torch.from_numpy(padded[:, *at].copy())[None])[0]
        weight = torch.ones(())
        for starts, start in zip(plan.weights, corner, strict=True):
            weight = weight[..., None] * torch.from_numpy(starts[start])
        total = torch.zeros(len(y), *plan.size) if isinstance(total, int) else total
        total[:, *at].addcmul_(y, weight[None])
    inner = tuple(slice(b, b + n) for b, n in zip(plan.before, image.shape[1:], strict=True))
    return total[:, *inner].numpy()


cases = st.sampled_from([2, 3]).flatmap(
    lambda n: st.tuples(
        st.tuples(*[st.integers(1, 11)] * n),
        st.tuples(*[st.integers(1, 7)] * n),
        st.sampled_from([0.0, 0.25, 0.5, 0.7, 0.9]),
        st.integers(1, 5),
    )
)


@settings(max_examples=60, deadline=None)
@given(cases, st.data())
def test_logits_equal_those_of_a_full_buffer_to_the_last_bit_in_any_batches_and_tiles(case, data):
    space, window, overlap, batch_size = case
    net, image = one_by_one(len(space)), random_image(1, *space)
    plan = plan_windows(space, window, overlap=overlap, batch_size=batch_size)
    limit = logits_bytes(data.draw(st.sampled_from(list(thriftier(plan)))), 4) / 1e9
    options = {"window": window, "overlap": overlap, "batch_size": batch_size, "logits_gb": limit}
    np.testing.assert_array_equal(infer(net, image, reduce=everything, **options), full_buffer(net, image, plan))


@pytest.mark.parametrize("space", [(13, 9, 17), (17, 13, 9), (9, 17, 13)])
def test_tiles_along_any_axis_change_no_bit(space):
    image, seen = random_image(1, *space), []
    conv = one_by_one(3)

    def net(x):
        seen.append(len(x))
        return conv(x)

    plan = plan_windows(space, (4, 5, 4), overlap=0.5, batch_size=2)
    want = full_buffer(conv, image, plan)
    nums = set()
    for limit in [logits_bytes(thrifty, 4) / 1e9 for thrifty in thriftier(plan)]:
        seen.clear()
        options = {"window": plan.window, "batch_size": 2, "reduce": everything, "logits_gb": limit}
        np.testing.assert_array_equal(infer(net, image, **options), want)
        nums.add(sum(seen))
    assert min(nums) == plan.num_windows
    assert len(nums) >= 3  # some in two tiles, some in more


@settings(max_examples=60, deadline=None)
@given(cases)
def test_what_is_held_is_what_was_stated(case):
    space, window, overlap, batch_size = case
    for plan in thriftier(plan_windows(space, window, overlap=overlap, batch_size=batch_size)):
        if plan.is_plain:
            assert plan.num_held == 0
            continue
        held = []
        for tile in plan.tiles():
            blend = Blend(plan, tile, num_classes=3, device=CPU, put=lambda y, corner: None)
            held.append(blend.kept.nbytes + blend.band.nbytes)
        assert max(held) == 4 * 3 * plan.num_held
        largest = max(len(batch) for tile in plan.tiles() for batch in tile.batches)
        assert largest <= plan.batch_size


@pytest.mark.parametrize(
    ("edge", "overlap", "held_gb", "window_gb", "tiled_gb", "times"),
    [(96, 0.5, 2.36, 0.42, 1.63, 1.4), (128, 0.5, 3.40, 0.99, 2.79, 1.5)],
)
def test_a_scan_of_512_x_512_x_824_at_a_millimetre_and_a_half_needs_what_is_written(
    edge, overlap, held_gb, window_gb, tiled_gb, times
):
    plan = plan_windows((273, 273, 549), (edge,) * 3, overlap=overlap, batch_size=1)
    assert 472 * plan.num_held / 1e9 == pytest.approx(held_gb, abs=0.005)
    assert logits_bytes(plan, 118) / 1e9 == pytest.approx(held_gb + window_gb, abs=0.01)
    tiled = dataclasses.replace(plan, num_tiles=2)
    assert logits_bytes(tiled, 118) / 1e9 == pytest.approx(tiled_gb, abs=0.005)
    assert sum(len(b) for tile in tiled.tiles() for b in tile.batches) == pytest.approx(times * plan.num_windows)


def test_whole_planes_hold_nothing_and_planes_in_windows_less_than_a_plane():
    assert plan_windows((512, 512, 824), (512, 512, 1), overlap=0.5, batch_size=4).num_held == 0
    assert plan_windows((512, 512, 824), (256, 256, 1), overlap=0.5, batch_size=4).num_held == 256 * 512


MEASURE = """
import resource, sys
import numpy as np
import torch
from medseg_core.infer import infer
from medseg_core.windows import logits_bytes, plan_windows, thriftier

torch.set_num_threads(1)
space, window = (64, 64, 192), (32, 32, 32)
image = np.zeros((1, *space), np.float32)

def peak():
    kilo = 1 if sys.platform == "darwin" else 1024
    return kilo * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

def run(image, limit):
    many = lambda x: x.expand(-1, 118, *x.shape[2:]).contiguous()
    reduce = lambda y: y.max(0)[1].to(torch.uint8)
    infer(many, image, window=window, reduce=reduce, batch_size=1, logits_gb=limit)

run(image[:, :33, :33, :33], 1.0)
before = peak()
for limit in (1e-9, 1.0):
    run(image, limit)
    print(peak() - before)
"""


def test_the_process_grows_by_the_stated_memory_and_not_by_a_buffer_of_all_logits():
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    whole, *_, least = (
        logits_bytes(plan, 118)
        for plan in thriftier(plan_windows((64, 64, 192), (32, 32, 32), overlap=0.5, batch_size=1))
    )
    assert least < 0.7 * whole < 0.7 * 0.35 * 4 * 118 * 64 * 64 * 192
    for grown, stated in zip(done.stdout.split(), (least, whole), strict=True):
        assert int(grown) < 1.1 * stated + 40e6  # blocks for the arg-max, and what the allocator keeps


def sizes_of_batches(limit_bytes, *, space, window, **options):
    sizes = []

    def net(x):
        sizes.append(len(x))
        return many(x)

    infer(net, random_image(1, *space), window=window, reduce=argmax, logits_gb=limit_bytes / 1e9, **options)
    return sizes


def test_above_the_limit_batches_get_smaller_and_then_windows_are_computed_twice():
    options = {"space": (16, 16, 24), "window": (8, 8, 8), "batch_size": 4}
    window, held = 400 * 8**3, 400 * 16 * (4 * 16 + 4 * 8)  # 3 x 3 x 5 windows, half of each in common with the next
    assert sizes_of_batches(held + 4 * window, **options) == [1, *[4] * 11]
    assert sizes_of_batches(held + 4 * window - 1, **options) == [1, *[2] * 22]
    assert sizes_of_batches(held + window, **options) == [1] * 45
    tiles = sizes_of_batches(held + window - 1, **options)
    assert set(tiles) == {1}
    assert 45 < len(tiles) <= 90


def test_a_limit_below_the_least_possible_takes_the_least():
    options = {"space": (16, 16, 24), "window": (8, 8, 8), "batch_size": 4}
    assert len(sizes_of_batches(1, **options)) > 45


def test_too_little_memory_is_refused_after_one_window_and_the_advice_holds(monkeypatch):
    space, window, calls = (32, 32, 64), (16, 16, 16), []

    def net(x):
        calls.append(len(x))
        return many(x)

    monkeypatch.setattr(medseg_core.budget, "free_bytes", lambda device: 8e6)
    options = {"image": random_image(1, *space), "window": window, "reduce": argmax}
    with pytest.raises(MedsegError, match=r"logits of 100 classes need .* are free on cpu; lower logits_gb to") as told:
        infer(net, **options)
    assert calls == [1]
    advice = float(str(told.value).split("logits_gb to ")[1].split(",")[0])
    assert infer(net, **options, logits_gb=advice).shape == space


@pytest.mark.parametrize(
    ("space", "window", "free", "words"),
    [
        ((32, 32, 64), (16, 16, 16), 2.3e6, r"lower overlap \(now 0.5\) to 0.25 and logits_gb to 0.004.* 2 tiles"),
        ((16, 16, 96), (16, 16, 24), 0.6e6, r"lower window \(now \(16, 16, 24\)\) to \(16, 16, 12\) and logits_gb"),
        (
            (16, 16, 96),
            (16, 16, 24),
            0,
            r"0.00 GB are free on cpu; lower window \(now .*\), or take a machine",
        ),
    ],
)
def test_what_no_tiles_mend_names_overlap_or_window(monkeypatch, space, window, free, words):
    """Free is what was free after the first window, whose logits (1.6 and 2.5 MB) count as free too."""
    monkeypatch.setattr(medseg_core.budget, "free_bytes", lambda device: free)
    with pytest.raises(MedsegError, match=words):
        infer(many, random_image(1, *space), window=window, reduce=argmax, batch_size=1)


def test_an_answer_that_does_not_fit_is_refused(monkeypatch):
    monkeypatch.setattr(medseg_core.infer, "free_bytes", lambda device: 4 * 100 * 8 * 8 * 8 - 1)
    with pytest.raises(MedsegError, match=r"the answer of \(100, 8, 8, 8\) float32 needs .* let reduce give ids"):
        infer(many, random_image(1, 8, 8, 8), window=(4, 4, 4), reduce=everything)


def test_a_machine_that_runs_out_of_memory_is_told_in_one_line():
    too_large = lambda x: torch.empty(2**46)  # noqa: E731
    with pytest.raises(MedsegError, match=r"this machine ran out of memory; lower batch_size \(now 4\) or window"):
        infer(too_large, random_image(1, 4, 4), window=(4, 4), reduce=argmax)


def test_other_errors_of_a_net_are_its_own():
    with pytest.raises(RuntimeError, match="expected input"):
        infer(nn.Conv2d(7, 1, 1).eval(), random_image(1, 4, 4), window=(4, 4), reduce=argmax)


def test_free_memory_of_this_machine_is_known():
    assert 2**20 < free_bytes(CPU) < 2**60


@pytest.mark.parametrize(
    ("groups", "limits", "want"),
    [
        ("0::/\n", {}, 8000 * 1024),
        ("0::/a/b\n", {"a/b/memory.max": "max", "a/b/memory.current": "9"}, 8000 * 1024),
        ("0::/a/b\n", {"a/b/memory.max": "5000", "a/b/memory.current": "2000"}, 3000),
        ("0::/a/b\n", {"a/memory.max": "5000", "a/memory.current": "2000", "a/memory.stat": "inactive_file 500"}, 3500),
        ("0::/a\n", {"memory.max": "700", "memory.current": "1", "a/memory.max": "500", "a/memory.current": "9"}, 491),
        ("0::/a\n", {"a/memory.max": "5000", "a/memory.current": "6000"}, 0),
        (
            "3:cpu:/x\n2:memory:/host/x\n",
            {"memory/memory.limit_in_bytes": "900", "memory/memory.usage_in_bytes": "100"},
            800,
        ),
    ],
)
def test_free_memory_is_the_least_of_machine_and_control_groups(tmp_path, monkeypatch, groups, limits, want):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9000 kB\nMemAvailable: 8000 kB\n")
    (tmp_path / "proc/self/cgroup").write_text(groups)
    for name, text in limits.items():
        file = tmp_path / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    monkeypatch.setattr(medseg_core.memory, "ROOT", tmp_path)
    assert free_bytes(CPU) == want


def test_free_memory_is_infinite_where_the_system_does_not_say(tmp_path, monkeypatch):
    monkeypatch.setattr(medseg_core.memory, "ROOT", tmp_path)
    assert math.isinf(free_bytes(CPU))
