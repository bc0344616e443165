"""Inputs of single classes, which their signature and sizes do not tell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

LENGTH = 12
ROWS = 2
FRAMES = 64

Inputs = dict[str, torch.Tensor]


def random(*shape: int, seed: int = 1) -> torch.Tensor:
    """Return normal values, the same for the same seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def ids(rows: int = ROWS, length: int = LENGTH) -> torch.Tensor:
    """Return ids (rows, length) that no class gives a meaning, int64."""
    return torch.randint(5, 60, (rows, length), generator=torch.Generator().manual_seed(1))


def after_tokens(token: int, count: int) -> torch.Tensor:
    """Return ids (rows, length) after `count` places for an image."""
    return torch.cat([torch.full((ROWS, count), token), ids()], dim=1)


def picture(config: Any) -> torch.Tensor:
    """Return pictures (rows, 3, side, side)."""
    side = config.vision_config.image_size
    return random(ROWS, 3, side, side)


def blip_2(config: Any) -> Inputs:
    text = after_tokens(config.image_token_id, config.num_query_tokens)
    return {"pixel_values": picture(config), "input_ids": text}


def instruct_blip(config: Any) -> Inputs:
    return blip_2(config) | {"qformer_input_ids": ids()}


def instruct_blip_video(config: Any) -> Inputs:
    frames = torch.stack([picture(config)] * 2, dim=1)
    text = after_tokens(config.video_token_id, 2 * config.num_query_tokens)
    return {"pixel_values": frames, "input_ids": text, "qformer_input_ids": ids()}


def kosmos_2(config: Any) -> Inputs:
    text = after_tokens(6, config.latent_query_num)
    places = torch.zeros_like(text)
    places[:, : config.latent_query_num] = 1
    return {"pixel_values": picture(config), "input_ids": text, "image_embeds_position_mask": places}


def idefics(config: Any) -> Inputs:
    mask = torch.ones(ROWS, LENGTH, 1, dtype=torch.int64)
    return {"input_ids": ids(), "pixel_values": picture(config)[:, None], "image_attention_mask": mask}


def codebooks(config: Any) -> Inputs:
    return {"input_ids": ids(ROWS * config.num_codebooks)}


def kyutai(config: Any) -> Inputs:
    return {"input_ids": torch.stack([ids()] * (config.num_codebooks + 1), dim=-1)}


def dia(config: Any) -> Inputs:
    channels = config.decoder_config.num_channels
    return {"input_ids": ids(), "decoder_input_ids": torch.stack([ids()] * channels, dim=-1)}


def lxmert(config: Any) -> Inputs:
    return {
        "input_ids": ids(),
        "visual_feats": random(ROWS, 4, config.visual_feat_dim),
        "visual_pos": random(ROWS, 4, config.visual_pos_dim).abs(),
    }


def decision_transformer(config: Any) -> Inputs:
    return {
        "states": random(ROWS, LENGTH, config.state_dim),
        "actions": random(ROWS, LENGTH, config.act_dim),
        "rewards": random(ROWS, LENGTH, 1),
        "returns_to_go": random(ROWS, LENGTH, 1),
        "timesteps": torch.arange(LENGTH).repeat(ROWS, 1),
        "attention_mask": torch.ones(ROWS, LENGTH, dtype=torch.int64),
    }


def series(config: Any) -> Inputs:
    return {"past_values": random(ROWS, config.context_length, config.num_input_channels)}


def dated_series(config: Any) -> Inputs:
    past, future = config.context_length + max(config.lags_sequence), config.prediction_length
    return {
        "past_values": random(ROWS, past),
        "past_time_features": random(ROWS, past, config.num_time_features),
        "past_observed_mask": torch.ones(ROWS, past),
        "future_values": random(ROWS, future),
        "future_time_features": random(ROWS, future, config.num_time_features),
    }


def sound_windows(config: Any) -> Inputs:
    frames = 4 * config.n_window
    mask = torch.ones(ROWS, frames, dtype=torch.int64)
    return {"input_features": random(ROWS, config.num_mel_bins, frames), "input_features_mask": mask}


def long_masked_sound(config: Any) -> Inputs:
    frames = 2 * config.max_source_positions
    return {
        "input_features": random(1, config.num_mel_bins, frames),
        "input_features_mask": torch.ones(1, frames, dtype=torch.int64),
    }


def stacked_frames(config: Any) -> Inputs:
    sound = getattr(config, "encoder_config", config)
    width = sound.num_mel_bins * getattr(sound, "num_stacked_frames", 4)
    return {"input_features": random(ROWS, FRAMES, width)}


def projected_frames(config: Any) -> Inputs:
    return {"input_features": random(ROWS, FRAMES, config.feature_projection_input_dim)}


def masked_stacked_frames(config: Any) -> Inputs:
    return stacked_frames(config) | {"input_features_mask": torch.ones(ROWS, FRAMES, dtype=torch.int64)}


def mel(config: Any) -> Inputs:
    mask = torch.zeros(ROWS, FRAMES, dtype=torch.bool)
    return {"audio_mel": random(ROWS, FRAMES, config.input_feat_size), "audio_mel_mask": mask}


def gemma4_vision(config: Any) -> Inputs:
    side = 6
    places = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="xy"), dim=-1)
    values = random(1, side * side, 3 * config.patch_size**2)
    return {"pixel_values": values, "pixel_position_ids": places.reshape(1, side * side, 2)}


def align(_: Any) -> Inputs:
    return {"input_ids": ids(), "pixel_values": random(ROWS, 3, 64, 64)}


def merged_patches(config: Any) -> Inputs:
    side = config.patch_size * config.spatial_merge_size
    return {"pixel_values": random(16, side, side, 3), "image_grid_thw": torch.tensor([[1, 4, 4]])}


def patch_strip(config: Any) -> Inputs:
    side = config.patch_size
    return {"pixel_values": random(1, 3, side, 16 * side), "target_sizes": torch.tensor([[4, 4]], dtype=torch.int32)}


def clap(config: Any) -> Inputs:
    sound = config.audio_config
    frames = random(ROWS, 1, 64, sound.num_mel_bins)
    return {"input_ids": ids(), "input_features": frames, "is_longer": torch.zeros(ROWS, 1, dtype=torch.bool)}


def clvp(config: Any) -> Inputs:
    return {"input_ids": ids(), "input_features": random(ROWS, config.decoder_config.feature_size, 128)}


def qformer(config: Any) -> Inputs:
    states = random(ROWS, LENGTH, config.encoder_hidden_size)
    return {"query_embeds": random(ROWS, 4, config.hidden_size), "encoder_hidden_states": states}


def pi0(config: Any) -> Inputs:
    return {
        "input_ids": ids(),
        "attention_mask": torch.ones(ROWS, LENGTH, dtype=torch.int64),
        "state": random(ROWS, config.max_state_dim),
        "noise": random(ROWS, config.chunk_size, config.max_action_dim),
        "timestep": random(ROWS).abs(),
    }


def latents(config: Any) -> Inputs:
    return {"latents": random(ROWS, config.hidden_size, LENGTH)}


def muse_audio(config: Any) -> Inputs:
    return {"input_values": random(ROWS, 96 * 20)}


OWN_INPUTS: dict[str, Callable[[Any], Inputs]] = {
    "AlignModel": align,
    "AudioFlamingo3Encoder": long_masked_sound,
    "AutoformerModel": dated_series,
    "Blip2ForConditionalGeneration": blip_2,
    "Blip2QFormerModel": qformer,
    "ClapModel": clap,
    "ClvpModelForConditionalGeneration": clvp,
    "DecisionTransformerModel": decision_transformer,
    "DiaModel": dia,
    "FunAsrNanoEncoder": masked_stacked_frames,
    "Gemma3nAudioEncoder": mel,
    "Gemma4VisionModel": gemma4_vision,
    "GraniteSpeech5Encoder": stacked_frames,
    "GraniteSpeech5ForCTC": stacked_frames,
    "IdeficsForVisionText2Text": idefics,
    "InformerModel": dated_series,
    "Inkling2VisionModel": merged_patches,
    "InstructBlipForConditionalGeneration": instruct_blip,
    "InstructBlipVideoForConditionalGeneration": instruct_blip_video,
    "Kosmos2ForConditionalGeneration": kosmos_2,
    "KyutaiSpeechToTextModel": kyutai,
    "LxmertModel": lxmert,
    "MimiDecoderModel": latents,
    "MiniCPMOcrVisionModel": patch_strip,
    "MiniCPMV4_7VisionModel": patch_strip,
    "MuseSparkAudioModel": muse_audio,
    "MusicgenForCausalLM": codebooks,
    "MusicgenMelodyForCausalLM": codebooks,
    "PI0ForConditionalGeneration": pi0,
    "PatchTSMixerModel": series,
    "PatchTSTModel": series,
    "PocketTTSAudioTokenizerDecoderModel": latents,
    "Qwen3ASREncoder": sound_windows,
    "TimeSeriesTransformerModel": dated_series,
    "Wav2Vec2BertModel": projected_frames,
}
"""Makers of inputs from a configuration, by class."""
