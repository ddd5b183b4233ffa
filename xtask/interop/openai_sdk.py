"""What an application does with OpenAI's SDK for Python, through the proxy.

    openai_sdk.py BASE_URL KEY MODEL EMBEDDING_MODEL CONCURRENT [--wait]

CONCURRENT is how many requests the key may have at a time; EMBEDDING_MODEL is - where there is none. Each step prints a line
of JSON: what was done, whether it went as the SDK's documentation says, the id of the request, the usage that the server
reported, where it reported one, and whether the answer was left before its end. With --wait the next step is taken only
after a line has come on standard input.
"""

import asyncio
import json
import sys

import openai

BASE_URL, KEY, MODEL, EMBEDDING_MODEL, CONCURRENT = sys.argv[1:6]
WAIT = sys.argv[6:] == ["--wait"]
client = openai.OpenAI(base_url=BASE_URL, api_key=KEY, max_retries=0, timeout=60)
chat = client.chat.completions.with_raw_response
ASK = {"model": MODEL, "messages": [{"role": "user", "content": "What does a balancer do?"}], "max_tokens": 24}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Oslo", "Paris"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
TOOLS = ASK | {"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 2000}
steps = []


def step(function):
    steps.append(function)
    return function


def id_of(raw):
    return raw.headers["x-request-id"]


def reported(answer):
    """The server's own count: as usage, or as llama.cpp says it beside."""
    if getattr(answer, "usage", None):
        return answer.usage.prompt_tokens, getattr(answer.usage, "completion_tokens", 0)
    timings = (answer.model_extra or {}).get("timings")
    return timings and (timings["prompt_n"] + timings["cache_n"], timings["predicted_n"])


def last(usages):
    seen = [usage for usage in usages if usage]
    return seen[-1] if seen else None


@step
def chat_plain():
    raw = chat.create(**ASK)
    answer = raw.parse()
    assert answer.choices[0].message.content, answer
    return id_of(raw), reported(answer)


@step
def chat_streamed():
    raw = chat.create(**ASK, stream=True)
    chunks = list(raw.parse())
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks), chunks
    assert chunks[-1].choices[0].finish_reason, chunks[-1]
    assert not any(getattr(chunk, "usage", None) for chunk in chunks), "usage was not asked for"
    return id_of(raw), last(map(reported, chunks))


@step
def chat_streamed_with_usage():
    raw = chat.create(**ASK, stream=True, stream_options={"include_usage": True})
    chunks = list(raw.parse())
    assert chunks[-1].usage and not chunks[-1].choices, chunks[-1]
    return id_of(raw), reported(chunks[-1])


@step
def chat_streamed_async():
    async def run():
        async with openai.AsyncOpenAI(base_url=BASE_URL, api_key=KEY, max_retries=0) as there:
            raw = await there.chat.completions.with_raw_response.create(**ASK, stream=True)
            return raw, [chunk async for chunk in raw.parse()]

    raw, chunks = asyncio.run(run())
    assert chunks[-1].choices[0].finish_reason, chunks[-1]
    return id_of(raw), last(map(reported, chunks))


def is_call(name, arguments):
    return name == "get_weather" and json.loads(arguments)["city"] in ("Oslo", "Paris")


@step
def tools_plain():
    raw = chat.create(**TOOLS)
    answer = raw.parse()
    calls = answer.choices[0].message.tool_calls
    assert calls and all(is_call(call.function.name, call.function.arguments) for call in calls), answer
    assert answer.choices[0].finish_reason == "tool_calls", answer
    return id_of(raw), reported(answer)


@step
def tools_streamed():
    raw = chat.create(**TOOLS, stream=True)
    chunks = list(raw.parse())
    calls = {}
    for part in (part for chunk in chunks for choice in chunk.choices for part in choice.delta.tool_calls or []):
        call = calls.setdefault(part.index, ["", ""])
        call[0] += part.function.name or ""
        call[1] += part.function.arguments or ""
    assert calls and all(is_call(*call) for call in calls.values()), calls
    return id_of(raw), last(map(reported, chunks))


@step
def completion_plain():
    raw = client.completions.with_raw_response.create(model=MODEL, prompt="A balancer", max_tokens=16)
    answer = raw.parse()
    assert answer.choices[0].text, answer
    return id_of(raw), reported(answer)


@step
def completion_streamed():
    raw = client.completions.with_raw_response.create(model=MODEL, prompt="A balancer", max_tokens=16, stream=True)
    chunks = list(raw.parse())
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices), chunks
    return id_of(raw), last(map(reported, chunks))


@step
def embeddings():
    # The SDK asks for base64 and decodes it.
    raw = client.embeddings.with_raw_response.create(model=EMBEDDING_MODEL, input=["one text", "another"])
    answer = raw.parse()
    assert len(answer.data) == 2 and any(answer.data[0].embedding), answer
    return id_of(raw), reported(answer)


@step
def models():
    found = {model.id for model in client.models.list()}
    assert {MODEL, EMBEDDING_MODEL} - {"-"} <= found, found
    return None, None


def refused(exception, status, ask):
    try:
        ask()
    except exception as error:
        assert error.status_code == status and error.message, error
        assert isinstance(error.body, dict) and error.body["message"], error.body
        assert error.request_id, "no x-request-id"
        return error
    raise AssertionError(f"no {exception.__name__}")


@step
def error_401():
    stranger = client.with_options(api_key="sk-wrong")
    refused(openai.AuthenticationError, 401, lambda: stranger.chat.completions.create(**ASK))
    return None, None


@step
def error_404():
    refused(openai.NotFoundError, 404, lambda: chat.create(**ASK | {"model": "no-such-model"}))
    return None, None


@step
def error_400():
    refused(openai.BadRequestError, 400, lambda: chat.create(**ASK | {"messages": "not a list"}))
    return None, None


def babble():
    """A stream that does not end by itself for a long time."""
    return chat.create(**ASK | {"max_tokens": 4000}, stream=True, extra_body={"ignore_eos": True})


@step
def error_429():
    held = [babble().parse() for _ in range(int(CONCURRENT))]
    for stream in held:
        next(stream)
    error = refused(openai.RateLimitError, 429, lambda: chat.create(**ASK))
    assert int(error.response.headers["retry-after"]) > 0, error.response.headers
    for stream in held:
        stream.close()
    # Closing gives the places back; the SDK's own retries bridge the moment until it was noticed.
    client.with_options(max_retries=5).chat.completions.create(**ASK)
    return None, None


@step
def stream_closed_early():
    raw = babble()
    stream = raw.parse()
    for _ in range(5):
        next(stream)
    stream.close()
    return id_of(raw), None, True


if EMBEDDING_MODEL == "-":
    steps.remove(embeddings)
failed = False
for run in steps:
    line = {"did": run.__name__.replace("_", " "), "ok": True}
    try:
        line["request_id"], line["usage"], *left = run()
        line["left"] = bool(left)
    except Exception as error:
        line |= {"ok": False, "error": f"{type(error).__name__}: {error}"}
        failed = True
    print(json.dumps(line), flush=True)
    if WAIT:
        sys.stdin.readline()
sys.exit(failed)
