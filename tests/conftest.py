"""What all tests share: where the real data is, which device, how many threads."""

import inspect
import os
import shutil
from pathlib import Path

import hypothesis
import pytest

# before torch and numba are imported; also for the processes that tests start
os.environ.setdefault("OMP_NUM_THREADS", str(min(2, os.cpu_count() or 1)))
os.environ.setdefault("MPLBACKEND", "agg")

# a deadline fails at random on a busy machine, and a random example fails somebody else's change
hypothesis.settings.register_profile("medseg", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("medseg")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    sources: dict[Path, str] = {}
    for item in items:
        if item.path not in sources:
            sources[item.path] = inspect.getsource(item.module)
        if "importorskip" in sources[item.path]:
            item.add_marker("peer")


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real scans, $MEDSEG_TEST_DATA."""
    folder = os.environ.get("MEDSEG_TEST_DATA")
    if not folder:
        pytest.skip("needs real scans: $MEDSEG_TEST_DATA names no folder")
    return Path(folder)


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own in which the test works."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def device() -> str:
    """Where tensors live, $MEDSEG_TEST_DEVICE."""
    return os.environ.get("MEDSEG_TEST_DEVICE", "cpu")


@pytest.fixture(scope="session")
def uv() -> str:
    """The uv that hatch uses, to build and install as users do."""
    return os.environ.get("HATCH_UV") or shutil.which("uv") or pytest.skip("needs uv")


@pytest.fixture(scope="session")
def chromium():
    """A headless browser."""
    playwright = pytest.importorskip("playwright.sync_api")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not program:
        pytest.skip("needs chromium")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=program, args=[*flags, "--enable-unsafe-swiftshader"])
        yield browser
        browser.close()
