"""The published schemas, and documents that are damaged in one place each."""

import copy
import json
from importlib.resources import files

from jsonschema import Draft202012Validator

SCHEMAS = files("provenance.evidence") / "schemas"
NAMES = sorted(path.name.removesuffix(".schema.json") for path in SCHEMAS.iterdir())
LENIENT = {"lifted_by", "placebo_z"}
"""Fields that the readers take as empty where an older release left them out."""


def schema(name):
    return json.loads((SCHEMAS / f"{name}.schema.json").read_text())


def validator(name):
    return Draft202012Validator(schema(name))


def plain(document):
    """As a file gives it back."""
    return json.loads(json.dumps(document, allow_nan=False))


def find_objects(document, closed, path=()):
    """Paths of the objects whose fields are fixed: the outermost, and the first of each kind."""
    yield path
    for name in closed:
        inner = document.get(name)
        if isinstance(inner, list) and inner and isinstance(inner[0], dict):
            yield from find_objects(inner[0], closed, (*path, name, 0))
        elif isinstance(inner, dict):
            yield from find_objects(inner, closed, (*path, name))


def damage(document, closed):
    """(what was done, the damaged document): a field missing, unknown, or of another type."""
    for path in find_objects(document, closed):
        place = document
        for name in path:
            place = place[name]
        where = "/".join(map(str, path))
        changes = [(f"{where}/{name} missing", name, None) for name in place]
        changes += [
            (f"{where}/{name} of another type", name, _other(place[name])) for name in place
        ]
        for words, name, value in [*changes, (f"{where}/? unknown", "?", 1)]:
            damaged = copy.deepcopy(document)
            inner = damaged
            for step in path:
                inner = inner[step]
            if value is None:
                del inner[name]
            else:
                inner[name] = value
            yield words, damaged


def _other(value):
    if value is None:
        return ["of it"]
    return 17.5 if isinstance(value, dict | list | str | bool) else {"of": "it"}
