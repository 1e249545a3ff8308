"""XTuner itself: its model of a configuration and a checkpoint, asked for the logits of pictures and a prompt."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from mmengine.config import Config
from PIL import Image
from xtuner.dataset.utils import expand2square
from xtuner.registry import BUILDER
from xtuner.utils import IMAGE_TOKEN_INDEX

asked = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
torch.set_num_threads(1)
config = Config.fromfile(asked["config"])
model = BUILDER.build(config.model)
state = torch.load(asked["checkpoint"], map_location="cpu", weights_only=False)["state_dict"]
report = model.load_state_dict(state, strict=False)
assert not report.unexpected_keys
model.eval()
tokenizer, processor = BUILDER.build(config.tokenizer), BUILDER.build(config.image_processor)
before, after = asked["prompt"].split("<image>")
ids = [*tokenizer.encode(before), IMAGE_TOKEN_INDEX, *tokenizer.encode(after, add_special_tokens=False)]
found = {}
for picture in asked["pictures"]:
    square = expand2square(
        Image.open(picture).convert("RGB"), tuple(int(value * 255) for value in processor.image_mean)
    )
    pixels = processor.preprocess(square, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        logits = model({"input_ids": torch.tensor([ids]), "pixel_values": pixels}, mode="tensor").logits[0]
    found[picture] = {"logits": logits.float().tolist()}
result = {"ids": ids, "trained": len(state), "found": found}
Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")
