"""DeepFloyd IF's first stage at tiny size: the real classes with random weights, in diffusers' folder layout."""

import json
import shutil
from pathlib import Path

import pytest
import torch

SENTENCES = ("a red chair, front view", "a blue car, side view", "back view of a red car", "a chair, overhead view")


def write_tokenizer(folder: Path) -> None:
    """spiece.model and its config alone, as IF's repository has them."""
    import sentencepiece

    folder.mkdir(parents=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 4),
        model_prefix=str(folder / "spiece"),
        vocab_size=48,
        hard_vocab_limit=False,
        character_coverage=1.0,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    (folder / "spiece.vocab").unlink()
    special = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "extra_ids": 0}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer", **special}))


def write_tiny_deep_floyd(folder: Path, dtype: torch.dtype = torch.float32, variant: str | None = None) -> Path:
    """Writes a whole model: images of 8 pixels, text embeddings [77, 24], a learned variance."""
    from diffusers import DDPMScheduler, IFPipeline, UNet2DConditionModel
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    write_tokenizer(folder / "spm")
    tokenizer = T5Tokenizer.from_pretrained(folder / "spm")
    generator_state = torch.get_rng_state()
    torch.manual_seed(0)
    config = T5Config(vocab_size=len(tokenizer), d_model=24, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    text_encoder = T5EncoderModel(config)
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=3,
        out_channels=6,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        addition_embed_type="text",
        addition_embed_type_num_heads=2,
        encoder_hid_dim=24,
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=4,
        act_fn="gelu",
        cross_attention_norm="group_norm",
        resnet_time_scale_shift="scale_shift",
        only_cross_attention=False,
    )
    torch.set_rng_state(generator_state)
    scheduler = DDPMScheduler(
        beta_schedule="squaredcos_cap_v2", prediction_type="epsilon", variance_type="learned_range"
    )
    pipeline = IFPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        watermarker=None,
        requires_safety_checker=False,
    )
    pipeline.to(dtype=dtype).save_pretrained(folder, variant=variant)
    shutil.rmtree(folder / "tokenizer")
    (folder / "spm").rename(folder / "tokenizer")
    return folder


@pytest.fixture(scope="session")
def tiny_if_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_deep_floyd(tmp_path_factory.mktemp("models") / "tiny-if")
