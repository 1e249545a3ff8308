# mypy: ignore-errors
"""A configuration of XTuner 0.2, as its documentation has them; words in capitals are replaced before it is read."""

from mmengine.dataset import DefaultSampler
from mmengine.optim import OptimWrapper
from peft import LoraConfig
from torch.optim import AdamW
from transformers import AutoModelForCausalLM, CLIPImageProcessor, CLIPVisionModel
from xtuner.dataset import LLaVADataset
from xtuner.dataset.collate_fns import default_collate_fn
from xtuner.engine.runner import TrainLoop
from xtuner.model import LLaVAModel

image_processor = dict(
    type=CLIPImageProcessor.from_pretrained, pretrained_model_name_or_path="FOLDER/xtuner/visual_encoder"
)
lora = dict(type=LoraConfig, r=128, lora_alpha=256, lora_dropout=0.0, bias="none", task_type="CAUSAL_LM")
model = dict(
    type=LLaVAModel,
    freeze_llm="FREEZE_LLM",
    freeze_visual_encoder=True,
    use_activation_checkpointing=False,
    pretrained_pth="WORK/projector.pth",
    llm=dict(type=AutoModelForCausalLM.from_pretrained, pretrained_model_name_or_path="FOLDER/xtuner"),
    visual_encoder=dict(
        type=CLIPVisionModel.from_pretrained, pretrained_model_name_or_path="FOLDER/xtuner/visual_encoder"
    ),
    llm_lora="LORA",
)
train_dataloader = dict(
    batch_size="AT_ONCE",
    num_workers=1,
    pin_memory=False,
    dataset=dict(
        type=LLaVADataset,
        offline_processed_text_folder="WORK/texts",
        image_folder="FOLDER/images",
        image_processor=image_processor,
        pad_image_to_square=False,
    ),
    sampler=dict(type=DefaultSampler, shuffle=False),
    collate_fn=dict(type=default_collate_fn),
)
optim_wrapper = dict(
    type=OptimWrapper,
    optimizer=dict(type=AdamW, lr=1e-4, weight_decay=0.0, fused=True),
    clip_grad=dict(max_norm=1.0),
    accumulative_counts="PASSES",
)
train_cfg = dict(type=TrainLoop, max_epochs=1)
default_hooks = dict(checkpoint=None)
env_cfg = dict(dist_cfg=dict(backend="gloo"))
randomness = dict(seed=0)
