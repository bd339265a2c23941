"""Known answers: every shape of the field, read as the table says, and what must not be read."""

import gzip
import json
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import provenance as pv
from provenance.errors import DataError, UsageError
from provenance.storage.shapes.reading import RecordFiles
from provenance.storage.shapes.requests import ReadAs
from provenance.storage.shapes.table import SHAPES
from provenance.suspect.access.outputs import outputs_of
from tests.suspect.shapes import (
    ANSWER,
    ASKED,
    CONTENTS,
    FAILED,
    KNOWN,
    MESSAGE,
    QUESTION,
    SECOND,
    batch,
    chat,
)


def _write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def _read(paths, **options):
    """Outputs with what was shown before them, and the description of the files."""
    files = RecordFiles(paths, ReadAs.make(**options))
    found = [
        (output.text, list(output.shown.texts))
        for origin, record in files
        for output in outputs_of(record, origin)
    ]
    return found, files.describe(always=True)


def _refusal(path, **options):
    """What the error says, if it is one of ours; all texts are strings else."""
    try:
        found = _read([path], **options)[0]
    except DataError as error:
        return str(error)
    assert all(text is None or isinstance(text, str) for text, _ in found)
    return ""


def _shape(described):
    return {file["shape"] for file in described["files"].values()}


@pytest.mark.parametrize("name", KNOWN)
def test_known_answers(tmp_path, name):
    shape, records, expected = KNOWN[name]
    found, described = _read([_write(tmp_path / "x.jsonl", records)])
    assert _shape(described) == {shape}
    assert _agrees(found, expected)
    for text, _ in found:
        assert "ANSWER" in text
        assert "QUESTION" not in text


def _agrees(found, expected):
    """The texts, and whether each of them came with its prompt."""
    texts = [text for text, _ in found] == [text for text, _ in expected]
    prompted = [any("QUESTION" in one for one in shown) for _, shown in found]
    return texts and prompted == [bool(prompts) for _, prompts in expected]


@pytest.mark.parametrize("name", KNOWN)
def test_doubles_that_read_the_prompt_as_output_or_lose_it_fail(tmp_path, monkeypatch, name):
    shape, records, expected = KNOWN[name]
    path = _write(tmp_path / "x.jsonl", records)
    swapped = tuple(
        replace(one, answers=tuple(p for n, p in one.shown if n != "*"), known=()) for one in SHAPES
    )
    asking = frozenset({"user", "human", "system", "environment"})
    doubles = {
        "the prompt is read as output": ("provenance.storage.shapes.convert.SHAPES", swapped),
        "the other turns are": ("provenance.storage.shapes.turns._ANSWERING", asking),
        "no prompt is read": ("provenance.storage.shapes.convert._Building.add", _forget),
    }
    entry = next((one for one in SHAPES if one.name == shape), None)
    told = any(prompts for _, prompts in expected)
    if entry is None or not told:
        pytest.skip("our own form, or no prompt in it")
    wanted = {"the other turns are"} if entry.turns else set()
    wanted |= {"the prompt is read as output"} if entry.shown and not entry.turns else set()
    wanted -= {"the prompt is read as output"} if ("*", "request") in entry.shown else set()
    for double in wanted | {"no prompt is read"}:
        with monkeypatch.context() as patch:
            patch.setattr(*doubles[double])
            if double == "the prompt is read as output":
                patch.setattr("provenance.storage.shapes.reading.SHAPES", swapped)
            try:
                found, _ = _read([path])
            except DataError:
                continue
            assert not _agrees(found, expected), double


def _forget(_self, _name, _value):
    """Add nothing."""


@pytest.mark.parametrize("name", KNOWN)
def test_the_same_as_an_array_over_many_lines_and_packed(tmp_path, name):
    shape, records, expected = KNOWN[name]
    path = tmp_path / "x.json"
    path.write_text(json.dumps(records, indent=1))
    packed = tmp_path / "y.jsonl.gz"
    lines = "".join(json.dumps(record) + "\n" for record in records)
    packed.write_bytes(gzip.compress(b"\xef\xbb\xbf" + lines.encode()))
    for one in (path, packed):
        found, described = _read([one], format=shape)
        assert [text for text, _ in found] == [text for text, _ in expected]
        assert _shape(described) == {shape}


@pytest.mark.parametrize("name", KNOWN)
def test_a_field_of_nobody_is_refused(tmp_path, name):
    """The same file with an unknown long field is refused: it might be a prompt."""
    _, records, _ = KNOWN[name]
    if name.startswith(("telemetry", "openhands completions")):
        pytest.skip("the record has fields of its own format around the answer")
    odd = [{**record, "a_field_of_nobody": QUESTION} for record in records]
    with pytest.raises(DataError, match="a_field_of_nobody is not known"):
        _read([_write(tmp_path / "x.jsonl", odd)])


def test_every_turn_is_an_output_with_everything_before_it(tmp_path):
    turns = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": ANSWER},
        {"role": "tool", "content": "two"},
        {"role": "assistant", "content": SECOND},
        {"role": "assistant", "content": SECOND},
    ]
    found, _ = _read([_write(tmp_path / "x.jsonl", [{"messages": turns, "tools": ["spade"]}])])
    assert [text for text, _ in found] == [ANSWER, SECOND, SECOND]
    assert [set(shown) for _, shown in found] == [
        {"spade", "one"},
        {"spade", "one", ANSWER, "two"},
        {"spade", "one", ANSWER, "two", SECOND},
    ]


def test_a_batch_is_joined_with_its_requests(tmp_path):
    asked = [
        {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": one}
        for one in [{"model": "m", "messages": ASKED, "max_tokens": 9, "metadata": {"x": "y" * 20}}]
    ]
    requests = _write(tmp_path / "in.jsonl", asked)
    answers = _write(tmp_path / "out.jsonl", [batch("b", chat(SECOND)), batch("a", chat()), FAILED])
    found, described = _read([answers], requests=[requests])
    assert found == [(SECOND, []), (ANSWER, [QUESTION])]
    assert described["requests"] == {"in.jsonl": described["requests"]["in.jsonl"]}
    (file,) = described["files"].values()
    assert file["unasked"] == 2
    assert file["without_prompt"] == 1
    assert file["left_out"] == {"error": {"records": 1, "first": ["line 3"]}}
    with pytest.raises(DataError, match="must be used once"):
        _read([answers], requests=[_write(tmp_path / "twice.jsonl", asked * 2)])
    with pytest.raises(DataError, match="must be a request of a batch"):
        _read([answers], requests=[answers])


def test_other_batches_are_joined_too(tmp_path):
    params = {"model": "m", "system": "SYSTEM", "messages": ASKED, "max_tokens": 9}
    requests = _write(tmp_path / "in.jsonl", [{"custom_id": "c", "params": params}])
    results = [{"custom_id": "c", "result": {"type": "succeeded", "message": MESSAGE}}]
    found, _ = _read([_write(tmp_path / "out.jsonl", results)], requests=[requests])
    assert all(shown == ["SYSTEM", QUESTION] for _, shown in found)
    requests = _write(tmp_path / "gin.jsonl", [{"key": "a", "request": CONTENTS}])
    records = KNOWN["gemini batch"][1]
    found, _ = _read([_write(tmp_path / "gout.jsonl", records)], requests=[requests])
    assert found == [(ANSWER, [QUESTION])]


SILENT = {
    "refusal": [chat(None, refusal="I cannot help with that.")],
    "no text": [chat(None), {"prompt": "x", "output": None}],
    "empty": [chat("")],
    "error": [batch("x", {"error": {"message": "Rate limit reached"}}, 429), FAILED],
}


@pytest.mark.parametrize("reason", SILENT)
def test_records_without_a_text_are_counted_and_named_or_refused(tmp_path, reason):
    for number, record in enumerate(SILENT[reason]):
        good = {"output": ANSWER} if "output" in record else chat()
        good = batch("g", chat()) if "custom_id" in record else good
        path = _write(tmp_path / f"{number}.jsonl", [good, record])
        found, described = _read([path])
        (file,) = described["files"].values()
        assert found == [(ANSWER, [])]
        assert file["left_out"] == {reason: {"records": 1, "first": ["line 2"]}}
        with pytest.raises(DataError, match=f"line 2: must hold a text.*{reason}"):
            _read([path], strict=True)


def test_half_a_character_leaves_out_its_record_only(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(f'{{"output": "a \\ud83d"}}\n{{"output": "{ANSWER}"}}\n')
    found, described = _read([path])
    assert found == [(ANSWER, [])]
    assert described["files"]["x.jsonl"]["left_out"]["cut character"]["records"] == 1
    array = tmp_path / "y.json"
    array.write_text(f'[{{"output": "a \\ud83d"}}, {{"output": "{ANSWER}"}}]')
    assert _read([array])[0] == found


def test_likelihoods_and_demonstrations_are_no_outputs(tmp_path):
    record = {**KNOWN["lm-eval"][1][0], "resps": [[["-1.5", "False"]], [["-2.5", "True"]]]}
    record.pop("filtered_resps")
    found, described = _read([_write(tmp_path / "x.jsonl", [record])])
    assert found == []
    assert "likelihoods" in described["files"]["x.jsonl"]["left_out"]


def test_tables_texts_and_folders(tmp_path):
    folder = tmp_path / "all"
    (folder / "below").mkdir(parents=True)
    (folder / "a.csv").write_text(f'\ufeffprompt,response,score\n"{QUESTION}","{ANSWER}",0.5\n')
    (folder / "b.tsv").write_text(f"question\tcompletion\n{QUESTION}\t{ANSWER}\n")
    table = pa.table({"messages": [[*ASKED, {"role": "assistant", "content": ANSWER}]]})
    pq.write_table(table, folder / "below/c.parquet")
    (folder / "README.md").write_text("about")
    (folder / ".hidden.jsonl").write_text("nothing")
    found, described = _read([folder])
    assert found == [(ANSWER, [QUESTION])] * 3
    assert sorted(described["not_read"]) == [".hidden.jsonl", "README.md"]
    assert set(described["files"]) == {"a.csv", "b.tsv", "below/c.parquet"}
    text = tmp_path / "essay.txt"
    text.write_text(ANSWER)
    found, described = _read([text])
    assert (found, _shape(described)) == ([(ANSWER, [])], {"text"})


def test_conversations_that_are_a_whole_file(tmp_path):
    path = tmp_path / "x.json"
    for records, shape in ((KNOWN["messages"][1][0]["messages"], "messages"),):
        path.write_text(json.dumps(records, indent=2))
        found, described = _read([path])
        assert [text for text, _ in found] == [ANSWER, SECOND]
        assert _shape(described) == {shape}
    path.write_text(json.dumps(KNOWN["openhands"][1][0]["history"]))
    assert [text for text, _ in _read([path])[0]] == [ANSWER, SECOND]
    traj = tmp_path / "x.traj"
    traj.write_text(json.dumps(KNOWN["swe-agent"][1][0], indent=2))
    assert len(_read([traj])[0]) == 2


def test_a_mapping_reads_the_rest_and_loses_no_prompt(tmp_path):
    records = [{"data": {"q": QUESTION, "a": {"t": ANSWER}}, "n": 1}]
    path = _write(tmp_path / "x.jsonl", records)
    mapping = ["output=data.a.t", "prompt=data.q"]
    found, described = _read([path], mapping=mapping)
    assert (found, _shape(described)) == ([(ANSWER, [QUESTION])], {"map"})
    with pytest.raises(DataError, match=r"data\.q is not known"):
        _read([path], mapping=mapping[:1])
    assert _read([path], mapping=[mapping[0], "not_shown=data.q"])[0] == [(ANSWER, [])]
    for bad in (["output"], ["prompt=data.q"]):
        with pytest.raises(UsageError):
            _read([path], mapping=bad)
    with pytest.raises(UsageError):
        _read([path], mapping=mapping, format="messages")
    with pytest.raises(UsageError, match="--format must be one of"):
        _read([path], format="nonsense")


HOSTILE = {
    "two shapes": [{"prompt": "x", "completion": ANSWER, "response": ANSWER}],
    "a mixed file": [{"output": ANSWER}, chat()],
    "a mixed file, other way": [chat(), {"messages": ASKED}],
    "choices of strings": [{"object": "chat.completion", "choices": ["a"]}],
    "messages of strings": [{"messages": ["hello there, what is this"]}],
    "a turn that is null": [{"messages": [None, {"role": "assistant", "content": ANSWER}]}],
    "a list": [[1, 2, 3]],
    "a number": [5],
    "null": [None],
    "ids of a prompt": [
        {"prompt": None, "prompt_token_ids": [1, 2], "outputs": [{"text": ANSWER, "index": 0}]}
    ],
    "a prompt in the answer": [{**chat(), "instructions_to_the_model": QUESTION}],
    "nothing known": [{"a": "b"}],
    "a bare text": [{"text": QUESTION + ANSWER}],
    "preferences": [{"chosen": ANSWER, "rejected": QUESTION}],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_cannot_be_read_is_one_line_with_its_place(tmp_path, name):
    path = _write(tmp_path / "x.jsonl", HOSTILE[name])
    with pytest.raises(DataError) as caught:
        _read([path])
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


ODD = [None, 0, 1.5, True, "", "x", [], {}, [None], ["x"], [[]], {"type": "text"}, [{"type": 3}]]


@pytest.mark.parametrize("name", KNOWN)
def test_odd_values_anywhere_give_records_or_one_line(tmp_path, name):
    """Every value of every field replaced by another kind: never anything but our own errors."""
    shape, records, _ = KNOWN[name]
    path = tmp_path / "x.jsonl"
    for changed in _mutate(records[-1]):
        _write(path, [changed])
        for options in ({}, {"format": shape}):
            assert "\n" not in _refusal(path, **options)


def _mutate(value, depth=0):
    """Values with one part replaced."""
    if depth > 4:
        return
    for name in value if isinstance(value, dict) else range(len(value)):
        for odd in ODD:
            yield _with(value, name, odd)
        if isinstance(value[name], (dict, list)):
            for inner in _mutate(value[name], depth + 1):
                yield _with(value, name, inner)


def _with(value, name, inner):
    changed = dict(value) if isinstance(value, dict) else list(value)
    changed[name] = inner
    return changed


@pytest.mark.parametrize("depth", [100, 400, 900, 5000, 1_000_000])
@pytest.mark.parametrize("where", ['{{"output": "a b", "input": {}}}', '{{"messages": {}}}', "{}"])
def test_deep_json_is_read_or_refused_in_one_line(tmp_path, depth, where):
    path = tmp_path / "x.jsonl"
    for opened, closed in (("[", "]"), ('{"a":', "}")):
        middle = "1" if opened != "[" else ""
        path.write_text(where.format(opened * depth + middle + closed * depth))
        assert "\n" not in _refusal(path)


FORMATS = {
    "a Parquet file": b"PAR1\x15\x04",
    "a zip archive": b"PK\x03\x04\x14\x00",
    "a gzip file": gzip.compress(b"{}"),
    "a PDF": b"%PDF-1.7",
    "an SQLite database": b"SQLite format 3\x00",
    "text in UTF-16": '{"output": "a"}'.encode("utf-16"),
    "a tar archive": b"a" + b"\x00" * 256 + b"ustar\x00" + b"\x00" * 200,
}


@pytest.mark.parametrize("name", FORMATS)
def test_errors_name_the_format(tmp_path, name):
    path = tmp_path / "x.jsonl"
    path.write_bytes(FORMATS[name])
    with pytest.raises(DataError, match=name):
        _read([path])
    packed = tmp_path / "x.jsonl.gz"
    packed.write_bytes(gzip.compress(FORMATS[name]))
    with pytest.raises(DataError, match=name):
        _read([packed])


def test_tables_that_are_none(tmp_path):
    path = tmp_path / "x.csv"
    for content in ("a,a\n1,2\n", "output\nx,y\n", 'output\n"open\n'):
        path.write_text(content)
        with pytest.raises(DataError):
            _read([path])
    (tmp_path / "x.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match="whole Parquet file"):
        _read([tmp_path / "x.parquet"])


def test_the_public_function_says_how_files_are_read(tmp_path):
    path = _write(tmp_path / "x.jsonl", [batch("a", chat()), FAILED])
    found = pv.read_outputs(path)
    assert (found.outputs, found.without_prompt) == (1, 1)
    assert found.first == {"origin": f"{path}: line 1", "prompt": [], "output": ANSWER}
    assert "read as openai-batch; 1 of 2 records without a text: 1 error (line 2)" in " ".join(
        str(found).split()
    )
    assert found.to_json()["files"]["x.jsonl"]["shape"] == "openai-batch"
