"""One small file of every shape, made by hand from the public schemas, and what must be read of it.

Every prompt says QUESTION, every text that the model wrote says ANSWER: who mistakes one for the
other is seen at once. `KNOWN` maps a name to (shape, records, outputs with their prompts).
"""

QUESTION = "QUESTION what is the tallest mountain on the island"
ANSWER = "ANSWER it is the one in the middle, and it is called so"
SECOND = "ANSWER and this one is another sentence that was written"
CALL = '{"city": "ANSWER somewhere on the island"}'
ASKED = [{"role": "user", "content": QUESTION}]
_TOOL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": CALL}}


def chat(content=ANSWER, **message):
    """A chat.completion object."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1767225600,
        "model": "gpt-x",
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": content,
                    "refusal": None,
                    "annotations": [],
                    **message,
                },
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 9, "completion_tokens": 9, "total_tokens": 18},
        "system_fingerprint": "fp_44709d6fcb",
        "service_tier": "default",
    }


COMPLETION = {
    "id": "cmpl-1",
    "object": "text_completion",
    "created": 1767225600,
    "model": "m",
    "choices": [{"text": ANSWER, "index": 0, "logprobs": None, "finish_reason": "length"}],
    "usage": {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12},
}
RESPONSE = {
    "id": "resp_1",
    "object": "response",
    "created_at": 1767225600,
    "status": "completed",
    "error": None,
    "incomplete_details": None,
    "instructions": QUESTION,
    "max_output_tokens": None,
    "model": "gpt-x",
    "output": [
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "AbC"},
        {"type": "web_search_call", "id": "ws", "status": "completed", "action": {"query": "x"}},
        {
            "type": "message",
            "id": "msg_1",
            "status": "completed",
            "role": "assistant",
            "content": [{"type": "output_text", "text": ANSWER, "annotations": []}],
        },
        {"type": "function_call", "id": "fc", "call_id": "c", "name": "f", "arguments": CALL},
    ],
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "reasoning": {"effort": None, "summary": None},
    "store": True,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_p": 1.0,
    "truncation": "disabled",
    "usage": {"input_tokens": 36, "output_tokens": 87, "total_tokens": 123},
    "user": None,
    "metadata": {"run": "a long description of the run, by the one who asked"},
}
MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-x",
    "content": [
        {"type": "thinking", "thinking": SECOND, "signature": "EqQB"},
        {"type": "text", "text": ANSWER, "citations": None},
        {"type": "tool_use", "id": "t1", "name": "f", "input": {"city": "ANSWER here"}},
    ],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 10, "output_tokens": 34},
}
GEMINI = {
    "candidates": [
        {
            "content": {"parts": [{"text": ANSWER}], "role": "model"},
            "finishReason": "STOP",
            "index": 0,
            "safetyRatings": [{"category": "HARM_CATEGORY_HARASSMENT", "probability": "LOW"}],
        }
    ],
    "usageMetadata": {"promptTokenCount": 4, "candidatesTokenCount": 9, "totalTokenCount": 13},
    "modelVersion": "gemini-x",
    "responseId": "abc",
}
CONTENTS = {"contents": [{"role": "user", "parts": [{"text": QUESTION}]}]}


def batch(name, body, status=200):
    """A line of OpenAI's batch output."""
    response = {"status_code": status, "request_id": f"req-{name}", "body": body}
    return {"id": f"batch_req_{name}", "custom_id": name, "response": response, "error": None}


FAILED = {
    "id": "batch_req_9",
    "custom_id": "r9",
    "response": None,
    "error": {"code": "batch_expired", "message": "This request could not be executed in time."},
}
_GOOD = {"type": "succeeded", "message": MESSAGE}
_SPAN = {
    "traceId": "5b8efff798038103d269b633813fc60c",
    "spanId": "eee19b7ec3c1b174",
    "name": "chat",
}
_IN = [{"role": "user", "parts": [{"type": "text", "content": QUESTION}]}]
_OUT = [
    {
        "role": "assistant",
        "parts": [
            {"type": "text", "content": ANSWER},
            {"type": "tool_call", "id": "c", "name": "f", "arguments": {"city": "ANSWER here"}},
        ],
        "finish_reason": "stop",
    }
]


def _otlp(**attributes):
    listed = [{"key": key, "value": {"stringValue": one}} for key, one in attributes.items()]
    return {"resourceSpans": [{"scopeSpans": [{"spans": [{**_SPAN, "attributes": listed}]}]}]}


_AI = {"lc": 1, "type": "constructor", "id": ["langchain", "schema", "messages", "AIMessage"]}
_EVENTS = [
    {"id": 0, "source": "agent", "action": "system", "args": {"content": QUESTION, "tools": None}},
    {"id": 1, "source": "user", "action": "message", "args": {"content": QUESTION}},
    {"id": 2, "source": "agent", "action": "run", "args": {"command": ANSWER, "thought": ""}},
    {"id": 3, "source": "agent", "observation": "run", "content": QUESTION, "extras": {}},
    {
        "id": 4,
        "source": "agent",
        "action": "finish",
        "args": {"final_thought": ""},
        "tool_call_metadata": {"model_response": chat(SECOND)},
    },
]
_TURNS = [
    {"role": "system", "content": QUESTION},
    {"role": "user", "content": QUESTION},
    {"role": "assistant", "content": ANSWER},
    {"role": "user", "content": QUESTION},
    {"role": "assistant", "content": SECOND},
]
_Q, _QQ = (QUESTION,), (QUESTION, QUESTION)

KNOWN = {
    "chat": ("openai-chat", [chat()], [(ANSWER, 0)]),
    "chat with a tool call": (
        "openai-chat",
        [chat(None, tool_calls=[_TOOL])],
        [(CALL, 0)],
    ),
    "chat with reasoning": (
        "openai-chat",
        [chat(reasoning_content=SECOND)],
        [(SECOND, 0), (ANSWER, 0)],
    ),
    "completion": ("openai-completion", [COMPLETION], [(ANSWER, 0)]),
    "response": ("openai-response", [RESPONSE], [(ANSWER, 1), (CALL, 1)]),
    "batch": (
        "openai-batch",
        [FAILED, batch("a", chat()), batch("b", COMPLETION), batch("c", RESPONSE)],
        [(ANSWER, 0), (ANSWER, 0), (ANSWER, 1), (CALL, 1)],
    ),
    "pair": ("api-pair", [{"request": {"messages": ASKED}, "response": chat()}], [(ANSWER, 1)]),
    "message": (
        "anthropic-message",
        [MESSAGE],
        [(SECOND, 0), (ANSWER, 0), ('{"city": "ANSWER here"}', 0)],
    ),
    "message batch": (
        "anthropic-batch",
        [
            {"custom_id": "a", "result": {"type": "expired"}},
            {"custom_id": "b", "result": {"type": "errored", "error": {"type": "error"}}},
            {"custom_id": "c", "result": _GOOD},
        ],
        [(SECOND, 0), (ANSWER, 0), ('{"city": "ANSWER here"}', 0)],
    ),
    "gemini": ("gemini", [GEMINI], [(ANSWER, 0)]),
    "gemini batch": (
        "gemini-batch",
        [{"key": "a", "response": GEMINI}, {"key": "b", "error": {"code": 5, "message": "no"}}],
        [(ANSWER, 0)],
    ),
    "vertex batch": (
        "gemini-batch",
        [{"status": "", "processed_time": "2026-01-01", "request": CONTENTS, "response": GEMINI}],
        [(ANSWER, 1)],
    ),
    "vllm": (
        "vllm-offline",
        [
            {
                "request_id": "0",
                "prompt": QUESTION,
                "prompt_token_ids": [1, 2, 3],
                "prompt_logprobs": None,
                "outputs": [
                    {
                        "index": 0,
                        "text": ANSWER,
                        "token_ids": [5, 6],
                        "cumulative_logprob": None,
                        "logprobs": None,
                        "finish_reason": "length",
                        "stop_reason": None,
                    }
                ],
                "finished": True,
                "metrics": None,
                "lora_request": None,
            }
        ],
        [(ANSWER, 1)],
    ),
    "sglang": (
        "sglang",
        [
            {
                "text": ANSWER,
                "output_ids": [1, 2],
                "meta_info": {"id": "a", "finish_reason": {"type": "length", "length": 9}},
            }
        ],
        [(ANSWER, 0)],
    ),
    "telemetry": (
        "otel",
        [
            {
                **_SPAN,
                "attributes": {
                    "gen_ai.operation.name": "chat",
                    "gen_ai.system_instructions": [{"type": "text", "content": QUESTION}],
                    "gen_ai.input.messages": _IN,
                    "gen_ai.output.messages": _OUT,
                },
            }
        ],
        [(ANSWER, 2), ('{"city": "ANSWER here"}', 2)],
    ),
    "telemetry of before": (
        "otel",
        [
            _otlp(
                **{
                    "gen_ai.request.model": "m",
                    "gen_ai.prompt.0.role": "user",
                    "gen_ai.prompt.0.content": QUESTION,
                    "gen_ai.completion.0.role": "assistant",
                    "gen_ai.completion.0.content": ANSWER,
                }
            )
        ],
        [(ANSWER, 1)],
    ),
    "telemetry with events": (
        "otel",
        [
            {
                **_SPAN,
                "attributes": {"gen_ai.system": "openai"},
                "events": [
                    {"name": "gen_ai.user.message", "attributes": {"content": QUESTION}},
                    {
                        "name": "gen_ai.choice",
                        "attributes": {"index": 0, "message": f'{{"content": "{ANSWER}"}}'},
                    },
                ],
            }
        ],
        [(ANSWER, 1)],
    ),
    "langsmith": (
        "langsmith",
        [
            {
                "id": "a",
                "run_type": "llm",
                "name": "ChatOpenAI",
                "inputs": {"messages": [[{**_AI, "kwargs": {"content": QUESTION}}]]},
                "outputs": {
                    "generations": [
                        [
                            {
                                "text": ANSWER,
                                "message": {**_AI, "kwargs": {"content": ANSWER, "type": "ai"}},
                            }
                        ]
                    ],
                    "llm_output": {"model_name": "m"},
                },
                "error": None,
                "extra": {"invocation_params": {"model": "m"}},
            }
        ],
        [(ANSWER, 1)],
    ),
    "langfuse": (
        "langfuse",
        [
            {
                "id": "o1",
                "traceId": "t1",
                "type": "GENERATION",
                "startTime": "2026-01-01T00:00:00Z",
                "model": "m",
                "input": {"messages": ASKED},
                "output": {"role": "assistant", "content": ANSWER},
                "metadata": {"a": "something long that was written by the program"},
            },
            {"id": "o2", "traceId": "t1", "type": "SPAN", "input": None, "output": None},
        ],
        [(ANSWER, 1)],
    ),
    "lm-eval": (
        "lm-eval",
        [
            {
                "doc_id": 0,
                "doc": {"question": QUESTION, "answer": "a long answer of the reference"},
                "target": "a long answer of the reference",
                "arguments": {"gen_args_0": {"arg_0": QUESTION, "arg_1": {"until": ["\n"]}}},
                "resps": [[ANSWER]],
                "filtered_resps": [ANSWER],
                "doc_hash": "ab" * 32,
                "prompt_hash": "cd" * 32,
                "target_hash": "ef" * 32,
                "filter": "none",
                "metrics": ["exact_match"],
                "exact_match": 0.0,
            }
        ],
        [(ANSWER, 1)],
    ),
    "messages": ("messages", [{"messages": _TURNS}], [(ANSWER, 2), (SECOND, 4)]),
    "sharegpt": (
        "sharegpt",
        [
            {
                "id": "1",
                "conversations": [
                    {"from": "human", "value": QUESTION},
                    {"from": "gpt", "value": ANSWER},
                ],
            }
        ],
        [(ANSWER, 1)],
    ),
    "alpaca": (
        "provenance",
        [{"instruction": QUESTION, "input": QUESTION + "!", "output": ANSWER}],
        [(ANSWER, 2)],
    ),
    "prompt and completion": (
        "prompt-completion",
        [{"prompt": QUESTION, "completion": ANSWER}],
        [(ANSWER, 1)],
    ),
    "completions": (
        "prompt-completion",
        [{"prompt": QUESTION, "completions": [ANSWER, SECOND]}],
        [(ANSWER, 1), (SECOND, 1)],
    ),
    "messages and completion": (
        "prompt-completion",
        [{"prompt": ASKED, "completion": [{"role": "assistant", "content": ANSWER}]}],
        [(ANSWER, 1)],
    ),
    "distilabel": (
        "distilabel",
        [
            {
                "instruction": QUESTION,
                "generation": ANSWER,
                "model_name": "m",
                "distilabel_metadata": {"raw_output_text_generation_0": ANSWER},
            }
        ],
        [(ANSWER, 1)],
    ),
    "swe-agent": (
        "swe-agent",
        [
            {
                "environment": "swe_main",
                "trajectory": [{"action": ANSWER, "observation": QUESTION, "response": ANSWER}],
                "history": [
                    {"role": "system", "content": QUESTION, "agent": "main"},
                    {"role": "assistant", "content": QUESTION, "is_demo": True},
                    {"role": "user", "content": QUESTION, "agent": "main"},
                    {"role": "assistant", "content": ANSWER, "thought": ANSWER[7:], "action": "ls"},
                    {"role": "user", "content": QUESTION, "agent": "main"},
                    {"role": "assistant", "content": "", "tool_calls": [_TOOL]},
                ],
                "info": {"submission": "diff --git a/one b/one and more"},
            }
        ],
        [(ANSWER, 3), (CALL, 5)],
    ),
    "openhands": (
        "openhands",
        [{"instance_id": "x", "history": _EVENTS}],
        [(ANSWER, 2), (SECOND, 4)],
    ),
    "openhands in pairs": (
        "openhands",
        [{"instance_id": "x", "history": [_EVENTS[1:2], _EVENTS[2:4]]}],
        [(ANSWER, 1)],
    ),
    "openhands completions": (
        "llm-log",
        [{"messages": ASKED, "response": chat(), "timestamp": 1.5, "cost": 0.1}],
        [(ANSWER, 1)],
    ),
}
