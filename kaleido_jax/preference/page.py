"""A page on which a person judges preference pairs, served to this computer alone.

Sides are swapped by chance, the same way each time for a person and a pair, so that favouring a side favours no clip.
Votes are kept one by one; closing the page or stopping the server loses none.
"""

import hashlib
import json
import secrets
import string
import threading
from collections.abc import Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from kaleido_jax.errors import UsageError, printable
from kaleido_jax.preference.files import CHOICES, SIDES, TRACKS, VOTES, Pair, Vote, append, read_pairs, read_votes

HOST = "127.0.0.1"
MOST_BYTES = 10_000  # of a vote
QUESTIONS = {
    "identity": "Which clip keeps the identity of the pictures and clips above better, also in how it moves?",
    "control": "Which clip fits the prompt better, and keeps all that it does not name as in the picture above?",
}
_KINDS = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}
_KINDS |= {".mp4": "video/mp4", ".webm": "video/webm", ".mkv": "video/x-matroska"}


class Annotation:
    """What one person has still to judge in a folder of pairs.

    by: the person's name, which stands in each vote. tracks: that are judged, one after the other for all pairs.
    """

    def __init__(self, folder: str | Path, by: str, tracks: Sequence[str] = TRACKS) -> None:
        if not by.strip() or not by.isprintable() or len(by) > 60:
            raise UsageError(f"The name is {printable(repr(by), 60)}; give one that can stand in a file, such as anna.")
        self.folder, self.by, self.tracks = Path(folder), by, tuple(tracks)
        self.pairs = read_pairs(folder)
        votes = read_votes(folder, self.pairs)
        self.given = {(vote.pair, vote.track) for vote in votes if vote.by == by}
        self.files = {file for pair in self.pairs.values() for file in pair.files}
        self._lock = threading.Lock()

    def waiting(self) -> list[tuple[Pair, str]]:
        return [(p, track) for track in self.tracks for p in self.pairs.values() if (p.id, track) not in self.given]

    def next(self) -> dict[str, Any]:
        """What the page shows next; `pair` is "" when all is judged."""
        waiting = self.waiting()
        common = {"left": len(waiting), "given": len(self.given)}
        if not waiting:
            return common | {"pair": ""}
        pair, track = waiting[0]
        sides = SIDES if hashlib.sha256(f"{self.by} {pair.id} {track}".encode()).digest()[0] % 2 else SIDES[::-1]
        return common | {
            "pair": pair.id,
            "track": track,
            "question": QUESTIONS[track],
            "prompt": pair.prompt if track == "control" else "",
            "shown": list(pair.group if track == "identity" else pair.references[:1]),
            "sides": list(sides),
            "clips": [getattr(pair, side) for side in sides],
        }

    def vote(self, pair: Any, track: Any, choice: Any) -> str:
        """Keeps a vote; returns what is wrong with it, or ""."""
        with self._lock:
            if pair not in self.pairs or track not in self.tracks or choice not in CHOICES:
                return "There is no such pair, track or choice."
            if (pair, track) in self.given:
                return "That pair is judged already."
            append(self.folder, VOTES, Vote(pair=pair, track=track, choice=choice, by=self.by))
            self.given.add((pair, track))
        return ""


def make_server(annotation: Annotation, port: int = 0) -> ThreadingHTTPServer:
    """The page's server on the loopback interface; port 0 takes a free one. Raises UsageError for one that is taken."""
    token = secrets.token_urlsafe(16)
    text = (resources.files("kaleido_jax.preference") / "page.html").read_text(encoding="utf-8")
    page = string.Template(text).safe_substitute(token=token)

    class Handler(BaseHTTPRequestHandler):
        server_version, sys_version = "kaleido", ""

        def do_GET(self) -> None:
            if not self._is_ours():
                return
            path = unquote(self.path.split("?")[0].lstrip("/"))
            if path == "":
                self._send(page.encode(), "text/html; charset=utf-8")
            elif path == "next":
                self._send(json.dumps(annotation.next()).encode(), "application/json")
            elif path.startswith("files/") and path.removeprefix("files/") in annotation.files:
                self._file(annotation.folder / path.removeprefix("files/"))
            else:
                self._refuse(HTTPStatus.NOT_FOUND, "There is no such page.")

        def do_POST(self) -> None:
            if not self._is_ours():
                return
            if self.path != "/vote" or not secrets.compare_digest(self.headers.get("X-Token", ""), token):
                self._refuse(HTTPStatus.FORBIDDEN, "Votes come from the page alone; load it anew.")
                return
            try:
                length = int(self.headers.get("Content-Length", ""))
                document = json.loads(self.rfile.read(min(length, MOST_BYTES)))
                wrong = annotation.vote(*(document[name] for name in ("pair", "track", "choice")))
            except (ValueError, KeyError, TypeError, RecursionError):
                wrong = "That is no vote."
            if wrong:
                self._refuse(HTTPStatus.BAD_REQUEST, wrong)
            else:
                self._send(b"{}", "application/json")

        def _is_ours(self) -> bool:
            """Whether the page's own address was asked for; another name for it would be some other site's."""
            if self.headers.get("Host") in (f"{name}:{self.server.server_address[1]}" for name in (HOST, "localhost")):
                return True
            self._refuse(HTTPStatus.FORBIDDEN, "This page is for this computer alone.")
            return False

        def _file(self, path: Path) -> None:
            try:
                data = path.read_bytes()
            except OSError:
                self._refuse(HTTPStatus.NOT_FOUND, "The file is not there any more.")
                return
            self._send(data, _KINDS.get(path.suffix.lower(), "application/octet-stream"))

        def _refuse(self, status: HTTPStatus, text: str) -> None:
            self._send(text.encode(), "text/plain; charset=utf-8", status)

        def _send(self, data: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("X-Content-Type-Options", "nosniff")
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing: the terminal is not where one looks."""

    try:
        return ThreadingHTTPServer((HOST, port), Handler)
    except (OSError, OverflowError) as error:
        raise UsageError(f"The port is {port}, which cannot be used ({error}); choose another with --port.") from None
