"""Latents made by hand, whose meaning is known: a ceiling for scores, and a test of judges.

Each fires on the words of one concept and on nothing else.
"""

from dataclasses import dataclass

_WORDS = {
    "the word the": "the",
    "numbers in digits": " ".join(map(str, range(2100))),
    "numbers written as words": "two three four five six seven eight nine ten twelve twenty "
    "thirty hundred thousand million billion",
    "months and days of the week": "january february april june july august september october "
    "november december monday tuesday wednesday thursday friday saturday sunday",
    "colours": "red blue green yellow black white brown purple orange pink grey gray",
    "members of a family": "mother father son daughter brother sister wife husband parents "
    "children uncle aunt cousin grandfather grandmother",
    "countries": "france germany england italy spain russia china japan india canada mexico "
    "brazil egypt israel ireland scotland poland greece turkey australia",
    "religion": "god church religion religious christian christianity bible jesus catholic "
    "islam muslim jewish priest bishop prayer faith",
    "war": "war army battle military soldiers troops weapons navy enemy invasion attack fought",
    "money": "money dollars bank tax taxes price prices cost costs paid income market trade "
    "economic economy",
    "music": "music song songs album band singer guitar piano orchestra opera musical jazz",
    "parts of the body": "hand hands head eyes heart blood skin brain arm arms leg legs foot "
    "feet hair",
}


@dataclass(frozen=True)
class Concept:
    """A latent by hand.

    Attributes:
        name: What it fires on.
        words: All of them, in small letters.
    """

    name: str
    words: frozenset[str]

    def fires_on(self, token: str) -> bool:
        """Whether a token is one of the words."""
        return token.strip().lower() in self.words


CONCEPTS = tuple(Concept(name, frozenset(words.split())) for name, words in _WORDS.items())
