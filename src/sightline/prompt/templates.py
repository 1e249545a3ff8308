"""Chat templates as data: how a conversation is written for each language model.

`prompt/render.py` turns messages into text by them. Sources: the table of XTuner's `--prompt-template` (0.2.0), the
conversation modes of LLaVA and LLaVA-NeXT; docs/templates.md says where one departs from its source, and why.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

ImagePlace = Literal["front", "kept"]

BOS, EOS, ROUND = "{bos}", "{eos}", "{round}"
"""Stand in a template's strings for the tokenizer's own tokens, and for the number of the turn (from 1)."""


@dataclass(frozen=True, slots=True)
class Template:
    """How a conversation is written for a language model; `{}` is the place of the message."""

    name: str
    user: str
    """What surrounds a user's message."""
    opening: str
    """What stands between a user's message and the answer; never a target."""
    answer: str
    """What surrounds an answer; a target as a whole, with `end`. A space before the answer belongs here."""
    end: str
    """What the model says when the answer is over."""
    separator: str = ""
    """What stands between an answer and the next user's message."""
    system: str | None = "{}"
    """What surrounds the system prompt; None: there is no place for one."""
    default_system: str = ""
    user_after_system: str | None = None
    """What surrounds the user's message behind the system prompt, where both share one turn; None: as `user`."""
    begin: str = BOS
    images_only: bool = False
    """Whether the words of the user are left out (LLaVA's captioning stage)."""
    image_place: ImagePlace = "front"
    """front: the one image of a user's turn stands in front of its words, as LLaVA, LLaVA-NeXT and XTuner train it;
    kept: where it was written. Several images of a turn stay in their places."""
    stop: tuple[str, ...] = ()
    """Further strings that end an answer."""
    tokens: tuple[str, ...] = ()
    """Strings that must be one token each: a model whose tokenizer has them as words has not learnt this template."""

    def strings(self) -> tuple[str, ...]:
        parts = (self.begin, self.system, self.user, self.user_after_system, self.opening, self.answer, self.end)
        return (*(part for part in parts if part is not None), self.separator)


_CURIOUS = (
    "A chat between a curious {0} and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the {0}'s questions."
)
_VISION = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
_SAFE = (
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while being safe. "
    "{}Your answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, or illegal content. "
    "Please ensure that your responses are socially unbiased and positive in nature."
)
_HONEST = (
    "\n\nIf a question does not make any sense, or is not factually coherent, explain why instead of answering "
    "something not correct. If you don't know the answer to a question, please don't share false information."
)
_CODER = (
    "You are an AI programming assistant, utilizing the DeepSeek Coder model, developed by DeepSeekCompany, and you "
    "only answer questions related to computer science. For politically sensitive questions, security and privacy "
    "issues, and other non-computer science questions, you will refuse to answer. {}\n"
)


def _vicuna(name: str, system: str) -> Template:
    return Template(
        name,
        system="{} ",
        default_system=system,
        user="USER: {} ",
        opening="ASSISTANT:",
        answer=" {}",
        end=EOS,
    )


def _chatml(name: str, *, begin: str = "", system: str = "", stop: tuple[str, ...] = (), line: str = "\n") -> Template:
    return Template(
        name,
        begin=begin,
        system="<|im_start|>system\n{}<|im_end|>" + line,
        default_system=system,
        user="<|im_start|>user\n{}<|im_end|>" + line,
        opening="<|im_start|>assistant\n",
        answer="{}",
        end="<|im_end|>",
        separator=line,
        stop=stop,
        tokens=("<|im_start|>", "<|im_end|>"),
    )


def _llama3(name: str, system: str = "") -> Template:
    return Template(
        name,
        system="<|start_header_id|>system<|end_header_id|>\n\n{}<|eot_id|>",
        default_system=system,
        user="<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>",
        opening="<|start_header_id|>assistant<|end_header_id|>\n\n",
        answer="{}",
        end="<|eot_id|>",
        tokens=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    )


def _llama2(name: str, system: str, separator: str = BOS) -> Template:
    """LLaVA's SeparatorStyle.LLAMA_2: the system prompt inside the first question, spaces around each answer."""
    return Template(
        name,
        system="[INST] <<SYS>>\n{}\n<</SYS>>\n\n",
        default_system=system,
        user_after_system="{} [/INST]",
        user="[INST] {} [/INST]",
        opening="",
        answer=" {} ",
        end=EOS,
        separator=separator,
    )


def _instruct(name: str, system: str, separator: str = "\n") -> Template:
    """XTuner's templates around [INST]; the space is the one that its piecewise tokenising puts before an answer."""
    return Template(
        name, system=system, user="[INST] {} [/INST]", opening="", answer=" {}", end=EOS, separator=separator
    )


def _spoken(name: str, user: str, opening: str, system: str = "{}\n", separator: str = "\n") -> Template:
    """XTuner's templates of words alone, whose answers end with the tokenizer's own end."""
    return Template(name, system=system, user=user, opening=opening, answer="{}", end=EOS, separator=separator)


_ALL = (
    # --- LLaVA's conversation modes (haotian-liu/LLaVA and LLaVA-VL/LLaVA-NeXT, llava/conversation.py) --------------
    _vicuna("vicuna", _CURIOUS.format("user")),  # vicuna_v1: training and evaluation of 1.5 and 1.6; XTuner: no system
    _vicuna("llava_v1", _CURIOUS.format("human")),
    Template(  # the first LLaVA: llava-7b-v0, llava-13b-v0
        "llava_v0",
        system="{}###",
        default_system=_CURIOUS.format("human"),
        user="Human: {}###",
        opening="Assistant:",
        answer=" {}",
        end="###",
    ),
    # The picture, then the caption, then a newline.
    Template("plain", user="{}", opening="", answer="{}", end="\n", images_only=True),
    _llama2("llama_2", _SAFE.format(" ") + _HONEST),
    _llama2("llava_llama_2", _VISION),
    _llama2("mistral_instruct", "", separator=""),
    _chatml(
        "mpt",
        system="A conversation between a user and an LLM-based AI assistant. The assistant gives helpful and honest "
        "answers.",
        line="",
    ),
    _chatml("chatml_direct", system="Answer the questions.", line=""),  # llava-v1.6-34b
    _llama3("llava_llama_3", _VISION),
    _chatml("qwen_1_5", system="You are a helpful assistant."),
    _chatml("qwen_2_5", system="You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
    # --- XTuner's table (InternLM/xtuner, xtuner/utils/templates.py) -------------------------------------------------
    _spoken("default", "<|User|>:{}\n", "<|Bot|>:", system="<|System|>:{}\n"),
    _spoken("zephyr", "<|user|>\n{}\n", "<|assistant|>\n", system="<|system|>\n{}\n"),
    Template(
        "internlm_chat",
        system="<|System|>:{}\n",
        user="<|User|>:{}<eoh>\n",
        opening="<|Bot|>:",
        answer="{}",
        end="<eoa>",
        separator="\n",
        tokens=("<eoh>", "<eoa>"),
    ),
    _chatml("internlm2_chat", begin=BOS),
    _llama3("llama3_chat"),
    Template(
        "phi3_chat",
        system="<|system|>\n{}<|end|>\n",
        user="<|user|>\n{}<|end|>\n",
        opening="<|assistant|>\n",
        answer="{}",
        end="<|end|>",
        separator="\n",
        tokens=("<|user|>", "<|assistant|>", "<|end|>"),
    ),
    _chatml("chatml"),
    _chatml("qwen_chat", stop=("<|endoftext|>",)),
    _instruct("llama2_chat", f"[INST] <<SYS>>\n {_SAFE.format('')}\n{{}}\n<</SYS>>\n [/INST] "),
    _instruct("code_llama_chat", "{}\n", separator=""),
    _instruct("mistral", "[INST] {} [/INST]\n"),
    Template(
        "gemma",
        system="<start_of_turn>user\n{}\n\n",
        user_after_system="{}<end_of_turn>\n",
        user="<start_of_turn>user\n{}<end_of_turn>\n",
        opening="<start_of_turn>model\n",
        answer="{}",
        end="<end_of_turn>",
        separator="\n",
        tokens=("<start_of_turn>", "<end_of_turn>"),
    ),
    Template(
        "deepseek_v2",
        system="{}\n\n",
        user="User: {}\n\n",
        opening="Assistant:",
        answer=" {}",
        end="<｜end▁of▁sentence｜>",
        tokens=("<｜end▁of▁sentence｜>",),
    ),
    _spoken("deepseek_coder", "### Instruction:\n{}\n", "### Response:\n", system=_CODER),
    Template(
        "cohere_chat",
        system="<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>{}<|END_OF_TURN_TOKEN|>",
        user="<|START_OF_TURN_TOKEN|><|USER_TOKEN|>{}<|END_OF_TURN_TOKEN|>",
        opening="<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
        answer="{}",
        end="<|END_OF_TURN_TOKEN|>",
        tokens=("<|START_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
    ),
    replace(
        _spoken("chatglm2", f"[Round {ROUND}]\n\n问：{{}}\n\n", "答：", separator="\n\n"),
        begin="[gMASK]sop",
        tokens=("[gMASK]", "sop"),
    ),
    replace(
        _spoken("chatglm3", "<|user|>\n{}", "<|assistant|>\n", system="<|system|>\n{}"),
        begin="[gMASK]sop",
        tokens=("[gMASK]", "sop", "<|user|>", "<|assistant|>"),
    ),
    replace(
        _spoken("baichuan_chat", "<reserved_102>{}", "<reserved_103>"), tokens=("<reserved_102>", "<reserved_103>")
    ),
    replace(
        _spoken("baichuan2_chat", "<reserved_106>{}", "<reserved_107>"), tokens=("<reserved_106>", "<reserved_107>")
    ),
    _spoken(
        "wizardcoder",
        "### Instruction:\n{}\n\n",
        "### Response:",
        system="Below is an instruction that describes a task. Write a response that appropriately completes the "
        "request.\n\n{}\n ",
        separator="\n\n",
    ),
    replace(_spoken("moss_sft", "<|Human|>: {}<eoh>\n", ""), stop=("<eoc>", "<eom>"), tokens=("<eoh>",)),
    _spoken("minicpm", "<用户> {} ", "<AI>", system="{}"),
)

_ALIASES = {
    "vicuna_v1": "vicuna",
    "wizardlm": "vicuna",
    "llava_mistral_instruct": "mistral_instruct",
    "qwen_2": "qwen_1_5",
    "mixtral": "mistral",
    "deepseek_moe": "mistral",
    "deepseekcoder": "deepseek_coder",
    "minicpm3": "qwen_chat",
    "gemma_instruct": "gemma",
}
"""Other names that their sources have for the same."""

TEMPLATES = {
    **{template.name: template for template in _ALL},
    **{
        alias: replace(template, name=alias)
        for alias, name in _ALIASES.items()
        for template in _ALL
        if template.name == name
    },
    # LLaVA's way around a tokenizer that lacks the tokens: ChatML in words.
    "mistral_direct": replace(_chatml("mistral_direct", system="Answer the questions.", line="", begin=BOS), tokens=()),
}
"""All templates by name."""
