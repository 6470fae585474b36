"""The one client of models behind an OpenAI-compatible endpoint: ask, check, try again, remember.

An answer counts only when its caller's check accepts it; what is wrong with it is told to the model, which is asked
again. Accepted answers are kept on disk, so that work which was stopped goes on without asking twice.
"""

import base64
import dataclasses
import hashlib
import http.client
import io
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
from PIL import Image

from kaleido_jax.errors import InputError, StorageError, UsageError, printable
from kaleido_jax.typing import UInt8

T = TypeVar("T")
# What is asked: texts and pictures, in order.
Question: TypeAlias = Sequence[str | UInt8[np.ndarray, "_ _ 3"]]

MOST_BYTES = 4_000_000  # of an answer
LONGEST_WAIT = 60.0  # seconds that a server may ask us to wait
_TEMPORARY = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another host."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirects)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A model behind an endpoint.

    url: up to the version, such as http://localhost:8000/v1. key: sent as a bearer token and kept nowhere.
    timeout: seconds for one answer. attempts: questions in all before giving up. wait: seconds before the second
    attempt, twice as many before each later one. cache: a folder for accepted answers; None: nothing is kept.
    """

    url: str
    model: str
    key: str = dataclasses.field(default="", repr=False)
    timeout: float = 120.0
    attempts: int = 4
    wait: float = 1.0
    cache: Path | None = None
    sleep: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        if urllib.parse.urlsplit(self.url).scheme not in ("http", "https"):
            raise UsageError(f"The endpoint is {printable(self.url)!r}; it must begin with http:// or https://.")
        if self.attempts < 1 or not self.timeout > 0:
            raise UsageError(f"attempts is {self.attempts} and timeout {self.timeout}; both must be above 0.")

    def ask(self, question: Question, check: Callable[[str], T], *, tokens: int = 1024) -> T:
        """What `check` makes of the answer.

        Args:
          check: raises InputError for an answer that cannot be used; the model is then asked again, with that sentence.
          tokens: the answer's longest length.

        Raises:
          InputError: no usable answer after all attempts, or the endpoint refuses the question.
          StorageError: an answer cannot be kept.
        """
        first = {"role": "user", "content": [_part(part) for part in question]}
        request = {"model": self.model, "messages": [first], "temperature": 0.0, "max_tokens": tokens}
        kept = self._file(request)
        if kept is not None and kept.is_file():
            try:
                return check(json.loads(kept.read_text(encoding="utf-8"))["answer"])
            except (OSError, ValueError, KeyError, TypeError):  # also what the check refuses: it has become stricter
                pass
        reason, wait = "", self.wait
        messages = [first]
        for attempt in range(self.attempts):
            if attempt:
                self.sleep(wait)
                wait = 2 * wait
            try:
                answer = self._answer(request | {"messages": messages})
            except _Temporary as error:
                reason, wait = str(error), max(wait, error.seconds)
                continue
            try:
                result = check(answer)
            except InputError as error:
                reason = f"its answer was {printable(answer, 60)!r}: {error}"
                complaint = f"That cannot be used. {error} Answer again."
                messages = [first, {"role": "assistant", "content": answer}, {"role": "user", "content": complaint}]
                continue
            if kept is not None:
                _keep(kept, {"model": self.model, "answer": answer})
            return result
        raise InputError(
            f"The endpoint {printable(self.url)} gave no usable answer in {self.attempts} attempts "
            f"({reason.rstrip('.')}). "
            "What it answered before is kept; run the same command again to go on."
        )

    def _file(self, request: Mapping[str, Any]) -> Path | None:
        if self.cache is None:
            return None
        text = json.dumps([self.url, request], sort_keys=True)
        return self.cache / f"{hashlib.sha256(text.encode()).hexdigest()}.json"

    def _answer(self, request: Mapping[str, Any]) -> str:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        url = f"{self.url.rstrip('/')}/chat/completions"
        asked = urllib.request.Request(url, json.dumps(request).encode(), headers, method="POST")
        try:
            with _OPENER.open(asked, timeout=self.timeout) as reply:
                body = reply.read(MOST_BYTES + 1)
        except urllib.error.HTTPError as error:
            with error:
                said = printable(error.read(300).decode("utf-8", "replace"), 200)
            if error.code in _TEMPORARY:
                raise _Temporary(f"status {error.code}: {said}", _seconds(error.headers.get("Retry-After"))) from None
            raise InputError(f"The endpoint {printable(self.url)} answered with status {error.code}: {said}.") from None
        except TimeoutError:
            raise _Temporary(f"no answer within {self.timeout:g} s") from None
        except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError):
                raise _Temporary(f"no answer within {self.timeout:g} s") from None
            raise _Temporary(f"it cannot be reached: {printable(str(reason), 100)}") from None
        if len(body) > MOST_BYTES:
            raise _Temporary(f"its answer has more than {MOST_BYTES} bytes")
        try:
            answer = json.loads(body)["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError, RecursionError):
            raise _Temporary("its answer is no chat completion") from None
        if not isinstance(answer, str):
            raise _Temporary("its answer holds no text")
        return answer


class _Temporary(Exception):
    """Something that may be over at the next attempt, and how many seconds the server asks to wait."""

    def __init__(self, reason: str, seconds: float = 0.0) -> None:
        super().__init__(reason)
        self.seconds = seconds


def _seconds(header: str | None) -> float:
    try:
        return min(LONGEST_WAIT, max(0.0, float(header or 0.0)))
    except ValueError:  # a date
        return 0.0


def _part(part: str | np.ndarray) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    buffer = io.BytesIO()
    Image.fromarray(part).save(buffer, format="PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


def _keep(path: Path, document: Mapping[str, Any]) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise StorageError(f"An answer cannot be kept in {printable(str(path.parent))}: {error.strerror}.") from error


def parsed_json(answer: str) -> Any:
    """The JSON of an answer, which may stand in a fenced block or in a sentence. Raises InputError if there is none."""
    text = answer.strip()
    for opening, closing in (("{", "}"), ("[", "]")):
        start, end = text.find(opening), text.rfind(closing)
        if 0 <= start < end:
            try:
                return json.loads(text[start : end + 1])
            except (ValueError, RecursionError):
                continue
    raise InputError(f"The answer {printable(answer, 60)!r} holds no JSON.")
