// What an application does with OpenAI's SDK for Node, through the proxy. The same steps, arguments and lines as those of
// openai_sdk.py beside it, which says what they mean.

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";

// The package is where the program was started, not where this file is.
const { default: OpenAI, ...errors } = createRequire(process.cwd() + "/")("openai");

const [baseURL, apiKey, MODEL, EMBEDDING_MODEL, CONCURRENT, wait] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0, timeout: 60_000 });
const ASK = { model: MODEL, messages: [{ role: "user", content: "What does a balancer do?" }], max_tokens: 24 };
const WEATHER = {
  type: "function",
  function: {
    name: "get_weather",
    description: "The weather in a city",
    strict: true,
    parameters: {
      type: "object",
      properties: { city: { type: "string", enum: ["Oslo", "Paris"] } },
      required: ["city"],
      additionalProperties: false,
    },
  },
};
const TOOLS = { ...ASK, tools: [WEATHER], tool_choice: "required", parallel_tool_calls: false, max_tokens: 2000 };

const chat = (ask) => client.chat.completions.create(ask).withResponse();
const idOf = (response) => response.headers.get("x-request-id");

// The server's own count: as usage, or as llama.cpp says it beside.
function reported(answer) {
  const { usage, timings } = answer;
  if (usage) return [usage.prompt_tokens, usage.completion_tokens ?? 0];
  return timings ? [timings.prompt_n + timings.cache_n, timings.predicted_n] : null;
}

async function all(stream) {
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  return chunks;
}

const last = (chunks) => chunks.map(reported).filter(Boolean).at(-1) ?? null;
const text = (chunks) => chunks.map((chunk) => chunk.choices[0]?.delta?.content ?? chunk.choices[0]?.text ?? "").join("");

function isCall({ name, arguments: args }) {
  return name === "get_weather" && ["Oslo", "Paris"].includes(JSON.parse(args).city);
}

async function refused(kind, status, ask) {
  const error = await ask().then(
    () => assert.fail(`no ${kind.name}`),
    (error) => error,
  );
  assert(error instanceof kind, `${error.constructor.name}: ${error.message}`);
  assert.equal(error.status, status);
  assert(error.error.message && error.requestID, "no message or no x-request-id");
  return error;
}

// A stream that does not end by itself for a long time.
const babble = () => chat({ ...ASK, max_tokens: 4000, stream: true, ignore_eos: true });

const steps = {
  async "chat plain"() {
    const { data, response } = await chat(ASK);
    assert(data.choices[0].message.content);
    return [idOf(response), reported(data)];
  },
  async "chat streamed"() {
    const { data, response } = await chat({ ...ASK, stream: true });
    const chunks = await all(data);
    assert(text(chunks) && chunks.at(-1).choices[0].finish_reason);
    assert(!chunks.some((chunk) => chunk.usage), "usage was not asked for");
    return [idOf(response), last(chunks)];
  },
  async "chat streamed with usage"() {
    const { data, response } = await chat({ ...ASK, stream: true, stream_options: { include_usage: true } });
    const chunks = await all(data);
    assert(chunks.at(-1).usage && !chunks.at(-1).choices.length);
    return [idOf(response), reported(chunks.at(-1))];
  },
  async "chat streamed by the helper"() {
    const stream = client.chat.completions.stream({ ...ASK, stream_options: { include_usage: true } });
    const answer = await stream.finalChatCompletion();
    assert(answer.choices[0].message.content && answer.usage.completion_tokens > 0);
    // The helper shows no headers.
    return [null, null];
  },
  async "tools plain"() {
    const { data, response } = await chat(TOOLS);
    const calls = data.choices[0].message.tool_calls;
    assert(calls.length && calls.every((call) => isCall(call.function)));
    assert.equal(data.choices[0].finish_reason, "tool_calls");
    return [idOf(response), reported(data)];
  },
  async "tools streamed"() {
    const { data, response } = await chat({ ...TOOLS, stream: true });
    const chunks = await all(data);
    const calls = {};
    for (const part of chunks.flatMap((chunk) => chunk.choices[0]?.delta?.tool_calls ?? [])) {
      const call = (calls[part.index] ??= { name: "", arguments: "" });
      call.name += part.function.name ?? "";
      call.arguments += part.function.arguments ?? "";
    }
    assert(Object.keys(calls).length && Object.values(calls).every(isCall), JSON.stringify(calls));
    return [idOf(response), last(chunks)];
  },
  async "completion plain"() {
    const ask = { model: MODEL, prompt: "A balancer", max_tokens: 16 };
    const { data, response } = await client.completions.create(ask).withResponse();
    assert(data.choices[0].text);
    return [idOf(response), reported(data)];
  },
  async "completion streamed"() {
    const ask = { model: MODEL, prompt: "A balancer", max_tokens: 16, stream: true };
    const { data, response } = await client.completions.create(ask).withResponse();
    const chunks = await all(data);
    assert(text(chunks));
    return [idOf(response), last(chunks)];
  },
  async embeddings() {
    const ask = { model: EMBEDDING_MODEL, input: ["one text", "another"] };
    const { data, response } = await client.embeddings.create(ask).withResponse();
    assert(data.data.length === 2 && data.data[0].embedding.some((number) => number !== 0));
    return [idOf(response), reported(data)];
  },
  async models() {
    const found = (await all(client.models.list())).map((model) => model.id);
    for (const model of [MODEL, EMBEDDING_MODEL]) assert(model === "-" || found.includes(model), found.join());
    return [null, null];
  },
  async "error 401"() {
    const stranger = client.withOptions({ apiKey: "sk-wrong" });
    await refused(errors.AuthenticationError, 401, () => stranger.chat.completions.create(ASK));
    return [null, null];
  },
  async "error 404"() {
    await refused(errors.NotFoundError, 404, () => chat({ ...ASK, model: "no-such-model" }));
    return [null, null];
  },
  async "error 400"() {
    await refused(errors.BadRequestError, 400, () => chat({ ...ASK, messages: "not a list" }));
    return [null, null];
  },
  async "error 429"() {
    const held = [];
    for (let n = 0; n < Number(CONCURRENT); n++) held.push((await babble()).data);
    const readers = held.map((stream) => stream[Symbol.asyncIterator]());
    for (const reader of readers) await reader.next();
    const error = await refused(errors.RateLimitError, 429, () => chat(ASK));
    assert(Number(error.headers.get("retry-after")) > 0);
    for (const reader of readers) await reader.return();
    // Closing gives the places back; the SDK's own retries bridge the moment until it was noticed.
    await client.withOptions({ maxRetries: 5 }).chat.completions.create(ASK);
    return [null, null];
  },
  async "stream closed early"() {
    const { data, response } = await babble();
    let seen = 0;
    for await (const _ of data) if (++seen === 5) break;
    return [idOf(response), null, true];
  },
};

if (EMBEDDING_MODEL === "-") delete steps.embeddings;
const input = wait && createInterface({ input: process.stdin })[Symbol.asyncIterator]();
let failed = false;
for (const [did, run] of Object.entries(steps)) {
  let line = { did, ok: true };
  try {
    const [request_id, usage, left = false] = await run();
    line = { ...line, request_id, usage, left };
  } catch (error) {
    line = { did, ok: false, error: `${error.constructor.name}: ${error.message}` };
    failed = true;
  }
  console.log(JSON.stringify(line));
  if (input) await input.next();
}
process.exit(failed ? 1 : 0);
