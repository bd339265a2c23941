"""The table of shapes: how each is recognised, where its answer and its prompt stand.

One entry a shape, no parser a shape. What an entry does not name stays beside the answer under its
own name, where the reader of outputs takes it for shown, knows it to be harmless, or refuses it:
an entry can forget a prompt only by naming it as `known`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from provenance.storage.shapes.paths import holds
from provenance.storage.shapes.unfold import is_telemetry

OURS: Final = "provenance"
TEXT: Final = "text"
PLUGIN: Final = "plug-in"


@dataclass(frozen=True)
class Shape:
    """One shape of a record.

    Attributes
    ----------
    name, says : for people, and for `--format`
    when, unless : tests (`paths.holds`) that must all hold, or of which none may
    prepare : name of what unfolds the record first, see `provenance.storage.shapes.unfold`
    base : path of the answer's object, whose other fields are read on; "" for the record itself
    failed : pairs of a test and the reason why a record with it has no text
    answers : paths of the answer, below `base`: the first that is there
    turns : path of a conversation: every turn of the model is an answer, all before it was shown
    shown : (name, path): what the model was shown, and the name of ours that it gets
    known : paths below `base` that hold neither, or the same once more
    beside : names outside `base` of which this is true
    key : path of the id by which a file of requests is joined
    written_as : the answer may be JSON in a string
    """

    name: str
    says: str
    when: tuple[str, ...]
    unless: tuple[str, ...] = ()
    prepare: str = ""
    base: str = ""
    failed: tuple[tuple[str, str], ...] = ()
    answers: tuple[str, ...] = ()
    turns: str = ""
    shown: tuple[tuple[str, str], ...] = ()
    known: tuple[str, ...] = ()
    beside: tuple[str, ...] = ("id", "error", "status", "processed_time")
    key: str = ""
    written_as: bool = False

    def matches(self, record: Mapping[str, object]) -> bool:
        """Whether a record may be of this shape."""
        if self.prepare == "otel":
            return is_telemetry(record)
        return all(holds(record, test) for test in self.when) and not any(
            holds(record, test) for test in self.unless
        )


_OPENAI_ANSWERS: Final = ("choices[].message", "choices[].text", "output", "content")
_OPENAI_KNOWN: Final = (
    *("choices", "output", "content", "id", "object", "created", "created_at", "model", "usage"),
    *("system_fingerprint", "service_tier", "metadata", "prompt_logprobs", "kv_transfer_params"),
    *("status", "error", "incomplete_details", "parallel_tool_calls", "temperature", "top_p"),
    *("tool_choice", "max_output_tokens", "max_tool_calls", "reasoning", "text", "truncation"),
    *("user", "safety_identifier", "prompt_cache_key", "store", "background", "top_logprobs"),
    *("completed_at", "billing", "type", "role", "stop_reason", "stop_sequence", "container"),
    *("prompt_cache_retention", "moderation", "prompt_filter_results", "stop_details"),
    *("request_id", "_request_id", "prompt_token_ids", "context_management", "provider"),
)
"""Fields of answers of APIs that hold no prompt; `instructions`, `tools`, `prompt`, `input` do."""
_GEMINI_KNOWN: Final = (
    *("candidates", "usageMetadata", "usage_metadata", "modelVersion", "model_version"),
    *("promptFeedback", "responseId", "response_id", "createTime", "modelStatus"),
)
_GEMINI_FAILED: Final = (("promptFeedback.blockReason:text", "refusal"),)
_EMPTY_OUTPUT: Final = ("output", "outputs", "output_token_ids")
_COLUMNS: Final = tuple(
    f"{name}{plural}" for name in ("completion", "response", "generation") for plural in ("", "s")
)

PROVENANCE: Final = Shape(OURS, "our own records: output, outputs or output_token_ids", ())

SHAPES: Final = (
    Shape(
        "openai-batch",
        "OpenAI Batch API and vLLM run_batch: results of chat, completions and responses",
        ("custom_id:text", "response:any"),
        unless=("response.candidates:list",),
        base="response.body",
        failed=(
            ("error:some", "error"),
            ("response:null", "error"),
            ("response.body:null", "error"),
        ),
        answers=_OPENAI_ANSWERS,
        known=_OPENAI_KNOWN,
        key="custom_id",
    ),
    Shape(
        "openai-chat",
        "chat.completion objects",
        ("choices[].message:object",),
        unless=("outputs:any", "request:object", "response:object"),
        answers=("choices[].message",),
        known=_OPENAI_KNOWN,
        key="id",
    ),
    Shape(
        "openai-completion",
        "text_completion objects",
        ("choices[].text:any",),
        unless=("choices[].message:object", "request:object"),
        answers=("choices[].text",),
        known=_OPENAI_KNOWN,
        key="id",
    ),
    Shape(
        "openai-response",
        "Responses objects",
        ("object=response", "output:list"),
        answers=("output",),
        known=_OPENAI_KNOWN,
        key="id",
    ),
    Shape(
        "api-pair",
        "a request to an OpenAI or Anthropic API beside its answer (proxies, litellm)",
        ("request:object", "response:object"),
        unless=("custom_id:any", "response.candidates:list"),
        base="response",
        failed=(("response.error:some", "error"),),
        answers=_OPENAI_ANSWERS,
        shown=(("*", "request"),),
        known=_OPENAI_KNOWN,
    ),
    Shape(
        "anthropic-batch",
        "Anthropic Message Batches: results",
        ("custom_id:text", "result.type:text"),
        base="result.message",
        failed=(("result.type!succeeded", "error"),),
        answers=("content",),
        known=_OPENAI_KNOWN,
        key="custom_id",
    ),
    Shape(
        "anthropic-message",
        "Anthropic Message objects",
        ("type=message", "role=assistant", "content:list"),
        answers=("content",),
        known=_OPENAI_KNOWN,
        key="id",
    ),
    *(
        Shape(
            "gemini-batch",
            "Gemini and Vertex batches, with the request beside or under key",
            when,
            unless=("custom_id:any",),
            base="response",
            failed=(
                ("error:some", "error"),
                ("response:null", "error"),
                ("response.promptFeedback.blockReason:text", "refusal"),
            ),
            answers=("candidates[].content",),
            shown=(("*", "request"), ("shown", "candidates[].groundingMetadata")),
            known=_GEMINI_KNOWN,
            key="key",
        )
        for when in (
            ("response.candidates:list",),
            ("response.promptFeedback:object",),
            ("key:text", "error:object"),
            ("request.contents:list", "response:null"),
        )
    ),
    Shape(
        "gemini",
        "GenerateContentResponse objects",
        ("candidates[].content:object",),
        failed=_GEMINI_FAILED,
        answers=("candidates[].content",),
        shown=(("shown", "candidates[].groundingMetadata"),),
        known=_GEMINI_KNOWN,
        key="responseId",
    ),
    Shape(
        "vllm-offline",
        "vLLM RequestOutput dumps",
        ("outputs[].text:text",),
        answers=("outputs[].text",),
        failed=(("outputs[].text:null", "no text"),),
        shown=(("prompt", "prompt"),),
        known=(
            *("outputs", "request_id", "prompt_logprobs", "finished", "metrics", "lora_request"),
            *("encoder_prompt_token_ids", "num_cached_tokens", "kv_transfer_params"),
            *("multi_modal_placeholders", "prompt_token_ids"),
        ),
        key="request_id",
    ),
    Shape(
        "sglang",
        "SGLang's native answers: text and meta_info",
        ("text:any", "meta_info:object"),
        answers=("text",),
        known=("text", "meta_info", "output_ids", "index"),
        key="meta_info.id",
    ),
    Shape(
        "otel",
        "OpenTelemetry gen_ai spans and events, both generations",
        (),
        prepare="otel",
        answers=(
            *("gen_ai.output.messages", "gen_ai.completion", "gen_ai.choice"),
            "gen_ai.content.completion",
        ),
        known=("gen_ai",),
        written_as=True,
    ),
    Shape(
        "langsmith",
        "LangSmith runs and data sets",
        ("inputs:object", "outputs:any"),
        unless=("outputs[].text:any", "outputs:texts"),
        failed=(("error:text", "error"), ("outputs:null", "no text")),
        answers=(
            *("outputs.generations[][].message", "outputs.generations[][].text"),
            *("outputs.generations[].message", "outputs.generations[].text"),
            *("outputs.choices[].message", "outputs.choices[].text", "outputs.messages"),
            *("outputs.message", "outputs.output", "outputs.content", "outputs.text"),
            *("outputs.answer", "outputs.response"),
        ),
        shown=(("inputs", "inputs"), ("tools", "extra.invocation_params.tools")),
        known=(
            *("outputs", "extra", "serialized", "events", "metadata", "inputs_preview", "error"),
            *("outputs_preview", "manifest_id", "app_path", "feedback_stats", "dotted_order"),
            *("parent_run_ids", "child_run_ids", "share_token", "execution_order", "name"),
            *("reference_outputs", "child_runs", "price_model_id", "attachments"),
        ),
        key="id",
    ),
    Shape(
        "langfuse",
        "Langfuse generations, as exported (JSON, JSONL, CSV)",
        ("input:any", "output:any", "traceId:any"),
        failed=(("type=SPAN", "not a generation"), ("type=EVENT", "not a generation")),
        answers=("output.choices[].message", "output"),
        shown=(("input", "input"),),
        known=(
            *("output", "metadata", "usage", "usageDetails", "costDetails", "modelParameters"),
            *("id", "traceId", "parentObservationId", "startTime", "endTime", "type", "name"),
            *("level", "environment", "version", "projectId", "createdAt", "updatedAt", "unit"),
            *("completionStartTime", "modelId", "promptId", "promptName", "promptVersion"),
            *("internalModelId", "inputPrice", "outputPrice", "totalPrice", "statusMessage"),
            *("traceName", "userId", "sessionId", "bookmarked", "release", "public"),
        ),
        key="id",
        written_as=True,
    ),
    Shape(
        "lm-eval",
        "lm-evaluation-harness samples_*.jsonl",
        ("doc_id:any", "arguments:any", "resps:list"),
        failed=(("resps[][]:list", "likelihoods"), ("resps[][]:number", "likelihoods")),
        answers=("resps[][]",),
        shown=(("shown", "arguments"),),
        known=(
            *("resps", "filtered_resps", "doc", "target", "doc_hash", "prompt_hash"),
            *("target_hash", "filter", "metrics"),
        ),
        key="doc_id",
    ),
    Shape(
        "swe-agent",
        "SWE-agent .traj: history; demonstrations were shown",
        ("trajectory:list", "history:list"),
        turns="history",
        known=("trajectory", "info", "environment", "replay_config"),
    ),
    Shape(
        "mini-swe-agent",
        "mini-swe-agent trajectories",
        ("trajectory_format:text", "messages:list"),
        turns="messages",
        known=("info", "trajectory_format", "instance_id"),
    ),
    *(
        Shape(
            "openhands",
            "OpenHands events: actions of the agent are answers, all else was shown",
            (test,),
            unless=("trajectory:any", "output:any", "outputs:any"),
            prepare="openhands",
            turns="turns",
            shown=(("shown", "instance"),),
            known=("test_result", "metadata", "metrics", "git_patch", "error", "history"),
        )
        for test in ("history[].source:text", "history[][].source:text")
    ),
    Shape(
        "llm-log",
        "messages and the API's answer beside them (OpenHands completions, litellm)",
        ("messages:list", "response.choices:list"),
        base="response",
        answers=("choices[].message", "choices[].text"),
        shown=(
            *(("messages", "messages"), ("tools", "tools"), ("shown", "args"), ("shown", "kwargs")),
            ("shown", "fncall_messages"),
        ),
        known=_OPENAI_KNOWN,
        beside=("fncall_response", "metadata", "optional_params", "litellm_params"),
    ),
    Shape(
        "distilabel",
        "distilabel: instruction and generation",
        ("instruction:any", "generation:any"),
        answers=("generation",),
        known=("generation", "distilabel_metadata", "model_name", "model_names"),
    ),
    *(
        Shape(
            "prompt-completion",
            "a column completion(s), response(s) or generation(s), strings or messages",
            (f"{name}:any",),
            unless=(
                *(f"{other}:any" for other in (*_EMPTY_OUTPUT, *_COLUMNS) if other != name),
                *("instruction:any",) * (name == "generation"),
                *("custom_id:any", "candidates:any", f"{name}:object"),
            ),
            answers=(name,),
            known=(name,),
        )
        for name in _COLUMNS
    ),
    Shape(
        "messages",
        "a conversation (Hugging Face messages): every turn of the assistant is an answer",
        ("messages:list",),
        unless=(
            *(f"{name}:any" for name in (*_EMPTY_OUTPUT, *_COLUMNS)),
            *("conversations:any", "conversation:any", "choices:any", "trajectory_format:any"),
            *("inputs:object", "top_logprobs:any", "logprobs:any"),
        ),
        turns="messages",
    ),
    *(
        Shape(
            "sharegpt",
            "a conversation (ShareGPT): every turn of the model is an answer",
            (f"{name}:list",),
            unless=(
                *(f"{other}:any" for other in (*_EMPTY_OUTPUT, *_COLUMNS, "messages")),
                *("conversations:any",) * (name == "conversation"),
            ),
            turns=name,
        )
        for name in ("conversations", "conversation")
    ),
)

FORMATS: Final = tuple(dict.fromkeys((OURS, *(shape.name for shape in SHAPES), TEXT)))
"""What `--format` can name."""

PARAMETERS: Final = (
    *("model", "metadata", "stop", "stop_sequences", "logit_bias", "stream", "stream_options"),
    *("safety_identifier", "prompt_cache_key", "logprobs", "top_logprobs", "store", "n"),
    *("safetySettings", "safety_settings", "thinking", "reasoning_effort", "reasoning"),
    *("modalities", "vllm_xargs", "parallel_tool_calls", "service_tier", "include", "truncation"),
    *("labels", "cachedContent"),
)
"""Fields of a request that no model reads as text."""

REQUESTS: Final = (("body", "custom_id"), ("params", "custom_id"), ("request", "key"))
"""Lines of a batch's input: where the request stands, and its id."""

RENAMED: Final = {
    "contents": "messages",
    "systemInstruction": "system",
    "system_instruction": "system",
    "toolConfig": "tool_choice",
    "tool_config": "tool_choice",
    "generationConfig": "response_format",
    "generation_config": "response_format",
    "text": "response_format",
    "output_config": "response_format",
}
"""Names of requests that are not ours."""
