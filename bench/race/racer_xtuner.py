"""XTuner 0.2's model, data and loop: racer_xtuner.py FOLDER MODE WORK_DIR ROWS_AT_ONCE

The runner of mmengine is started as `xtuner train` does it, with a hook that reports each step.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dataset import DefaultSampler
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from peft import LoraConfig
from safetensors.torch import load_file
from torch.optim import AdamW
from transformers import AutoModelForCausalLM, AutoTokenizer, CLIPImageProcessor, CLIPVisionModel
from turns import report
from xtuner.dataset import LLaVADataset
from xtuner.dataset.collate_fns import default_collate_fn
from xtuner.dataset.map_fns import llava_map_fn, template_map_fn_factory
from xtuner.engine.runner import TrainLoop
from xtuner.model import LLaVAModel
from xtuner.utils import PROMPT_TEMPLATE

GLOBAL_BATCH, MAX_LENGTH = 8, 2048


class Reports(Hook):
    """Says after each step what its loss was."""

    def __init__(self, passes: int) -> None:
        self.passes = passes
        self.losses: list[float] = []
        self.targets = 0

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self.losses.append(float(outputs["loss"]))
        self.targets += int((data_batch["data"]["labels"][:, 1:] != -100).sum())
        if len(self.losses) == self.passes:
            report(loss=sum(self.losses) / self.passes, targets=self.targets)
            self.losses, self.targets = [], 0


def write_projector(folder: Path, work: Path) -> Path:
    """The projector that all begin with, under XTuner's names."""
    tensors = {}
    for file in (folder / "hf").glob("*.safetensors"):
        tensors |= load_file(file)
    path = work / "projector.pth"
    numbers = {"linear_1": 0, "linear_2": 2}
    torch.save(
        {
            f"projector.model.{number}.{kind}": tensors[f"multi_modal_projector.{name}.{kind}"]
            for name, number in numbers.items()
            for kind in ("weight", "bias")
        },
        path,
    )
    return path


def main(folder: Path, mode: str, work: Path, at_once: int) -> None:
    work.mkdir(parents=True)
    tokenizer = {
        "type": AutoTokenizer.from_pretrained,
        "pretrained_model_name_or_path": str(folder / "llm"),
        "padding_side": "right",
    }
    processor = {"type": CLIPImageProcessor.from_pretrained, "pretrained_model_name_or_path": str(folder / "tower")}
    llm = {"type": AutoModelForCausalLM.from_pretrained, "pretrained_model_name_or_path": str(folder / "llm")}
    tower = {"type": CLIPVisionModel.from_pretrained, "pretrained_model_name_or_path": str(folder / "tower")}
    model: dict[str, Any] = {
        "type": LLaVAModel,
        "freeze_llm": mode != "full",
        "freeze_visual_encoder": True,
        "use_activation_checkpointing": False,
        "pretrained_pth": str(write_projector(folder, work)),
        "llm": llm,
        "visual_encoder": tower,
    }
    if mode == "lora":
        lora = {"type": LoraConfig, "r": 128, "lora_alpha": 256, "lora_dropout": 0.0, "bias": "none"}
        model["llm_lora"] = lora | {"task_type": "CAUSAL_LM"}
    dataset = {
        "type": LLaVADataset,
        "data_path": str(folder / "rows.json"),
        "image_folder": str(folder / "images"),
        "tokenizer": tokenizer,
        "image_processor": processor,
        "dataset_map_fn": llava_map_fn,
        "template_map_fn": {"type": template_map_fn_factory, "template": PROMPT_TEMPLATE.vicuna},
        "max_length": MAX_LENGTH,
        "pad_image_to_square": False,
    }
    loader = {
        "batch_size": at_once,
        "num_workers": 1,
        "pin_memory": False,
        "dataset": dataset,
        "sampler": {"type": DefaultSampler, "shuffle": False},
        "collate_fn": {"type": default_collate_fn},
    }
    wrapper = {
        "type": OptimWrapper,
        "optimizer": {"type": AdamW, "lr": 1e-4, "weight_decay": 0.0, "fused": True},
        "clip_grad": {"max_norm": 1.0},
        "accumulative_counts": GLOBAL_BATCH // at_once,
    }
    config = Config(
        {
            "model": model,
            "train_dataloader": loader,
            "optim_wrapper": wrapper,
            "train_cfg": {"type": TrainLoop, "max_epochs": 1},
            "work_dir": str(work),
            "default_hooks": {"checkpoint": None},
            "env_cfg": {"dist_cfg": {"backend": "gloo"}},
            "randomness": {"seed": 0},
        }
    )
    runner = Runner.from_cfg(config)
    runner.register_hook(Reports(GLOBAL_BATCH // at_once))
    runner.train()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
