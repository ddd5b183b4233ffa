"""Counts tokens without the proxy: count.py TOKENIZER < QUESTIONS

TOKENIZER is a tokenizer.json with its tokenizer_config.json beside it. Each line of QUESTIONS is {"answer": TEXT}, what a model
said, or {"chat": REQUEST}, the JSON of a request to /v1/chat/completions; for each a line with the number of its tokens is
printed. An answer is counted with nothing around it, a request as transformers makes a prompt of it: by the chat template in
Jinja2.
"""

import json
import pathlib
import sys

import jinja2
import jinja2.sandbox
import tokenizers


def main():
    file = pathlib.Path(sys.argv[1])
    tokenizer = tokenizers.Tokenizer.from_file(str(file))
    config = json.loads((file.parent / "tokenizer_config.json").read_text())
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    # Jinja2's own writes some letters as it must in HTML.
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    template = environment.from_string(config["chat_template"])
    specials = {name: token for name, token in config.items() if name.endswith("_token")}

    normalizer = json.loads(file.read_text())["normalizer"] or {}
    puts_space = any(step["type"] == "Prepend" for step in normalizer.get("normalizers", [normalizer]) if step)

    for line in sys.stdin:
        question = json.loads(line)
        text = question.get("answer")
        if text is None:
            text = template.render(**specials, **prompt(question["chat"]))
        elif puts_space and text.startswith(" "):
            # A model that begins with a word has said the space before it: the tokenizer must not put another there.
            text = text.removeprefix(" ")
            if not text:
                print(1, flush=True)
                continue
        print(len(tokenizer.encode(text, add_special_tokens=False).ids), flush=True)


def prompt(request):
    messages = json.loads(json.dumps(request["messages"]))
    for message in messages:
        for call in message.get("tool_calls") or []:
            # Clients send them as a string of JSON; a template is given what is in it.
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    return {"messages": messages, "tools": request.get("tools"), "add_generation_prompt": True}


main()
