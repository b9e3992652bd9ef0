"""Find out whether an adapter fits by loading it: load_with_peft.py BASE ADAPTER"""

import sys

from peft import PeftModel
from transformers import AutoModelForCausalLM

base, adapter = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(base)
model = PeftModel.from_pretrained(model, adapter)
