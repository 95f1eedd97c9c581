"""Writes a language model of 3 MB that says a few sentences and calls a tool, for a real llama.cpp server: llama_model.py FILE.

Its weights were not learnt but laid out: attention and feed-forward layers are zero, so the next token depends on the last one
alone, and a chat template of its own ends a prompt with the mark from which the wanted sentence follows. Everything about it
(tokenizer, template, sampling, the parser of tool calls) is the server's own. Runs where the packages gguf and numpy are.
"""

from __future__ import annotations

import sys

import numpy as np
from gguf import GGUFWriter, TokenType

WIDTH = 320
CERTAIN = 2.0
"""Of an output weight: the next token has all the probability that counts, at any usual temperature."""
CONTEXT = 65_536

SENTENCES = {
    "<|say|>": ("Hello", " from", " a", " real", " llama", "."),
    "<|call|>": ("<tool_call>\n", '{"name": "weather", ', '"arguments": {"city": "Oslo"}}', "\n</tool_call>"),
    "<|told|>": ("It", " is", " cold", " in", " Oslo."),
    "<|count|>": ("one ", "two ", "three "),
}
ENDLESS = "<|count|>"
MARKS = ("<|tools|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|end|>", *SENTENCES)
TEMPLATE = """\
{%- if tools %}<|tools|>{{ tools | tojson }}{% endif %}
{%- for message in messages %}<|{{ message.role }}|>{{ message.content if message.content else '' }}
{%- for call in message.tool_calls or [] %}<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}<|end|>
{%- endfor %}
{%- if add_generation_prompt %}
{%- if messages[-1].role == 'tool' %}<|told|>
{%- elif tools %}<|call|>
{%- elif 'count' in messages[-1].content %}<|count|>
{%- else %}<|say|>{% endif %}
{%- endif %}"""


def vocabulary() -> tuple[list[str], list[TokenType], dict[int, int]]:
    """Tokens, what each is, and which one follows which; after any other comes the end."""
    known = [("<unk>", TokenType.UNKNOWN), ("<s>", TokenType.CONTROL), ("</s>", TokenType.CONTROL)]
    known += [(f"<0x{byte:02X}>", TokenType.BYTE) for byte in range(256)]
    known += [(mark, TokenType.CONTROL) for mark in MARKS]
    begins = {mark: len(known) - len(MARKS) + place for place, mark in enumerate(MARKS)}
    follows: dict[int, int] = {}
    for mark, words in SENTENCES.items():
        last = begins[mark]
        for word in words:
            follows[last], last = len(known), len(known)
            known.append((word.replace(" ", "\N{LOWER ONE EIGHTH BLOCK}"), TokenType.NORMAL))
        if mark == ENDLESS:
            follows[last] = follows[begins[mark]]
    return [token for token, _ in known], [kind for _, kind in known], follows


def write(path: str) -> None:
    tokens, kinds, follows = vocabulary()
    end = tokens.index("</s>")
    out = np.zeros((len(tokens), WIDTH), np.float32)
    for token in range(len(tokens)):
        out[follows.get(token, end), token] = CERTAIN
    model = GGUFWriter(path, "llama")
    model.add_name("tiny")
    model.add_context_length(CONTEXT)
    model.add_embedding_length(WIDTH)
    model.add_block_count(1)
    model.add_feed_forward_length(32)
    model.add_head_count(4)
    model.add_head_count_kv(4)
    model.add_layer_norm_rms_eps(1e-5)
    model.add_rope_dimension_count(WIDTH // 4)
    model.add_vocab_size(len(tokens))
    model.add_file_type(0)
    model.add_tokenizer_model("llama")
    model.add_tokenizer_pre("default")
    model.add_token_list(tokens)
    model.add_token_scores([0.0] * len(tokens))
    model.add_token_types(kinds)
    model.add_unk_token_id(tokens.index("<unk>"))
    model.add_bos_token_id(tokens.index("<s>"))
    model.add_eos_token_id(end)
    model.add_add_bos_token(False)
    model.add_add_eos_token(False)
    model.add_add_space_prefix(False)
    model.add_chat_template(TEMPLATE)
    model.add_tensor("token_embd.weight", np.eye(len(tokens), WIDTH, dtype=np.float32))
    model.add_tensor("output.weight", out)
    for norm in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        model.add_tensor(f"{norm}.weight", np.ones(WIDTH, np.float32))
    for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
        model.add_tensor(f"blk.0.{name}.weight", np.zeros((WIDTH, WIDTH), np.float32))
    for name, shape in (("ffn_gate", (32, WIDTH)), ("ffn_up", (32, WIDTH)), ("ffn_down", (WIDTH, 32))):
        model.add_tensor(f"blk.0.{name}.weight", np.zeros(shape, np.float32))
    model.write_header_to_file()
    model.write_kv_data_to_file()
    model.write_tensors_to_file()
    model.close()


if __name__ == "__main__":
    write(sys.argv[1])
