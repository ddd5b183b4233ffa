"""Writes tiny language models that a real inference server loads: model.py TEXT FOLDER [--safetensors]

No weights can be trusted to be there, and none are needed. The network is a llama whose layers add nothing: each token's
embedding is a unit vector of its own, so that the output matrix alone decides what follows a token. Its rows are the
logarithms of how often that happens in TEXT. Such a model babbles in the manner of the text, ends by itself, and its
tokens are counted by the same code that counts those of a large one.

Written are FOLDER/tiny.gguf, and FOLDER/slow.gguf, which says the same and takes longer for each token, and
FOLDER/tokenizer.json with FOLDER/tokenizer_config.json, by which others count the same tokens. With --safetensors it is
FOLDER/tiny-hf, as vLLM loads it: config.json, model.safetensors, and the same tokenizer.
"""

import collections
import json
import pathlib
import re
import sys

import numpy as np

VOCABULARY = 2048
UNK, BOS, EOS = 0, 1, 2
# Said before the end. What follows is the end; where a server does not let it end yet, since it must call a tool, a call.
PAUSE, CALL, CALLED = 3, 4, 5
MARKS = ["\u2026", "<tool_call>", "</tool_call>"]
BYTES = 6  # The first of 256 tokens that stand for a byte each.
SPACE = "\u2581"
HEAD = 64
CONTEXT = 131072

# In the manner of ChatML, with tools and calls of tools as JSON between tags, which is what servers know how to read.
CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- if tools -%}
<|im_start|>system
You may call these functions:
<tools>
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}</tools>
Call one by a JSON object within tags:
<tool_call>
{"name": NAME, "arguments": ARGUMENTS}
</tool_call><|im_end|>
{% endif -%}
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.content %}{{ message.content }}{% endif %}
{%- for call in message.tool_calls or [] %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
{%- endfor -%}
<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""


def words(text):
    return [SPACE + word for word in re.findall(r"\S+", text)]


def learn(text):
    """Pieces in the order in which they were made by byte pair encoding, and each word in them."""
    counts = collections.Counter(words(text))
    spelled = {word: list(word) for word in counts}
    pieces = sorted({letter for word in counts for letter in word})
    # Every letter that a JSON answer or a prompt may need, so that few of them fall back to bytes.
    pieces += [letter for letter in map(chr, range(33, 127)) if letter not in pieces]
    while BYTES + 256 + len(pieces) < VOCABULARY:
        pairs = collections.Counter()
        for word, letters in spelled.items():
            for pair in zip(letters, letters[1:]):
                pairs[pair] += counts[word]
        if not pairs:
            # A short text: the rest is never used.
            pieces += [f"<unused{n}>" for n in range(VOCABULARY - BYTES - 256 - len(pieces))]
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merged = "".join(best)
        if merged not in pieces:
            pieces.append(merged)
        for word, letters in spelled.items():
            spelled[word] = merge(letters, best)
    return pieces, spelled


def merge(letters, pair):
    out, at = [], 0
    while at < len(letters):
        if tuple(letters[at : at + 2]) == pair:
            out.append(letters[at] + letters[at + 1])
            at += 2
        else:
            out.append(letters[at])
            at += 1
    return out


def bigrams(text, pieces, spelled):
    """The logarithm of how likely each token follows each other one."""
    ids = {piece: BYTES + 256 + n for n, piece in enumerate(pieces)}
    counts = np.full((VOCABULARY, VOCABULARY), 1e-9, dtype=np.float64)
    everywhere = np.zeros(VOCABULARY)
    previous = BOS
    for word in words(text):
        for piece in spelled[word]:
            counts[previous, ids[piece]] += 1
            everywhere[ids[piece]] += 1
            previous = ids[piece]
        if word.endswith((".", "!", "?")):
            # One sentence in a few is the last.
            counts[previous, PAUSE] += 0.15 * counts[previous].sum()
            everywhere[PAUSE] += 0.02
    # What was never seen in the text, as most of a chat's markup, is followed by anything at all. Where a call must end,
    # its mark is far more likely than the same letters one by one, after which nothing would say that the end comes.
    # Nor may it go on with blanks for ever, where a grammar lets it choose between these and the end.
    everywhere[[id for piece, id in ids.items() if piece.startswith("<") or piece == SPACE]] = 0
    counts += 0.002 * everywhere / everywhere.sum()
    counts[:, CALLED] = 2e-6
    counts[[PAUSE, CALL, CALLED]] = 1e-9
    counts[PAUSE, CALL] = 1e-3
    counts[CALL, BYTES + ord("\n")] = 1
    counts[[PAUSE, CALLED], EOS] = 1
    return np.log(counts / counts.sum(axis=1, keepdims=True))


def all_tokens(pieces):
    return ["<unk>", "<s>", "</s>"] + MARKS + [f"<0x{byte:02X}>" for byte in range(256)] + pieces


def gguf(path, pieces, follows, layers, feed_forward):
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(path.stem)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(VOCABULARY)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(feed_forward)
    writer.add_head_count(1)
    writer.add_head_count_kv(1)
    writer.add_key_length(HEAD)
    writer.add_value_length(HEAD)
    writer.add_rope_dimension_count(HEAD)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("llama")
    tokens = all_tokens(pieces)
    kind = gguf.TokenType
    writer.add_token_list([token.encode() for token in tokens])
    writer.add_token_scores([0.0] * (BYTES + 256) + [-float(n) for n in range(len(pieces))])
    kinds = [kind.UNKNOWN, kind.CONTROL, kind.CONTROL] + [kind.USER_DEFINED] * len(MARKS)
    writer.add_token_types(kinds + [kind.BYTE] * 256 + [kind.NORMAL] * len(pieces))
    writer.add_unk_token_id(UNK)
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_add_bos_token(True)
    writer.add_chat_template(CHAT_TEMPLATE)
    for name, tensor in tensors(follows, layers, feed_forward, np.float16):
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tensors(follows, layers, feed_forward, kind):
    # The norm makes a unit vector as long as the root of its dimensions, and the output takes that back.
    yield "token_embd.weight", np.eye(VOCABULARY, dtype=kind)
    yield "output_norm.weight", np.ones(VOCABULARY, dtype=np.float32)
    yield "output.weight", np.ascontiguousarray(follows.T / np.sqrt(VOCABULARY)).astype(kind)
    zeros = lambda rows, columns: np.zeros((rows, columns), dtype=kind)
    for layer in range(layers):
        block = f"blk.{layer}."
        yield block + "attn_norm.weight", np.ones(VOCABULARY, dtype=np.float32)
        yield block + "attn_q.weight", zeros(HEAD, VOCABULARY)
        yield block + "attn_k.weight", zeros(HEAD, VOCABULARY)
        yield block + "attn_v.weight", zeros(HEAD, VOCABULARY)
        yield block + "attn_output.weight", zeros(VOCABULARY, HEAD)
        yield block + "ffn_norm.weight", np.ones(VOCABULARY, dtype=np.float32)
        yield block + "ffn_gate.weight", zeros(feed_forward, VOCABULARY)
        yield block + "ffn_up.weight", zeros(feed_forward, VOCABULARY)
        yield block + "ffn_down.weight", zeros(VOCABULARY, feed_forward)


def safetensors(folder, pieces, follows):
    from safetensors.numpy import save_file

    folder.mkdir(exist_ok=True)
    feed_forward = 64
    names = {
        "token_embd": "model.embed_tokens",
        "output_norm": "model.norm",
        "output": "lm_head",
        "blk.0": "model.layers.0",
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }

    def renamed(name):
        name = name.removesuffix(".weight")
        block, _, rest = name.rpartition(".")
        return ".".join(filter(None, [names.get(block), names[rest]])) + ".weight"

    weights = {renamed(name): tensor for name, tensor in tensors(follows, 1, feed_forward, np.float32)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": VOCABULARY,
        "intermediate_size": feed_forward,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": HEAD,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "torch_dtype": "float32",
    }
    write_json(folder, config=config, generation_config={"bos_token_id": BOS, "eos_token_id": EOS})
    tokenizer(folder, pieces)


def tokenizer(folder, pieces):
    tokens = all_tokens(pieces)
    # Two pieces may become any piece that there is, the earliest first, however it was learned: so says the GGUF file.
    known = set(pieces)
    halves = lambda piece: ((piece[:at], piece[at:]) for at in range(1, len(piece)))
    merges = [pair for piece in pieces for pair in halves(piece) if known.issuperset(pair)]
    special = lambda id: {"id": id, "content": tokens[id], "special": id < PAUSE, "normalized": False} | dict.fromkeys(
        ["single_word", "lstrip", "rstrip"], False
    )
    encoding = {
        "version": "1.0",
        "added_tokens": [special(id) for id in range(BYTES)],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": SPACE},
                {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [BOS], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": {token: id for id, token in enumerate(tokens)},
            "merges": merges,
        },
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "chat_template": CHAT_TEMPLATE,
        "model_max_length": CONTEXT,
    }
    write_json(folder, tokenizer=encoding, tokenizer_config=config)


def write_json(folder, **contents):
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


def main():
    text, folder = pathlib.Path(sys.argv[1]).read_text(), pathlib.Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    pieces, spelled = learn(text)
    follows = bigrams(text, pieces, spelled)
    if sys.argv[3:] == ["--safetensors"]:
        safetensors(folder / "tiny-hf", pieces, follows)
    else:
        gguf(folder / "tiny.gguf", pieces, follows, layers=1, feed_forward=64)
        gguf(folder / "slow.gguf", pieces, follows, layers=8, feed_forward=2048)
        tokenizer(folder, pieces)


main()
