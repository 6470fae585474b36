"""A LLaVA of random weights as a describer: it is asked with pictures, and its nonsense is refused."""

import numpy as np
import pytest

from kaleido_jax.describers.transformers_model import TransformersModel
from kaleido_jax.errors import InputError

transformers = pytest.importorskip("transformers")

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} : {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image> {% else %}{{ c['text'] }} {% endif %}{% endfor %}{% endfor %}"
)
PICTURE = np.zeros((20, 30, 3), np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    import tokenizers

    words = ["<unk>", "<pad>", "</s>", "<image>", "user", "assistant", ":", "what", "a", "cat", "dog", "runs"]
    vocabulary = {word: index for index, word in enumerate(words)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        pad_token="<pad>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
    )
    size = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**size, image_size=16, patch_size=8),
        text_config=transformers.LlamaConfig(**size, vocab_size=len(words)),
        image_token_id=words.index("<image>"),
        image_seq_length=4,
    )
    processor = transformers.LlavaProcessor(
        image_processor=transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    folder = tmp_path_factory.mktemp("llava")
    transformers.LlavaForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_it_is_asked_with_pictures_and_its_nonsense_is_refused(folder):
    model = TransformersModel.load(folder)
    model.tokens = 3
    answer = model.ask(["what", PICTURE], lambda text: text)
    assert isinstance(answer, str)
    assert model.ask(["what", PICTURE], lambda text: text) == answer

    def refuse(text):
        raise InputError("it is no JSON.")

    with pytest.raises(InputError, match=r"no usable answer in 2 attempts .*: it is no JSON\)"):
        model.ask(["what", PICTURE], refuse)


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(InputError, match="holds no vision-language model"):
        TransformersModel.load(tmp_path)
