"""The playground: compares the similarities of sentences under two recipes side by side.

    pip install '.[playground]'
    MODEL=tiny python app.py

`MODEL` is a Hub id, a folder, or `tiny`, the default. `GRADIO_SERVER_PORT` is the port, by default the first free one
from 7860. There are no network requests except for a model on the Hub.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from functools import partial
from html import escape
from itertools import combinations
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when Gradio is imported

import gradio as gr
from pictures import flatten, heat_map, neighbour_list, rank_neighbours, scatter, span_of, token_view, turn_like
from playground import MIN_TO_STANDARDIZE, Playground, Result
from recipes import MAX_LENGTH, MAX_SENTENCES, OWN_TEXT, STANDARDIZATIONS, read_recipe, split_sentences
from samples import EXAMPLES
from scipy.stats import spearmanr

logger = logging.getLogger(__name__)

SHOTS = 2  # maximum demonstrations per recipe
KEPT = 3600  # seconds for which a visitor's last result is kept
FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "DejaVu Sans", "sans-serif"]
MONOSPACE = ["ui-monospace", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace"]
THEME = gr.themes.Default(primary_hue="teal", font=FONTS, font_mono=MONOSPACE).set(
    button_primary_background_fill="*primary_700",  # text is hard to read on lighter shades
    button_primary_background_fill_hover="*primary_800",
    block_info_text_color="*neutral_500",
)

_PRIVATE = {"api_visibility": "private"}  # calls of the page itself, not an API
_DRAWN = 8  # number of outputs of `look`


@dataclass
class Views:
    """The views of one recipe on the page."""

    heat: gr.HTML
    neighbours: gr.HTML
    map: gr.HTML
    tokens: gr.HTML
    code: gr.Code


def build_page(playground: Playground) -> gr.Blocks:
    """Builds the page for a model."""
    with gr.Blocks(title=f"PromptEOL playground: {playground.name}", analytics_enabled=False) as page:
        gr.HTML(_intro(playground))
        with gr.Row():
            with gr.Column(scale=4, min_width=320):
                sentences = gr.Textbox(
                    "\n".join(next(iter(EXAMPLES.values()))),
                    label="Sentences, one per line",
                    info=f"2 to {MAX_SENTENCES} sentences of up to {MAX_LENGTH} characters.",
                    lines=9,
                    max_lines=16,
                    elem_id="sentences",
                )
                with gr.Row(elem_id="examples"):
                    for name, lines in EXAMPLES.items():
                        example = gr.Button(name, size="sm", min_width=90)
                        example.click(partial("\n".join, lines), None, sentences, **_PRIVATE)
            first = _recipe_form("A", playground, playground.own_name)
            second = _recipe_form("B", playground, "none" if playground.own_name != "none" else "prompteol")
        button = gr.Button("Compare", variant="primary", elem_id="compare")
        problem = gr.HTML(visible=False, elem_id="problem")
        with gr.Column(visible=False, elem_id="results") as shown:
            summary = gr.HTML(elem_id="summary")
            picked = gr.Dropdown([], label="Look closely at", elem_id="picked", filterable=False)
            alike, *views = _build_views()
        results = gr.State(None, time_to_live=KEPT)

        looked = [view for pair in zip(*map(_looks, views), strict=True) for view in pair]
        outputs = [problem, shown, results, picked, summary, *(view.code for view in views), *looked]

        form = [sentences, alike, *first, *second]
        for happens in (button.click, page.load):
            happens(
                partial(compare, playground), form, outputs, concurrency_limit=2, concurrency_id="model", **_PRIVATE
            )
        for happens in (picked.input, alike.input):
            happens(look, [results, picked, alike], looked, show_progress="hidden", **_PRIVATE)
    return page


def _intro(playground: Playground) -> str:
    return (
        '<div id="intro"><h1>PromptEOL playground</h1>'
        '<p>A decoder LLM reads each sentence inside a template, such as <code>This sentence : "…" means in one word:"'
        "</code>, and the hidden state of the last token is the sentence's embedding. Compare two recipes on "
        "sentences of your own.</p>"
        f"<p>Model: <b>{escape(playground.name)}</b>, {escape(playground.describe())}.</p></div>"
    )


def _recipe_form(name: str, playground: Playground, template: str) -> list[gr.components.Component]:
    """Builds the form of a recipe and returns its fields in the order of `_run`'s arguments."""
    mark = f"recipe-{name.lower()}"
    with gr.Column(scale=3, min_width=280, elem_id=mark, elem_classes="recipe"):
        gr.HTML(f"<h2>Recipe {name}</h2>")
        choice = gr.Dropdown(
            playground.templates, value=template, label="Template", elem_id=f"{mark}-template", filterable=False
        )
        text = gr.Textbox(
            'This sentence : "{sentence}" means in one word:"',
            label="Text of the template",
            info="With {sentence} once, where the sentence goes.",
            visible=False,
            elem_id=f"{mark}-text",
        )
        choice.change(lambda chosen: gr.Textbox(visible=chosen == OWN_TEXT), choice, text, queue=False, **_PRIVATE)
        layers = [(f"{layer}{' (last)' if layer == -1 else ''}", layer) for layer in playground.layers]
        with gr.Row():
            layer = gr.Dropdown(
                layers,
                value=playground.own_layer,
                label="Layer",
                min_width=110,
                elem_id=f"{mark}-layer",
                filterable=False,
            )
            standardization = gr.Dropdown(
                list(STANDARDIZATIONS),
                value="plain",
                label="Standardization",
                info=f"From {MIN_TO_STANDARDIZE} sentences on.",
                min_width=130,
                elem_id=f"{mark}-standardization",
                filterable=False,
            )
        shots = []
        with gr.Accordion("Demonstrations", open=False, elem_id=f"{mark}-shots"):
            for number in range(1, SHOTS + 1):
                with gr.Row():
                    example = "A jockey riding a horse." if number == 1 else ""
                    shots.append(
                        gr.Textbox("", label=f"Sentence {number}", placeholder=example, scale=3, min_width=140)
                    )
                    shots.append(
                        gr.Textbox(
                            "", label=f"Its word {number}", placeholder=example and "Equestrian", scale=2, min_width=90
                        )
                    )
    return [choice, text, layer, standardization, *shots]


def _build_views() -> tuple[gr.Checkbox, Views, Views]:
    """Builds the tabs, each with a column per recipe, and the checkbox for a common color scale."""
    kinds: dict[str, list[Any]] = {}
    with gr.Tabs(elem_id="views"):
        for kind, title in (
            ("heat", "Similarities"),
            ("neighbours", "Nearest neighbours"),
            ("map", "Map"),
            ("tokens", "What the model reads"),
            ("code", "Code"),
        ):
            with gr.Tab(title):
                with gr.Row():
                    for name in "ab":
                        with gr.Column(min_width=300):
                            kinds.setdefault(kind, []).append(_build_view(kind, name))
                if kind == "heat":
                    alike = gr.Checkbox(
                        False, label="Same colors in both", info="Else each has a scale of its own.", elem_id="alike"
                    )
    first, second = (Views(*(kinds[kind][side] for kind in kinds)) for side in range(2))
    return alike, first, second


def _build_view(kind: str, name: str) -> gr.HTML | gr.Code:
    mark = f"{kind}-{name}"
    if kind == "code":
        return gr.Code(language="python", label=f"Recipe {name.upper()}", elem_id=mark, buttons=["copy"])
    return gr.HTML(elem_id=mark)


def _looks(views: Views) -> list[gr.HTML]:
    return [views.heat, views.neighbours, views.map, views.tokens]


def compare(playground: Playground, text: str, alike: bool, *fields: Any) -> list[Any]:
    """Runs both recipes on the sentences, or returns a one-line error message.

    Returns:
        The message, whether there are results, the input of `look`, the selection of a sentence, the agreement of the
        recipes, the code of both, and the output of `look`.
    """
    try:
        sentences = split_sentences(text or "")
        half = len(fields) // 2
        forms = {"A": fields[:half], "B": fields[half:]}
        pair = [_run(playground, name, sentences, form) for name, form in forms.items()]
        choices = [(f"{number}  {sentence}", number - 1) for number, sentence in enumerate(sentences, start=1)]
        return [
            gr.HTML(visible=False),
            gr.Column(visible=True),
            (sentences, pair),
            gr.Dropdown(choices, value=0),
            _summary(pair),
            *(playground.write_code(result.recipe, sentences) for result in pair),
            *look((sentences, pair), 0, alike),
        ]
    except ValueError as error:
        line = " ".join(str(error).split())
    except Exception:
        logger.exception("A request failed")
        line = "The model failed on this, and not by your fault: try other sentences or another recipe."
    said = gr.HTML(f'<p role="alert">{escape(line)}</p>', visible=True)
    return [said, gr.Column(visible=False), None, *[gr.skip()] * (4 + _DRAWN)]


def _run(playground: Playground, name: str, sentences: list[str], fields: tuple[Any, ...]) -> Result:
    """Runs the recipe of a form; error messages name the form."""
    template, text, layer, standardization, *shots = fields
    pairs = [(sentence or "", word or "") for sentence, word in zip(shots[::2], shots[1::2], strict=True)]
    try:
        recipe = read_recipe(playground.own_template, template, text or "", layer, standardization, pairs)
        return playground.run(recipe, sentences)
    except ValueError as error:
        raise ValueError(f"Recipe {name}: {error}") from error


def _summary(pair: list[Result]) -> str:
    """Describes how far the two recipes agree on the most similar pairs of sentences."""
    upper = list(combinations(range(len(pair[0].similarities)), 2))
    one, other = ([float(result.similarities[place]) for place in upper] for result in pair)
    if len(upper) < 3 or len(set(one)) == 1 or len(set(other)) == 1:
        return "<p></p>"
    agreement = float(spearmanr(one, other).statistic)
    return (
        f"<p>The two recipes agree to <b>{agreement:.2f}</b> on which of the {len(upper)} pairs are the most alike "
        "(Spearman; 1 is the same order).</p>"
    )


def look(results: tuple[list[str], list[Result]] | None, picked: int, alike: bool) -> list[Any]:
    """Returns the views of both recipes, alternating between A and B."""
    if results is None:  # expired after an hour
        return [gr.skip()] * _DRAWN
    sentences, pair = results
    spans = [span_of(result.similarities) for result in pair]
    if alike:
        spans = [(min(low for low, _ in spans), max(high for _, high in spans))] * 2
    maps = [flatten(result.embeddings) for result in pair]
    points = [maps[0][0], turn_like(maps[1][0], maps[0][0])]
    orders = [None, rank_neighbours(pair[0].similarities, picked)]
    drawn = []
    for side, result in enumerate(pair):
        title = f"<h3><b>{'AB'[side]}</b> {escape(str(result.recipe))}</h3>"
        pictures = (
            heat_map(result.similarities, sentences, picked, *spans[side]),
            neighbour_list(result.similarities, sentences, picked, orders[side]),
            scatter(points[side], sentences, picked, maps[side][1]),
            token_view(result.tokens[picked]),
        )
        drawn.append([title + picture for picture in pictures])
    return [picture for both in zip(*drawn, strict=True) for picture in both]


def main() -> None:
    """Loads the model and serves the page until Ctrl-C."""
    try:
        playground = Playground(os.environ.get("MODEL") or "tiny")
    except (ValueError, OSError) as error:
        raise SystemExit(f"MODEL: {error}") from None
    page = build_page(playground)
    page.queue(max_size=32)
    page.launch(
        share=False,
        ssr_mode=False,
        theme=THEME,
        css_paths=[Path(__file__).with_name("style.css")],
        footer_links=[],
        state_session_capacity=200,
    )


if __name__ == "__main__":
    main()
