"""The second gate: files of malicious authors, each given to a command that reads such files.

Whatever it is, the command ends within 30 s, takes less than 1 GiB, exits with a documented code
that is not 70, and says one short line without terminal escapes or marks that turn the direction of
text. Most of the files must be refused. They are made from a seed, cheapest first.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from tests.gates.forks import Ended, Forks

SECONDS: Final = 30
"""Of a processor; by the clock four times as many, since whoever waits for ever takes none."""
MEMORY: Final = 1 << 30
_LONGEST: Final = 2048
_MOST: Final = 1 << 15
_CODES: Final = {0, 2, 3, 65, 74, 75, 77, 78}
_FOUND: Final = ("verify", "case", "collect", "log", "check", "suspects", "detect")
"""Commands whose exit code 1 is an answer."""
_BAD: Final = "\x1b[31mred\u202egnp.exe\u2066\x07\r\x9b2J"


@dataclass(frozen=True)
class Case:
    """A file and the command that it is given to.

    Attributes: name and kind; words of the command, in the folder of the case; what makes the
    files, given that folder; whether it must be refused.
    """

    name: str
    kind: str
    words: tuple[str, ...]
    make: Callable[[Path], object]
    must_fail: bool = True


def judge(case: Case, ended: Ended) -> list[str]:
    """What does not hold, a sentence each."""
    found = []
    said = ended.out + ended.err
    if ended.code == -9:
        found.append(f"it was killed after {ended.seconds:.0f} s")
    elif ended.code not in _CODES and not (ended.code == 1 and case.words[0] in _FOUND):
        found.append(f"code {ended.code}: {ended.err.strip()[-300:]}")
    if ended.processor > SECONDS:
        found.append(f"it took {ended.processor:.0f} s of a processor")
    if ended.memory > MEMORY:
        found.append(f"it took {ended.memory / 2**30:.2f} GiB")
    if "Traceback" in said:
        found.append(f"a traceback: {said[-300:]}")
    if wrong := {c for c in said if c != "\n" and unicodedata.category(c) in ("Cc", "Cf")}:
        found.append(f"it prints {sorted(map(ascii, wrong))}")
    if long := [line for line in said.splitlines() if len(line) > _LONGEST]:
        found.append(f"a line of {len(long[0])} characters: {long[0][:100]}")
    if len(said) > _MOST:
        found.append(f"it prints {len(said)} characters")
    if case.must_fail and ended.code in (0, 3) and case.words[0] != "check":
        found.append(f"it must be refused; code {ended.code}")
    return found


def try_case(case: Case, forks: Forks, place: Path, folder: Path) -> list[str]:
    """Make the files in a fresh folder, run the command, judge. The folder is removed."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        for name in _NEEDED:
            (folder / name).symlink_to(place / name)
        case.make(folder)
        return judge(case, forks.run(*case.words, folder=folder, seconds=4 * SECONDS))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


_NEEDED: Final = ("keys", "index", "few.jsonl")
_KEYED: Final = ("--keys", "keys")
_CHECK: Final = (*_KEYED, "--index", "index", "--placebo-keys", "50")


def make_cases(place: Path, seed: int = 0) -> list[Case]:
    """All of them, at least 500."""
    chance = random.Random(seed)
    cases = [
        *_lines(chance),
        *_tables(),
        *_documents(place, chance),
        *_packed(chance),
        *_special(),
        *_names(),
        *_large(),
    ]
    assert len({case.name for case in cases}) == len(cases)
    return cases


def _write(name: str, content: bytes) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    return make


def _record(**changed: Any) -> dict[str, Any]:
    record = {
        "response_id": "r1",
        "marked": True,
        "labels": {"week": "W1"},
        "token_ids": list(range(20)),
        "prompt_token_ids": [1, 2],
        "finish": "length",
    }
    return {name: value for name, value in {**record, **changed}.items() if value != "LEFT OUT"}


_VALUES: Final[tuple[Any, ...]] = (
    *(None, True, -1, 2**70, 1.5, "", "x", _BAD, "y" * 3_000_000, [], [[]], {}, {"a": None}),
    *([-1], [2**40], [1.0], [True], [None], ["1"], {"week": 7}, {_BAD: _BAD}, {"z" * 70_000: "v"}),
    *({"week": _BAD}, {"week": "w" * 100_000}, "LEFT OUT", [2**63] * 10, {"wek": "W1"}),
)
"""What stands in place of a field."""

_TEXTS: Final = {
    "nothing": b"",
    "a blank line": b"\n",
    "no JSON": b"hello\n",
    "half a record": b'{"response_id": "r1", "marked": tr',
    "NaN": b'{"response_id": "r1", "marked": true, "token_ids": [NaN]}\n',
    "a duplicate key": b'{"response_id": "r1", "response_id": "r2", "marked": true, "text": "a"}\n',
    "nested": b"[" * 100_000 + b"]" * 100_000 + b"\n",
    "nested objects": b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"\n",
    "a lone surrogate": b'{"response_id": "r1", "marked": true, "text": "\\ud800"}\n',
    "Latin-1": b'{"response_id": "r\xe9", "marked": true, "text": "a"}\n',
    "UTF-16": '{"response_id": "r"}\n'.encode("utf-16"),
    "zeros": b"\0" * 100_000,
    "a long number": b'{"response_id": "r1", "marked": true, "token_ids": ['
    + b"9" * 5000
    + b"]}\n",
    "a long string": b'{"output": "' + b"a" * 20_000_000 + b'"}\n',
    "no line break for 40 MB": b"a" * 40_000_000,
    "escapes": b'{"\x1b[2J": 1}\n',
    "a pickle": b"\x80\x04\x95" + b"cos\nsystem\n(S'touch /tmp/x'\ntR." * 3,
    "a zip": b"PK\x03\x04" + bytes(200),
    "an array of numbers": b"[1, 2, 3]\n",
    "a number": b"1\n",
}


def _lines(chance: random.Random) -> Iterator[Case]:
    """Logs and outputs in JSON lines: broken texts, and every field with every wrong value."""
    for name, content in _TEXTS.items():
        for command, words in (
            ("index build", ("index", "build", "x.jsonl", *_KEYED, "-o", "made")),
            ("check", ("check", "x.jsonl", *_CHECK)),
            ("outputs show", ("outputs", "show", "x.jsonl")),
            ("detect", ("detect", "x.jsonl", *_KEYED)),
        ):
            yield Case(f"{command}: {name}", "lines", words, _write("x.jsonl", content), False)
    for field in _record():
        for number, value in enumerate(_VALUES):
            line = json.dumps(_record(**{field: value})).encode() + b"\n"
            words = ("index", "build", "x.jsonl", *_KEYED, "-o", "made")
            if number % 2:
                words = ("log", "audit", "x.jsonl", *_KEYED)
            yield Case(f"log: {field} {number}", "records", words, _write("x.jsonl", line), False)
    for field in ("prompt", "output", "outputs", "messages", "choices", "id", "logprobs"):
        for number, value in enumerate(_VALUES):
            own = {"prompt": "p", "output": "w1 w2 w3 w4", field: value}
            line = json.dumps(own).encode() + b"\n"
            words = ("outputs", "show", "x.jsonl") if number % 3 else ("check", "x.jsonl", *_CHECK)
            yield Case(
                f"outputs: {field} {number}", "records", words, _write("x.jsonl", line), False
            )


def _tables() -> Iterator[Case]:
    """Parquet logs: wrong columns and types, values beyond the vocabulary, cut and turned bytes."""
    ids = pa.array([[1, 2, 3, 4, 5]], pa.list_(pa.uint32()))
    good = {"response_id": pa.array(["r"]), "marked": pa.array([True]), "token_ids": ids}
    changed: dict[str, dict[str, Any]] = {
        "no marked": {"marked": None},
        "marked is text": {"marked": pa.array(["yes"])},
        "marked is null": {"marked": pa.array([None], pa.bool_())},
        "ids are text": {"token_ids": pa.array([["a"]])},
        "ids are floats": {"token_ids": pa.array([[1.0]])},
        "ids are negative": {"token_ids": pa.array([[-1]])},
        "ids are large": {"token_ids": pa.array([[2**63]], pa.list_(pa.uint64()))},
        "ids hold nulls": {"token_ids": pa.array([[1, None]])},
        "ids are nested": {"token_ids": pa.array([[[1]]])},
        "id is null": {"response_id": pa.array([None], pa.string())},
        "id is a number": {"response_id": pa.array([1])},
        "id is empty": {"response_id": pa.array([""])},
        "id is bytes": {"response_id": pa.array([b"\xff"])},
        "id has escapes": {"response_id": pa.array([_BAD])},
        "id is long": {"response_id": pa.array(["x" * 3_000_000])},
        "labels are numbers": {"labels": pa.array([7])},
        "labels are a list": {"labels": pa.array([["a"]])},
        "labels are no JSON": {"labels": pa.array(["{"])},
        "labels are nested JSON": {"labels": pa.array(["[" * 100_000])},
        "labels have escapes": {"labels": pa.array([json.dumps({_BAD: _BAD})])},
        "labels twice": {
            "labels": pa.array([[("a", "b"), ("a", "c")]], pa.map_(pa.string(), pa.string()))
        },
        "drawn is short": {"drawn": pa.array([b""])},
        "drawn is long": {"drawn": pa.array([bytes(1000)])},
        "drawn is text": {"drawn": pa.array(["x"])},
        "finish is a number": {"finish": pa.array([1])},
        "a column with escapes": {_BAD: pa.array([1])},
        "5,000 columns": {f"c{n}": pa.array([1]) for n in range(5000)},
    }
    words = ("index", "build", "x.parquet", *_KEYED, "-o", "made")
    for name, columns in changed.items():
        table = pa.table({k: v for k, v in {**good, **columns}.items() if v is not None})
        make = lambda folder, table=table: pq.write_table(table, folder / "x.parquet")  # noqa: E731
        yield Case(f"parquet: {name}", "tables", words, make, False)
        yield Case(
            f"outputs in parquet: {name}", "tables", ("outputs", "show", "x.parquet"), make, False
        )
    for name, table in (("no columns", pa.table({})), ("no rows", pa.table(good).slice(0, 0))):
        make = lambda folder, table=table: pq.write_table(table, folder / "x.parquet")  # noqa: E731
        yield Case(f"parquet: {name}", "tables", words, make)
        yield Case(f"outputs in parquet: {name}", "tables", ("check", "x.parquet", *_CHECK), make)
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(good), sink)
    whole = sink.getvalue().to_pybytes()
    for number in range(0, len(whole), max(1, len(whole) // 24)):
        turned = whole[:number] + bytes([whole[number] ^ 0xFF]) + whole[number + 1 :]
        yield Case(f"parquet: byte {number}", "tables", words, _write("x.parquet", turned), False)
    for cut in (0, 4, 8, len(whole) // 2, len(whole) - 1):
        yield Case(f"parquet: cut at {cut}", "tables", words, _write("x.parquet", whole[:cut]))


_DOCUMENTS: Final = (
    ("keys/keyring.json", ("keys", "show", "hostile/keys")),
    (
        "keys/keyring.json",
        ("index", "build", "served.parquet", "--keys", "hostile/keys", "-o", "o"),
    ),
    ("index/manifest.json", ("index", "info", "hostile/index")),
    ("index/manifest.json", ("check", "few.jsonl", *_KEYED, "--index", "hostile/index")),
    ("plan.json", ("plan", "show", "hostile/plan.json")),
    ("plan.json", ("check", "few.jsonl", *_CHECK, "--plan", "hostile/plan.json")),
    ("bundle/manifest.json", ("verify", "hostile/bundle", "--unsigned")),
    ("bundle/verdict.json", ("verify", "hostile/bundle", "--unsigned")),
    ("bundle/verdict.json", ("suspects", "hostile/bundle")),
    ("bundle/keyring.json", ("verify", "hostile/bundle", "--unsigned")),
    ("bundle/trajectory.json", ("verify", "hostile/bundle", "--unsigned")),
    ("state/state.json", ("check", *_CHECK, "--sequential", "hostile/state")),
    (
        "keys/tokenizer.json",
        ("check", "few.jsonl", *_CHECK, "--tokenizer", "hostile/keys/tokenizer.json"),
    ),
    ("keys/tokenizer.json", ("keys", "new", "ring", "--tokenizer", "hostile/keys/tokenizer.json")),
    ("case/register.jsonl", ("case", "show", "hostile/case")),
    ("out/ledger.jsonl", ("collect", "verify", "hostile/out")),
    ("out/prompts.jsonl", ("collect", "verify", "hostile/out")),
)
"""Documents of ours, and who reads them."""


def _documents(place: Path, chance: random.Random) -> Iterator[Case]:
    """Each with broken text, and with wrong values at places that are drawn."""
    for name, words in _DOCUMENTS:
        whole = (place / name).read_bytes()
        texts = {key: _TEXTS[key] for key in ("nothing", "half a record", "nested", "a number",
                                              "Latin-1", "zeros", "escapes")}  # fmt: skip
        texts["cut"] = whole[: len(whole) // 2]
        for kind, content in texts.items():
            # a register or a ledger without a line that ends is one that was never begun
            yield _document(name, words, kind, content, False)
        lines = whole.splitlines()
        for number in range(10):
            document = json.loads(lines[0] if name.endswith("l") else whole)
            where = _change(document, chance)
            changed = json.dumps(document).encode()
            if name.endswith("l"):
                changed = b"\n".join([changed, *lines[1:], b""])
            yield _document(name, words, f"{number} {where}", changed, False)


def _document(
    name: str, words: tuple[str, ...], kind: str, content: bytes, must_fail: bool
) -> Case:
    def make(folder: Path) -> None:
        top = name.split("/")[0]
        place = (folder / "keys").resolve().parent
        for one in {top, "served.parquet"}:
            target = folder / ("hostile" if one == top else "") / one
            target.parent.mkdir(exist_ok=True)
            copy = shutil.copytree if (place / one).is_dir() else shutil.copy2
            copy(place / one, target)
        (folder / "hostile" / name).write_bytes(content)

    return Case(f"{' '.join(words[:2])}: {name}: {kind}", "documents", words, make, must_fail)


def _change(document: Any, chance: random.Random) -> str:
    """Put a wrong value somewhere into a document; where, in words."""
    where = []
    while True:
        keys = list(document) if isinstance(document, dict) else list(range(len(document)))
        key = chance.choice(keys)
        where.append(str(key)[:20])
        inner = document[key]
        if isinstance(inner, (dict, list)) and inner and chance.random() < 0.7:
            document = inner
            continue
        number = chance.randrange(len(_VALUES))
        value = _VALUES[number]
        document[key] = None if value == "LEFT OUT" else value
        return f"{'.'.join(where)} {number}"


def _packed(chance: random.Random) -> Iterator[Case]:
    """Archives: bombs, cut ones, ones that are none."""
    line = json.dumps(_record()).encode() + b"\n"
    bomb = gzip.compress(line[:1] + b" " * 300_000_000, 9)
    many = gzip.compress(line * 100_000, 9)
    whole = gzip.compress(line)
    contents = {
        "a bomb": bomb,
        "many equal records": many,
        "cut": whole[:-6],
        "another sum": whole[:-8] + b"\0\0\0\0" + whole[-4:],
        "two of them": whole + whole,
        "with rubbish behind": whole + b"rubbish",
        "none": line,
        "a header": whole[:10],
    }
    for name, content in contents.items():
        for command in (
            ("index", "build", "x.jsonl.gz", *_KEYED, "-o", "made"),
            ("check", "x.jsonl.gz", *_CHECK),
        ):
            yield Case(
                f"{command[0]}: gzip: {name}",
                "archives",
                command,
                _write("x.jsonl.gz", content),
                False,
            )
        yield Case(
            f"zstd that is gzip: {name}",
            "archives",
            ("index", "build", "x.jsonl.zst", *_KEYED, "-o", "made"),
            _write("x.jsonl.zst", content),
        )


def _special() -> Iterator[Case]:
    """What is no regular file: pipes, devices, links, where a file or a folder is expected."""

    def pipe(name: str) -> Callable[[Path], object]:
        def make(folder: Path) -> None:
            (folder / name).parent.mkdir(exist_ok=True)
            os.mkfifo(folder / name)

        return make

    def link(name: str, target: str) -> Callable[[Path], object]:
        def make(folder: Path) -> None:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).symlink_to(target)

        return make

    def table(folder: Path) -> None:
        shutil.copytree(folder / "index", folder / "own")
        (found,) = (folder / "own").glob("*.parquet")
        found.unlink()
        os.mkfifo(found)

    readers = {
        "index build": ("index", "build", "x.jsonl", *_KEYED, "-o", "made"),
        "index build, parquet": ("index", "build", "x.parquet", *_KEYED, "-o", "made"),
        "check": ("check", "x.jsonl", *_CHECK),
        "check, parquet": ("check", "x.parquet", *_CHECK),
        "innocent": ("check", "few.jsonl", *_CHECK, "--innocent", "x.jsonl"),
        "logprobs": ("check", "--logprobs", "x.jsonl", *_CHECK),
        "plan": ("check", "few.jsonl", *_CHECK, "--plan", "x.json"),
        "tokenizer": ("check", "few.jsonl", *_CHECK, "--tokenizer", "x.json"),
        "keys new": ("keys", "new", "ring", "--tokenizer", "x.json"),
        "outputs show": ("outputs", "show", "x.jsonl"),
        "detect": ("detect", "x.jsonl", *_KEYED),
        "keyring": ("keys", "show", "x"),
        "index": ("index", "info", "x"),
        "bundle": ("verify", "x"),
        "prompts": ("collect", "prepare", "--format", "openai-batch", "--model", "m",
                    "--prompts", "x.jsonl", "-o", "out"),
        "reference text": ("check", "few.jsonl", *_CHECK, "--reference", "ngram",
                           "--reference-text", "x.jsonl"),
        "list of a group": ("index", "build", "few.jsonl", *_KEYED, "-o", "made",
                            "--only", "x.json", "--field", "account"),
        "scheme's configuration": ("check", "few.jsonl", "--scheme", "hf-synthid",
                                   "--scheme-config", "x.json", "--index", "index"),
    }  # fmt: skip
    inside = {"keyring": "x/keyring.json", "index": "x/manifest.json", "bundle": "x/manifest.json"}
    for name, words in readers.items():
        file = inside.get(name) or next(w for w in words if w.startswith("x."))
        yield Case(f"a pipe: {name}", "special", words, pipe(file))
        yield Case(f"a device: {name}", "special", words, link(file, "/dev/zero"))
        yield Case(f"a link to itself: {name}", "special", words, link(file, Path(file).name))
        yield Case(f"a terminal: {name}", "special", words, link(file, "/dev/tty"))
    yield Case(
        "a pipe: the table of an index", "special",
        ("check", "few.jsonl", *_KEYED, "--index", "own"), table,
    )  # fmt: skip
    for words, folder in (
        (("index", "build", "few.jsonl", *_KEYED, "-o", "made"), "made"),
        (("check", "few.jsonl", *_CHECK, "-o", "made"), "made"),
        (("keys", "new", "made", "--tokenizer", "keys/tokenizer.json"), "made"),
        (("case", "new", "made", *_KEYED, "--suspect", "x"), "made"),
        (("check", "few.jsonl", *_CHECK, "--sequential", "made"), "made"),
    ):
        yield Case(
            f"a lock that is a link: {words[0]} {words[-2]}", "special", words,
            link(f"{folder}/.lock", "/tmp/provenance-gate-must-not-exist"),
        )  # fmt: skip
        yield Case(
            f"an output that is a pipe: {words[0]} {words[-2]}", "special", words, pipe(folder)
        )


def _names() -> Iterator[Case]:
    """Names of files: not UTF-8, with escapes, with marks that turn the direction."""
    good = json.dumps({"prompt": "p", "output": "w1 w2 w3 w4 w5"}).encode() + b"\n"
    record = json.dumps(_record()).encode() + b"\n"
    for number, name in enumerate((b"\xff\xfe.jsonl", _BAD.encode() + b".jsonl",
                                   b"x\n.jsonl", b"a" * 240 + b".jsonl")):  # fmt: skip
        text = os.fsdecode(name)
        for content in (good, record, b"{"):
            for words in (
                ("check", text, *_CHECK),
                ("check", text, *_CHECK, "-o", "bundle"),
                ("check", text, *_CHECK, "--json"),
                ("index", "build", text, *_KEYED, "-o", "made"),
                ("outputs", "show", text),
                ("detect", text, *_KEYED),
            ):
                kind = {good: "outputs", record: "a log", b"{": "broken"}[content]
                label = " ".join(w for w in (words[0], words[-1]) if w != text)
                yield Case(f"name {number}, {kind}: {label}", "names", words,
                           _write(text, content), False)  # fmt: skip
        for words in (
            ("check", "few.jsonl", *_CHECK, "-o", text),
            ("index", "build", "few.jsonl", *_KEYED, "-o", text),
            ("keys", "new", text, "--tokenizer", "keys/tokenizer.json"),
            ("case", "new", text, *_KEYED, "--suspect", "x"),
            ("keys", "show", text),
            ("verify", text),
            ("plan", "show", text),
        ):
            yield Case(f"name {number}: {' '.join(words[:2])} given", "names", words,
                       lambda folder: None, False)  # fmt: skip
    yield Case("an option with escapes", "names",
               ("check", "few.jsonl", *_KEYED, "--index", _BAD), lambda folder: None)  # fmt: skip
    yield Case("an option of a megabyte", "names",
               ("plan", "commit", "few.jsonl", "--url", "x" * 100_000),
               lambda folder: None)  # fmt: skip


def _large() -> Iterator[Case]:
    """Small files that unpack to much."""

    def line(content: Callable[[], bytes]) -> Callable[[Path], object]:
        return lambda folder: (folder / "x.jsonl").write_bytes(content())

    numbers = lambda: b'{"a": [' + b"1," * 7_800_000 + b"1]}\n"  # noqa: E731
    arrays = lambda: b'{"a": [' + b"[]," * 5_200_000 + b"[]]}\n"  # noqa: E731
    objects = lambda: b"[" + b'{"a":0},' * 1_950_000 + b"0]\n"  # noqa: E731
    for name, content in (("numbers", numbers), ("arrays", arrays), ("objects", objects)):
        for words in (
            ("index", "build", "x.jsonl", *_KEYED, "-o", "made"),
            ("check", "x.jsonl", *_CHECK),
            ("outputs", "show", "x.jsonl"),
        ):
            yield Case(f"{words[0]}: one line of 15 MiB: {name}", "large", words, line(content))

    def string(folder: Path) -> None:
        _write_table(folder, text=pa.array(["a" * 1_500_000_000], pa.large_string()))

    def constant(folder: Path) -> None:
        _write_table(folder, text=pa.array(["a" * 10_000]).take(pa.array([0] * 100_000)))

    def labels(folder: Path) -> None:
        count = 60_000_000
        words = pa.repeat("k", count)
        column = pa.MapArray.from_arrays(pa.array([0, count], pa.int32()), words, words)
        _write_table(folder, token_ids=pa.array([[1, 2, 3]]), labels=column)

    for name, make in (("a string of 1.5 GB", string), ("a repeated string", constant),
                       ("60 million labels", labels)):  # fmt: skip
        for words in (
            ("index", "build", "x.parquet", *_KEYED, "-o", "made"),
            ("outputs", "show", "x.parquet"),
            ("check", "x.parquet", *_CHECK),
        ):
            yield Case(f"{words[0]}: parquet: {name}", "large", words, make, False)


def _write_table(folder: Path, **columns: Any) -> None:
    size = len(next(iter(columns.values())))
    table = pa.table(
        {
            "response_id": pa.array([f"r{n}" for n in range(size)]),
            "marked": pa.array([True] * size),
            **columns,
        }
    )
    pq.write_table(table, folder / "x.parquet", compression="zstd")
