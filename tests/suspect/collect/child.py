"""A collecting process for tests that kill it: `child.py URL PROMPTS FOLDER [DOUBLE]`.

The doubles are wrong on purpose; the tests must find them out.
"""

import sys

import provenance
from provenance.suspect.collect.run import Run


async def _write_after_sending(self, client, request):
    """Sends first: what a kill leaves was asked, and nobody knows."""
    reply = await client.ask(request.body)
    self.write_asked(request)
    self.write_reply(request, reply)
    return reply


def _ask_all_again(self):
    """Forgets what was answered."""
    for item in self.prompts.items(self.settings.samples):
        self.standing.outcomes.pop(item, None)
        yield item


def main(url, prompts, folder, double=""):
    if double == "after":
        Run.exchange = _write_after_sending
    elif double == "again":
        Run.unsettled = _ask_all_again
    settings = provenance.CollectSettings(
        base_url=url, model="tiny", backoff=0.01, timeout=5, concurrency=4
    )
    done = provenance.collect_outputs(prompts, folder, settings)
    raise SystemExit(done.exit_code)


if __name__ == "__main__":
    main(*sys.argv[1:])
