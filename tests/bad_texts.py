"""Bad files that are text: {reader: {file name: (content, a regular fragment of what it is refused with)}}."""

from __future__ import annotations

import json

LONG_NUMBER, DEEP = "1" * 4400, "[" * 1500
CONFIG = {
    "model_type": "llama", "hidden_size": 4, "intermediate_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1,
    "num_key_value_heads": 1, "head_dim": 4, "vocab_size": 8, "max_position_embeddings": 64, "rms_norm_eps": 1e-05,
    "tie_word_embeddings": True,
}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def _config(**change) -> str:
    return json.dumps(CONFIG | change)


def _rope(**parameters) -> str:
    return _config(rope_scaling=parameters)


# What no reader of JSON takes, through the one that most files are read by.
JSON = {
    "empty": ("", "byte 0: the text ends, expected a value"),
    "cut": (_config()[:100], "the text ends.*truncated"),
    "two-values": (_config() + "{}", "more text after the value"),
    "byte-order-mark": ("\ufeff" + _config(), "byte 0: found no value"),
    "zero-byte": ("\0" + _config(), "byte 0: found no value"),
    "not-utf8": (b'{"model_type": "ll\xe9ma"}', "not valid UTF-8"),
    "overlong-utf8": (b'{"model_type": "\xc0\xaf"}', "not valid UTF-8"),
    "surrogate-in-utf8": (b'{"model_type": "\xed\xa0\x80"}', "not valid UTF-8"),
    "half-a-surrogate-pair": ('{"model_type": "\\ud83d"}', "half a surrogate pair"),
    "cut-in-escape": ('{"model_type": "\\u00', "the text ends inside .u"),
    "escape-without-digits": ('{"model_type": "\\u00zz"}', "u without four hex digits"),
    "unknown-escape": ('{"model_type": "\\x41"}', "an unknown escape"),
    "control-character": ('{"model_type": "a\nb"}', "a control character inside quotes"),
    "cut-in-quotes": ('{"model_type": "llama', "the text ends inside quotes"),
    "bare-key": ('{model_type: "llama"}', "expected a key in quotes"),
    "no-colon": ('{"model_type" "llama"}', "expected ':' after the key"),
    "no-comma": ('{"a": 1 "b": 2}', "expected ',' or '}'"),
    "comma-at-the-end": ('{"a": 1,}', "expected a key in quotes"),
    "key-twice": ('{"vocab_size": 8, "vocab_size": 9}', "'vocab_size' stands twice"),
    "key-twice-by-escape": ('{"vocab_size": 8, "vocab_\\u0073ize": 9}', "'vocab_size' stands twice"),
    "deep": ("[" * 200 + "]" * 200, "nested deeper than 64"),
    "not-a-number": ('{"rope_theta": NaN}', "found no value"),
    "infinity": ('{"rope_theta": -Infinity}', "found no value"),
    "too-large-a-number": ('{"rope_theta": 1e999}', "outside the range of a double"),
    "leading-zero": ('{"vocab_size": 08}', "a leading zero"),
    "no-digit-after-point": ('{"rope_theta": 1.}', "found no value"),
    "misspelt-word": ('{"use_cache": True}', "found no value"),
    "array": ("[]", "config.json is an array, expected an object"),
    "no-model-type": ("{}", "no key 'model_type'"),
}
OF_CONFIG = {
    "model-type-a-number": (_config(model_type=1), "'model_type' of config.json is an integer, expected text"),
    "unknown-family": (_config(model_type="gpt2"), "model_type 'gpt2' is not known"),
    "unknown-key": (_config(logit_scale=2), "unknown key 'logit_scale'"),
    "no-hidden-size": (_config(hidden_size=None), "'hidden_size' is missing"),
    "size-zero": (_config(hidden_size=0), "'hidden_size' is 0, expected 1"),
    "size-negative": (_config(intermediate_size=-8), "'intermediate_size' is -8, expected 1"),
    "size-past-32-bits": (_config(vocab_size=2**31), "'vocab_size' is 2147483648, expected 1"),
    "size-past-64-bits": (_config(vocab_size=2**63), "'vocab_size' of config.json is a number, expected an integer"),
    "size-with-a-point": (_config(hidden_size=8.5), "'hidden_size' of config.json is a number, expected an integer"),
    "size-in-quotes": (_config(hidden_size="8"), "'hidden_size' of config.json is text, expected an integer"),
    "too-many-layers": (_config(num_hidden_layers=5000), "num_hidden_layers 5000, expected at most 4096"),
    "heads-in-no-groups": (_config(num_attention_heads=3, num_key_value_heads=2), "not a multiple of 2 key-value"),
    "heads-that-do-not-divide": (_config(num_attention_heads=3, head_dim=None), "hidden_size 4 is not a multiple of 3"),
    "head-of-odd-size": (_config(head_dim=7), "head size 7 cannot be rotated"),
    "activation": (_config(hidden_act="gelu"), "'hidden_act' is .gelu., expected .silu."),
    "sliced-products": (_config(pretraining_tp=2), "'pretraining_tp' is not 1"),
    "interleaved-rope": (_config(rope_interleaved=True), "'rope_interleaved' is true"),
    "part-of-a-head": (_config(partial_rotary_factor=0.5), "'partial_rotary_factor' is not 1"),
    "bias-of-mistral": (_config(model_type="mistral", attention_bias=True), "'attention_bias' is true, but mistral"),
    "mlp-bias-of-mistral": (_config(model_type="mistral", mlp_bias=True), "'mlp_bias' is true, but mistral"),
    "window-of-llama": (_config(sliding_window=4), "'sliding_window' is set, but llama has none"),
    "window-of-zero": (_config(model_type="mistral", sliding_window=0), "'sliding_window' is 0, expected 1"),
    "flag-in-quotes": (_config(attention_bias="no"), "'attention_bias' of config.json is text, expected true or false"),
    "norm-eps-zero": (_config(rms_norm_eps=0), "'rms_norm_eps' is 0, expected a number above zero"),
    "norm-eps-in-quotes": (_config(rms_norm_eps="1e-5"), "'rms_norm_eps' of config.json is text, expected a number"),
    "quantized-by-another": (_config(quantization_config={"quant_method": "gptq"}), "not bitsandbytes'"),
    "quantized-by-a-word": (_config(quantization_config="nf4"), "not bitsandbytes'"),
    "rope-a-word": (_config(rope_scaling="yarn"), "'rope_scaling' or 'rope_parameters' .* is text, expected an object"),
    "rope-unknown-key": (_rope(rope_type="linear", factor=2.0, long_factor=[1]), "unknown key 'long_factor'"),
    "rope-unknown-type": (_rope(rope_type="longrope", factor=2.0), "rope type 'longrope' is not supported"),
    "rope-type-a-number": (_rope(rope_type=3), "'rope_type' of config.json is an integer, expected text"),
    "rope-without-factor": (_rope(rope_type="linear"), "'factor' is missing"),
    "rope-factor-zero": (_rope(rope_type="linear", factor=0.0), "'factor' is 0.0, expected a number above zero"),
    "rope-theta-negative": (_config(rope_theta=-1.0), "'rope_theta' is -1.0, expected a number above zero"),
    "rope-part-of-a-head": (_rope(type="linear", factor=2, partial_rotary_factor=0.5), "'partial_rotary_factor' is not"),
    "rope-original-zero": (_rope(**LLAMA3, original_max_position_embeddings=0), "'original_max_position_embeddings' is 0"),
    "rope-of-one-frequency": (_rope(**LLAMA3 | {"low_freq_factor": 4.0}), "'high_freq_factor' equals"),
    "rope-no-low-frequency": (_rope(rope_type="llama3", factor=2.0), "'low_freq_factor' is missing"),
    "rope-attention-zero": (_rope(rope_type="yarn", factor=2.0, attention_factor=0), "'attention_factor' is 0"),
    "rope-beta-negative": (_rope(rope_type="yarn", factor=2.0, beta_fast=-1), "'beta_fast' is -1"),
    "rope-truncate-a-number": (_rope(rope_type="yarn", factor=2.0, truncate=1), "'truncate' .* expected true or false"),
    "rope-dynamic-small-head": (
        _config(head_dim=2, rope_scaling={"rope_type": "dynamic", "factor": 2.0}),
        "head size 2 cannot be rotated",
    ),
}  # fmt: skip

# Of config.json of a model to quantize, which takes over what it does not know.
OF_QUANTIZE_CONFIG = {
    "array": ("[]", "config.json' is an array, expected an object"),
    "word": ('"llama"', "config.json' is text, expected an object"),
    "number": ("1", "config.json' is an integer, expected an object"),
    "nothing": ("null", "config.json' is null, expected an object"),
    "empty": ("", "config.json', byte 0: the text ends"),
    "cut": (_config()[:100], "config.json', byte 100: the text ends"),
    "not-utf8": (b'{"model_type": "ll\xe9ma"}', "config.json'.* not valid UTF-8"),
    "deep": (DEEP, "config.json'.* nested deeper than 64"),
    "quantized-already": (_config(quantization_config={}), "has a quantization_config: it is quantized already"),
}


def shards(names: list[str]) -> dict:
    """Of model.safetensors.index.json beside shards a.safetensors and b.safetensors, which hold the first and the second
    half of `names`, and twice.safetensors, which holds the first name again.
    """
    half = len(names) // 2
    good = {n: "ab"[i >= half] + ".safetensors" for i, n in enumerate(names)}
    first, last = names[0], names[-1]

    def index(weight_map) -> str:
        return json.dumps({"weight_map": weight_map})

    def first_in(name: str) -> str:
        return index({first: name})

    outside = "expected a plain file name in the same folder"
    return {
        "empty": ("", "the text ends, expected a value"),
        "cut": (index(good)[:60], "the text ends.*truncated"),
        "array": ("[]", "is an array, expected an object"),
        "not-utf8": (b'{"weight_map": {"\xff": "a.safetensors"}}', "not valid UTF-8"),
        "deep": ("[" * 100 + "]" * 100, "nested deeper than 16"),
        "tensor-twice": ('{"weight_map": {"x": "a.safetensors", "x": "b.safetensors"}}', "the key 'x' stands twice"),
        "no-weight-map": ('{"metadata": {}}', "no key 'weight_map'"),
        "weight-map-a-list": (index(["a.safetensors"]), "weight_map is an array, expected an object"),
        "weight-map-empty": (index({}), "an empty weight_map"),
        "shard-a-number": (index({first: 1}), f"{first} is an integer, expected text"),
        "shard-above": (first_in("../x.safetensors"), outside),
        "shard-absolute": (first_in("/etc/x.safetensors"), outside),
        "shard-in-a-subfolder": (first_in("sub/x.safetensors"), outside),
        "shard-with-backslash": (first_in("..\\x.safetensors"), outside),
        "shard-with-zero-byte": (first_in("a.safetensors\0.safetensors"), outside),
        "shard-hidden": (first_in(".a.safetensors"), outside),
        "shard-without-a-name": (first_in(""), outside),
        "shard-a-pickle": (first_in("pytorch_model.bin"), "expected a name ending in .safetensors"),
        "shard-only-an-ending": (first_in("safetensors"), "expected a name ending in .safetensors"),
        "shard-missing": (index(good | {last: "c.safetensors"}), "c.safetensors' is missing, expected 3 shards"),
        "tensor-in-no-shard": (index(good | {"ghost": "a.safetensors"}), "tensor 'ghost' is in no shard"),
        "tensor-elsewhere": (index(good | {first: "b.safetensors"}), f"'{first}' is in 'a.safetensors', expected in 'b"),
        "tensor-not-listed": (index({n: s for n, s in good.items() if n != first}), "10 tensors listed, .* hold 11"),
        "tensor-in-two-shards": (index(good | {last: "twice.safetensors"}), f"'{first}' is in two shards"),
    }  # fmt: skip


RUN = {"verb": "train", "settings": {"steps": 8, "batch": 2, "lr": 0.5}, "method": {"kind": "mezo", "queries": 1}}


def _settings(**change) -> str:
    return json.dumps(RUN | {"settings": RUN["settings"] | change})


def _method(**change) -> str:
    return json.dumps(RUN | {"method": {"kind": "sparse-mezo"} | change})


OF_RUN = {
    "empty": ("", "is not JSON"),
    "cut": (json.dumps(RUN)[:40], "is not JSON"),
    "not-utf8": (b'{"settings": {"model": "\xff"}, "method": {}}', "is not JSON"),
    "deep": (DEEP, "is not JSON"),
    "key-twice": ('{"settings": {"seed": 1, "seed": 2}, "method": {"kind": "mezo"}}', "the key 'seed' stands twice"),
    "array": ("[1]", "no settings and method"),
    "no-settings": ('{"method": {"kind": "mezo"}}', "no settings and method"),
    "method-a-word": ('{"settings": {}, "method": "mezo"}', "no settings and method"),
    "data-a-list": (json.dumps(RUN | {"data": [1]}), "'data' in .* holds list, expected what train wrote"),
    "before-a-number": (json.dumps(RUN | {"before": 0.5}), "'before' .*expected what train wrote"),
    "verb-a-list": (json.dumps(RUN | {"verb": []}), "'verb' .*expected what train wrote"),
    "steps-a-word": (_settings(steps="many"), "steps of .*'many', expected an integer"),
    "steps-zero": (_settings(steps=0), "steps of .* 0, expected an integer from 1"),
    "batch-with-a-point": (_settings(batch=2.5), "batch of .* 2.5, expected an integer"),
    "lr-not-a-number": (_settings(lr=float("nan")), "lr of .* nan, expected a positive number"),
    "lr-infinite": ('{"settings": {"lr": 1e999}, "method": {"kind": "mezo"}}', "lr of .* inf, expected a positive"),
    "seed-past-64-bits": (_settings(seed=2**64), "seed of .*expected an integer from 0"),
    "path-a-number": (_settings(model=5), "model of .* 5, expected a path"),
    "path-with-zero-byte": (_settings(model="a\0b"), "model of .*expected a path"),
    "path-with-half-a-character": (_settings(train="\ud800"), "train of .*expected a path"),
    "truncate-a-word": (_settings(truncate="maybe"), "truncate of .*expected a truth value"),
    "method-unknown": (_method(kind="adam"), "'adam', expected one of"),
    "method-a-list": (_method(kind=[]), "method in .*expected one of"),
    "method-unknown-field": (_method(rank=8), "no field 'rank'"),
    "method-sparsity-past-one": (_method(sparsity=1.5), "sparsity 1.5"),
    "method-sparsity-a-word": (_method(sparsity="half"), "sparsity 'half', expected a number"),
    "method-queries-a-list": (_method(queries=[1]), r"queries \[1\], expected an integer"),
    "method-trains-a-number": (_method(trains=5), "trains 5, expected a text"),
    "method-index-a-number": (_method(kind="sensitive", index=5), "fraction 5, expected more than 0"),
    "method-noise-unknown": (_method(noise="white"), "noise 'white'"),
}

FLAGS = {
    "list": ("- batch\n", "holds list, expected a YAML mapping"),
    "word": ("batch\n", "holds str, expected a YAML mapping"),
    "tab": ("batch:\n\t- 1\n", "is not YAML"),
    "two-documents": ("batch: 1\n---\nbatch: 2\n", "is not YAML"),
    "not-utf8": (b"model: caf\xe9\n", "is not YAML"),
    "zero-byte": ("model: a\0b\n", "is not YAML"),
    "python-object": ('model: !!python/object/apply:os.system ["false"]\n', "is not YAML"),
    "deep": ("model: " + "[" * 100 + "]" * 100 + "\n", "brackets in brackets"),
    "alias-of-itself": ("model: &a [*a]\n", "'model' .* holds collections"),
    "alias-bomb": ("a: &a [1, 1]\nb: &b [*a, *a]\nc: [*b, *b]\n", "'b' .* holds collections"),
    "mapping-in-mapping": ("train:\n  file: x\n", "'train' .* holds collections"),
    "mapping-as-key": ("? {a: 1}\n: 2\n", "is not YAML"),
    "no-such-day": ("model: 2024-13-45\n", "is not YAML"),
    "key-twice": ("lr: 1.0\nlr: 2.0\n", "'lr' stands 2 times"),
    "key-twice-by-dash": ("eval-every: 1\neval_every: 2\n", "eval_every stands twice"),
    "unknown-key": ("learning_rate: 1.0\n", "key 'learning_rate'"),
    "misspelt-key": ("sparsty: 0.5\n", "did you mean 'sparsity'"),
    "key-a-number": ("7: 1\n", "key 7"),
    "steps-a-word": ("steps: many\n", "--steps .*'many', expected an integer"),
    "lr-not-a-number": ("lr: .nan\n", "--lr .*nan, expected a positive number or auto"),
    "lr-infinite": ("lr: .inf\n", "--lr .*inf, expected a positive number or auto"),
    "model-a-number": ("model: 5\n", "--model .*5, expected a path"),
    "sparsity-a-word": ("sparsity: half\n", "--sparsity .*'half', expected a number"),
    "method-unknown": ("method: adam\n", "--method .*'adam', expected one of"),
}

GOOD_TASK = 'template: "{text} It was"\nlabel_words: [" bad", " good"]\nlabel_column: label\n'
TASKS = {
    "empty": ("", "is empty, expected a task file"),
    "comment": ("# later\n", "is empty, expected a task file"),
    "list": ("- a\n", "holds list, expected a task file"),
    "cut": (GOOD_TASK[:42], "is not YAML"),
    "not-utf8": (b'template: "{text} \xff"\n', "is not YAML"),
    "python-object": ("template: !!python/name:os.system\n", "is not YAML"),
    "key-twice": (GOOD_TASK + "label_column: answer\n", "'label_column' stands 2 times"),
    "unknown-key": (GOOD_TASK + "labels: 2\n", "key 'labels'"),
    "no-template": ("label_words: [a, b]\n", "no 'template'"),
    "no-label-words": ('template: "{text}"\n', "no 'label_words'"),
    "label-words-a-word": ('template: "{text}"\nlabel_words: good\n', "label_words 'good' .*expected a list"),
    "template-a-number": ("template: 5\nlabel_words: [a, b]\n", "template 5, expected a text"),
    "template-without-column": ("template: It was\nlabel_words: [a, b]\n", "with at least one column"),
    "template-with-attribute": ('template: "{text.__class__}"\nlabel_words: [a, b]\n', "{text.__class__}.*plain column"),
    "template-with-index": ('template: "{text[0]}"\nlabel_words: [a, b]\n', "plain column name"),
    "template-with-format": ('template: "{text:>9999}"\nlabel_words: [a, b]\n', "plain column name"),
    "template-with-conversion": ('template: "{text!r}"\nlabel_words: [a, b]\n', "plain column name"),
    "template-with-number": ('template: "{0}"\nlabel_words: [a, b]\n', "plain column name"),
    "template-with-nothing": ('template: "{}"\nlabel_words: [a, b]\n', "plain column name"),
    "brace-open": ('template: "{text"\nlabel_words: [a, b]\n', "expected column names in braces"),
    "one-label-word": ('template: "{text}"\nlabel_words: [good]\n', "1 label words, expected at least two"),
    "label-word-empty": ('template: "{text}"\nlabel_words: [good, ""]\n', "label word '', expected a text"),
    "label-word-a-truth-value": ('template: "{text}"\nlabel_words: [yes, no]\n', "label word True.*quote yes, no"),
    "label-words-the-same": ('template: "{text}"\nlabel_words: [good, good]\n', "expected different ones"),
    "label-column-empty": ('template: "{text}"\nlabel_words: [a, b]\nlabel_column: ""\n', "label_column ''"),
}  # fmt: skip

ROW = '{"text": "a", "label": 0}\n'
DATA = {
    "empty.jsonl": ("", "holds no example"),
    "header-only.csv": ("text,label\n", "holds no example"),
    "not-json.jsonl": (ROW + "text\n", "line 2 of .* is not JSON"),
    "cut.jsonl": (ROW + ROW[:12], "line 2 of .* is not JSON"),
    "array.json": ("[\n" + ROW + "]\n", "line 1 of .* is not JSON"),
    "list.jsonl": (ROW + "[1]\n", "line 2 of .* holds list, expected one object"),
    "key-twice.jsonl": (ROW + '{"text": "a", "label": 0, "label": 1}\n', "line 2 of .* has a key twice"),
    "deep.jsonl": (DEEP + "\n", "line 1 of .* (cannot be read|is not JSON)"),
    "long-number.jsonl": ('{"text": "a", "label": ' + LONG_NUMBER + "}\n", "line 1 of .* cannot be read"),
    "not-utf8.jsonl": (b'{"text": "caf\xe9", "label": 0}\n', "is not UTF-8 text .byte 0xe9"),
    "utf16.jsonl": (ROW.encode("utf-16"), "is not UTF-8 text .byte 0xff"),
    "half-a-character.jsonl": ('{"text": "\\ud800", "label": 0}\n', "half a character"),
    "no-text.jsonl": ('{"txt": "a", "label": 0}\n', "no column 'text', .*txt, label"),
    "text-a-list.jsonl": ('{"text": ["a"], "label": 0}\n', "column 'text' of line 1 .* holds list"),
    "text-null.jsonl": ('{"text": null, "label": 0}\n', "holds NoneType"),
    "text-not-a-number.jsonl": ('{"text": NaN, "label": 0}\n', "column 'text' of line 1 .* holds nan"),
    "no-label.jsonl": ('{"text": "a"}\n', "line 1 .* no column 'label'"),
    "label-a-word.jsonl": ('{"text": "a", "label": "good"}\n', "label 'good' of line 1"),
    "label-not-a-number.jsonl": ('{"text": "a", "label": NaN}\n', "label nan of line 1"),
    "label-with-a-point.jsonl": ('{"text": "a", "label": 1.0}\n', "label 1.0 of line 1"),
    "label-a-truth-value.jsonl": ('{"text": "a", "label": true}\n', "label True of line 1"),
    "label-negative.jsonl": ('{"text": "a", "label": -1}\n', "label -1 of line 1"),
    "label-past-the-last.jsonl": (ROW + '{"text": "a", "label": 2}\n', "label 2 of line 2"),
    "column-twice.csv": ("text,label,label\na,0,1\n", "has a column twice"),
    "field-missing.csv": ("text,label\na,0\nb\n", "line 3 of .* has 1 fields, expected 2"),
    "field-too-many.csv": ("text,label\na,b,0\n", "line 2 of .* has 3 fields, expected 2"),
    "quote-open.csv": ('text,label\n"a,0\n', "is not CSV"),
    "text-after-quote.csv": ('text,label\n"a"b,0\n', "line 2 of .* is not CSV"),
    "not-utf8.csv": (b"text,label\ncaf\xe9,0\n", "is not UTF-8 text"),
    "label-empty.csv": ("text,label\na,\n", "label '' of line 2"),
}

STEP = {"step": 1, "loss": 0.5, "seconds": 1.0, "peak_rss_bytes": 1, "peak_anon_bytes": 1, "parts": {"other": 1.0}}


def _step(**change) -> str:
    return "".join(json.dumps(STEP | c) + "\n" for c in ({}, {"step": 2} | change))


METRICS = {
    "empty": ("", "no step in"),
    "only-torn-lines": (_step()[:60], "no step in"),
    "only-an-evaluation": ('{"type": "eval", "step": 1, "accuracy": 0.5}\n', "no step in"),
    "not-utf8": (b'\xff{"step": 1}\n', "no step in"),
    "deep": (DEEP + "\n", "no step in"),
    "step-a-word": ('{"step": "one"}\n', "no step in"),
    "no-loss": ('{"step": 1}\n', "step 1 in .* has seconds None, expected a number"),
    "loss-a-word": (_step(loss="low"), "step 2 in .* has loss 'low', expected a number"),
    "parts-a-list": (_step(parts=[1.0]), r"step 2 in .* has parts \[1.0\], expected a number"),
    "part-a-word": (_step(parts={"other": "long"}), "step 2 in .* has other 'long', expected a number"),
}
ADAPTERS = {
    "empty": ("", "is not JSON"),
    "not-utf8": (b'{"peft_type": "\xff"}', "is not JSON"),
    "deep": (DEEP, "is not JSON"),
    "key-twice": ('{"r": 1, "r": 2}', "is not JSON .the key 'r' stands twice"),
    "array": ("[]", "holds list, expected an object"),
}

TOKENIZER = {
    "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None, "decoder": None,
    "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None,
    "model": {"type": "WordLevel", "vocab": {"<unk>": 0, "a": 1, "It": 2, "was": 3, "bad": 4, "good": 5},
              "unk_token": "<unk>"},
}  # fmt: skip
WORDS, NO_TOKENIZER = TOKENIZER["model"], "tokenizer.json: .*expected what the package tokenizers writes"
LARGE = WORDS["vocab"] | {"good": 900}
TOKENIZERS = {
    "empty": ("", NO_TOKENIZER),
    "cut": (json.dumps(TOKENIZER)[:120], NO_TOKENIZER),
    "array": ("[]", NO_TOKENIZER),
    "of-another-kind": ('{"vocab": {"a": 0}}', NO_TOKENIZER),
    "not-utf8": (b'{"version": "\xff"}', NO_TOKENIZER),
    "without-unknown-token": (json.dumps(TOKENIZER | {"model": WORDS | {"vocab": {"a": 0}}}), "encode any text"),
    "ids-past-the-vocabulary": (json.dumps(TOKENIZER | {"model": WORDS | {"vocab": LARGE}}), "gives token id 900"),
}
