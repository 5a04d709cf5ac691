"""What must not happen with files and names of strangers: code that runs, programs that call out.

That no pickle is opened stands in test_house.py and core/test_foreign.py, that pages and surfaces print every name as
text in core/test_report.py and core/test_scene.py.
"""

import ast
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "packages").glob("*/src/*/**/*.py"))
WRITTEN = [*SOURCES, *sorted((ROOT / "benchmarks").rglob("*.py"))]
CLIENTS = {"aiohttp", "ftplib", "httpx", "requests", "smtplib", "telnetlib", "urllib3", "webbrowser", "xmlrpc"}
CLIENTS |= {"http.client", "urllib.request", "huggingface_hub", "torch.hub"}
RUNNERS = {"eval", "exec", "os.popen", "os.system", "runpy.run_path", "subprocess.getoutput", "yaml.load"}
WATCH = """
import os, sys


def watch(event, arguments):
    if event in ("socket.connect", "socket.sendto"):
        where = arguments[1]
        near = not isinstance(where, tuple) or str(where[0]).startswith(("127.", "::1", "localhost"))
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        where = arguments[0]
        near = where in (None, "", "localhost", "127.0.0.1", "::1", os.uname().nodename)
    else:
        return
    if not near:
        with open(os.environ["WATCHED"], "a") as file:
            print(event, where, sys.argv, file=file)
        raise OSError("there is no network here")


sys.addaudithook(watch)
"""


def dangers(tree: ast.Module) -> Iterator[str]:
    """What in a source can run text as code, unpack over other files, or call out."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in CLIENTS)
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from ({node.module, *(f"{node.module}.{alias.name}" for alias in node.names)} & CLIENTS)
        if not isinstance(node, ast.Call):
            continue
        called, given = ast.unparse(node.func), {key.arg: ast.unparse(key.value) for key in node.keywords}
        if called in RUNNERS or called.endswith((".extractall", ".extract")):
            yield called
        if given.get("shell", "False") != "False" or given.get("trust_remote_code", "False") != "False":
            yield f"{called} with shell or trust_remote_code"
        if called in ("np.load", "numpy.load") and given.get("allow_pickle") != "False":
            yield f"{called} that may unpickle"
        if called in ("Environment", "jinja2.Environment") and given.get("autoescape") != "True":
            yield f"{called} that does not escape"


@pytest.mark.parametrize(
    "code",
    [
        "eval(text)",
        "exec(text)",
        "os.system(line)",
        "subprocess.run(line, shell=True)",
        "subprocess.Popen(line, shell=how)",
        "yaml.load(file)",
        "np.load(file)",
        "np.load(file, allow_pickle=True)",
        "archive.extractall(folder)",
        "Environment()",
        "import requests",
        "from urllib.request import urlopen",
        "from urllib import request",
        "from torch import hub",
    ],
)
def test_the_scan_finds_what_it_looks_for(code):
    assert list(dangers(ast.parse(code)))


def test_no_source_runs_text_unpacks_archives_or_calls_out():
    assert len(SOURCES) > 50
    found = {str(path.relative_to(ROOT)): list(dangers(ast.parse(path.read_text()))) for path in WRITTEN}
    allowed = {"benchmarks": ["np.load that may unpickle", "runpy.run_path"]}  # of files that they wrote themselves
    assert not {
        path: wrong for path, all_ in found.items() if (wrong := set(all_) - set(allowed.get(path.split("/")[0], ())))
    }


@pytest.fixture
def watched(tmp_path):
    """Runs Python where every connection beyond this machine is written down and fails, in all its processes."""
    (tmp_path / "watch").mkdir()
    (tmp_path / "watch" / "sitecustomize.py").write_text(WATCH)
    log = tmp_path / "connections.txt"

    def run(*command):
        paths = os.pathsep.join([str(tmp_path / "watch"), *filter(None, [os.environ.get("PYTHONPATH")])])
        place = os.environ | {"PYTHONPATH": paths, "WATCHED": str(log)}
        done = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, env=place, capture_output=True, text=True, check=False
        )
        return done, log.read_text() if log.exists() else ""

    return run


@pytest.mark.parametrize(
    "code",
    [
        "import socket; socket.create_connection(('192.0.2.1', 80), timeout=1)",
        "import urllib.request; urllib.request.urlopen('http://example.invalid')",
        "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 53))",
        "import multiprocessing as m, socket as s; m.get_context('spawn').Pool(1).apply(s.gethostbyname, ['a.test'])",
    ],
)
def test_the_watch_sees_who_calls_out(watched, code):
    done, log = watched("-c", f"if __name__ == '__main__':\n    {code}")
    assert done.returncode
    assert "socket." in log


def test_the_watch_lets_processes_of_this_machine_talk(watched):
    with socket.create_server(("127.0.0.1", 0)) as server:
        code = f"import socket; socket.create_connection(('127.0.0.1', {server.getsockname()[1]}))"
        done, log = watched("-c", code)
    assert (done.returncode, log) == (0, "")


def medseg(*words):
    return "-c", "from medseg_core.cli import app; app()", *map(str, words)


@pytest.mark.parametrize("verb", ["evaluate", "info", "checkpoint"])
def test_a_command_on_files_calls_nobody(watched, tmp_path, verb):
    import numpy as np
    import torch

    from medseg_core.checkpoint import Card, save_model
    from medseg_core.io import write_volume
    from medseg_core.volume import Volume

    label = np.zeros((9, 8, 7), np.uint8)
    label[2:6, 2:6, 2:6] = 1
    for folder in ("ours", "ref"):
        write_volume(Volume(label, np.eye(4)), tmp_path / folder / "a.nii.gz")
    save_model(tmp_path / "w.safetensors", torch.nn.Linear(1, 1), Card(package="none", version="0", model="line"))
    words = {
        "evaluate": ("ours", "ref", "--out", "scores"),
        "info": ("ref/a.nii.gz",),
        "checkpoint": ("show", "w.safetensors"),
    }
    done, log = watched(*medseg(verb, *words[verb]))
    assert done.returncode == 0, done.stderr
    assert log == ""


@pytest.mark.slow
def test_a_whole_study_calls_nobody(watched, tmp_path):
    done, log = watched(*medseg("totalseg", "demo", "--quick", "--out", "demo"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "demo" / "report.html").is_file()
    assert log == ""
