"""Every string of a verdict that other people can choose, replaced by something hostile."""

from __future__ import annotations

import json
from itertools import count

from provenance.check.plan import CONTROLS, Plan, write_plan
from provenance.check.verdict import Verdict

OWNED = "OWNED"
PAYLOADS = (
    f'<script>document.title="{OWNED}"</script>',
    f'"><img src=x onerror=\'document.title="{OWNED}"\'>',
    f"</title></style></svg><svg onload='document.title=\"{OWNED}\"'>",
    f"<iframe srcdoc='<script>parent.document.title=\"{OWNED}\"</script>'></iframe>",
    "<link rel=stylesheet href=http://127.0.0.1:9/x.css><base href=http://127.0.0.1:9/>",
    "<meta http-equiv=refresh content='0;url=http://127.0.0.1:9/'>",
    "url(http://127.0.0.1:9/x.png);background:url(http://127.0.0.1:9/y.png)",
    "{{ 7 * 191 }}{% for x in range(9) %}{% endfor %}${7*191}",
    r"$\frac{1}{0}$ \n %s %(name)s {0} {where}",
    "‮txt.tcidrev‬⁦⁧",
    "\x00\x1b[2J\x1b]0;x\x07\r\n\t\v",
    "\ud800\udfff\uffff",
    "قرار المحكمة",
    "A" * 100_000,
    "&lt;b&gt;&amp;amp;",
    " ",
    "",
)


def poison(verdict: Verdict, start: int = 0) -> Verdict:
    """The same verdict with hostile names of slots, values, files, packages, keyring and scheme.

    `start` chooses which string comes first.
    """
    number = count(start)

    def name() -> str:
        i = next(number)
        return f"{PAYLOADS[i % len(PAYLOADS)]} {i}"

    bad = json.loads(json.dumps(verdict.to_json()))
    slots: dict[str, str] = {}
    values: dict[str, str] = {}
    for row in (*bad["hypotheses"], *bad["shares"]):
        if row["value"]:
            row["slot"] = slots.setdefault(row["slot"], name())
            row["value"] = values.setdefault(row["value"], name())
    bad["attributed"] = {
        slots.get(slot, slot): [values.get(value, value) for value in found]
        for slot, found in bad["attributed"].items()
    }
    for control in bad["controls"]:
        control["detail"] = name()
        if not control["name"].startswith("placebo"):
            control["name"] = name()
    bad["keyring_id"], bad["weight_rule"], bad["scheme"]["name"] = name(), name(), name()
    bad["versions"] = {name(): name() for _ in range(12)}
    inputs = bad["inputs"]
    inputs["index_sha256"], inputs["tokenizer_sha256"] = name(), name()
    for described in (inputs["outputs"], *inputs["innocents"].values()):
        described["sha256"] = {name(): name() for _ in range(2 * len(PAYLOADS))}
        described["reference"] = {"kind": name()}
    inputs["outputs"]["source"] = {"access": name()}
    inputs["innocents"] = {name(): described for described in inputs["innocents"].values()}
    bad["caveat"] = "; ".join(name() for _ in PAYLOADS)
    bad["reasons"] = [name() for _ in bad["reasons"]]
    bad["plan"] = {"sha256": name(), "timestamp": name()}
    bad["exploratory"] = False
    if bad.get("power") and bad["power"]["curve"]:
        bad["power"]["key"] = name()
        for field in ("students", "world", "measured_by", "measured_on"):
            bad["power"]["curve"][field] = name()
    return Verdict.from_json(bad)


def make_plan(suspect: str) -> Plan:
    """A plan of this suspect."""
    return write_plan(
        {
            "suspect": suspect,
            "access": "outputs",
            "keyring_id": "ab",
            "scheme": {"name": "gumbel", "parameters": {}},
            "index_sha256": "0" * 64,
            "keys": ["global"],
            "weight_rule": "log-sqrt",
            "reference": {"kind": "none", "sha256": []},
            "stopping": {"rule": "sequential"},
            "alpha": 1e-4,
            "twins": False,
            "placebo_keys": 400,
            "controls": list(CONTROLS),
            "innocents": 1,
            "commitments": {"global": {}},
            "created": "2026-11-19T00:00:00Z",
            "nonce": "0" * 64,
        }
    )


def poison_plan(start: int) -> Plan:
    """A plan whose suspect is as hostile as a plan may be: printable."""
    allowed = [one for one in PAYLOADS if one.isprintable() and 0 < len(one) <= 1000]
    return make_plan(allowed[start % len(allowed)])
