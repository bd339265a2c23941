"""The log that vLLM's engine writes: what was drawn, through everything that happens to a row.

On vLLM's real interface classes where it is installed, else on the fake. The runner is played here:
it keeps the lists of output ids as vLLM does, and lets go of them when a request is over.
"""

import gc
import json
import logging
import time
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from provenance.embed.metrics import counter  # noqa: E402
from provenance.embed.vllm import requests as vllm_requests  # noqa: E402
from provenance.embed.vllm.engine import (  # noqa: E402  # noqa: E402
    LOG_VARIABLE,
    PROMPTS_VARIABLE,
    REPLICA_VARIABLE,
    SWITCH_VARIABLE,
)
from provenance.embed.watermark import Watermark  # noqa: E402
from provenance.errors import ConfigurationMismatchError, StorageError, UsageError  # noqa: E402
from provenance.keys.keyring import add_value  # noqa: E402
from tests.embed import vllm_fake as fake  # noqa: E402
from tests.embed.conftest import ADAPTERS  # noqa: E402
from tests.embed.vllm_parts import (  # noqa: E402
    make_context,
    make_logits,
    make_parameters,
    make_v1,
    make_v2,
)

END = 7


@pytest.fixture
def log(tmp_path, monkeypatch):
    monkeypatch.setenv(LOG_VARIABLE, str(tmp_path / "log"))
    monkeypatch.setenv(REPLICA_VARIABLE, "replica-1")
    monkeypatch.setenv(PROMPTS_VARIABLE, "1")
    return tmp_path / "log"


def _read(folder):
    lines = [line for path in sorted(folder.iterdir()) for line in path.read_bytes().splitlines()]
    return [json.loads(line) for line in lines]


def _bits(record):
    import base64

    if "drawn" not in record:
        return np.zeros(len(record["token_ids"]), dtype=np.bool_)
    packed = np.frombuffer(base64.b64decode(record["drawn"]), dtype=np.uint8)
    return np.unpackbits(packed, bitorder="little")[: len(record["token_ids"])].astype(np.bool_)


class Runner:
    """vLLM's V1 runner as far as a processor sees it."""

    def __init__(self, vllm, folder, **more):
        self.vllm, self.watermark = vllm, Watermark.load(folder)
        self.size = self.watermark.keyring.public.vocabulary_size
        self.processor = make_v1(self.size, **more)
        self.requests: dict[str, SimpleNamespace] = {}
        self.batch: list[str] = []

    def step(self, add=(), remove=(), finish=(), seed=0, sharpen=None):
        """Finish and remove requests, add others, draw one token of each."""
        removed = [self.batch.index(name) for name in (*finish, *remove)]
        for name in finish:
            del self.requests[name]
        places = {i: name for i, name in enumerate(self.batch) if i not in removed}
        free = sorted(removed)
        added, gone = [], list(removed)
        for name in add:
            one = self.requests[name]
            index = free.pop(0) if free else len(places) and max(places) + 1
            if index in gone:
                gone.remove(index)
            added.append((index, one.parameters, one.prompt, one.output))
            places[index] = name
            del one
        moved = []
        ways = self.vllm[fake.V1].MoveDirectionality
        for hole in sorted(free):
            last = max(places, default=-1)
            if last > hole:
                moved.append((last, hole, ways.UNIDIRECTIONAL))
                places[hole] = places.pop(last)
        update = self.vllm[fake.V1].BatchUpdate(len(places), gone, added, moved)
        self.processor.update_state(update)
        del added, update
        self.batch = [places[i] for i in sorted(places)]
        if self.batch:
            logits = make_logits(len(self.batch), self.size, seed)
            logits[:, END] = float("-inf")  # it is given where a test wants it
            if sharpen is not None:
                logits *= sharpen
            self.last = self.processor.apply(logits)
            for row, name in enumerate(self.batch):
                self.requests[name].output.append(int(self.last[row].argmax()))

    def ask(self, name, labels=("week=a",), prompt=(1, 2, 3), **options):
        parameters = make_parameters(labels, **options)
        self.requests[name] = SimpleNamespace(parameters=parameters, prompt=list(prompt), output=[])
        return name

    def close(self):
        self.processor._engine.log.close()

    def expect(self, ids, labels, prompt):
        return self.watermark.marked_positions(labels, np.array(ids, dtype=np.uint32), prompt)


def _wait_for(log, count):
    for _ in range(100):
        if log.is_dir() and len(_read(log)) >= count:
            return
        time.sleep(0.05)


def test_a_finished_response_is_logged_whole_with_what_coins_decided(vllm, folder, log):
    runner = Runner(vllm, folder)
    fields = {
        "provenance_groups": ["account=a-17"],
        "provenance_request_id": "constant",
        "provenance_conversation": "c-1",
    }
    names = [
        runner.ask(f"r{i}", fields=fields, max_tokens=12 + i, prompt=(i, 4, 4)) for i in range(5)
    ]
    runner.step(add=names)
    for seed in range(1, 12):
        runner.step(seed=seed)
    kept = {}
    for i in range(5):  # each reaches its length
        kept[i] = list(runner.requests[f"r{i}"].output)
        runner.step(finish=[f"r{i}"], seed=20 + i)
    runner.close()
    records = _read(log)
    assert len(records) == 5
    assert len({record["response_id"] for record in records}) == 5
    for i, record in enumerate(sorted(records, key=lambda record: len(record["token_ids"]))):
        assert record["token_ids"] == kept[i]
        assert record["finish"] == "length"
        assert record["request_id"] == "constant"
        assert record["conversation_id"] == "c-1"
        assert record["labels"] == {"week": "a", "account": "a-17", "replica": "replica-1"}
        assert record["prompt_token_ids"] == [i, 4, 4]
        assert (_bits(record) == runner.expect(kept[i], {"week": "a"}, [i, 4, 4])).all()
        assert _bits(record).any()


def test_the_end_token_is_logged_and_a_preempted_row_is_one_response(vllm, folder, log):
    runner = Runner(vllm, folder)
    given = {"ends": (END,), "max_tokens": 99}  # vLLM's own default is 16
    runner.step(add=[runner.ask("a", **given), runner.ask("b", **given, prompt=(9,))])
    for seed in range(1, 8):
        runner.step(seed=seed)
    runner.step(remove=["a"], seed=30)  # preempted: the runner keeps its list
    for seed in range(8, 12):
        runner.step(seed=seed)
    time.sleep(0.6)
    assert not log.is_dir() or not _read(log)  # two ticks: nothing of it is logged meanwhile
    runner.step(add=["a"], seed=31)
    runner.requests["a"].output[:] = list(runner.requests["a"].output)
    for seed in range(12, 20):
        runner.step(seed=seed)
    runner.requests["a"].output.append(END)
    whole = list(runner.requests["a"].output)
    runner.step(finish=["a"], seed=40)
    _wait_for(log, 1)
    (record,) = _read(log)
    assert record["token_ids"] == whole
    assert record["finish"] == "end"
    expected = runner.expect(whole, {"week": "a"}, [1, 2, 3])
    assert (_bits(record)[:-1] == expected[:-1]).all()


@pytest.mark.parametrize("ignores", [False, True])
def test_an_end_token_that_is_ignored_ends_nothing(vllm, folder, log, ignores):
    """The request's ids go on behind it, and all of them are drawn and logged."""
    runner = Runner(vllm, folder)
    runner.step(add=[runner.ask("a", end=END, ignore_eos=ignores, max_tokens=12)])
    runner.step(seed=1)
    runner.requests["a"].output.append(END)
    if ignores:
        time.sleep(0.6)
        while len(runner.requests["a"].output) < 12:
            runner.step(seed=len(runner.requests["a"].output))
    whole = list(runner.requests["a"].output)
    runner.step(finish=["a"])
    runner.close()
    (record,) = _read(log)
    assert record["token_ids"] == whole
    assert record["finish"] == ("length" if ignores else "end")


def test_an_idle_engine_takes_no_step_and_its_last_response_is_logged(vllm, folder, log):
    runner = Runner(vllm, folder)
    runner.step(add=[runner.ask("a", max_tokens=4)])
    for seed in range(1, 4):
        runner.step(seed=seed)
    _wait_for(log, 1)
    (record,) = _read(log)
    assert record["token_ids"] == runner.requests["a"].output
    runner.step(finish=["a"])
    runner.close()
    assert len(_read(log)) == 1


def test_an_async_runner_makes_the_list_anew_when_a_row_comes_again(vllm, folder, log):
    runner = Runner(vllm, folder)
    runner.step(add=[runner.ask("a", max_tokens=20), runner.ask("b", prompt=(9,))])
    for seed in range(1, 8):
        runner.step(seed=seed)
    runner.step(remove=["a"], seed=30)
    known = runner.requests["a"].output
    runner.requests["a"].output = list(known)
    del known
    runner.step(add=["a"], seed=31)
    while len(runner.requests["a"].output) < 20:
        runner.step(seed=len(runner.requests["a"].output) + 50)
    whole = list(runner.requests["a"].output)
    runner.step(finish=["a"], seed=41)
    runner.step(finish=["b"], seed=42)
    runner.close()
    (record,) = [r for r in _read(log) if r["prompt_token_ids"] == [1, 2, 3]]
    assert record["token_ids"] == whole
    assert (_bits(record) == runner.expect(whole, {"week": "a"}, [1, 2, 3])).all()


def test_a_client_that_leaves_or_a_stop_string_is_logged_when_the_runner_lets_go(vllm, folder, log):
    runner = Runner(vllm, folder)
    runner.step(add=[runner.ask("gone"), runner.ask("stopped", prompt=(5,), stop=["x"])])
    for seed in range(1, 6):
        runner.step(seed=seed)
    runner.step(finish=["gone", "stopped"])
    gc.collect()
    _wait_for(log, 2)
    found = {tuple(record["prompt_token_ids"]): record for record in _read(log)}
    assert found[1, 2, 3]["finish"] == "abort"
    assert "finish" not in found[5,]
    assert all(len(record["token_ids"]) == 6 for record in found.values())


def test_what_runs_when_the_engine_ends_is_logged(vllm, folder, log):
    runner = Runner(vllm, folder)
    runner.step(add=[runner.ask("a"), runner.ask("b", prompt=(5,))])
    for seed in range(1, 6):
        runner.step(seed=seed)
    runner.close()
    assert [record["finish"] for record in _read(log)] == ["abort", "abort"]


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 1e-6}])
def test_a_place_with_one_candidate_is_not_drawn(vllm, folder, log, options):
    runner = Runner(vllm, folder)
    runner.step(
        add=[runner.ask("a", max_tokens=30, **options), runner.ask("b", prompt=(5,), max_tokens=30)]
    )
    for seed in range(1, 30):
        runner.step(seed=seed)
    runner.step(finish=["a", "b"])
    runner.close()
    found = {tuple(record["prompt_token_ids"]): record for record in _read(log)}
    assert not found[1, 2, 3]["marked"]
    assert found[5,]["marked"]


def test_a_temperature_near_zero_is_not_drawn(vllm, folder, log):
    """vLLM divides by it before the processor: candidates far apart, none minus infinity."""
    runner = Runner(vllm, folder)
    runner.step(add=[runner.ask("a", max_tokens=30)], sharpen=1e4)
    for seed in range(1, 30):
        runner.step(seed=seed, sharpen=1e4)
    runner.step(finish=["a"])
    runner.close()
    (record,) = _read(log)
    assert not record["marked"]


def test_a_keyring_that_lags_in_the_worker_marks_what_it_can(vllm, folder, log, caplog):
    """The race of a Monday: admission read the new file, the worker's disk shows the old one."""
    runner = Runner(vllm, folder)
    old = (folder / "keyring.json").read_bytes()
    add_value(folder, "week", "c")
    parameters = make_parameters(("week=c",), max_tokens=40)
    vllm_requests.admit_request(parameters)
    (folder / "keyring.json").write_bytes(old)
    before = counter("provenance_requests", "Requests that entered the engine.", "outcome")
    counted = before.value(outcome="no key")
    runner.ask("b", max_tokens=40, prompt=(5,))
    runner.ask("a", max_tokens=40)
    runner.requests["a"].parameters = parameters
    runner.step(add=["a", "b"])
    for seed in range(1, 40):
        runner.step(seed=seed)
    runner.step(finish=["a", "b"])
    runner.close()
    found = {tuple(record["prompt_token_ids"]): record for record in _read(log)}
    assert "reason" not in found[5,]
    assert "week=c" in found[1, 2, 3]["reason"]
    assert found[1, 2, 3]["labels"]["week"] == "c"
    with_keys = runner.expect(found[1, 2, 3]["token_ids"], {}, [1, 2, 3])
    assert (_bits(found[1, 2, 3]) == with_keys).all()
    assert with_keys.any()
    assert before.value(outcome="no key") == counted + 1


def test_a_request_that_may_go_unmarked_is_served_and_says_why(vllm, folder, log):
    runner = Runner(vllm, folder)
    wish = {"provenance_mark": "if-possible"}
    greedy = make_parameters(("week=a",), fields=wish, temperature=0.0, max_tokens=5)
    vllm_requests.admit_request(greedy)
    with pytest.raises(UsageError, match="greedy"):
        vllm_requests.admit_request(make_parameters(("week=a",), temperature=0.0))
    never = make_parameters(None, fields={"provenance_mark": "never"}, max_tokens=5)
    for name, parameters in (("greedy", greedy), ("never", never)):
        runner.ask(name, prompt=(len(name),))
        runner.requests[name].parameters = parameters
    runner.step(add=["greedy", "never"])
    for seed in range(1, 5):
        runner.step(seed=seed)
    runner.step(finish=["greedy", "never"])
    runner.close()
    found = {record["prompt_token_ids"][0]: record for record in _read(log)}
    assert "greedy decoding carries no mark" in found[6]["reason"]
    assert "not to be marked" in found[5]["reason"]
    assert not any(record["marked"] for record in found.values())


def test_the_switch_turns_the_mark_off_without_a_restart_and_the_log_says_so(
    vllm, folder, log, tmp_path, monkeypatch, caplog
):
    monkeypatch.setenv(SWITCH_VARIABLE, str(tmp_path / "switch.json"))
    monkeypatch.setattr("provenance.embed.switch._SECONDS", 0.0)
    runner = Runner(vllm, folder)
    for name, content in (
        ("1", None),
        ("2", '{"marking": false}'),
        ("3", "{damaged"),
        ("4", '{"share": 0.0}'),
        ("5", '{"marking": true}'),
    ):
        if content is not None:
            (tmp_path / "switch.json").write_text(content)
        runner.ask(name, prompt=(int(name),), max_tokens=30)
        runner.step(add=[name])
        for seed in range(1, 30):
            runner.step(seed=seed)
        runner.step(finish=[name])
    runner.close()
    found = {record["prompt_token_ids"][0]: record for record in _read(log)}
    assert [found[i]["marked"] for i in range(1, 6)] == [True, False, False, False, True]
    assert [found[i].get("reason", "")[:12] for i in (2, 3, 4)] == [
        "the mark is ", "the mark is ", "outside the ",
    ]  # fmt: skip
    assert "the switch stays as it was" in caplog.text


def test_a_failing_draw_or_log_does_not_end_the_engine(vllm, folder, log, caplog, monkeypatch):
    runner = Runner(vllm, folder)
    runner.step(add=[runner.ask("a", max_tokens=3)])

    def fail(*_, **__):
        raise RuntimeError("a defect")

    monkeypatch.setattr(runner.processor._engine.served.watermark, "next_keys", fail)
    monkeypatch.setattr(runner.processor._engine._sink, "write", fail)
    caplog.set_level(logging.ERROR)
    runner.step(seed=1)
    runner.step(seed=2)
    runner.step(finish=["a"])
    runner.close()
    assert caplog.text.count("draw failed; the engine goes on without it") == 1  # once a minute


def test_other_ranks_write_nothing_and_a_bad_folder_is_an_error_at_the_start(
    vllm, folder, log, tmp_path, monkeypatch
):
    watermark = Watermark.load(folder)
    size = watermark.keyring.public.vocabulary_size
    module = __import__(ADAPTERS[0], fromlist=["x"])
    model = SimpleNamespace(
        get_vocab_size=lambda: size, logprobs_mode="raw_logprobs", seed=0, max_model_len=99
    )
    parallel = SimpleNamespace(tensor_parallel_size=2, rank=1)
    config = SimpleNamespace(model_config=model, parallel_config=parallel)
    processor = module.WatermarkLogitsProcessor(config, torch.device("cpu"), False)
    assert processor._engine.log is None
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(LOG_VARIABLE, str(tmp_path / "file/log"))
    parallel.rank = 0
    with pytest.raises(StorageError, match="must be a folder that can be written"):
        module.WatermarkLogitsProcessor(config, torch.device("cpu"), False)
    monkeypatch.delenv("PROVENANCE_KEYRING")
    with pytest.raises((UsageError, ConfigurationMismatchError), match="PROVENANCE_KEYRING"):
        module.WatermarkLogitsProcessor(config, torch.device("cpu"), False)


# --- V2 -------------------------------------------------------------------------------------------


class DeviceRunner:
    """vLLM's V2 runner as far as a processor sees it: slots, and a table of ids on the device.

    `enter` writes lengths at once and ids when all have entered, as the runner's staged writes do.
    """

    def __init__(self, vllm, folder):
        self.watermark = Watermark.load(folder)
        self.size = self.watermark.keyring.public.vocabulary_size
        self.processor = make_v2(self.size)
        self.states = self.processor.states
        self.active: list[int] = []

    def enter(self, slot, parameters, prompt, output=()):
        self.states.prompt_len.np[slot] = len(prompt)
        self.states.prefill_len.np[slot] = len(prompt) + len(output)
        self.processor.add_request(slot, parameters)
        ids = [*prompt, *output]
        self.states.all_token_ids.np[slot, : len(ids)] = ids
        self.states.total_len.np[slot] = len(ids)
        self.processor.apply_staged_writes()
        self.active.append(slot)

    def step(self, seed, force=None):
        context = make_context(self.processor, self.active)
        logits = make_logits(len(self.active), self.size, seed)
        logits[:, END] = float("-inf")
        after = self.processor.apply(logits, context)
        for row, slot in enumerate(self.active):
            place = self.states.total_len.np[slot]
            token = int(after[row].argmax()) if force is None else force
            self.states.all_token_ids.np[slot, place] = token
            self.states.total_len.np[slot] = place + 1

    def output(self, slot):
        start, end = self.states.prompt_len.np[slot], self.states.total_len.np[slot]
        return self.states.all_token_ids.np[slot, start:end].tolist()

    def close(self):
        self.processor._engine.log.close()

    def expect(self, ids, labels, prompt):
        return self.watermark.marked_positions(labels, np.array(ids, dtype=np.uint32), prompt)


def test_v2_logs_a_response_when_its_ids_say_that_it_ended(vllm, folder, log):
    runner = DeviceRunner(vllm, folder)
    runner.enter(3, make_parameters(max_tokens=20), [1, 2, 3])
    runner.enter(5, make_parameters(("week=b",), max_tokens=90, ends=(END,)), [4, 4])
    for seed in range(19):
        runner.step(seed)
    runner.step(30)
    runner.active.remove(3)
    whole = runner.output(3)
    runner.step(31, force=END)  # 5 ends here, and no step follows
    ended = runner.output(5)
    _wait_for(log, 2)
    found = {record["labels"]["week"]: record for record in _read(log)}
    assert found["a"]["token_ids"] == whole
    assert found["a"]["finish"] == "length"
    assert (_bits(found["a"]) == runner.expect(whole, {"week": "a"}, [1, 2, 3])).all()
    assert _bits(found["a"]).any()
    assert found["b"]["token_ids"] == ended
    assert found["b"]["finish"] == "end"
    assert (_bits(found["b"]) == runner.expect(ended, {"week": "b"}, [4, 4])).all()
    runner.close()
    assert len(_read(log)) == 2


def test_v2_a_slot_that_is_used_again_is_logged_before(vllm, folder, log):
    runner = DeviceRunner(vllm, folder)
    runner.enter(3, make_parameters(), [1, 2, 3])
    for seed in range(10):
        runner.step(seed)
    whole = runner.output(3)
    runner.active.clear()
    runner.enter(3, make_parameters(("week=b",)), [9])
    for seed in range(10, 16):
        runner.step(seed)
    later = runner.output(3)
    runner.close()
    found = {record["labels"]["week"]: record for record in _read(log)}
    assert found["a"]["token_ids"] == whole
    assert found["a"]["finish"] == "abort"
    assert (_bits(found["a"]) == runner.expect(whole, {"week": "a"}, [1, 2, 3])).all()
    assert found["b"]["token_ids"] == later
    assert (_bits(found["b"]) == runner.expect(later, {"week": "b"}, [9])).all()


@pytest.mark.parametrize("slot", [3, 7])
def test_v2_a_preempted_request_is_one_response(vllm, folder, log, slot):
    runner = DeviceRunner(vllm, folder)
    parameters = make_parameters(max_tokens=30)
    runner.enter(3, parameters, [1, 2, 3])
    for seed in range(12):
        runner.step(seed)
    known = runner.output(3)
    runner.active.clear()
    runner.enter(slot, parameters, [1, 2, 3], known)
    for seed in range(12, 30):
        runner.step(seed)
    whole = runner.output(slot)
    runner.close()
    (record,) = _read(log)
    assert record["token_ids"] == whole
    assert record["token_ids"][:12] == known
    assert (_bits(record) == runner.expect(whole, {"week": "a"}, [1, 2, 3])).all()


def test_v2_a_place_with_one_candidate_is_not_drawn(vllm, folder, log):
    runner = DeviceRunner(vllm, folder)
    runner.enter(3, make_parameters(max_tokens=20, top_k=1), [1, 2, 3])
    runner.enter(5, make_parameters(("week=b",), max_tokens=20, min_p=1.0), [1, 2, 3])
    for seed in range(20):
        runner.step(seed)
    runner.close()
    assert [record["marked"] for record in _read(log)] == [False, False]
