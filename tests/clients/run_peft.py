"""peft alone: a language model, an adapter and ids -> logits."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import peft
import torch
from transformers import AutoModelForCausalLM

asked = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
torch.set_num_threads(1)
llm = AutoModelForCausalLM.from_pretrained(asked["llm"], torch_dtype=torch.float32)
model = peft.PeftModel.from_pretrained(llm, asked["adapter"]).eval()
with torch.no_grad():
    logits = model(torch.tensor([asked["ids"]])).logits[0]
# An adapter that was not found in the file changes nothing: its second factor is zero.
untouched = [name for name, factor in model.named_parameters() if "lora_B" in name and not factor.any()]
result = {"untouched": untouched, "version": peft.__version__, "logits": logits.tolist()}
Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")
