"""Train a LoRA with TRL's SFTTrainer at its best settings for a CPU: train_with_trl.py BASE ROWS OUT OPTIONS

ROWS and OPTIONS as train_with_trainer.py has them, and the same tokens and labels. What it leaves of TRL's defaults:
activation checkpointing, which computes the forward pass twice, is off; rows of like length go together; nothing is
packed, since a packed row is only told apart by attention kernels that a CPU has not. What was measured is written to
OUT/measured.json.
"""

import json
import sys
import time
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
from trl import SFTConfig, SFTTrainer

base, rows, out, options = sys.argv[1:]
options = json.loads(options)
tokenizer = AutoTokenizer.from_pretrained(base)


def tokenize(messages: list[dict[str, str]]) -> dict[str, list[int]]:
    """Label the assistant's answer through the end of its turn."""
    prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=False)
    ids = tokenizer.apply_chat_template(messages, return_dict=False)
    end = len(ids) - ids[::-1].index(tokenizer.eos_token_id)
    labels = [-100] * len(prompt) + ids[len(prompt) : end] + [-100] * (len(ids) - end)
    return {"input_ids": ids, "labels": labels}


with Path(rows).open(encoding="utf-8") as stream:
    dataset = Dataset.from_list([tokenize(json.loads(line)["messages"]) for line in stream])

# Before the adapter is made, so that its first values belong to the seed too.
set_seed(options["seed"])
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
set_seed(options["seed"])
trainer = SFTTrainer(
    model=model,
    processing_class=tokenizer,
    train_dataset=dataset,
    peft_config=LoraConfig(
        task_type="CAUSAL_LM",
        r=options["r"],
        lora_alpha=options["lora_alpha"],
        target_modules=options["target_modules"],
    ),
    args=SFTConfig(
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
        bf16=False,
        gradient_checkpointing=False,
        train_sampling_strategy="group_by_length",
    ),
)
begin = time.perf_counter()
trainer.train()
seconds = time.perf_counter() - begin
trainer.model.save_pretrained(out)
tokenizer.save_pretrained(out)
losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
measured = {"tokens": trainer.state.num_input_tokens_seen, "seconds": seconds, "losses": losses}
Path(out, "measured.json").write_text(json.dumps(measured))
