"""SAM 2 and SAM 3 of random weights: boxes go in as the models' own processors give them, masks come out."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from kaleido_jax.curation.models.protocol import Found, loaded
from kaleido_jax.curation.models.segment_anything import Sam2, Sam3

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")

from tests.curation.test_models import FRAMES, words  # noqa: E402  (it needs both)

SIDE = 64
HIERA = {
    "hidden_size": 8, "image_size": [SIDE, SIDE],
    "blocks_per_stage": [1, 1, 2, 1], "embed_dim_per_stage": [8, 16, 32, 64],
    "num_attention_heads_per_stage": [1, 1, 2, 2], "window_size_per_stage": [4, 2, 2, 2],
    "global_attention_blocks": [3], "window_positional_embedding_background_size": [2, 2],
}  # fmt: skip
SAM2 = {
    "vision_config": {
        "backbone_config": {"model_type": "sam2_hiera_det_model", **HIERA}, "backbone_channel_list": [64, 32, 16, 8],
        "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]], "fpn_hidden_size": 64,
    },
    "prompt_encoder_config": {"hidden_size": 64, "image_size": SIDE, "mask_input_channels": 4},
    "mask_decoder_config": {"hidden_size": 64, "mlp_dim": 16, "num_attention_heads": 2, "iou_head_hidden_dim": 16},
}  # fmt: skip
SAM3_VISION = {
    "backbone_config": {
        "model_type": "sam3_vit_model", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "image_size": 56, "patch_size": 14, "pretrain_image_size": 56, "window_size": 2,
        "global_attn_indexes": [0],
    },
    "fpn_hidden_size": 16, "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
}  # fmt: skip
SMALL = {"hidden_size": 16, "num_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
SAM3 = {
    "vision_config": SAM3_VISION,
    "text_config": {
        "vocab_size": 12, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "max_position_embeddings": 32, "projection_dim": 16, "eos_token_id": 3,
    },
    "geometry_encoder_config": SMALL, "detr_encoder_config": SMALL,
    "detr_decoder_config": {**SMALL, "num_queries": 6},
    "mask_decoder_config": {"hidden_size": 16, "num_attention_heads": 2},
}  # fmt: skip
BOXES = ((8.0, 6.0, 40.0, 44.0), (2.0, 2.0, 30.0, 30.0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("sam")
    transformers.Sam2Model(transformers.Sam2Config(**SAM2)).save_pretrained(place / "sam2")
    return place


def squeezed(frame: np.ndarray) -> torch.Tensor:
    """[1, 3, SIDE, SIDE] as SAM 2's processor says: squeezed to a square, less ImageNet's mean, over its deviation."""
    pixels = torch.from_numpy(np.array(Image.fromarray(frame).resize((SIDE, SIDE), 2))) / 255
    return ((pixels - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])).permute(2, 0, 1)[None]


def test_sam2_cuts_what_its_model_cuts(folder):
    frames = np.ascontiguousarray(FRAMES[:, :48])  # not square: squeezed
    found = [Found(boxes=(BOXES[0], None), scores=(1.0, 0.0)), Found(boxes=(BOXES[1], BOXES[1]), scores=(1.0, 1.0))]
    ours = loaded(Sam2(path=str(folder / "sam2"))).segment(frames, [0, 2], found)
    assert ours.shape == (2, 2, 48, 64) and not ours[0, 1].any() and ours.any() and not ours.all()
    model = transformers.Sam2Model.from_pretrained(folder / "sam2")
    boxes = torch.tensor([BOXES]) * torch.tensor([1.0, 64 / 48, 1.0, 64 / 48])
    with torch.no_grad():
        logits = model(pixel_values=squeezed(frames[0]), input_boxes=boxes, multimask_output=False).pred_masks[0]
    theirs = torch.nn.functional.interpolate(logits, (48, 64), mode="bilinear")[:, 0].numpy() > 0
    assert (ours[:, 0] == theirs).mean() > 0.995  # rounding at the edge


def test_sam3_finds_phrases_and_cuts_them_out(tmp_path):
    torch.manual_seed(0)
    finder = transformers.Sam3Model(transformers.Sam3Config(**SAM3)).eval()
    finder.save_pretrained(tmp_path)
    words(tmp_path, "[BOS]", "[EOS]")
    tracker = {"vision_config": SAM3_VISION, "mask_decoder_config": {**SAM2["mask_decoder_config"], "hidden_size": 16}}
    tracker["prompt_encoder_config"] = {
        "hidden_size": 16, "image_size": 56, "patch_size": 14, "mask_input_channels": 4,
    }  # fmt: skip
    transformers.Sam3TrackerModel(transformers.Sam3TrackerConfig(**tracker)).save_pretrained(tmp_path / "tracker")
    model = Sam3(path=str(tmp_path), tracker=str(tmp_path / "tracker"), threshold=0.0)
    found = loaded(model).detect(FRAMES, [0, 2], ["A red dog", "ball"])
    tokens = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = tokens("a red dog", return_tensors="pt", padding="max_length")
    pixels = (
        torch.from_numpy(np.array(Image.fromarray(FRAMES[2]).resize((56, 56), 2))).permute(2, 0, 1)[None] / 127.5 - 1
    )
    with torch.no_grad():
        output = finder(pixel_values=pixels, input_ids=text.input_ids, attention_mask=text.attention_mask)
    scores = (output.pred_logits.sigmoid() * output.presence_logits.sigmoid())[0]
    assert found[0].scores[1] == pytest.approx(float(scores.max()), abs=1e-5)
    expected = output.pred_boxes[0, int(scores.argmax())].clip(0, 1).numpy() * 64
    np.testing.assert_allclose(found[0].boxes[1], expected, atol=0.01)
    assert loaded(replace(model, threshold=1.0)).detect(FRAMES, [0], ["ball"]) == [None]
    masks = loaded(model).segment(FRAMES, [0, 2], found)
    assert masks.shape == (2, 2, 64, 64) and masks.dtype == bool
