"""What each template must write, worked out by hand from its source; what the model learns to say stands in ⟦ ⟧.

Two turns, a picture in the first. BOS and EOS are <s> and </s>.
"""

from __future__ import annotations

USER = "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
USER += "and polite answers to the user's questions."
HUMAN = "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, "
HUMAN += "detailed, and polite answers to the human's questions."
VISION = "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
VISION += "provides, and assist the user with a variety of tasks using natural language."
SAFE = (
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while being safe.  "
    "Your answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, or illegal content. "
    "Please ensure that your responses are socially unbiased and positive in nature.\n\nIf a question does not make "
    "any sense, or is not factually coherent, explain why instead of answering something not correct. If you don't "
    "know the answer to a question, please don't share false information."
)
MPT = "A conversation between a user and an LLM-based AI assistant. The assistant gives helpful and honest answers."
QWEN = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."

CHATML = (
    "<|im_start|>user\n<image>\nQ1<|im_end|>\n<|im_start|>assistant\n⟦A1<|im_end|>⟧\n"
    "<|im_start|>user\nQ2<|im_end|>\n<|im_start|>assistant\n⟦A2<|im_end|>⟧"
)
CHATML_DIRECT = (  # SeparatorStyle.MPT: role + message + sep, and no line break behind <|im_end|>
    "<|im_start|>user\n<image>\nQ1<|im_end|><|im_start|>assistant\n⟦A1<|im_end|>⟧"
    "<|im_start|>user\nQ2<|im_end|><|im_start|>assistant\n⟦A2<|im_end|>⟧"
)
LLAMA_3 = (
    "<|start_header_id|>user<|end_header_id|>\n\n<image>\nQ1<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n⟦A1<|eot_id|>⟧"
    "<|start_header_id|>user<|end_header_id|>\n\nQ2<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n⟦A2<|eot_id|>⟧"
)


def chatml_system(text: str, line: str = "\n") -> str:
    return f"<|im_start|>system\n{text}<|im_end|>{line}"


TABLE = {
    # haotian-liu/LLaVA, llava/conversation.py; a tokenizer's BOS goes before what get_prompt() returns.
    # conv_vicuna_v1, SeparatorStyle.TWO
    "vicuna": f"<s>{USER} USER: <image>\nQ1 ASSISTANT:⟦ A1</s>⟧USER: Q2 ASSISTANT:⟦ A2</s>⟧",
    "llava_v1": f"<s>{HUMAN} USER: <image>\nQ1 ASSISTANT:⟦ A1</s>⟧USER: Q2 ASSISTANT:⟦ A2</s>⟧",
    # conv_llava_v0, SeparatorStyle.SINGLE: role + ": " + message + "###"
    "llava_v0": f"<s>{HUMAN}###Human: <image>\nQ1###Assistant:⟦ A1###⟧Human: Q2###Assistant:⟦ A2###⟧",
    # conv_llava_plain; train.py's preprocess_plain leaves <image> alone of the user's words
    "plain": "<s><image>⟦A1\n⟧⟦A2\n⟧",
    # SeparatorStyle.LLAMA_2: sep + "[INST] " + "<<SYS>>\n" + system + "\n<</SYS>>\n\n" + message + " [/INST]", then
    # " " + answer + " " + sep2; <s> is the tokenizer's, the separator's own in front was stripped
    "llama_2": f"<s>[INST] <<SYS>>\n{SAFE}\n<</SYS>>\n\n<image>\nQ1 [/INST]⟦ A1 </s>⟧<s>[INST] Q2 [/INST]⟦ A2 </s>⟧",
    "llava_llama_2": f"<s>[INST] <<SYS>>\n{VISION}\n<</SYS>>\n\n<image>\nQ1 [/INST]⟦ A1 </s>⟧"
    "<s>[INST] Q2 [/INST]⟦ A2 </s>⟧",
    "mistral_instruct": "<s>[INST] <image>\nQ1 [/INST]⟦ A1 </s>⟧[INST] Q2 [/INST]⟦ A2 </s>⟧",
    "mpt": chatml_system(MPT, "") + CHATML_DIRECT,
    "chatml_direct": chatml_system("Answer the questions.", "") + CHATML_DIRECT,
    "mistral_direct": "<s>" + chatml_system("Answer the questions.", "") + CHATML_DIRECT,
    # LLaVA-VL/LLaVA-NeXT, llava/conversation.py: SeparatorStyle.LLAMA_3 (Llama-3's own), CHATML, GEMMA
    "llava_llama_3": f"<s><|start_header_id|>system<|end_header_id|>\n\n{VISION}<|eot_id|>" + LLAMA_3,
    "qwen_1_5": chatml_system("You are a helpful assistant.") + CHATML,
    "qwen_2_5": chatml_system(QWEN) + CHATML,
    "gemma": "<s><start_of_turn>user\n<image>\nQ1<end_of_turn>\n<start_of_turn>model\n⟦A1<end_of_turn>⟧\n"
    "<start_of_turn>user\nQ2<end_of_turn>\n<start_of_turn>model\n⟦A2<end_of_turn>⟧",
    # InternLM/xtuner, xtuner/utils/templates.py: INSTRUCTION, [output + SUFFIX or EOS], SEP; one BOS, in front.
    "default": "<s><|User|>:<image>\nQ1\n<|Bot|>:⟦A1</s>⟧\n<|User|>:Q2\n<|Bot|>:⟦A2</s>⟧",
    "zephyr": "<s><|user|>\n<image>\nQ1\n<|assistant|>\n⟦A1</s>⟧\n<|user|>\nQ2\n<|assistant|>\n⟦A2</s>⟧",
    "internlm_chat": "<s><|User|>:<image>\nQ1<eoh>\n<|Bot|>:⟦A1<eoa>⟧\n<|User|>:Q2<eoh>\n<|Bot|>:⟦A2<eoa>⟧",
    "internlm2_chat": "<s>" + CHATML,
    "llama3_chat": "<s>" + LLAMA_3,
    "phi3_chat": "<s><|user|>\n<image>\nQ1<|end|>\n<|assistant|>\n⟦A1<|end|>⟧\n"
    "<|user|>\nQ2<|end|>\n<|assistant|>\n⟦A2<|end|>⟧",
    "chatml": CHATML,
    "qwen_chat": CHATML,
    # Its pieces are tokenised one by one, and Llama-2's tokenizer begins each with a space: so it stands here.
    "llama2_chat": "<s>[INST] <image>\nQ1 [/INST]⟦ A1</s>⟧\n[INST] Q2 [/INST]⟦ A2</s>⟧",
    "code_llama_chat": "<s>[INST] <image>\nQ1 [/INST]⟦ A1</s>⟧[INST] Q2 [/INST]⟦ A2</s>⟧",
    "mistral": "<s>[INST] <image>\nQ1 [/INST]⟦ A1</s>⟧\n[INST] Q2 [/INST]⟦ A2</s>⟧",
    # The space belongs to the answer, as in DeepSeek's own chat template: no token ends between the two.
    "deepseek_v2": "<s>User: <image>\nQ1\n\nAssistant:⟦ A1<｜end▁of▁sentence｜>⟧"
    "User: Q2\n\nAssistant:⟦ A2<｜end▁of▁sentence｜>⟧",
    "deepseek_coder": "<s>### Instruction:\n<image>\nQ1\n### Response:\n⟦A1</s>⟧\n"
    "### Instruction:\nQ2\n### Response:\n⟦A2</s>⟧",
    "cohere_chat": "<s><|START_OF_TURN_TOKEN|><|USER_TOKEN|><image>\nQ1<|END_OF_TURN_TOKEN|>"
    "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>⟦A1<|END_OF_TURN_TOKEN|>⟧"
    "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>Q2<|END_OF_TURN_TOKEN|>"
    "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>⟦A2<|END_OF_TURN_TOKEN|>⟧",
    # XTuner writes ChatGLM's two tokens by their numbers, 64790 and 64792, where other tokenizers have one BOS.
    "chatglm2": "[gMASK]sop[Round 1]\n\n问：<image>\nQ1\n\n答：⟦A1</s>⟧\n\n[Round 2]\n\n问：Q2\n\n答：⟦A2</s>⟧",
    "chatglm3": "[gMASK]sop<|user|>\n<image>\nQ1<|assistant|>\n⟦A1</s>⟧\n<|user|>\nQ2<|assistant|>\n⟦A2</s>⟧",
    "baichuan_chat": "<s><reserved_102><image>\nQ1<reserved_103>⟦A1</s>⟧\n<reserved_102>Q2<reserved_103>⟦A2</s>⟧",
    "baichuan2_chat": "<s><reserved_106><image>\nQ1<reserved_107>⟦A1</s>⟧\n<reserved_106>Q2<reserved_107>⟦A2</s>⟧",
    "wizardcoder": "<s>### Instruction:\n<image>\nQ1\n\n### Response:⟦A1</s>⟧\n\n"
    "### Instruction:\nQ2\n\n### Response:⟦A2</s>⟧",
    "moss_sft": "<s><|Human|>: <image>\nQ1<eoh>\n⟦A1</s>⟧\n<|Human|>: Q2<eoh>\n⟦A2</s>⟧",
    "minicpm": "<s><用户> <image>\nQ1 <AI>⟦A1</s>⟧\n<用户> Q2 <AI>⟦A2</s>⟧",
}

SAME = {
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
"""Names that their sources have for what has another name already."""
TABLE |= {alias: TABLE[name] for alias, name in SAME.items()}

CHATML_SYSTEM = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n"
DIRECT_SYSTEM = "<|im_start|>system\nBe brief.<|im_end|><|im_start|>user\nQ<|im_end|><|im_start|>assistant\n"
LLAMA_2_SYSTEM = "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nQ [/INST]"
LLAMA_3_SYSTEM = (
    "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nQ<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
)
VICUNA_SYSTEM = "<s>Be brief. USER: Q ASSISTANT:"

# A system prompt "Be brief." and the question "Q", unanswered. The same sources: `system` of a conversation, SYSTEM.
WITH_SYSTEM = {
    "vicuna": VICUNA_SYSTEM,
    "llava_v1": VICUNA_SYSTEM,
    "llava_v0": "<s>Be brief.###Human: Q###Assistant:",
    "plain": "<s>Be brief.",
    "llama_2": LLAMA_2_SYSTEM,
    "llava_llama_2": LLAMA_2_SYSTEM,
    "mistral_instruct": LLAMA_2_SYSTEM,
    "mpt": DIRECT_SYSTEM,
    "chatml_direct": DIRECT_SYSTEM,
    "mistral_direct": "<s>" + DIRECT_SYSTEM,
    "llava_llama_3": LLAMA_3_SYSTEM,
    "llama3_chat": LLAMA_3_SYSTEM,
    "qwen_1_5": CHATML_SYSTEM,
    "qwen_2_5": CHATML_SYSTEM,
    "internlm2_chat": "<s>" + CHATML_SYSTEM,
    "chatml": CHATML_SYSTEM,
    "qwen_chat": CHATML_SYSTEM,
    # Gemma 3's own chat template (google/gemma-3-*-it); XTuner invented a turn for the system that no Gemma has seen.
    "gemma": "<s><start_of_turn>user\nBe brief.\n\nQ<end_of_turn>\n<start_of_turn>model\n",
    "default": "<s><|System|>:Be brief.\n<|User|>:Q\n<|Bot|>:",
    "zephyr": "<s><|system|>\nBe brief.\n<|user|>\nQ\n<|assistant|>\n",
    "internlm_chat": "<s><|System|>:Be brief.\n<|User|>:Q<eoh>\n<|Bot|>:",
    "phi3_chat": "<s><|system|>\nBe brief.<|end|>\n<|user|>\nQ<|end|>\n<|assistant|>\n",
    "llama2_chat": "<s>[INST] <<SYS>>\n You are a helpful, respectful and honest assistant. Always answer as helpfully "
    "as possible, while being safe. Your answers should not include any harmful, unethical, racist, sexist, toxic, "
    "dangerous, or illegal content. Please ensure that your responses are socially unbiased and positive in nature.\n"
    "Be brief.\n<</SYS>>\n [/INST] [INST] Q [/INST]",
    "code_llama_chat": "<s>Be brief.\n[INST] Q [/INST]",
    "mistral": "<s>[INST] Be brief. [/INST]\n[INST] Q [/INST]",
    "deepseek_v2": "<s>Be brief.\n\nUser: Q\n\nAssistant:",
    "deepseek_coder": "<s>You are an AI programming assistant, utilizing the DeepSeek Coder model, developed by "
    "DeepSeekCompany, and you only answer questions related to computer science. For politically sensitive questions, "
    "security and privacy issues, and other non-computer science questions, you will refuse to answer. Be brief.\n"
    "### Instruction:\nQ\n### Response:\n",
    "cohere_chat": "<s><|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>Be brief.<|END_OF_TURN_TOKEN|>"
    "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>Q<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
    "chatglm2": "[gMASK]sopBe brief.\n[Round 1]\n\n问：Q\n\n答：",
    "chatglm3": "[gMASK]sop<|system|>\nBe brief.<|user|>\nQ<|assistant|>\n",
    "baichuan_chat": "<s>Be brief.\n<reserved_102>Q<reserved_103>",
    "baichuan2_chat": "<s>Be brief.\n<reserved_106>Q<reserved_107>",
    "wizardcoder": "<s>Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\nBe brief.\n ### Instruction:\nQ\n\n### Response:",
    "moss_sft": "<s>Be brief.\n<|Human|>: Q<eoh>\n",
    # XTuner has none; MiniCPM's own chat template writes it as it is.
    "minicpm": "<s>Be brief.<用户> Q <AI>",
}
WITH_SYSTEM |= {alias: WITH_SYSTEM[name] for alias, name in SAME.items()}
