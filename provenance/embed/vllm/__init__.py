"""The adapters of vLLM: what a request asks, both model runners, and what an answer says."""
