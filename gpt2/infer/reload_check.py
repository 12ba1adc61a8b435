"""Load an exported folder as somebody without kablate would, and say what it computes.

Run by its path in an isolated interpreter (`python -I`), so that transformers and the
folder are all that it has. Arguments: the folder, a safetensors file with ``tokens``
[1, T], and a file to write ``logits`` [1, T, V] and ``cached`` [1, 1, V], the last row
by decoding with the cache, to. Standard input: texts as a JSON list. Prints their
tokens and the model's class as JSON.
"""

from __future__ import annotations

import json
import sys


def main(folder: str, given: str, written: str) -> None:
    import torch
    import transformers
    from safetensors.torch import load_file, save_file

    transformers.logging.set_verbosity_error()
    texts = json.load(sys.stdin)
    with open(f"{folder}/config.json", encoding="utf-8") as file:
        custom = "auto_map" in json.load(file)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=custom, dtype=torch.float32
    ).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        folder, trust_remote_code=custom
    )
    tokens = load_file(given)["tokens"]
    with torch.no_grad():
        logits = model(tokens).logits
        past = model(tokens[:, :-1], use_cache=True).past_key_values
        last = model(tokens[:, -1:], past_key_values=past, use_cache=True).logits
    save_file({"logits": logits.contiguous(), "cached": last.contiguous()}, written)
    ids = [tokenizer(text)["input_ids"] for text in texts]
    print(json.dumps({"class": type(model).__name__, "tokens": ids}))


if __name__ == "__main__":
    main(*sys.argv[1:])
