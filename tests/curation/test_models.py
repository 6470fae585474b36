"""Models of transformers, tiny and with random weights, against their own processors; a captioner at an endpoint."""

import http.server
import json
import threading
from dataclasses import replace

import numpy as np
import pytest

from kaleido_jax.curation.filters import category
from kaleido_jax.curation.models.endpoint import EndpointCaptioner, LocalCaptioner, object_with, prompt
from kaleido_jax.curation.models.protocol import Found, loaded
from kaleido_jax.curation.models.transformers import Clip, GroundingDino, Sam
from kaleido_jax.curation.settings import Filters
from kaleido_jax.curation.stages import process
from kaleido_jax.curation.taxonomy import default_taxonomy
from kaleido_jax.errors import InputError
from tests.curation.scenery import tiny, write_balls
from tests.curation.test_stages import block, clip
from tests.describers.test_transformers_model import folder as llava  # noqa: F401

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")

FRAMES = np.random.default_rng(0).integers(0, 255, (3, 64, 64, 3), dtype=np.uint8)
WORDS = ["a", "red", "dog", "cat", "photo", "of", "ball", "."]


def words(folder, start: str, stop: str) -> None:
    """A tokenizer of whole words, saved in the folder."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", start, stop, *WORDS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(f"{start} $A {stop}", None, [(start, 2), (stop, 3)])
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", model_max_length=32
    ).save_pretrained(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model of each kind, as its release lies on a disk."""
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("models")
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**small, "vocab_size": 12, "max_position_embeddings": 32, "eos_token_id": 3, "bos_token_id": 2}
    model = transformers.CLIPModel(
        transformers.CLIPConfig(
            text_config=text, vision_config={**small, "image_size": 32, "patch_size": 8}, projection_dim=16
        )
    )
    model.save_pretrained(place / "clip")
    words(place / "clip", "[BOS]", "[EOS]")
    vision = {**small, "image_size": 64, "patch_size": 16, "output_channels": 16, "window_size": 2, "mlp_dim": 32}
    mask = {**small, "hidden_size": 16, "iou_head_hidden_dim": 16, "num_attention_heads": 2, "mlp_dim": 16}
    prompts = {"hidden_size": 16, "image_size": 64, "patch_size": 16, "mask_input_channels": 4}
    transformers.SamModel(
        transformers.SamConfig(
            vision_config={**vision, "global_attn_indexes": [0], "num_pos_feats": 8},
            prompt_encoder_config=prompts,
            mask_decoder_config=mask,
        )
    ).save_pretrained(place / "sam")
    dino = transformers.GroundingDinoConfig(
        backbone_config=transformers.SwinConfig(
            embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4, image_size=64,
            out_features=["stage2", "stage3", "stage4"],
        ),
        text_config={**text, "model_type": "bert"},
        d_model=32, encoder_layers=1, decoder_layers=2, encoder_ffn_dim=32, decoder_ffn_dim=32, num_queries=6,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_n_points=2, decoder_n_points=2, max_text_len=32,
    )  # fmt: skip
    transformers.GroundingDinoForObjectDetection(dino).save_pretrained(place / "dino")
    words(place / "dino", "[CLS]", "[SEP]")
    return place


def test_clip_says_what_its_own_processor_and_model_say(folder):
    ours = loaded(Clip(path=str(folder / "clip"))).classify(list(FRAMES), ("dog", "cat", "ball"))
    model = transformers.CLIPModel.from_pretrained(folder / "clip")
    processor = transformers.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    tokens = transformers.AutoTokenizer.from_pretrained(folder / "clip")
    text = tokens([f"a photo of a {label}" for label in ("dog", "cat", "ball")], return_tensors="pt")
    with torch.no_grad():
        output = model(
            pixel_values=processor(list(FRAMES), return_tensors="pt").pixel_values,
            input_ids=text.input_ids,
            attention_mask=text.attention_mask,
        )
    # Both scale with Pillow and compute in float32.
    np.testing.assert_allclose(ours, output.logits_per_image.softmax(-1).numpy(), atol=1e-5)
    long = np.full((10, 60, 3), 9, np.uint8)  # of any shape
    assert loaded(Clip(path=str(folder / "clip"))).classify([long], ("dog", "cat")).sum() == pytest.approx(1.0)


def test_the_category_filter_asks_clip(folder):
    classify = loaded(Clip(path=str(folder / "clip"))).classify
    one = clip(FRAMES, masks=(block(4, 4, 40, 40, 64),))
    after = category(one, Filters(category=0.999), default_taxonomy(), classify)
    assert after.candidates[0].dropped.reason == "another category" and 0 < after.candidates[0].scores["category"] < 0.5


def test_sam_cuts_what_its_own_processor_and_model_cut(folder):
    frames = FRAMES[:, :48]  # not square: padded below
    boxes = ((8.0, 6.0, 40.0, 44.0), (2.0, 2.0, 30.0, 30.0))
    found = [Found(boxes=(boxes[0], None), scores=(1.0, 0.0)), Found(boxes=(boxes[1], boxes[1]), scores=(1.0, 1.0))]
    ours = loaded(Sam(path=str(folder / "sam"))).segment(frames, [0, 2], found)
    assert ours.shape == (2, 2, 48, 64) and not ours[0, 1].any()
    model = transformers.SamModel.from_pretrained(folder / "sam")
    side = {"longest_edge": 64}
    processor = transformers.SamProcessor(
        transformers.SamImageProcessorPil(size=side, pad_size={"height": 64, "width": 64})
    )
    inputs = processor(frames[0], input_boxes=[[list(box) for box in boxes]], return_tensors="pt")
    with torch.no_grad():
        output = model(pixel_values=inputs.pixel_values, input_boxes=inputs.input_boxes.float(), multimask_output=False)
    theirs = processor.image_processor.post_process_masks(
        output.pred_masks, inputs.original_sizes, inputs.reshaped_input_sizes, pad_size={"height": 64, "width": 64}
    )[0][:, 0].numpy()
    assert (ours[:, 0] == theirs).mean() > 0.995  # rounding at the edge


def test_grounding_dino_finds_what_its_own_processor_finds(folder):
    detector = loaded(GroundingDino(path=str(folder / "dino"), threshold=0.0, side=64, longest=64))
    found = detector.detect(FRAMES, [0, 1], ["A red dog", "Ball"])
    tokens = transformers.AutoTokenizer.from_pretrained(folder / "dino")
    model = transformers.GroundingDinoForObjectDetection.from_pretrained(folder / "dino")
    images = transformers.GroundingDinoImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 64})
    text = tokens(["a red dog. ball."] * 2, return_tensors="pt")
    with torch.no_grad():
        output = model(pixel_values=images([FRAMES[0], FRAMES[1]], return_tensors="pt").pixel_values, **text)
    scores = output.logits.sigmoid()[1]
    # [CLS] a red dog . ball . [SEP]
    for one, place in ((found[0], slice(1, 4)), (found[1], slice(5, 6))):
        best = scores[:, place].max(-1).values
        assert one.scores[1] == pytest.approx(float(best.max()), abs=1e-4)
        x, y, wide, high = output.pred_boxes[1, int(best.argmax())].tolist()
        expected = np.clip([x - wide / 2, y - high / 2, x + wide / 2, y + high / 2], 0, 1) * 64
        np.testing.assert_allclose(one.boxes[1], expected, atol=0.01)
    none = loaded(GroundingDino(path=str(folder / "dino"), threshold=1.0, side=64, longest=64))
    assert none.detect(FRAMES, [0, 1], ["ball"]) == [None]


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(InputError, match=r"config\.json"):
        Sam(path=str(tmp_path)).load()


@pytest.fixture
def endpoint():
    """An endpoint whose answers are taken from a list, and what it was asked."""
    answers, asked = [], []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            body = json.dumps({"choices": [{"message": {"content": answers.pop(0)}}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1", answers, asked
        server.shutdown()


def test_a_captioner_behind_an_endpoint(endpoint, tmp_path):
    url, answers, asked = endpoint
    captioner = EndpointCaptioner(url=url, model="m", cache=str(tmp_path), frames=2, words=(2, 9))
    answers += ["a ball", '{"caption": "Ball"}', '```json\n{"caption": "A red ball  rolls."}\n```']
    assert captioner.load().caption(FRAMES) == "A red ball rolls."
    assert len(asked) == 3 and "2 to 9" in asked[2]["messages"][-1]["content"]
    parts = asked[0]["messages"][0]["content"]
    assert [part["type"] for part in parts] == ["image_url", "image_url", "text"] and parts[2]["text"] == prompt(
        "caption"
    )
    assert captioner.load().caption(FRAMES) == "A red ball rolls." and len(asked) == 3  # kept


def test_videos_without_captions_get_them(endpoint, tmp_path):
    from kaleido_jax.curation.readers import read

    url, answers, _ = endpoint
    write_balls(tmp_path, 1)
    (tmp_path / "00.txt").unlink()
    captioner = EndpointCaptioner(url=url, model="m", words=(2, 9))
    config = replace(tiny(), models=replace(tiny().models, captioner=captioner))
    answers.append('{"caption": "A red ball rolls."}')
    source = next(source for source in read(config, tmp_path) if source.path.endswith("00.mp4"))
    done = process(source, (0, 0.0, 1.125), config)
    assert done.caption == "A red ball rolls." and done.kept[0].category == "ball"
    answers += ['{"caption": "Ball"}'] * 9  # it answers, but never as asked: the clip is dropped, the run goes on
    other = replace(captioner, model="n")
    loaded(other)._asked = replace(loaded(other)._asked, sleep=lambda seconds: None)
    refused = process(source, (0, 0.0, 1.125), replace(config, models=replace(config.models, captioner=other)))
    assert (refused.dropped.stage, refused.dropped.reason) == ("caption", "refused")
    silent = process(source, (0, 0.0, 1.125), tiny())
    assert (silent.dropped.stage, silent.dropped.reason) == ("caption", "none")


def test_a_captioner_in_a_folder(llava):  # noqa: F811
    settings = LocalCaptioner(path=str(llava), frames=2, side=20, words=(1, 9))
    captioner = loaded(settings)
    captioner._asked.tokens = 4
    assert captioner.caption(FRAMES) == ""  # random weights never say what is asked for: the clip is dropped
    answered = loaded(replace(settings, attempts=1))
    answered._asked._answer = lambda messages, pictures: '{"caption": "A ball rolls."}' if len(pictures) == 2 else ""
    assert answered.caption(FRAMES) == "A ball rolls."


@pytest.mark.parametrize("answer", ["", "[]", "{}", '{"caption": 3}', '{"caption": "a", "b": "c"}', "[" * 100_000])
def test_answers_that_are_refused(answer):
    with pytest.raises(InputError, match="JSON object"):
        object_with(answer, "caption")
