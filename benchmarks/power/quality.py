"""What a mark costs: likelihood, diversity over responses, and repeated answers to one prompt."""

from __future__ import annotations

from pathlib import Path

from benchmarks.lab import models
from benchmarks.lab import stage1 as lab
from benchmarks.lab.stage2 import Responses, distinct
from benchmarks.power.sampling import Question, answer, load_prompts
from tests.world.power import settings


def measure(served: Responses, fresh: Responses, keys: Path | None, seed: int) -> dict[str, object]:
    """The quality record of a world, or of the unmarked teacher (keys None)."""
    some = served[: settings.JUDGED_SERVED] + fresh[: settings.JUDGED_FRESH]
    first = some[: settings.NLL_RESPONSES]
    teacher = models.load_model(lab.WORK / "teacher")
    return {
        "nll_under_teacher": round(models.nll(teacher, first), 5),
        "nll_responses": len(first),
        "distinct_3": round(distinct(some, 3), 5),
        "distinct_4": round(distinct(some, 4), 5),
        "distinct_responses": len(some),
        "repeats": measure_repeats(keys, seed),
    }


def measure_repeats(keys: Path | None, seed: int) -> dict[str, object]:
    """Ask each prompt several times: how many answers are alike, how diverse are they?"""
    prompts = load_prompts(settings.REPEATS_FROM, settings.REPEATED_PROMPTS)
    asked = [prompt for prompt in prompts for _ in range(settings.REPEATS)]
    model = lab.WORK / "teacher"
    answers = answer(Question(model, asked, seed, keys, settings.REPEAT_TOKENS))
    groups = [answers[i : i + settings.REPEATS] for i in range(0, len(asked), settings.REPEATS)]
    identical = [one for group in groups for one in group if group.count(one) > 1]
    return {
        "prompts": len(prompts),
        "responses_per_prompt": settings.REPEATS,
        "tokens_per_response": settings.REPEAT_TOKENS,
        "identical_share": round(len(identical) / len(asked), 5),
        "distinct_4_per_prompt": round(sum(distinct(g, 4) for g in groups) / len(groups), 5),
        "seed": seed,
    }
