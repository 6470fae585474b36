"""The page on which pairs are judged: what it shows for each track, what it keeps, and whom it answers."""

import json
import re
import threading
import urllib.error
import urllib.request

import pytest

from kaleido_jax.errors import UsageError
from kaleido_jax.preference.files import PAIRS, Pair, append, read_pairs, read_votes
from kaleido_jax.preference.page import Annotation, make_server


@pytest.fixture
def folder(tmp_path):
    for name in "01":
        files = {"references": (f"{name}r.png", "s.png"), "group": ("g.mp4",), "a": f"{name}a.mp4", "b": f"{name}b.mp4"}
        append(tmp_path, PAIRS, Pair(id=name, prompt=f"it runs {name}", latents="x.npz", seeds=(0, 1), **files))
    (tmp_path / "0a.mp4").write_bytes(b"clip")
    (tmp_path / "secret.txt").write_text("secret")
    return tmp_path


@pytest.fixture
def ask(folder):
    server = make_server(Annotation(folder, "anna"))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()

    def ask(path, document=None, **headers):
        data = None if document is None else json.dumps(document).encode()
        url = f"http://127.0.0.1:{server.server_address[1]}/{path}"
        try:
            with urllib.request.urlopen(urllib.request.Request(url, data, headers)) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    yield ask
    server.shutdown()
    thread.join()
    server.server_close()


def test_judging_all_pairs(ask, folder):
    token = re.search(r'const token = "([^"]+)"', ask("")[1])[1]
    seen = []
    while (shown := json.loads(ask("next")[1]))["pair"]:
        seen.append(shown)
        assert sorted(shown["clips"]) == [f"{shown['pair']}a.mp4", f"{shown['pair']}b.mp4"]
        assert [shown["clips"][i].endswith(f"{side}.mp4") for i, side in enumerate(shown["sides"])] == [True, True]
        vote = {"pair": shown["pair"], "track": shown["track"], "choice": shown["sides"][0]}
        assert ask("vote", vote, **{"X-Token": token})[0] == 200
    assert [(s["track"], s["pair"]) for s in seen] == [(t, p) for t in ("identity", "control") for p in "01"]
    # Identity is judged beside the whole group, control beside the primary reference and the prompt.
    assert [(s["prompt"], s["shown"]) for s in seen[::2]] == [("", ["g.mp4"]), ("it runs 0", ["0r.png"])]
    votes = read_votes(folder, read_pairs(folder))
    assert len(votes) == 4 and {vote.by for vote in votes} == {"anna"}
    assert ask("vote", vote, **{"X-Token": token}) == (400, "That pair is judged already.")
    assert not Annotation(folder, "anna").waiting() and len(Annotation(folder, "bert").waiting()) == 4


def test_what_is_refused(ask, folder):
    vote = {"pair": "0", "track": "identity", "choice": "a"}
    assert ask("files/0a.mp4") == (200, "clip")
    assert ask("files/secret.txt")[0] == 404 and ask("files/../secret.txt")[0] == 404
    assert ask("vote", vote)[0] == 403
    assert ask("vote", vote, **{"X-Token": "guessed"})[0] == 403
    assert ask("next", Host="evil.example")[0] == 403
    token = re.search(r'const token = "([^"]+)"', ask("")[1])[1]
    assert ask("vote", {"pair": "9"}, **{"X-Token": token})[0] == 400
    assert ask("vote", vote | {"choice": "c"}, **{"X-Token": token})[0] == 400
    assert not read_votes(folder, read_pairs(folder))


def test_sides_do_not_depend_on_the_clip(folder):
    sides = {tuple(Annotation(folder, f"person {i}").next()["sides"]) for i in range(20)}
    assert sides == {("a", "b"), ("b", "a")}


def test_a_name_and_a_port_that_cannot_be(folder):
    with pytest.raises(UsageError, match="The name is"):
        Annotation(folder, " ")
    with make_server(Annotation(folder, "anna")) as server, pytest.raises(UsageError, match="choose another"):
        make_server(Annotation(folder, "anna"), server.server_address[1])
