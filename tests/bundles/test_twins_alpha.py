"""The twins' alpha in a bundle is that of the keys: both lines of evidence have one half."""

from __future__ import annotations

import json

import numpy as np
import pytest

from provenance.suspect.twins import Twins
from provenance.twins import judge_twins
from tests.bundles.test_must_fail import _failures, _seal


def _add_twins(lab, bundle, share):
    """Twins that follow from their own table, tested at `share` of what is due to them."""
    path = bundle / "verdict.json"
    document = json.loads(path.read_text())
    ids = [np.array([1, 2], dtype=np.uint32)] * 30
    differences = np.random.default_rng(1).normal(size=30)
    twins = Twins(ids, ids, ids, 0, 0, {"twins.jsonl": "ab" * 32})
    document["twins"] = judge_twins(twins, differences, share * document["alpha"]).to_json()
    path.write_text(json.dumps(document))
    _seal(lab, bundle)


@pytest.mark.parametrize("share", [1.0, 0.5, 2.0, 1e-300])
def test_only_the_due_share_of_alpha_is_accepted(run, bundle, lab, share):
    _add_twins(lab, bundle, share)
    assert (15 in _failures(run, bundle)) == (share != 1.0)
