"""Templates against the paper's rules written out here, over odd sentences."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given

from st_prompteol import TEMPLATES, Demonstration, PromptTemplate
from st_prompteol.prompt.template import get_template

from .helpers.processes import run_program
from .helpers.sentences import JOCKEY
from .helpers.templates import ODD_TEXT, templates


def reference_preprocessing(sentence: str) -> str:
    """The paper's evaluation preprocessing, step by step as REFERENCE lists it, of a sentence stripped."""
    sentence = sentence.strip()
    if len(sentence) > 0 and sentence[-1] not in ".?\"'":
        sentence = sentence + "."
    sentence = sentence.replace('"', "'")
    if len(sentence) > 0 and sentence[-1] == "?":
        sentence = sentence[:-1] + "."
    return sentence


@pytest.mark.parametrize(
    ("sentence", "rendered"),
    [
        ("Hello", 'This sentence : "Hello." means in one word:"'),
        ("Hello.", 'This sentence : "Hello." means in one word:"'),
        ("Hello?", 'This sentence : "Hello." means in one word:"'),
        ("Hello!", 'This sentence : "Hello!." means in one word:"'),
        (" Hello\t", 'This sentence : "Hello." means in one word:"'),
        ("  ", 'This sentence : "" means in one word:"'),
        ('say "no"', 'This sentence : "say \'no\'" means in one word:"'),
        ("it's'", 'This sentence : "it\'s\'" means in one word:"'),
        ("", 'This sentence : "" means in one word:"'),
    ],
)
def test_renders_as_the_paper_does(sentence: str, rendered: str) -> None:
    assert PromptTemplate().render(sentence) == rendered


def test_one_and_more_demonstrations_stand_in_front() -> None:
    one = 'This sentence : "A jockey riding a horse." means in one word:"Equestrian".'
    two = 'This sentence : "meat from a deer." means in one word:"Venison".'
    end = 'This sentence : "X." means in one word:"'
    assert PromptTemplate(demonstrations=(JOCKEY,)).render("X") == one + end
    both = PromptTemplate(demonstrations=(JOCKEY, Demonstration("meat from a deer", "Venison")))
    assert both.render("X") == one + two + end
    assert both.head + "X." + both.tail == both.render("X")


def test_a_word_after_an_unquoted_template_is_set_off_by_a_space() -> None:
    template = PromptTemplate('This sentence : "{sentence}" means', (JOCKEY,))
    assert template.render("X") == (
        'This sentence : "A jockey riding a horse." means Equestrian.This sentence : "X." means'
    )


def test_without_preprocessing_the_sentence_stays_as_it_is() -> None:
    template = PromptTemplate("> {sentence} <", preprocessing="none")
    assert template.render(' "what? ') == '>  "what?  <'


def test_the_named_templates() -> None:
    assert {name: template.text for name, template in TEMPLATES.items()} == {
        "prompteol": 'This sentence : "{sentence}" means in one word:"',
        "prompt": 'This sentence : "{sentence}" means',
        "none": "{sentence}",
        # ZBWpro/PretCoTandKE, settings.py at commit ad3a799
        "pretended-cot": 'After thinking step by step , this sentence : "{sentence}" means in one word:"',
        "knowledge": "The essence of a sentence is often captured by its main subjects and actions, while descriptive "
        'terms provide additional but less central details. With this in mind , this sentence : "{sentence}" means '
        'in one word:"',
        # CentreChen/EmbFilter, run4llama_prompteol.py at commit c3958e3
        "summarize": 'Summarize the sentence: "{sentence}" in one word:"',
    }
    assert {name for name, template in TEMPLATES.items() if template.preprocessing == "none"} == {"summarize"}
    assert TEMPLATES["none"].render(" a ") == "a."
    with pytest.raises(TypeError):
        TEMPLATES["new"] = PromptTemplate()


@given(templates())
def test_plain_values_are_read_back(template: PromptTemplate) -> None:
    values = json.loads(json.dumps({**template.to_dict(), "another": "key"}))
    assert PromptTemplate.from_dict(values) == template


@pytest.mark.parametrize(
    "values",
    [
        *({}, [], None, "text", {"text": "{sentence}"}, {"text": 3, "demonstrations": [], "preprocessing": "none"}),
        {"text": "{sentence}x", "demonstrations": [["a", "b"]], "preprocessing": "none"},
        {"text": "{sentence}x", "demonstrations": [{"sentence": "a"}], "preprocessing": "none"},
        {"text": "{sentence}x", "demonstrations": None, "preprocessing": "none"},
    ],
)
def test_what_is_no_template_is_refused(values: Any) -> None:
    with pytest.raises(ValueError, match="is not a template: it needs text"):
        PromptTemplate.from_dict(values)


@given(templates(), ODD_TEXT)
def test_rendering_is_preprocessing_in_a_stripped_template(template: PromptTemplate, sentence: str) -> None:
    before, after = template.text.split("{sentence}")
    clean = reference_preprocessing if template.preprocessing == "paper" else str
    if not template.demonstrations:
        if template.preprocessing == "paper":
            before, after = before.lstrip(), after.rstrip()
        assert template.render(sentence) == before + clean(sentence) + after
    assert template.render(sentence).count(clean(sentence)) >= 1 or not sentence.strip() or not before


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PromptTemplate("no hole"), "has 0 places"),
        (lambda: PromptTemplate("{sentence} {sentence}"), "has 2 places"),
        (lambda: PromptTemplate(preprocessing="other"), "choose one of paper, none"),
        (lambda: PromptTemplate("{sentence}", (JOCKEY,)), "no place"),
        (lambda: PromptTemplate(demonstrations=("A", "B")), "is not a Demonstration"),
        (lambda: Demonstration("", "word"), "must be one line of text"),
        (lambda: Demonstration("a\nb", "word"), "must be one line of text"),
        (lambda: Demonstration("a", 'wo"rd'), "must not hold a double quote"),
        (lambda: PromptTemplate("\ud800 {sentence}"), "holds a lone surrogate, which is no character: drop it"),
        (lambda: Demonstration("a \udfff.", "B"), "holds a lone surrogate"),
        (lambda: get_template("promteol"), "choose one of prompteol, prompt, none"),
    ],
)
def test_mistakes_are_named(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_needs_the_standard_library_only() -> None:
    run_program("render_a_template")
