"""Merge adapters into their base and save it: merge_with_peft.py BASE OUT ADAPTER…"""

import sys

from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base, out, *adapters = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(base)
names = [f"adapter{index}" for index in range(len(adapters))]
model = PeftModel.from_pretrained(model, adapters[0], adapter_name=names[0])
for name, adapter in zip(names[1:], adapters[1:], strict=True):
    model.load_adapter(adapter, adapter_name=name)
model = model.merge_and_unload(adapter_names=names)
model.save_pretrained(out)
AutoTokenizer.from_pretrained(base).save_pretrained(out)
