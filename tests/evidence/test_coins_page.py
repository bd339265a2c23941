"""docs/coins.md can be implemented from the page alone: this file does, in plain Python."""

import hashlib
import hmac
import json
import math
import re
import shutil
import subprocess
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs/coins.md").read_text()
VECTORS = {
    name: value
    for block in re.findall(r"^```json\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    for name, value in json.loads(block).items()
}
MASK = 0xFFFFFFFF


def rotate(word, by):
    return ((word << by) | (word >> (32 - by))) & MASK


def chacha_block(key, counter, nonce):
    """RFC 8439, section 2.3: sixteen words."""
    state = [0x61707865, 0x3320646E, 0x79622D32, 0x6B206574]
    state += [int.from_bytes(key[i : i + 4], "little") for i in range(0, 32, 4)]
    state += [counter, *nonce]
    x = list(state)
    columns = [(0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15)]
    diagonals = [(0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14)]
    for a, b, c, d in 10 * (columns + diagonals):
        for add, to, turn, by in ((b, a, d, 16), (d, c, b, 12), (b, a, d, 8), (d, c, b, 7)):
            x[to] = (x[to] + x[add]) & MASK
            x[turn] = rotate(x[turn] ^ x[to], by)
    return [(one + two) & MASK for one, two in zip(x, state, strict=True)]


def coin(key, context, token):
    nonce = [MASK] * (3 - len(context)) + list(context)
    return chacha_block(key, token // 16, nonce)[token % 16]


def hkdf(master, info):
    """RFC 5869 for one block of output."""
    extracted = hmac.digest(b"provenance-v1", master, "sha256")
    return hmac.digest(extracted, info + b"\x01", "sha256")


def derive(master, row):
    scheme = json.dumps(row["scheme"], sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    fields = [row["id"], scheme, str(row["context_width"]), row["slot"], row["value"]]
    if "prompt_contexts" in row:
        fields.append(f"prompt_contexts={row['prompt_contexts']}")
    info = b""
    for field in fields:
        content = field.encode("utf-8")
        info += len(content).to_bytes(4, "big") + content
    return hkdf(master, info)


def thresholds():
    found = [math.ceil(2**32 * (1 - math.exp(-j / 4))) for j in range(1, 200)]
    return [value for value in found if value < 2**32]


def score(scheme, parameters, word):
    if scheme == "gumbel":
        return sum(word >= threshold for threshold in thresholds())
    if scheme == "green":
        return int(word < round(Fraction(parameters["gamma"]) * 2**32))
    return f"{word:032b}"[: parameters["layers"]].count("1")


def law(scheme, parameters):
    if scheme == "gumbel":
        edges = [0, *thresholds(), 2**32]
        return [b - a for a, b in pairwise(edges)]
    if scheme == "green":
        green = round(Fraction(parameters["gamma"]) * 2**32)
        return [2**32 - green, green]
    layers = parameters["layers"]
    return [math.comb(layers, j) * 2 ** (32 - layers) for j in range(layers + 1)]


def test_the_page_holds_every_vector():
    assert set(VECTORS) == {"coins", "master", "keys", "commitment", "slots", "scores"}
    assert min(len(VECTORS[name]) for name in ("coins", "keys", "scores")) >= 3


def test_block_of_rfc_8439():
    nonce = [0x09000000, 0x4A000000, 0]  # section 2.3.2
    block = chacha_block(bytes(range(32)), 1, nonce)
    assert b"".join(word.to_bytes(4, "little") for word in block).hex().startswith("10f1e7e4d13b")


@pytest.mark.parametrize("row", VECTORS["keys"], ids=lambda row: row["slot"])
def test_keys(row):
    assert derive(bytes.fromhex(VECTORS["master"]), row).hex() == row["key"]


@pytest.mark.parametrize("row", VECTORS["coins"], ids=str)
def test_coins(row):
    key = bytes.fromhex(VECTORS["keys"][0]["key"])
    assert coin(key, row["context"], row["token"]) == row["coin"]


def test_commitment():
    row = VECTORS["commitment"]
    content = bytes.fromhex(row["salt"]) + bytes.fromhex(row["key"])
    assert hashlib.sha256(content).hexdigest() == row["sha256"]


def test_slots():
    rows = VECTORS["slots"]
    assert sum(rows["share_words"]) == 2**32
    for row in rows["contexts"]:
        word = coin(bytes.fromhex(rows["selector"]), row["context"], 0)
        ends = [sum(rows["share_words"][: i + 1]) for i in range(len(rows["share_words"]))]
        assert word == row["coin"]
        assert next(i for i, end in enumerate(ends) if end > word) == row["slot"]
    assert {row["slot"] for row in rows["contexts"]} == {0, 1, 2}


@pytest.mark.parametrize("row", VECTORS["scores"], ids=lambda row: row["scheme"])
def test_scores_and_laws(row):
    scheme = row["scheme"], row["parameters"]
    assert [score(*scheme, word) for word in row["words"]] == row["scores"]
    assert law(*scheme)[: len(row["law"])] == row["law"]
    assert len(law(*scheme)) == row["levels"]
    assert sum(law(*scheme)) == 2**32


def test_the_package_agrees_with_the_page():
    """The other direction: what the page says is what the package does."""
    import numpy as np

    from provenance.coins import words as coins
    from provenance.marks.own import make_scheme

    key = bytes.fromhex(VECTORS["keys"][0]["key"])
    for row in VECTORS["coins"]:
        context = np.array([row["context"]], dtype=np.uint32)
        token = np.array([row["token"]], dtype=np.uint32)
        assert int(coins.words(key, context, token)[0]) == row["coin"]
    for row in VECTORS["scores"]:
        made = make_scheme(row["scheme"], row["parameters"])
        assert list(made.null_law.masses) == law(row["scheme"], row["parameters"])
        assert made.score(np.array(row["words"], dtype=np.uint32)).tolist() == row["scores"]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command")
def test_the_command_of_the_page():
    (block,) = re.findall(r"^```bash\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    key = VECTORS["keys"][0]["key"]
    done = subprocess.run(
        ["bash", "-c", f"KEY={key}\n{block}"], capture_output=True, text=True, check=True
    )
    expected = next(
        row["coin"] for row in VECTORS["coins"] if row["context"] == [5, 6] and row["token"] == 9
    )
    assert int(done.stdout) == expected
