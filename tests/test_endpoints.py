"""Asking a model behind an endpoint, against a server that fails in every way that servers do."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest

from kaleido_jax.endpoints import Endpoint, parsed_json
from kaleido_jax.errors import InputError, UsageError


def said(text):
    return json.dumps({"choices": [{"message": {"content": text}}]})


@pytest.fixture
def server():
    """Gives the replies (status, body, headers) in turn; None closes the connection. Remembers what was asked."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            made.asked.append((self.path, dict(self.headers), body))
            reply = made.replies.pop(0)
            if reply == "slow":
                made.awake.wait(5.0)
            if reply is None or reply == "slow":
                self.close_connection = True
                return
            status, text, *headers = reply
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *args):
            pass

    made = HTTPServer(("127.0.0.1", 0), Handler)
    made.asked, made.replies, made.awake = [], [], threading.Event()
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


@pytest.fixture
def slept():
    return []


@pytest.fixture
def endpoint(server, slept, tmp_path):
    url = f"http://127.0.0.1:{server.server_port}/v1"
    return Endpoint(url=url, model="m", key="secret", timeout=5.0, cache=tmp_path / "c", sleep=slept.append)


def number(text):
    if not text.isdigit():
        raise InputError(f"{text} is no number.")
    return int(text)


def test_a_question_with_a_picture_and_its_kept_answer(server, endpoint, tmp_path):
    server.replies = [(200, said("3"))]
    question = ["how many?", np.zeros((2, 3, 3), np.uint8)]
    assert endpoint.ask(question, number) == 3
    path, headers, body = server.asked[0]
    assert path == "/v1/chat/completions" and headers["Authorization"] == "Bearer secret"
    text, picture = body["messages"][0]["content"]
    assert text == {"type": "text", "text": "how many?"}
    assert picture["image_url"]["url"].startswith("data:image/png;base64,")
    assert endpoint.ask(question, number) == 3 and len(server.asked) == 1
    assert "secret" not in repr(endpoint) + "".join(file.read_text() for file in (tmp_path / "c").iterdir())


def test_what_fails_for_a_while_is_asked_again_and_waits_longer(server, endpoint, slept):
    busy = (429, "busy", ("Retry-After", "7"))
    server.replies = [(503, "down"), busy, None, (200, said("4"))]
    assert endpoint.ask(["q"], number) == 4
    assert slept == [1.0, 7.0, 14.0]


def test_nonsense_is_told_to_the_model_and_is_not_kept(server, endpoint):
    server.replies = [(200, said("four")), (200, said("4"))]
    assert endpoint.ask(["q"], number) == 4
    roles = [message["role"] for message in server.asked[1][2]["messages"]]
    assert roles == ["user", "assistant", "user"]
    assert "four is no number" in server.asked[1][2]["messages"][2]["content"]
    server.replies = [(200, said("x"))] * 4
    with pytest.raises(InputError, match=r"no usable answer in 4 attempts .*x is no number\). What it answered before"):
        endpoint.ask(["another"], number)
    server.replies = [(200, said("5"))]
    assert endpoint.ask(["another"], number) == 5


def test_a_server_that_never_answers(server, tmp_path):
    url = f"http://127.0.0.1:{server.server_port}/v1"
    server.replies = [(200, "{}"), (200, "not json")]
    with pytest.raises(InputError, match="its answer is no chat completion"):
        Endpoint(url=url, model="m", attempts=2, sleep=lambda s: None).ask(["q"], number)
    server.replies = ["slow"]
    with pytest.raises(InputError, match=r"no answer within 0\.1 s"):
        Endpoint(url=url, model="m", attempts=1, timeout=0.1).ask(["q"], number)
    server.awake.set()
    silent = Endpoint(url="http://127.0.0.1:1/v1", model="m", attempts=1)
    with pytest.raises(InputError, match="cannot be reached"):
        silent.ask(["q"], number)


def test_what_will_not_get_better_is_not_asked_again(server, endpoint):
    server.replies = [(401, "wrong key")]
    with pytest.raises(InputError, match="status 401: wrong key"):
        endpoint.ask(["q"], number)
    server.replies = [(302, "", ("Location", "http://127.0.0.1:1/"))]
    with pytest.raises(InputError, match="status 302"):
        endpoint.ask(["q"], number)


@pytest.mark.parametrize(
    ("fields", "words"),
    [({"url": "file:///etc/passwd"}, "must begin with http"), ({"attempts": 0}, "attempts is 0")],
)
def test_endpoints_that_cannot_be(fields, words):
    with pytest.raises(UsageError, match=words):
        Endpoint(**{"url": "http://a/v1", "model": "m", **fields})


def test_json_in_an_answer():
    assert parsed_json('Here: ```json\n{"a": [1]}\n```') == {"a": [1]}
    assert parsed_json("[1, 2]") == [1, 2]
    with pytest.raises(InputError, match="holds no JSON"):
        parsed_json("I see a cat {")
