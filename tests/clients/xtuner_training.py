# mypy: ignore-errors
"""A configuration of XTuner 0.2.0 for a machine without GPU, as its documentation has them: adapters on both parts.

The test writes HERE, and starts `xtuner train` with it; it is never run by Python itself.
"""

from mmengine.dataset import DefaultSampler
from mmengine.hooks import CheckpointHook, IterTimerHook, LoggerHook, ParamSchedulerHook
from mmengine.optim import CosineAnnealingLR, OptimWrapper
from peft import LoraConfig
from torch.optim import AdamW
from transformers import AutoModelForCausalLM, AutoTokenizer, CLIPImageProcessor, CLIPVisionModel
from xtuner.dataset import LLaVADataset
from xtuner.dataset.collate_fns import default_collate_fn
from xtuner.dataset.map_fns import llava_map_fn, template_map_fn_factory
from xtuner.engine.runner import TrainLoop
from xtuner.model import LLaVAModel
from xtuner.utils import PROMPT_TEMPLATE

llm_name_or_path = "HERE/parts"
visual_encoder_name_or_path = "HERE/parts/visual_encoder"
prompt_template = PROMPT_TEMPLATE.vicuna

tokenizer = dict(
    type=AutoTokenizer.from_pretrained, pretrained_model_name_or_path=llm_name_or_path, padding_side="right"
)
image_processor = dict(
    type=CLIPImageProcessor.from_pretrained, pretrained_model_name_or_path=visual_encoder_name_or_path
)
model = dict(
    type=LLaVAModel,
    freeze_llm=True,
    freeze_visual_encoder=True,
    use_activation_checkpointing=False,
    llm=dict(type=AutoModelForCausalLM.from_pretrained, pretrained_model_name_or_path=llm_name_or_path),
    llm_lora=dict(type=LoraConfig, r=8, lora_alpha=16, lora_dropout=0.05, bias="none", task_type="CAUSAL_LM"),
    visual_encoder=dict(
        type=CLIPVisionModel.from_pretrained, pretrained_model_name_or_path=visual_encoder_name_or_path
    ),
    visual_encoder_lora=dict(type=LoraConfig, r=4, lora_alpha=8, lora_dropout=0.05, bias="none"),
)
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    pin_memory=False,
    dataset=dict(
        type=LLaVADataset,
        data_path="HERE/pictures/data.json",
        image_folder="HERE/pictures",
        tokenizer=tokenizer,
        image_processor=image_processor,
        dataset_map_fn=llava_map_fn,
        template_map_fn=dict(type=template_map_fn_factory, template=prompt_template),
        max_length=256,
        pad_image_to_square=True,
    ),
    sampler=dict(type=DefaultSampler, shuffle=False),
    collate_fn=dict(type=default_collate_fn),
)
optim_wrapper = dict(type=OptimWrapper, optimizer=dict(type=AdamW, lr=3e-3))
param_scheduler = [dict(type=CosineAnnealingLR, eta_min=0.0, by_epoch=False, begin=0, end=3)]
train_cfg = dict(type=TrainLoop, max_epochs=1)
default_hooks = dict(
    timer=dict(type=IterTimerHook),
    logger=dict(type=LoggerHook, log_metric_by_epoch=False, interval=1),
    param_scheduler=dict(type=ParamSchedulerHook),
    checkpoint=dict(type=CheckpointHook, by_epoch=False, interval=3),
)
env_cfg = dict(cudnn_benchmark=False, dist_cfg=dict(backend="gloo"))
visualizer = None
log_level = "INFO"
load_from = None
resume = False
randomness = dict(seed=0, deterministic=False)
log_processor = dict(by_epoch=False)
