"""Categories of subjects, and finding them in captions by their names, synonyms and word forms.

`taxonomy.txt` is the data. A match is the longest run of words that is a name, and names side by side are one mention
of what the last one names: "a golden retriever puppy" is one dog, "an orange cat" no fruit.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from kaleido_jax.curation.records import Mention
from kaleido_jax.errors import InputError

BACKGROUND = "background"  # the category of plates: scenes without their subjects
PERSON, CARTOON = "person", "cartoon"  # groups that the face filter asks about
_WORD = re.compile(r"[a-z]+(?:['’-][a-z]+)*")
_DRAWN = re.compile(
    r"\b(cartoons?|anime|animated|animation|drawn|drawings?|illustrat\w+|comics?|manga|claymation|cgi)\b"
)
_IRREGULAR = {
    "men": "man", "women": "woman", "children": "child", "people": "person", "mice": "mouse", "geese": "goose",
    "wolves": "wolf", "leaves": "leaf", "knives": "knife", "calves": "calf", "oxen": "ox", "feet": "foot",
    "loaves": "loaf", "wives": "wife", "elves": "elf", "dwarves": "dwarf", "fungi": "fungus", "cacti": "cactus",
    "scarves": "scarf", "policemen": "policeman", "firemen": "fireman", "fishermen": "fisherman",
    "businessmen": "businessman", "businesswomen": "businesswoman", "craftsmen": "craftsman", "snowmen": "snowman",
    "gentlemen": "gentleman", "cattle": "cow", "policewomen": "policewoman", "grandchildren": "child",
    "schoolchildren": "schoolchild", "infantrymen": "infantryman", "spacemen": "spaceman", "octopi": "octopus",
}  # fmt: skip
# Before these words, a name says what something else is like or where it is: "a cat food bowl", "the car door".
_NOT_SUBJECTS = frozenset(("door", "food", "park", "shop", "store", "station", "house", "garden", "farm", "race"))


@dataclass(frozen=True)
class Taxonomy:
    """Categories with their groups and names.

    groups: group of each category. names: category of each name, as the tuple of its words in the singular.
    """

    groups: Mapping[str, str]
    names: Mapping[tuple[str, ...], str]

    @cached_property
    def longest(self) -> int:
        """The most words that a name has."""
        return max(map(len, self.names))

    @property
    def categories(self) -> tuple[str, ...]:
        return tuple(self.groups)

    def mentions(self, caption: str) -> tuple[Mention, ...]:
        """Subjects that the caption names, in order of mention."""
        words = [(match.group(), match.start(), match.end()) for match in _WORD.finditer(caption.lower())]
        forms = [_singulars(word) for word, _, _ in words]
        found: list[Mention] = []
        place, ends_at = 0, -1
        while place < len(words):
            for count in range(min(self.longest, len(words) - place), 0, -1):
                category = self._named(forms[place : place + count])
                if category is None:
                    continue
                stop = place + count
                begin, end = words[place][1], words[stop - 1][2]
                follows = stop < len(words) and words[stop][1] - end == 1
                if follows and words[stop][0] in _NOT_SUBJECTS and self._named(forms[place : stop + 1]) is None:
                    break  # it only describes the next word
                owns = place > 0 and re.search(r"['’]s?$", words[place - 1][0])
                if found and ends_at == place and begin - found[-1].stop == 1 and not owns:
                    # Two names side by side are one thing, which the last one names: "orange cat", "puppy dog".
                    begin = found.pop().start
                found.append(Mention(category=category, phrase=caption[begin:end], start=begin, stop=end))
                place, ends_at = stop - 1, stop
                break
            place += 1
        return tuple(found)

    def is_drawn(self, caption: str) -> bool:
        """Whether the caption speaks of drawn or animated figures: by such a word, or by a subject of that group."""
        named = any(self.groups[mention.category] == CARTOON for mention in self.mentions(caption))
        return named or _DRAWN.search(caption.lower()) is not None

    def category(self, phrase: str) -> str | None:
        """The category of a class name or a phrase, by its last mention (the head of an English noun phrase)."""
        found = self.mentions(phrase)
        return found[-1].category if found else None

    def _named(self, forms: list[tuple[str, ...]]) -> str | None:
        """The category of a run of words, each given by its possible singulars; only the last may be a plural."""
        if len(forms) > 1 and (tuple(form[0] for form in forms)) in self.names:
            return self.names[tuple(form[0] for form in forms)]
        start = tuple(form[0] for form in forms[:-1])
        for last in forms[-1]:
            if (*start, last) in self.names:
                return self.names[(*start, last)]
        return None


@cache
def default_taxonomy() -> Taxonomy:
    """The taxonomy that comes with the package."""
    return parse(Path(__file__).with_name("taxonomy.txt").read_text("utf-8").splitlines())


def parse(lines: Iterable[str]) -> Taxonomy:
    """A taxonomy from lines like those of `taxonomy.txt`; InputError for a line that cannot be read or a name twice."""
    groups: dict[str, str] = {}
    names: dict[tuple[str, ...], str] = {}
    group = ""
    for number, line in enumerate(lines, 1):
        line = line.partition("#")[0].strip()
        if not line:
            continue
        if line.startswith("["):
            group = line.strip("[] ")
            continue
        category, colon, rest = line.partition(":")
        category = category.strip()
        if not colon or not group or not category:
            raise InputError(f"line {number} of the taxonomy is {line!r}; write [group] or category: name, name.")
        if category in groups:
            raise InputError(f"line {number} of the taxonomy has the category {category!r} a second time.")
        groups[category] = group
        for name in dict.fromkeys([category, *(part.strip() for part in rest.split(",") if part.strip())]):
            key = tuple(_WORD.findall(name.lower()))
            if not key:
                raise InputError(f"line {number} of the taxonomy has the name {name!r}, which holds no word.")
            if names.setdefault(key, category) != category:
                raise InputError(f"line {number} of the taxonomy names {name!r}, which is a {names[key]} already.")
    if not names:
        raise InputError("the taxonomy is empty; write [group] and category: name, name.")
    return Taxonomy(groups, names)


def _singulars(word: str) -> tuple[str, ...]:
    """The word itself first, then what it may be the plural or possessive of."""
    word = re.sub(r"['’]s?$", "", word)
    forms = [word]
    if word in _IRREGULAR:
        forms.append(_IRREGULAR[word])
    if word.endswith("ies") and len(word) > 4:
        forms.append(word[:-3] + "y")
    if word.endswith("es") and len(word) > 3:
        forms.append(word[:-2])
    if word.endswith("s") and not word.endswith("ss") and len(word) > 2:
        forms.append(word[:-1])
    return tuple(dict.fromkeys(forms))
