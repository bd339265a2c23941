"""Real text in three capabilities, rebuilt from the pinned packages of `constraints.txt`.

`code`     Python functions and methods, docstrings removed
`prose`    the English paragraphs of docstrings, re-flowed
`headers`  C and C++ declarations from the headers of numpy, pyarrow and torch, comments removed

Only files named in the RECORD of a pinned package and the standard library are read, and documents
are ordered by their own hash, so the corpus does not depend on the file system. It does depend on
the Python patch release and on the package builds: `corpus.json` states versions and hashes.
The text itself is never committed. This module knows no tokenizer and no model.
"""

import ast
import hashlib
import json
import platform
import re
import sysconfig
import textwrap
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

CAPABILITIES = ("code", "prose", "headers")
SPLITS = ("teacher", "base", "prompts")
CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"

MIN_CHARS, MAX_CHARS = 200, 2000
LATER = {"coverage", "pytest-cov", "rfc3161-client", "rfc8785"}
"""Pinned after the fixtures were made: with their text the corpus and its tokenizer are others."""
SOURCE_BYTES_PER_PACKAGE = 14_000_000  # read at most this much of one package
DOCUMENT_BYTES_PER_PACKAGE = {"code": 1_200_000, "prose": 1_200_000, "headers": 8_000_000}
HALF_BYTES = 3_500_000  # kept per capability and training half
PROMPT_DOCUMENTS = 3_000  # kept per capability
SEEN_LINES_LIMIT = 0.4  # a document with a larger share of known lines is a near-duplicate
HEADER_PACKAGES = ("numpy", "pyarrow", "torch")


@dataclass(frozen=True)
class Document:
    """One text of the corpus; `digest` is the SHA-256 of the text and decides order and split."""

    capability: str
    split: str
    package: str
    digest: str
    text: str


# --- files ------------------------------------------------------------------------------------


def pinned_packages(constraints: Path = CONSTRAINTS) -> list[str]:
    """Names pinned in the constraints file and installed here, sorted; without `LATER`."""
    names = re.findall(r"^([\w.-]+)==", constraints.read_text(), flags=re.MULTILINE)
    installed = {d.metadata["Name"].lower() for d in metadata.distributions()}
    return sorted({n.lower() for n in names} & installed - LATER)


def package_files(package: str, suffixes: tuple[str, ...]) -> list[Path]:
    """Files of an installed package with one of the suffixes, sorted by recorded path."""
    recorded = metadata.files(package) or []
    names = sorted(str(f) for f in recorded if f.suffix in suffixes and ".." not in f.parts)
    root = Path(sysconfig.get_path("purelib"))
    return [root / n for n in names if (root / n).is_file()]


def stdlib_files() -> list[Path]:
    """Python sources of the standard library without its tests, sorted."""
    root = Path(sysconfig.get_path("stdlib"))
    skip = {"site-packages", "test", "tests", "idle_test", "__pycache__"}
    found = (p for p in root.rglob("*.py") if not skip & set(p.relative_to(root).parts))
    return sorted(found)


def _path_hash(path: Path) -> bytes:
    """A hash of the end of the path: the same wherever Python is installed."""
    return hashlib.sha256("/".join(path.parts[-3:]).encode()).digest()


def _affordable(files: list[Path]) -> list[Path]:
    """A pseudo-random choice of files that stays within the source budget of one package."""
    chosen, budget = [], SOURCE_BYTES_PER_PACKAGE
    for path in sorted(files, key=_path_hash):
        size = path.stat().st_size
        if size <= budget:
            chosen.append(path)
            budget -= size
    return chosen


# --- extraction -------------------------------------------------------------------------------


def _clip(text: str) -> str:
    """At most MAX_CHARS of the text, cut at the end of a line."""
    if len(text) <= MAX_CHARS:
        return text
    return text[:MAX_CHARS].rsplit("\n" if "\n" in text[:MAX_CHARS] else " ", 1)[0]


def _function_source(node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> str:
    """Source of a function, dedented, without its docstring."""
    start = min([node.lineno, *(d.lineno for d in node.decorator_list)]) - 1
    body = lines[start : node.end_lineno]
    if ast.get_docstring(node, clean=False) is not None and len(node.body) > 1:
        doc = node.body[0]
        body = lines[start : doc.lineno - 1] + lines[doc.end_lineno : node.end_lineno]
    return textwrap.dedent("\n".join(line.rstrip() for line in body)).strip()


def english_paragraphs(docstring: str) -> str:
    """The paragraphs of a docstring that read as English, each re-flowed to one line."""
    kept = []
    for paragraph in re.split(r"\n\s*\n", docstring):
        text = " ".join(paragraph.split())
        plain = sum(c.isalpha() or c in " .,;'" for c in text)
        is_markup = text.startswith((">>>", "..", "|", "```", "http")) or ">>>" in text
        if not is_markup and text.count(" ") >= 7 and plain >= 0.9 * len(text):
            kept.append(text)
    return "\n\n".join(kept)


def read_python(path: Path) -> list[tuple[str, str]]:
    """(capability, text) pairs of one Python file: functions as code, docstrings as prose."""
    try:
        source = path.read_text(encoding="utf-8")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's code
            tree = ast.parse(source)
    except (UnicodeDecodeError, SyntaxError, ValueError, RecursionError):
        return []
    lines, found = source.split("\n"), []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.append(("code", _function_source(node, lines)))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
            doc = ast.get_docstring(node)
            if doc:
                found.append(("prose", english_paragraphs(doc)))
    return [(kind, _clip(text)) for kind, text in found if len(text) >= MIN_CHARS]


def read_header(path: Path) -> list[tuple[str, str]]:
    """(capability, text) pairs of one header: runs of declarations, comments removed."""
    try:
        source = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return []
    source = re.sub(r"/\*.*?\*/", "", source, flags=re.DOTALL)
    source = re.sub(r"//[^\n]*", "", source)
    blocks = re.split(r"\n\s*\n", "\n".join(line.rstrip() for line in source.split("\n")))
    found, run = [], ""
    for block in blocks:
        if block.strip() and not block.strip().startswith("#include"):
            run = f"{run}\n\n{block.strip(chr(10))}" if run else block.strip("\n")
        if len(run) >= 3 * MIN_CHARS:
            found.append(("headers", _clip(textwrap.dedent(run))))
            run = ""
    return found + ([("headers", run)] if len(run) >= MIN_CHARS else [])


def extract() -> Iterator[tuple[str, str, str]]:
    """(capability, package, text) of all candidate documents, packages in sorted order."""
    with ProcessPoolExecutor(2) as pool:
        sources = {"python": stdlib_files()}
        sources |= {p: package_files(p, (".py",)) for p in pinned_packages()}
        for package, files in sources.items():
            for pairs in pool.map(read_python, _affordable(files), chunksize=16):
                yield from ((kind, package, text) for kind, text in pairs)
        for package in HEADER_PACKAGES:
            files = [
                f for f in package_files(package, (".h", ".hpp")) if "ATen/ops" not in f.as_posix()
            ]  # ATen/ops is generated: thousands of nearly equal files
            for pairs in pool.map(read_header, files, chunksize=16):
                yield from ((kind, package, text) for kind, text in pairs)


# --- selection --------------------------------------------------------------------------------


def split_of(digest: str) -> str:
    """Split of a document: 20 % prompts, the rest halved, by the last 32 bits of its hash."""
    u = int(digest[-8:], 16) / 2**32
    return "prompts" if u < 0.2 else "teacher" if u < 0.6 else "base"


def _line_hashes(text: str) -> list[int]:
    """Hashes of the lines that say something, white space and digits normalised."""
    lines = (re.sub(r"\d+", "0", " ".join(line.split())) for line in text.split("\n"))
    return [hash(line) for line in lines if len(line) >= 16]


def select(candidates: Iterable[tuple[str, str, str]]) -> list[Document]:
    """De-duplicated, split and capped documents in the order of (capability, digest)."""
    unique = {
        (kind, hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()): (package, text)
        for kind, package, text in candidates
    }
    known_lines: dict[str, set[int]] = defaultdict(set)
    used: dict[tuple[str, str], int] = defaultdict(int)
    kept = []
    for (kind, digest), (package, text) in sorted(unique.items()):
        split, size = split_of(digest), len(text.encode("utf-8", "replace"))
        full = (
            used[kind, split] >= PROMPT_DOCUMENTS
            if split == "prompts"
            else used[kind, split] + size > HALF_BYTES
        )
        if full or used[kind, package] + size > DOCUMENT_BYTES_PER_PACKAGE[kind]:
            continue
        lines = _line_hashes(text)
        seen = sum(h in known_lines[kind] for h in lines)
        if not lines or seen > SEEN_LINES_LIMIT * len(lines):
            continue
        known_lines[kind].update(lines)
        used[kind, split] += 1 if split == "prompts" else size
        used[kind, package] += size
        kept.append(Document(kind, split, package, digest, text))
    return kept


def describe(documents: list[Document]) -> dict[str, object]:
    """Counts, hashes and versions: what `corpus.json` records instead of the text."""
    groups: dict[str, list[Document]] = defaultdict(list)
    for d in documents:
        groups[f"{d.capability}/{d.split}"].append(d)
    packages = sorted({d.package for d in documents} - {"python"})
    return {
        "python": platform.python_version(),
        "packages": {p: metadata.version(p) for p in packages},
        "documents": len(documents),
        "bytes": sum(len(d.text.encode()) for d in documents),
        "sha256": hashlib.sha256("".join(d.digest for d in documents).encode()).hexdigest(),
        "groups": {
            name: {
                "documents": len(group),
                "bytes": sum(len(d.text.encode()) for d in group),
                "sha256": hashlib.sha256("".join(d.digest for d in group).encode()).hexdigest(),
            }
            for name, group in sorted(groups.items())
        },
    }


def build(work: Path) -> list[Document]:
    """Build the corpus; write `corpus.json` (facts) and `corpus.jsonl` (text, never committed)."""
    work.mkdir(parents=True, exist_ok=True)
    documents = select(extract())
    (work / "corpus.json").write_text(json.dumps(describe(documents), indent=1) + "\n")
    with (work / "corpus.jsonl").open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(asdict(d)) + "\n" for d in documents)
    return documents


def load(work: Path, split: str | None = None, capability: str | None = None) -> list[Document]:
    """Documents of a built corpus, all or of one split and one capability."""
    with (work / "corpus.jsonl").open(encoding="utf-8") as lines:
        documents = [Document(**json.loads(line)) for line in lines]
    return [d for d in documents if split in (None, d.split) and capability in (None, d.capability)]


def texts_by_digest(documents: Iterable[Document]) -> list[str]:
    """Texts of the documents in the order of their digests, capabilities interleaved."""
    return [d.text for d in sorted(documents, key=lambda d: d.digest)]
