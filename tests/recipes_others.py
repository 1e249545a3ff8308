"""What the recipes that are not XTuner's must say, written down from their sources."""

from __future__ import annotations

from typing import Any

CLIP = "openai/clip-vit-large-patch14-336"
SIGLIP = "google/siglip-so400m-patch14-384"

# What all published recipes of LLaVA have in common: XTuner's 33 files, LLaVA's scripts/v1_5/*.sh.
COMMON: dict[str, Any] = {
    "model.from_model": None,
    "model.system": None,
    "model.vision_feature_layer": -2,  # --mm_vision_select_layer, visual_select_layer
    "model.next": False,
    "model.grid_pinpoints": None,
    "tune.llm_bits": None,
    "tune.projector": "full",
    "tune.vision_last_n": None,
    "tune.freeze_layers": None,
    "batch.workers": 4,  # --dataloader_num_workers; XTuner has 0 in four files
    "batch.shuffle": True,
    "batch.pack_tokens": None,
    "optim.optimizer": "adamw",
    "optim.projector_lr": None,
    "optim.vision_lr": None,
    "optim.weight_decay": 0.0,
    "optim.betas": (0.9, 0.999),
    "optim.eps": 1e-8,
    "optim.warmup_ratio": 0.03,
    "optim.schedule": "cosine",
    "optim.clip_grad": 1.0,
    "optim.neftune_alpha": None,
    "optim.max_steps": None,
    "engine.dtype": "auto",
    "engine.gradient_checkpointing": "auto",  # theirs: always on
    "run.keep": 2,  # save_total_limit
}

PRETRAIN: dict[str, Any] = {
    "tune.llm": "frozen",
    "tune.vision_tower": "frozen",
    "model.template": "plain",  # --version plain
    "model.projector_from": None,
    "model.image_aspect_ratio": "crop",
    "data": ["llava_pretrain_558k"],
    "batch.global_batch": 256,
    "batch.max_length": 2048,
    "optim.lr": 1e-3,
    "optim.epochs": 1.0,
    "run.save_every": 500,
}
FINETUNE: dict[str, Any] = {
    "tune.llm": "full",
    "tune.vision_tower": "frozen",
    "tune.llm_lora": None,
    "model.image_aspect_ratio": "pad",
    "data": ["llava_v15_mix665k"],
    "batch.global_batch": 128,
    "batch.max_length": 2048,
    "optim.lr": 2e-5,
    "optim.epochs": 1.0,
    "run.save_every": 500,
}
# LLaVA-VL/LLaVA-NeXT, scripts/train/direct_finetune_clip.sh: all parts learn, the vision tower at 2e-6; anyres with
# five grids. 4096 tokens: tokenizer_model_max_length of the published 1.6 models.
NEXT: dict[str, Any] = {
    **FINETUNE,
    "model.next": True,
    "tune.vision_tower": "full",
    "batch.max_length": 4096,
    "optim.lr": 1e-5,
    "optim.vision_lr": 2e-6,
}

# PaddleMIX, paddlemix/config/llava/*.json: one file of rows, saved at the end of the epoch (save_total_limit 1).
PADDLEMIX = {"data": [("train.json", "paddlemix")], "run.save_every": 0, "run.keep": 1}
PADDLEMIX_LORA = {  # lora_sft_argument.json; there is no other kind of linear layer than its seven target modules
    "tune.llm": "lora",
    "tune.llm_lora": (128, 256, 0.0),
    "tune.llm_lora.target_modules": None,
    "optim.lr": 2e-4,
    "optim.projector_lr": 2e-5,
}
LLAVA_15 = {"model.from_model": "llava-hf/llava-1.5-7b-hf", "model.template": "vicuna"}
LLAVA_16 = {"model.from_model": "llava-hf/llava-v1.6-vicuna-7b-hf", "model.template": "vicuna"}
LONG = {"batch.max_length": 4096}  # 1.6 has up to 2928 tokens of a picture; PaddleMIX's 2048 hold its first tile only


def parts(llm: str, template: str, tower: str = CLIP, stage_one: str | None = None) -> dict[str, Any]:
    before = f"work_dirs/{stage_one}" if stage_one else None
    return {
        "model.llm": llm,
        "model.vision_tower": tower,
        "model.template": template,
        "model.projector_from": before,
    }


VICUNA_7B, VICUNA_13B = "lmsys/vicuna-7b-v1.5", "lmsys/vicuna-13b-v1.5"
MISTRAL = "mistralai/Mistral-7B-Instruct-v0.2"
LLAMA3 = "meta-llama/Meta-Llama-3-8B-Instruct"
PHI3, INTERNLM2 = "microsoft/Phi-3-mini-4k-instruct", "internlm/internlm2-chat-7b"
QWEN25, QWEN3 = "Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen3-8B"
STAGE_ONE = "clip_vit_large_p14_336_e1_gpu8_pretrain"
OPEN = {"optim.lr": 2e-5}  # xiaoachen98/Open-LLaVA-NeXT: 2e-5, vision tower 2e-6, 128 to a step, 4096 tokens
ALL_LEARN = {"tune.vision_tower": "full", "optim.lr": 1e-5, "optim.vision_lr": 2e-6}

OTHERS: dict[str, dict[str, Any]] = {
    # Named in XTuner's configs/llava/README_zh-CN.md, and missing there; values of llava_v15_7b_finetune.
    "llava_vicuna_7b_v15_clip_vit_large_p14_336_e1_gpu8_finetune": {
        **FINETUNE,
        **parts(VICUNA_7B, "vicuna", stage_one=f"llava_vicuna_7b_v15_{STAGE_ONE}"),
    },
    "paddlemix_llava_v1_5_pretrain": {**PRETRAIN, **parts(VICUNA_13B, "plain"), **PADDLEMIX},
    "paddlemix_llava_v1_5_sft": {**FINETUNE, **LLAVA_15, **PADDLEMIX},
    "paddlemix_llava_v1_5_lora_sft": {**FINETUNE, **LLAVA_15, **PADDLEMIX, **PADDLEMIX_LORA},
    "paddlemix_llava_v1_6_pretrain": {
        **PRETRAIN,
        **parts(VICUNA_13B, "plain"),
        **PADDLEMIX,
        **LONG,
        "model.next": True,
        "model.image_aspect_ratio": "pad",  # the default; without effect on tiles
    },
    "paddlemix_llava_v1_6_sft": {**FINETUNE, **LLAVA_16, **PADDLEMIX, **LONG},
    "paddlemix_llava_v1_6_lora_sft": {**FINETUNE, **LLAVA_16, **PADDLEMIX, **PADDLEMIX_LORA, **LONG},
    # LLaVA-NeXT's pretrain_clip.sh and its scripts for Qwen, with the data of LLaVA-1.5.
    **{
        f"llava_{name}_siglip_pretrain": {
            **PRETRAIN,
            **LONG,
            **parts(llm, "plain", SIGLIP),
            "model.image_aspect_ratio": "pad",
        }
        for name, llm in (("qwen2_5_7b", QWEN25), ("qwen3_8b", QWEN3))
    },
    **{
        f"llava_{name}_siglip_finetune": {
            **FINETUNE,
            **LONG,
            **ALL_LEARN,
            **parts(llm, template, SIGLIP, f"llava_{name}_siglip_pretrain"),
        }
        for name, llm, template in (("qwen2_5_7b", QWEN25, "qwen_2_5"), ("qwen3_8b", QWEN3, "qwen_chat"))
    },
    "llava_next_vicuna_7b_finetune": {
        **NEXT,
        **OPEN,
        **parts(VICUNA_7B, "vicuna", stage_one="llava_v15_7b_pretrain"),
    },
    "llava_next_vicuna_13b_finetune": {
        **NEXT,
        **OPEN,
        **parts(VICUNA_13B, "vicuna", stage_one="llava_v15_13b_pretrain"),
    },
    "llava_next_mistral_7b_pretrain": {**PRETRAIN, **parts(MISTRAL, "plain")},
    "llava_next_mistral_7b_finetune": {
        **NEXT,
        **parts(MISTRAL, "mistral_instruct", stage_one="llava_next_mistral_7b_pretrain"),
    },
    "llava_next_llama3_8b_finetune": {
        **NEXT,
        **parts(LLAMA3, "llama3_chat", stage_one=f"llava_llama3_8b_instruct_{STAGE_ONE}"),
    },
    "llava_next_phi3_mini_finetune": {
        **NEXT,
        **parts(PHI3, "phi3_chat", stage_one=f"llava_phi3_mini_4k_instruct_{STAGE_ONE}"),
    },
    "llava_next_internlm2_7b_finetune": {
        **NEXT,
        **parts(INTERNLM2, "internlm2_chat", stage_one=f"llava_internlm2_chat_7b_{STAGE_ONE}"),
    },
    # A picture takes up to 3,699 tokens: 729 of the whole, 54 x 54 of four tiles, 54 newlines.
    "llava_next_qwen2_5_7b_siglip_finetune": {
        **NEXT,
        **parts(QWEN25, "qwen_2_5", SIGLIP, "llava_qwen2_5_7b_siglip_pretrain"),
        "batch.max_length": 8192,
    },
    "llava_next_qwen3_8b_siglip_finetune": {
        **NEXT,
        **parts(QWEN3, "qwen_chat", SIGLIP, "llava_qwen3_8b_siglip_pretrain"),
        "batch.max_length": 8192,
    },
}
