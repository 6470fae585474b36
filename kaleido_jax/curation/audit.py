"""People check a curation: a page of random subjects to be voted right or wrong, and what the votes say.

The page is a single HTML file that holds its pictures, works offline, and is the same bytes for the same data.
"""

import html
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kaleido_jax.curation import pictures
from kaleido_jax.curation.dataset import SPLITS
from kaleido_jax.curation.records import fraction
from kaleido_jax.curation.report import image_tag, page
from kaleido_jax.curation.store import write_bytes
from kaleido_jax.curation.taxonomy import PERSON, default_taxonomy
from kaleido_jax.data.loader import stored_source
from kaleido_jax.errors import InputError
from kaleido_jax.evaluation.intervals import Share

# What is asked of a subject, and the share of right ones that Kaleido reports for its own data (section 3.2).
QUESTIONS = {"category": "Is it what it is called, and whole?", "face": "Is the face seen from the front?"}
BARS = {"category": 0.92, "face": 0.95}


@dataclass(frozen=True, kw_only=True)
class Result:
    """What people said to one question; `bar` is the share that Kaleido's own data reach."""

    question: str
    share: Share
    bar: float

    @property
    def verdict(self) -> str:
        """Whether the bar is met, as far as the 95 % interval can tell."""
        low, high = self.share.interval
        return "met" if low >= self.bar else "missed" if high < self.bar else "undecided: more votes are needed"

    def __str__(self) -> str:
        return f"{self.question}: {self.share}; the bar of {100 * self.bar:.0f} % is {self.verdict}"


def asked(dataset: Path) -> Iterator[tuple[str, int, tuple[str, ...], Mapping[str, Any]]]:
    """(id, place, questions, sample) of every kept subject; only people who are not drawn are asked for their face."""
    source, names = stored_source(dataset, SPLITS[0]), default_taxonomy()
    for number in range(len(source)):
        sample = source[number]
        drawn = names.is_drawn(sample["caption"].decode())
        for place, category in enumerate(sample["categories"]):
            person = names.groups.get(category.decode()) == PERSON and not drawn
            yield f"{sample['id'].decode()}-{place}", place, ("category", "face") if person else ("category",), sample


def write_page(output: Path, count: int, seed: int) -> Path:
    """Writes audit.html: `count` random kept subjects with their reference, to be voted right or wrong.

    The page counts votes as they are given, with 95 % Wilson intervals, and saves them as JSON for `read_votes`.
    """
    draw = lambda identifier: fraction("audit", seed, identifier)
    # Two passes, so that no more than the chosen samples are held.
    chosen = set(sorted((identifier for identifier, *_ in asked(_dataset(output))), key=draw)[:count])
    cards = [
        (draw(identifier), _card(identifier, place, questions, sample))
        for identifier, place, questions, sample in asked(_dataset(output))
        if identifier in chosen
    ]
    body = (
        "<h1>Right or wrong?</h1>"
        + "".join(f"<p><b>{html.escape(text)}</b> <span id='r-{name}'>No vote yet.</span></p>"
                  for name, text in QUESTIONS.items())
        + "<p><button id='s'>Save votes</button></p><div class='row'>"
        + "\n".join(card for _, card in sorted(cards))
        + f"</div><script>{_VOTES}</script>"
    )  # fmt: skip
    path = output / "audit.html"
    write_bytes(path, page("Audit", body).encode())
    return path


def read_votes(output: Path, votes: Path) -> list[Result]:
    """What the votes that the page saved say, a result a question that somebody answered.

    Raises:
      InputError: the file holds no votes, or votes on subjects that this data set does not ask for.
    """
    try:
        given = json.loads(votes.read_text())
    except (OSError, ValueError, RecursionError) as error:
        reason = type(error).__name__
        raise InputError(f"{votes}: cannot be read as JSON ({reason}); give the file that the page saved.") from None
    if not isinstance(given, dict) or not given:
        raise InputError(f"{votes}: holds no votes; vote on audit.html and save them.")
    open_for = {
        f"{identifier}/{question}" for identifier, _, questions, _ in asked(_dataset(output)) for question in questions
    }
    for name, vote in given.items():
        if name not in open_for:
            raise InputError(f"{votes}: {name!r} is no subject of {output}; give the votes of this data set's page.")
        if vote not in (0, 1) or isinstance(vote, bool):
            raise InputError(f"{votes}: the vote on {name!r} is {vote!r}; it must be 1 (right) or 0 (wrong).")
    results = []
    for question, bar in BARS.items():
        of = [vote for name, vote in given.items() if name.endswith(f"/{question}")]
        if of:
            results.append(Result(question=question, share=Share(sum(of), len(of)), bar=bar))
    return results


def _dataset(output: Path) -> Path:
    if not (output / "dataset").is_dir():
        raise InputError(f"{output}: holds no data set; give the output folder of a finished kaleido curate.")
    return output / "dataset"


def _card(identifier: str, place: int, questions: tuple[str, ...], sample: Mapping[str, Any]) -> str:
    category, phrase = sample["categories"][place].decode(), sample["phrases"][place].decode()
    buttons = "<br>".join(
        f'<span data-id="{identifier}/{name}">{name}: <button data-v="1">right</button> '
        '<button data-v="0">wrong</button></span>'
        for name in questions
    )
    return (
        f"<figure>{image_tag(pictures.from_png(sample['references'][place]))}"
        f"<figcaption><b>{html.escape(category)}</b> &ldquo;{html.escape(phrase)}&rdquo;<br>"
        f"{html.escape(sample['caption'].decode()[:120])}<br>{buttons}</figcaption></figure>"
    )


_VOTES = """
const votes={};
function wilson(k,n){const z=1.96,p=k/n,d=1+z*z/n,c=(p+z*z/(2*n))/d;
const h=z*Math.sqrt(p*(1-p)/n+z*z/(4*n*n))/d;return [c-h,c+h]}
document.querySelectorAll('figure button').forEach(b=>b.onclick=()=>{const f=b.closest('span');
votes[f.dataset.id]=+b.dataset.v;f.querySelectorAll('button').forEach(o=>o.classList.toggle('on',o===b));
const q=f.dataset.id.split('/')[1];
const v=Object.entries(votes).filter(e=>e[0].endsWith('/'+q)).map(e=>e[1]);
const k=v.reduce((a,x)=>a+x,0),n=v.length,[l,h]=wilson(k,n),c=x=>(100*x).toFixed(1);
document.getElementById('r-'+q).textContent=
`${k} of ${n} right: ${c(k/n)} % (95 % interval ${c(l)} to ${c(h)} %)`});
document.getElementById('s').onclick=()=>{const a=document.createElement('a');a.download='votes.json';
a.href=URL.createObjectURL(new Blob([JSON.stringify(votes)],{type:'application/json'}));a.click()};
"""
