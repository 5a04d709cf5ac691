"""A page on which a person corrects what the loop asks for; on this machine alone, and only with the token.

GET /                   the page; its script reads the token behind # and sends it with everything
GET /api/state          round, pictures, classes
GET /api/image/X, heat/X     PNG
GET /api/mask/X         H x W bytes of ids, row by row: the mask that was saved, or the proposal; X-Version tells which
POST /api/mask/X        the same, into round_NN/labels/X.png; refused with 409 where X-Version is not that of now
"""

import hashlib
import hmac
import io
import json
import logging
import secrets
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import numpy as np
from PIL import Image

from medseg_core.errors import MedsegError
from medseg_core.io import read_picture
from medseg_sem_al.colours import UNSEEN
from medseg_sem_al.index import Index
from medseg_sem_al.panels import colours_of
from medseg_sem_al.proposals import write_indexed
from medseg_sem_al.returned import back_up, name_of, read_back, saved
from medseg_sem_al.rounds import REFUSED, SCORE, TAKEN, asked, homes, noted

PAGE = Path(__file__).parent / "page"
FILES = {
    "/": ("index.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"),
}
POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'"
LOCAL = "127.0.0.1"
ANY = "any"  # version that is never refused

log = logging.getLogger(__name__)


class RefusedError(Exception):
    """An answer that is not what was asked for."""

    def __init__(self, status: HTTPStatus, why: str) -> None:
        super().__init__(why)
        self.status = status


class Desk:
    """What lies there to be corrected, read from the loop's folder at every question.

    Args:
        index: that the loop chooses from.
        watch: the loop's folder.
    """

    def __init__(self, index: Index, watch: Path) -> None:
        self.index, self.watch, self.lock = index, watch, threading.Lock()
        self.cases = {case.id: case for case in index.cases}
        self.colours = colours_of(index.classes)

    def home(self) -> Path | None:
        """The folder of the round that waits for masks."""
        return next((home for home in homes(self.watch) if not (home / SCORE).is_file()), None)

    def state(self) -> dict[str, Any]:
        """Pictures of the round, and the classes."""
        home = self.home()
        taken, refused = (noted(home, name) if home else {} for name in (TAKEN, REFUSED))
        pictures = [
            {"name": name, "boxes": boxes, "taken": name in taken, "refused": refused.get(name, "")}
            for name, boxes in self._asked().items()
        ]
        why = noted(self.watch, "final_statistics.json").get("why")
        classes = zip(self.index.classes.names, self.colours, strict=True)
        return {
            "round": int(home.name[6:]) if home else None,
            "pictures": pictures,
            "classes": [{"id": k, "name": name, "colour": colour} for k, (name, colour) in enumerate(classes)],
            "ended": f"Ended: {why}" if why else "",
        }

    def image(self, name: str) -> bytes:
        """PNG of the picture without its banner."""
        grey = self.index.image(self.cases[self._known(name)])
        return _png(np.rint(255 * grey).astype(np.uint8))

    def heat(self, name: str) -> bytes:
        """PNG of where the network is unsure; black where nobody asked it."""
        file = (self.home() or self.watch) / "heat" / f"{self._known(name)}.png"
        size = self.cases[name].notes["size"]
        return file.read_bytes() if file.is_file() else _png(np.zeros(size, np.uint8))

    def mask(self, name: str) -> tuple[np.ndarray, str, str]:
        """(H, W) ids to go on from, their version, and why a mask that was saved is not what they are."""
        notes, files, why = self.cases[self._known(name)].notes, self._saved(name), ""
        boxes = self._asked()[name]
        for file in reversed(files):
            try:
                ids = read_back(file, notes["size"], self.colours, self.index.classes, boxes, banner=notes["banner"])
                return ids, self._version(files), why
            except MedsegError as error:
                why = str(error)
        proposal = self.home() / "proposals" / f"{name}.png"
        blank = np.full(notes["size"], UNSEEN, np.uint8)
        return read_picture(proposal).pixels if proposal.is_file() else blank, self._version(files), why

    def _saved(self, name: str) -> list[Path]:
        """Files that somebody saved of a picture, the newest last."""
        files = [file for file in saved(self.home() / "labels") if name_of(file) == name]
        return sorted(files, key=lambda file: file.stat().st_mtime_ns)

    def _version(self, files: Sequence[Path]) -> str:
        parts = b"".join(bytes(str(file), "utf-8") + file.read_bytes() for file in sorted(files))
        return hashlib.sha256(parts).hexdigest()

    def save(self, name: str, content: bytes, version: str) -> str:
        """Writes a mask, unless somebody else did since that version; returns the new one."""
        size = self.cases[self._known(name)].notes["size"]
        ids = np.frombuffer(content, np.uint8)
        known = (ids < len(self.colours)) | (ids == UNSEEN)
        if ids.size != size[0] * size[1] or not known.all():
            raise RefusedError(HTTPStatus.BAD_REQUEST, f"{name} is {size[1]}x{size[0]}, and what came is no mask of it")
        with self.lock:
            files, place = self._saved(name), self.home() / "labels" / f"{name}.png"
            if version not in (ANY, self._version(files)):
                raise RefusedError(HTTPStatus.CONFLICT, f"Somebody saved {name} since you opened it.")
            for file in files:
                back_up(file, self.watch)
            write_indexed(ids.reshape(size), self.colours, place)
            for file in files:
                if file != place:
                    file.unlink(missing_ok=True)
            return self._version(self._saved(name))

    def _asked(self) -> dict[str, list[list[int]]]:
        home = self.home()
        return asked(home) if home else {}

    def _known(self, name: str) -> str:
        if name not in self._asked() or name not in self.cases:
            raise RefusedError(HTTPStatus.NOT_FOUND, f"{name} is not asked for in this round; load the page again")
        return name


class Handler(BaseHTTPRequestHandler):
    """Answers of a `Desk`; nothing but the page itself without the token, nothing to another host or origin."""

    desk: Desk
    token: str
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(self._got)

    def do_POST(self) -> None:
        self._answer(self._posted)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        log.debug(format, *args)

    def _answer(self, work: Any) -> None:
        try:
            self._check()
            content, kind, headers = work(urlsplit(self.path).path)
            self._send(HTTPStatus.OK, content, kind, headers)
        except RefusedError as error:
            self._send(error.status, f"{error}\n".encode(), "text/plain", {})
        except (MedsegError, OSError) as error:
            self._send(HTTPStatus.INTERNAL_SERVER_ERROR, f"{error}\n".encode(), "text/plain", {})

    def _check(self) -> None:
        home = f"{LOCAL}:{self.server.server_address[1]}"
        if self.headers.get("Host") != home or self.headers.get("Origin", f"http://{home}") != f"http://{home}":
            raise RefusedError(HTTPStatus.FORBIDDEN, f"this page is at http://{home} alone")
        if self.path not in FILES and not self._has_token():
            raise RefusedError(HTTPStatus.FORBIDDEN, "open the address that the loop printed; it holds the token")

    def _has_token(self) -> bool:
        given = self.headers.get("X-Token", "").encode("latin-1", "replace")
        return hmac.compare_digest(given, self.token.encode())

    def _got(self, path: str) -> tuple[bytes, str, Mapping[str, str]]:
        if path in FILES:
            name, kind = FILES[path]
            return (PAGE / name).read_bytes(), f"{kind}; charset=utf-8", {}
        if path == "/api/state":
            return json.dumps(self.desk.state()).encode(), "application/json", {}
        word, name = self._parts(path)
        if word == "mask":
            ids, version, why = self.desk.mask(name)
            return ids.tobytes(), "application/octet-stream", {"X-Version": version, "X-Why": quote(why)}
        if word in ("image", "heat"):
            return getattr(self.desk, word)(name), "image/png", {}
        raise RefusedError(HTTPStatus.NOT_FOUND, "there is nothing")

    def _posted(self, path: str) -> tuple[bytes, str, Mapping[str, str]]:
        word, name = self._parts(path)
        if word != "mask":
            raise RefusedError(HTTPStatus.NOT_FOUND, "there is nothing")
        length, most = self.headers.get("Content-Length", ""), self._most(name)
        if not length.isdecimal() or int(length) > most:
            self.close_connection = True
            raise RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"{name} has {most} pixels")
        version = self.desk.save(name, self.rfile.read(int(length)), self.headers.get("X-Version", ""))
        return b"", "text/plain", {"X-Version": version}

    def _most(self, name: str) -> int:
        return int(np.prod(self.desk.cases[name].notes["size"])) if name in self.desk.cases else 0

    def _parts(self, path: str) -> tuple[str, str]:
        parts = path.split("/")
        if len(parts) != 4 or parts[1] != "api":
            raise RefusedError(HTTPStatus.NOT_FOUND, "there is nothing")
        return parts[2], unquote(parts[3])

    def _send(self, status: HTTPStatus, content: bytes, kind: str, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        about = {"Content-Type": kind, "Content-Length": str(len(content)), "Cache-Control": "no-store"}
        about |= {
            "Content-Security-Policy": POLICY,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
        }
        for name, value in {**about, **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def served(index: Index, watch: Path, *, port: int = 0) -> Iterator[str]:
    """The address of the page, as long as the block lasts.

    Args:
        port: 0 takes one that is free.

    Raises:
        MedsegError: a port in use.
    """
    token = secrets.token_urlsafe(24)
    handler = type("Handler", (Handler,), {"desk": Desk(index, watch), "token": token})
    try:
        server = ThreadingHTTPServer((LOCAL, port), handler)
    except OSError as error:
        raise MedsegError(
            f"port {port} cannot be had ({error.strerror}); choose another --port, or leave it out"
        ) from None
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://{LOCAL}:{server.server_address[1]}/#{token}"
    finally:
        server.shutdown()
        server.server_close()


def _png(pixels: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()
