"""`kaleido describe`, and `kaleido generate` with scenes and describers: what is said before a model is loaded."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from kaleido_jax.pipeline.pipeline import Pipeline


@pytest.fixture
def endpoint(monkeypatch, tmp_path):
    """A describer that sees what its questions hold: pictures are counted, and each kind has one answer."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            parts = body["messages"][0]["content"]
            asked = parts[-1]["text"]
            made.asked.append(sum(part["type"] == "image_url" for part in parts))
            if "two prompts" in asked:
                answer = {"first_frame": "a grey thing", "later_frames": "the grey thing runs"}
            elif "Name only the elements that differ" in asked:
                answer = {"action": "runs"}
            elif "How alike" in asked:
                answer = {"similarity": 0.0 if "the action of a subject" in asked else 1.0}
            else:
                answer = {name: f"some {name}" for name in ("camera shot", "surface", "parts", "state")}
                answer |= {name: f"some {name}" for name in ("orientation", "action", "background")}
            self.send_response(200)
            self.end_headers()
            text = json.dumps({"choices": [{"message": {"content": json.dumps(answer)}}]})
            self.wfile.write(text.encode())

        def log_message(self, *args):
            pass

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = HTTPServer(("127.0.0.1", 0), Handler)
    made.asked = []
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


@pytest.fixture
def describe(kaleido, endpoint, folder):
    address = f"http://127.0.0.1:{endpoint.server_port}/v1"
    return lambda *words: kaleido("describe", *words, "--describer", address, "--describer-model", "m")


def test_a_differential_prompt_in_two_stages(describe, endpoint):
    """Both pictures are described, each of seven elements is compared, and what is answered is not asked again."""
    given = ("cat.png", "dog.jpg", "--elements", "object")
    assert describe(*given) == (0, "the subject some action\n", "")
    assert endpoint.asked == [1, 1] + [0] * 7
    assert describe(*given, "--json")[1] == '{"action": "some action"}\n'
    assert len(endpoint.asked) == 9


def test_one_call_and_the_two_prompts(describe, endpoint):
    assert describe("cat.png", "dog.jpg", "--one-call")[1] == "the subject runs\n"
    assert describe("cat.png", "--prompt", "it runs")[1] == "the subject runs\n"
    assert endpoint.asked == [2, 1]
    said = describe("cat.png", "--prompt", "it runs", "--two-prompts")
    assert said == (0, "a grey thing || the grey thing runs\n", "")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("cat.png",), "Give either TARGET"),
        (("cat.png", "dog.jpg", "--two-prompts"), "--two-prompts are written of --prompt"),
        (("cat.png", "dog.jpg", "--one-call", "--gamma", "0.5"), "--gamma belongs to the two stages"),
        (("cat.png", "dog.jpg", "--gamma", "2"), "gamma is 2"),
        (("cat.png", "dog.jpg", "--elements", "portrat"), "did you mean 'portrait'"),
        (("missing.png", "dog.jpg"), "missing.png"),
    ],
)
def test_what_cannot_be_described(describe, words, sentence):
    code, _, err = describe(*words)
    assert code in (2, 65) and sentence in err


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (("--scene", "s.yaml"), 2, "tiny is a model of kaleido; only lct makes scenes of shots"),
        (("--scene", "s.yaml", "--prompt", "a cat"), 2, "leave out --prompt and --reference"),
        (("--scene", "s.yaml", "--sampling", "joint"), 2, "s.yaml: Shot 2 says which shot it comes after"),
        (("--scene", "missing.yaml"), 65, "missing.yaml"),
        (("--prompt", "a || b", "--sampling", "joint"), 2, "give --scene FILE"),
        (
            ("--reference", "cat.png", "--prompt", "a cat", "--describer", "http://localhost:1/v1"),
            2,
            "tiny is a model of kaleido, which takes prompts as they are",
        ),
    ],
)
def test_scenes_and_describers_that_do_not_fit(kaleido, folder, model, monkeypatch, words, code, sentence):
    def load(*args, **kwargs):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(Pipeline, "load", load)
    (folder / "s.yaml").write_text("shots:\n- a cat\n- {prompt: a dog, condition_on: [1]}\n")
    found, _, err = kaleido("generate", "--model", model, *words)
    assert found == code and sentence in err
