"""Every string of a verdict that other people can choose, replaced by something hostile."""

from __future__ import annotations

import copy
from itertools import count
from typing import Any

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


def poison(verdict: dict[str, Any], start: int = 0) -> dict[str, Any]:
    """The same verdict with hostile names of slots, values, files, packages, keyring and scheme.

    `start` chooses which string comes first.
    """
    number = count(start)

    def name() -> str:
        i = next(number)
        return f"{PAYLOADS[i % len(PAYLOADS)]} {i}"

    bad = copy.deepcopy(verdict)
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
    bad["caveat"] = [name() for _ in PAYLOADS]
    bad["reasons"] = [name() for _ in bad["reasons"]]
    bad["plan"] = {"sha256": name(), "timestamp": name()}
    bad["exploratory"] = False
    if bad.get("power") and bad["power"]["curve"]:
        bad["power"]["key"] = name()
        for field in ("students", "world", "measured_by", "measured_on"):
            bad["power"]["curve"][field] = name()
    return bad


def poison_plan(start: int) -> dict[str, Any]:
    """A plan whose suspect and date are hostile."""
    return {
        "suspect": PAYLOADS[start % len(PAYLOADS)],
        "created": PAYLOADS[(start + 1) % len(PAYLOADS)],
    }
