"""Stream an answer, with any number of LoRAs active: generate.py BASE DTYPE TOKENS PROMPT [ADAPTER…]

The number of new tokens goes to stderr.
"""

import sys

from transformers import AutoModelForCausalLM, AutoTokenizer, TextStreamer

base, dtype, tokens, prompt, *adapters = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(base)
model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
if adapters:
    from peft import PeftModel

    names = [f"adapter{index}" for index in range(len(adapters))]
    model = PeftModel.from_pretrained(model, adapters[0], adapter_name=names[0])
    for name, adapter in zip(names[1:], adapters[1:], strict=True):
        model.load_adapter(adapter, adapter_name=name)
    # PEFT adds up all active adapters; PeftModel's own set_adapter takes only one.
    model.base_model.set_adapter(names, inference_mode=True)

inputs = tokenizer.apply_chat_template(
    [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=True
)
output = model.generate(
    **inputs,
    max_new_tokens=int(tokens),
    do_sample=False,
    streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
)
print(output.shape[1] - inputs["input_ids"].shape[1], file=sys.stderr)
