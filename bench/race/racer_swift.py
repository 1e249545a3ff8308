"""ms-swift's `swift sft`: racer_swift.py FOLDER MODE WORK_DIR ROWS_AT_ONCE

Its arguments, model, adapters, image processor, collation, loader and trainer are its own, as its documentation sets
them. Replaced is how a row becomes ids: what its template would encode is read from tokens.json.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from samples import Samples
from swift.dataset import LazyLLMDataset
from swift.pipelines.train.sft import SwiftSft
from turns import report_steps_of_trainer

GLOBAL_BATCH = 8
MODES: dict[str, dict[str, Any]] = {
    "full": {"tuner_type": "full", "freeze_llm": False, "freeze_aligner": False},
    "frozen": {"tuner_type": "full", "freeze_llm": True, "freeze_aligner": False},
    "lora": {
        "tuner_type": "lora",
        "target_modules": "all-linear",
        "freeze_aligner": True,  # no adapters there: it learns as a whole
        "modules_to_save": "multi_modal_projector",
        "lora_rank": 128,
        "lora_alpha": 256,
        "lora_dropout": 0.0,
    },
}


class Race(SwiftSft):
    """`swift sft` on ready-made samples."""

    folder: Path

    def _prepare_model_tokenizer(self, **named: Any) -> None:
        super()._prepare_model_tokenizer(**named)
        if self.args.freeze_llm:
            # Without it a batch of rows without pictures has nothing to go back to, and its backward raises.
            self.model.enable_input_require_grads()

    def _prepare_dataset(self) -> tuple[Any, None]:
        return LazyLLMDataset(Samples(self.folder), self.encode, strict=True), None

    def encode(self, sample: dict[str, Any], return_length: bool) -> dict[str, Any]:
        """As the template of LLaVA-1.5 does from a conversation."""
        encoded = {"input_ids": sample["ids"], "labels": sample["labels"], "length": len(sample["ids"])}
        if sample["image"] is not None:
            pixels = self.template.processor.image_processor([sample["image"]], return_tensors="pt")
            encoded["pixel_values"] = pixels["pixel_values"]
        return encoded


def main(folder: Path, mode: str, work_dir: str, at_once: int) -> None:
    settings = {
        "model": folder / "hf",
        "model_type": "llava1_5_hf",
        "template": "llava1_5_hf",
        "dataset": folder / "rows.json",  # asked for, never read
        "output_dir": work_dir,
        "add_version": False,
        "check_model": False,
        "use_hf": True,
        "torch_dtype": "float32",
        "attn_impl": "sdpa",
        "use_cpu": True,
        "freeze_vit": True,
        "gradient_checkpointing": False,
        "vit_gradient_checkpointing": False,
        "per_device_train_batch_size": at_once,
        "gradient_accumulation_steps": GLOBAL_BATCH // at_once,
        "num_train_epochs": 1,
        "learning_rate": 1e-4,
        "weight_decay": 0.0,
        "lr_scheduler_type": "constant",
        "warmup_ratio": 0.0,
        "optim": "adamw_torch_fused",
        "adam_beta2": 0.999,  # 0.95 unless told
        "max_grad_norm": 1.0,
        "train_dataloader_shuffle": False,
        "dataloader_num_workers": 1,
        "dataloader_pin_memory": False,
        "save_strategy": "no",
        "report_to": "none",
        "logging_steps": 1,
        **MODES[mode],
    }
    Race.folder = folder
    report_steps_of_trainer()
    Race([word for name, value in settings.items() for word in (f"--{name}", str(value))]).main()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]))
