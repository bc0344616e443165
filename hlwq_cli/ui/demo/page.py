"""The layout of the page; events.py has its event handlers."""

from __future__ import annotations

import html
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from ...runtime import HLWQModel
from ...runtime.chat import TemplateProcess
from .events import SEND, Parts, connect
from .pictures import pixels_seen
from .render import headline, summary_table
from .session import Room, Session
from .summary import CheckpointSummary

CSS = Path(__file__).with_name("page.css")
_MAX_LENGTH = 8192
_FORGET_SECONDS = 24 * 3600
_FONTS = ("system-ui", "-apple-system", "Segoe UI", "sans-serif")
_MONO = ("ui-monospace", "Consolas", "monospace")


@dataclass(frozen=True)
class ShownModel:
    """A model on the page, and the summary of its checkpoint."""

    model: HLWQModel
    summary: CheckpointSummary


def theme() -> gr.themes.Base:
    """Return the colours and the system's fonts, so that none is downloaded. Subdued text is darker than Gradio's."""
    plain = gr.themes.Default(
        primary_hue="indigo",
        secondary_hue="indigo",
        neutral_hue="slate",
        radius_size="lg",
        font=_FONTS,
        font_mono=_MONO,
    )
    return plain.set(
        body_text_color_subdued="*neutral_500",
        body_text_color_subdued_dark="*neutral_400",
        block_info_text_color="*neutral_500",
        block_info_text_color_dark="*neutral_400",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
    )


def build_page(shown: Sequence[ShownModel]) -> gr.Blocks:
    """Build the page for one model, or for two side by side."""
    sees = any(s.model.supports_images for s in shown)
    page: gr.Blocks
    with gr.Blocks(
        title=f"{shown[0].summary.name} · hlwq", analytics_enabled=False, delete_cache=(3600, 86400)
    ) as page:
        gr.HTML(headline([s.summary for s in shown]), elem_id="headline")
        with gr.Row(elem_id="columns"):
            with gr.Column(scale=3, min_width=320, elem_id="talk"):
                with gr.Row():
                    chats = [_chat(s, alone=len(shown) == 1) for s in shown]
                box = _box(sees)
                with gr.Row(elem_id="buttons"):
                    again = gr.Button("Try again", size="sm", elem_id="retry")
                    clear = gr.Button("Clear", size="sm", elem_id="clear")
            with gr.Column(scale=1, min_width=290, elem_id="side"):
                _show_summary(shown[0])
                settings = _settings(shown[0].model)
                for other in shown[1:]:
                    _show_summary(other)
        state = gr.State(time_to_live=_FORGET_SECONDS, delete_callback=_forget)
        connect(Parts(state, chats, box, again, clear, settings), _room([s.model for s in shown]))
    return page


def _room(models: Sequence[HLWQModel]) -> Room:
    process = TemplateProcess()
    for model in models:
        model.template_process = process
    if any(model.has_chat_template for model in models):
        process.start()
    return Room(models, Path(os.environ["GRADIO_TEMP_DIR"]), max(pixels_seen(m.processor) for m in models))


def _forget(session: Session | None) -> None:
    """Remove what a visitor left on the server."""
    if session is not None:
        session.clear()


def _chat(shown: ShownModel, alone: bool) -> gr.Chatbot:
    name = html.escape(shown.summary.name)
    example = "a picture and a question" if shown.model.supports_images else "a question"
    return gr.Chatbot(
        label=shown.summary.name,
        show_label=not alone,
        height="min(64vh, 700px)",
        min_width=280,
        layout="bubble",
        buttons=["copy"],
        feedback_options=None,
        allow_file_downloads=False,
        allow_tags=False,
        placeholder=f"Send {example} to **{name}**." if alone else name,
    )


def _box(sees: bool) -> gr.Textbox | gr.MultimodalTextbox:
    common: dict[str, Any] = {
        "show_label": False, "label": "Message", "submit_btn": SEND, "stop_btn": False, "autofocus": True,
        "max_lines": 8, "elem_id": "message",
    }  # fmt: skip
    if not sees:
        return gr.Textbox(placeholder="Write a message", **common)
    return gr.MultimodalTextbox(
        placeholder="Write a message or drop in a picture",
        file_types=["image"],
        file_count="multiple",
        sources=["upload"],
        max_plain_text_length=10**9,
        **common,
    )


def _show_summary(shown: ShownModel) -> None:
    gr.HTML(summary_table(shown.summary))
    if shown.summary.chart is not None:
        with gr.Accordion("Measured against its source", open=False):
            gr.Image(
                str(shown.summary.chart),
                show_label=False,
                interactive=False,
                buttons=["fullscreen"],
                label="Divergence against size, error of every tensor, weights over the centroids",
            )


def _settings(model: HLWQModel) -> list[Any]:
    usual = model.model.generation_config
    sampled = bool(getattr(usual, "do_sample", False))
    longest = min(model.max_context or _MAX_LENGTH, _MAX_LENGTH)
    with gr.Accordion("Settings", open=True, elem_id="settings"):
        system = gr.Textbox(label="System prompt", lines=2, visible=model.has_chat_template, placeholder="None")
        heat = (usual.temperature or 1.0) if sampled else 0.0
        temperature = gr.Slider(0, 2, heat, step=0.05, label="Temperature", info="0 picks the most likely token")
        top_p = gr.Slider(0.05, 1, (usual.top_p or 1.0) if sampled else 1.0, step=0.05, label="Top-p")
        length = gr.Slider(1, longest, min(256, longest), step=1, label="Maximum answer length, in tokens")
        seed = gr.Textbox(
            label="Seed", info="The same seed gives the same answer", placeholder="random", max_length=10, max_lines=1
        )
    return [system, temperature, top_p, length, seed]
