"""Another program: transformers alone, of any version. A folder, pictures and a question -> what it makes of them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import transformers
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline

asked = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
folder, question = asked["folder"], asked["question"]
torch.set_num_threads(1)
processor = AutoProcessor.from_pretrained(folder)
model, report = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True, torch_dtype=torch.float32)
model.eval()
found = {}
for picture in asked["pictures"]:
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    inputs = processor(images=Image.open(picture).convert("RGB"), text=prompt, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits[0]
        out = model.generate(**inputs, max_new_tokens=20, do_sample=False)
    said = processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    found[picture] = {
        "ids": inputs["input_ids"][0].tolist(),
        "logits": logits.tolist(),
        "answer": said.strip(),
    }
# How a prompt begins, tokenised in each of the ways that programs have.
bare = processor.apply_chat_template(
    [{"role": "user", "content": [{"type": "text", "text": question}]}], add_generation_prompt=True
)
begun = {
    "processor": processor(text=bare)["input_ids"][0],
    "tokenizer": processor.tokenizer(bare, add_special_tokens=True)["input_ids"],
    "by hand": processor.tokenizer(question)["input_ids"],
}
if transformers.__version__ >= "4.50":  # before, it made no tokens of pictures
    messages = [{"role": "user", "content": [{"type": "image", "path": picture}, {"type": "text", "text": question}]}]
    begun["in one step"] = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True
    )["input_ids"][0]
# With the picture inside of the conversation, as the documentation of the pipeline has it.
pipe = pipeline("image-text-to-text", model=folder, torch_dtype=torch.float32)
for picture in asked["pictures"]:
    content = [{"type": "image", "url": picture}, {"type": "text", "text": question}]
    said = pipe(text=[{"role": "user", "content": content}], max_new_tokens=20, return_full_text=False)
    found[picture]["piped"] = said[0]["generated_text"].strip()
assert not any(name.split(".")[0] == "sightline" for name in sys.modules)
result = {
    "version": transformers.__version__,
    "loading": {kind: sorted(map(str, keys)) for kind, keys in report.items() if keys},
    "kinds": [type(model).__name__, type(processor).__name__, type(processor.tokenizer).__name__],
    "found": found,
    "bos": processor.tokenizer.bos_token_id,
    "begun": {way: list(map(int, ids)) for way, ids in begun.items()},
}
Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")
