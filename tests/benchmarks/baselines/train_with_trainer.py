"""Train a LoRA with transformers' Trainer and PEFT, as their tutorials do: train_with_trainer.py BASE ROWS OUT OPTIONS

ROWS: JSONL with chat messages. OPTIONS: JSON with r, lora_alpha, target_modules, batch_size, learning_rate, warmup,
seed and steps. What was measured is written to OUT/measured.json.
"""

import json
import sys
import time
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainingArguments,
    set_seed,
)

base, rows, out, options = sys.argv[1:]
options = json.loads(options)
tokenizer = AutoTokenizer.from_pretrained(base)


def tokenize(messages: list[dict[str, str]]) -> dict[str, list[int]]:
    """Label the assistant's answer through the end of its turn."""
    prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=False)
    ids = tokenizer.apply_chat_template(messages, return_dict=False)
    end = len(ids) - ids[::-1].index(tokenizer.eos_token_id)
    labels = [-100] * len(prompt) + ids[len(prompt) : end] + [-100] * (len(ids) - end)
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}


with Path(rows).open(encoding="utf-8") as stream:
    dataset = [tokenize(json.loads(line)["messages"]) for line in stream]

# Before the adapter is made, so that its first values belong to the seed too.
set_seed(options["seed"])
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
config = LoraConfig(
    task_type="CAUSAL_LM",
    r=options["r"],
    lora_alpha=options["lora_alpha"],
    target_modules=options["target_modules"],
)
set_seed(options["seed"])
model = get_peft_model(model, config)
trainer = Trainer(
    model=model,
    args=TrainingArguments(
        output_dir=out,
        per_device_train_batch_size=options["batch_size"],
        learning_rate=options["learning_rate"],
        lr_scheduler_type="cosine",
        warmup_steps=options["warmup"],
        max_steps=options["steps"],
        logging_steps=1,
        include_num_input_tokens_seen="non_padding",
        save_strategy="no",
        report_to="none",
        seed=options["seed"],
        disable_tqdm=True,
    ),
    train_dataset=dataset,
    data_collator=DataCollatorForSeq2Seq(tokenizer, padding=True),
)
begin = time.perf_counter()
trainer.train()
seconds = time.perf_counter() - begin
model.save_pretrained(out)
tokenizer.save_pretrained(out)
losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
measured = {"tokens": trainer.state.num_input_tokens_seen, "seconds": seconds, "losses": losses}
Path(out, "measured.json").write_text(json.dumps(measured))
