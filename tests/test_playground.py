"""The playground: what it computes, what goes to the Hub, and the page itself in a real browser.

The browser is Debian's Chromium, driven by Selenium; the server runs in a folder as a Space has it, on loopback, and
may reach nothing else.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from st_prompteol import TEMPLATES, Demonstration, PromptEOL, PromptTemplate
from st_prompteol.recipes import Recipe

from . import ROOT
from .helpers.hub import Hub, hub_environment
from .helpers.processes import free_port
from .helpers.sentences import JOCKEY, SENTENCES

SPACE = ROOT / "hub_cards/space"
LINES = [*SENTENCES, "A man is playing a guitar.", "Somebody plays the guitar."]


@pytest.fixture(scope="module")
def rooms() -> Iterator[SimpleNamespace]:
    """The modules of the Space but the page itself, as they import each other."""
    names = sorted({path.stem for path in SPACE.glob("*.py")} - {"app"})
    sys.path.insert(0, str(SPACE))
    try:
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    finally:
        sys.path.remove(str(SPACE))
        for name in names:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def tiny(rooms: SimpleNamespace) -> Any:
    return rooms.playground.Playground("tiny")


def run_code(code: str) -> dict[str, Any]:
    """What a visitor gets who runs the code that the page shows."""
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(None):
        exec(code, names)
    names["similarities"] = names["model"].similarity(names["embeddings"], names["embeddings"]).numpy()
    return names


def draw(pictures: Any, result: Any, sentences: list[str], compared: list[int] | None = None) -> list[str]:
    points, share = pictures.flatten(result.embeddings)
    return [
        pictures.heat_map(result.similarities, sentences, 0, *pictures.span_of(result.similarities)),
        pictures.neighbour_list(result.similarities, sentences, 1, compared),
        pictures.scatter(points, sentences, 0, share),
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (" \n\n", "There is no sentence yet: write at least two, one per line."),
        ("One.\n\n", "One sentence has nothing to be compared with: write at least two, one per line."),
        ("x\n" * 33, "These are 33 sentences, but this page takes 32: leave some out."),
        ("x\n" + "y" * 301, "Sentence 2 has 301 characters, but this page takes 300: shorten it."),
    ],
)
def test_sentences_that_cannot_be_compared_are_refused(rooms: SimpleNamespace, text: str, said: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        rooms.recipes.split_sentences(text)


@pytest.mark.parametrize(
    ("form", "said"),
    [
        (("prompteol", "", -1, "plain", [("A jockey.", " ")]), "Demonstration 1 has no word"),
        (("prompteol", "", -1, "plain", [("", ""), ("", "Horse")]), "Demonstration 2 has no sentence"),
        (("prompteol", "", -1, "plain", [("A jockey.", 'a"b')]), "must not hold a double quote"),
        (("none", "", -1, "plain", [("A jockey.", "Horse")]), "has no place in it"),
        (("your own text", "no hole", -1, "plain", []), "needs exactly one"),
        (("your own text", "{sentence}" + "x" * 300, -1, "plain", []), "The template has 310 characters"),
        (("prompteol", "", -1, "plain", [("x" * 300, "y")]), "Demonstration 1 has 301 characters"),
    ],
)
def test_recipes_that_cannot_be_are_refused(rooms: SimpleNamespace, form: tuple[Any, ...], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        rooms.recipes.read_recipe(PromptTemplate(), *form)


def test_too_few_sentences_are_not_standardized(rooms: SimpleNamespace, tiny: Any) -> None:
    with pytest.raises(ValueError, match="write at least 8, or choose plain"):
        tiny.run(Recipe(PromptTemplate(), -1, "center"), ["a", "b"] * 8)


RECIPES = [
    Recipe(PromptTemplate(), -1),
    Recipe(PromptTemplate(demonstrations=(JOCKEY,)), -2, "scale"),
    Recipe(TEMPLATES["none"], -3),
    Recipe(PromptTemplate('He said: "{sentence}" It\'s'), -1, "whiten"),
    Recipe(PromptTemplate(demonstrations=(JOCKEY, Demonstration('"Quoted"', "it's"))), -1),
]


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_the_code_does_what_the_page_shows(tiny: Any, recipe: Recipe) -> None:
    result = tiny.run(recipe, LINES)
    names = run_code(tiny.write_code(recipe, LINES))
    assert names["sentences"] == LINES
    for got, name in ((result.embeddings, "embeddings"), (result.similarities, "similarities")):
        np.testing.assert_allclose(got, names[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", ["opt-350m", "gpt2", "llama", "saved"])
@pytest.mark.slow
def test_other_models_are_shown_too(
    rooms: SimpleNamespace, causal_lms: dict[str, str], architecture: str, tmp_path: Path
) -> None:
    path = causal_lms.get(architecture, str(tmp_path))
    if architecture == "saved":  # with a template, a layer and statistics of its own
        model = PromptEOL(causal_lms["opt"], template=PromptTemplate('"{sentence}" is', (JOCKEY,), "none"), layer=-2)
        model.standardize(LINES)
        model.save_pretrained(path)
    opened = rooms.playground.Playground(path)
    template = opened.templates[0]
    assert template == ("the model's own" if architecture == "saved" else "prompteol")
    jockey = [(JOCKEY.sentence, JOCKEY.word)]  # the saved template's own demonstration
    for form in (
        (template, "", opened.own_layer, "plain", []),
        (template, "", -3, "scale", [("A dog.", "Pet")]),
        ("your own text", '"{sentence}" is', -1, "plain", []),
        ("prompt", "", -1, "plain", jockey),
    ):
        recipe = rooms.recipes.read_recipe(opened.own_template, *form)
        result = opened.run(recipe, LINES)
        names = run_code(opened.write_code(recipe, LINES))
        np.testing.assert_allclose(result.embeddings, names["embeddings"], rtol=1e-5, atol=1e-5)
        for sentence, tokens in zip(LINES, result.tokens, strict=True):
            assert len(tokens) == names["model"][0].preprocess([sentence])["input_ids"].shape[1]


def test_visitors_do_not_disturb_each_other(rooms: SimpleNamespace, tiny: Any) -> None:
    alone = [tiny.run(recipe, LINES) for recipe in RECIPES]
    with ThreadPoolExecutor(max_workers=4) as visitors:
        together = list(visitors.map(lambda recipe: tiny.run(recipe, LINES), RECIPES * 4))
    for number, result in enumerate(together):
        expected = alone[number % len(RECIPES)]
        np.testing.assert_allclose(result.embeddings, expected.embeddings, rtol=1e-5, atol=1e-5)
        assert result.tokens == expected.tokens


@pytest.mark.parametrize("name", [*TEMPLATES, "shots"])
def test_tokens_are_those_that_the_model_reads(rooms: SimpleNamespace, tiny: Any, name: str) -> None:
    template = PromptTemplate(demonstrations=(JOCKEY,)) if name == "shots" else TEMPLATES[name]
    sentences = [*LINES, "</s> is the end <s>", "😀😀", "a  b\tc"]
    model = PromptEOL("tiny", template=template)
    for sentence, tokens in zip(sentences, rooms.reading.read_tokens(model[0], sentences), strict=True):
        assert len(tokens) == model[0].preprocess([sentence])["input_ids"].shape[1]
        assert tokens[0] == rooms.reading.Token("<s>", "head")
        parts = [token.part for token in tokens]
        assert parts == sorted(parts, key=["head", "sentence", "tail"].index)
        spelled = "".join(token.text for token in tokens[1:])
        if sentence.isascii() and "</s>" not in sentence:
            assert spelled == template.render(sentence)
            head = "".join(token.text for token in tokens[1:] if token.part == "head")
            assert template.head.startswith(head.rstrip())


def test_what_is_too_long_is_shown_as_cut(rooms: SimpleNamespace) -> None:
    model = PromptEOL("tiny", max_seq_length=20)
    (tokens,) = rooms.reading.read_tokens(model[0], ["one two three four five six seven eight nine ten eleven twelve"])
    kept = [token.text for token in tokens if token.part != "cut"]
    assert len(kept) == 20 < len(tokens)
    assert "".join(kept).endswith('means in one word:"')


def test_maps_are_turned_alike_and_keep_their_distances(rooms: SimpleNamespace, tiny: Any) -> None:
    points, share = rooms.pictures.flatten(tiny.run(RECIPES[0], LINES).embeddings)
    mirrored = points @ np.array([[0.0, 1.0], [1.0, 0.0]])
    np.testing.assert_allclose(rooms.pictures.turn_like(mirrored, points), points, atol=1e-6)
    assert 0 < share < 1
    same, share = rooms.pictures.flatten(np.ones((3, 4)))
    assert (same == 0).all()
    assert share == 1


def test_pictures_hold_nothing_of_a_visitor_s_as_markup(rooms: SimpleNamespace, tiny: Any) -> None:
    sentences = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "&amp;"]
    result = tiny.run(Recipe(PromptTemplate('<b>{sentence}</b> "'), -1), sentences)
    for picture in (*draw(rooms.pictures, result, sentences, [2, 0]), *map(rooms.pictures.token_view, result.tokens)):
        assert not re.search(r"<(script|img)|<b>[^\d]", picture)
        assert "&lt;" in picture or "&amp;amp;" in picture


def test_the_same_sentence_many_times_has_pictures(rooms: SimpleNamespace, tiny: Any) -> None:
    sentences = ["The same."] * 32
    result = tiny.run(RECIPES[0], sentences)
    assert not any("nan" in picture for picture in draw(rooms.pictures, result, sentences))


def test_the_space_asks_for_what_the_library_does() -> None:
    wanted = (SPACE / "requirements.txt").read_text(encoding="utf-8").splitlines()
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    dependencies = project.split("\ndependencies = [\n")[1].split("\n]\n")[0]
    assert [line for line in wanted if not line.startswith("#")] == re.findall(
        r'^    "(.*?)"', dependencies, re.MULTILINE
    )
    _, front, _ = (SPACE / "README.md").read_text(encoding="utf-8").split("---\n", maxsplit=2)
    facts = yaml.safe_load(front)
    assert f"gradio=={facts['sdk_version']}" in (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    assert (SPACE / facts["app_file"]).is_file()
    assert len(facts["short_description"]) <= 60  # what the Hub takes


def gather(folder: Path) -> list[str]:
    paths: list[str] = runpy.run_path(str(ROOT / "hub_cards/push.py"))["gather_space"](folder)
    return paths


def push_space(hub: Hub, home: Path, token: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "hub_cards/push.py"), "--space", "alice/playground", *options],
        env={**hub_environment(hub.url, home), "HF_TOKEN": token, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_the_space_goes_to_the_hub_as_it_is(tmp_path: Path) -> None:
    expected = gather(tmp_path / "space")
    with Hub(tokens={"hf_alice": "alice", "hf_bob": "bob"}) as hub:
        done = push_space(hub, tmp_path / "home", "hf_alice", "--dry-run")
        assert done.stdout.split() == expected
        assert not hub.repos
        for _ in range(2):  # the second time over what is there
            done = push_space(hub, tmp_path / "home", "hf_alice")
            assert done.returncode == 0, done.stderr
            assert "spaces/alice/playground" in done.stdout
        repo = hub.repos["space", "alice/playground"]
        files = repo.commits[repo.branches["main"]]["files"]
        assert set(files) - {".gitattributes"} == set(expected)
        refused = push_space(hub, tmp_path / "home", "hf_bob")
        assert refused.returncode != 0
        assert "the token may not write there (403)" in refused.stderr.splitlines()[-1]


# --- in a browser

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
MISSING = [name for name in ("gradio", "selenium") if not find_spec(name)]
MISSING += [] if CHROMIUM and DRIVER else ["Chromium and its driver"]


def browser_test(test: Any) -> Any:
    marks = pytest.mark.slow, pytest.mark.xdist_group("browser")
    for mark in (*marks, pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}")):
        test = mark(test)
    return test


PHONE = (390, 844)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server that runs in a folder as a Space has it, with its own copy of the library."""
    folder = tmp_path_factory.mktemp("space")
    gather(folder / "space")
    port = free_port()
    environment = {
        **os.environ,
        "GRADIO_SERVER_PORT": str(port),
        "HF_HOME": str(folder / "home"),
        "MODEL": "",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT / "tests/programs/guard"),  # what it may reach; the rest is written down
        "REACHED": str(folder / "reached"),
    }
    address = f"http://127.0.0.1:{port}/"
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "app.py"], cwd=folder / "space", env=environment, stdout=log, stderr=log
        )
        try:
            until(lambda: server.poll() is not None or answers(address), seconds=120)
            assert server.poll() is None, (folder / "log").read_text()
            yield address
        finally:
            server.terminate()
            server.wait(timeout=30)
    assert not (folder / "reached").exists(), (folder / "reached").read_text()
    assert "Traceback" not in (folder / "log").read_text(), (folder / "log").read_text()


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def until(is_so: Callable[[], Any], seconds: float = 30) -> Any:
    """Waits until something holds and returns it."""
    from selenium.common.exceptions import StaleElementReferenceException

    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(StaleElementReferenceException):
            if found := is_so():
                return found
        time.sleep(0.1)
    raise TimeoutError(f"nothing after {seconds} seconds")


class Visitor:
    """Somebody with a browser of their own, on a page that has shown its first results."""

    def __init__(self, url: str, width: int = 1280, height: int = 1400, *, phone: bool = False) -> None:
        from selenium import webdriver

        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        # a container allows no sandbox
        for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu"):
            options.add_argument(f"--{argument}")
        options.add_argument(f"--window-size={width},{height}")
        options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
        if phone:
            metrics = {"width": width, "height": height, "deviceScaleFactor": 2, "mobile": True}
            self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.url = url
        self.driver.get(url)
        until(lambda: self.all("table.heat"))

    def __enter__(self) -> Visitor:
        return self

    def __exit__(self, *error: object) -> None:
        self.driver.quit()

    def all(self, selector: str) -> list[Any]:
        return [found for found in self.driver.find_elements("css selector", selector) if found.is_displayed()]

    def one(self, selector: str) -> Any:
        return until(lambda: self.all(selector))[0]

    def text(self, selector: str) -> str:
        return " ".join(self.one(selector).text.split())

    def fill(self, selector: str, text: str) -> None:
        from selenium.webdriver import Keys

        field = self.one(selector)
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(Keys.DELETE)
        self.driver.execute_cdp_cmd("Input.insertText", {"text": text})  # as a paste does

    def choose(self, selector: str, text: str) -> None:
        self.one(f"{selector} input").click()
        until(lambda: [option for option in self.all("ul[role=listbox] li") if text in option.text])[0].click()

    def tab(self, name: str) -> None:
        for button in self.all("#views button[role=tab]"):
            if button.text == name:
                button.click()
                return
        self.one("#views .overflow-menu > button").click()
        until(lambda: [item for item in self.all(".overflow-dropdown button") if item.text == name])[0].click()

    def compare(self) -> None:
        self.one("#compare").click()

    def numbers(self, side: str) -> np.ndarray[Any, Any]:
        """The similarities of a heat map, without the diagonal."""
        rows = self.one(f"#heat-{side} table").find_elements("css selector", "tbody tr")
        cells = [[cell.text for cell in row.find_elements("css selector", "td")] for row in rows]
        return np.array([[float(cell or 1) for cell in row] for row in cells])

    def foreign(self) -> list[str]:
        """The addresses that the page has asked for and that are not the server's."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        asked = [
            event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"
        ]
        assert self.url in asked
        return [address for address in asked if not address.startswith((self.url, "data:", "blob:"))]


def similarities(sentences: list[str], **options: Any) -> np.ndarray[Any, Any]:
    model = PromptEOL("tiny", **options)
    embeddings = model.encode(sentences)
    numbers: np.ndarray[Any, Any] = model.similarity(embeddings, embeddings).numpy()
    return numbers


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("gradio"), reason="needs gradio")
def test_a_model_that_cannot_be_opened_is_one_line() -> None:
    done = subprocess.run(
        [sys.executable, str(SPACE / "app.py")],
        env={**os.environ, "MODEL": "no/such", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("MODEL: 'no/such' ")
    assert "Traceback" not in done.stderr


@browser_test
def test_the_page_opens_with_results_and_asks_nobody_else(url: str) -> None:
    with Visitor(url) as visitor:
        assert visitor.driver.title == "PromptEOL playground: tiny"
        assert "3 million parameters" in visitor.text("#intro")
        assert "2 to 32 sentences of up to 300 characters." in visitor.text("#sentences")
        assert len(visitor.all("table.heat")) == 2
        visitor.tab("Nearest neighbours")
        assert "Someone rides a horse along the beach." in visitor.text("#neighbours-a li")
        visitor.tab("Map")
        assert len(visitor.all("#map-b circle")) == 9
        visitor.tab("What the model reads")
        assert len(visitor.all("#tokens-a .tokens .head > span")) > 3
        assert visitor.foreign() == []
        assert [entry for entry in visitor.driver.get_log("browser") if entry["level"] == "SEVERE"] == []


@browser_test
def test_typed_sentences_are_compared_by_typed_recipes(url: str) -> None:
    with Visitor(url) as visitor:
        visitor.fill("#sentences textarea", "\n".join(LINES[:5]))
        visitor.choose("#recipe-a-template", "pretended-cot")
        visitor.choose("#recipe-a-layer", "-2")
        visitor.choose("#recipe-b-template", "your own text")
        visitor.fill("#recipe-b-text textarea, #recipe-b-text input", 'In a word, "{sentence}" is:"')
        visitor.one("#recipe-b-shots button").click()
        fields = until(lambda: (found := visitor.all("#recipe-b-shots textarea, #recipe-b-shots input"))[3:] and found)
        fields[0].send_keys("A jockey riding a horse.")
        fields[1].send_keys("Equestrian")
        visitor.compare()
        until(lambda: "is:" in visitor.text("#heat-b h3"))
        assert visitor.text("#heat-a h3") == "A pretended-cot, layer -2"
        expected = similarities(LINES[:5], template="pretended-cot", layer=-2)
        np.testing.assert_allclose(visitor.numbers("a"), expected, atol=0.0051)
        expected = similarities(LINES[:5], template='In a word, "{sentence}" is:"', demonstrations=[JOCKEY])
        np.testing.assert_allclose(visitor.numbers("b"), expected, atol=0.0051)

        visitor.choose("#picked", "Is it raining")
        visitor.tab("What the model reads")
        until(lambda: "raining" in visitor.text("#tokens-b .tokens"))
        read = visitor.one("#tokens-b .tokens").text.replace("\n", "").replace("·", " ")
        assert 'Equestrian".In a word, "Is it raining." is:"' in read


@browser_test
def test_the_code_that_is_copied_does_the_same(url: str) -> None:
    with Visitor(url) as visitor:
        permission = {"origin": url.rstrip("/"), "permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
        visitor.driver.execute_cdp_cmd("Browser.grantPermissions", permission)
        visitor.choose("#recipe-b-standardization", "whiten")
        visitor.compare()
        until(lambda: "whitened" in visitor.text("#heat-b h3"))
        shown = visitor.numbers("b")
        visitor.tab("Code")
        until(lambda: "template" in visitor.text("#code-b"))
        visitor.one("#code-b button[title*=opy], #code-b button[aria-label*=opy]").click()
        read = "navigator.clipboard.readText().then(arguments[0])"
        code = until(lambda: visitor.driver.execute_async_script(read))
    assert 'model.standardize(sentences, "whiten")' in code
    np.testing.assert_allclose(shown, run_code(code)["similarities"], atol=0.0051)


@browser_test
def test_bad_input_is_answered_by_one_line_each_time(url: str) -> None:
    with Visitor(url) as visitor:

        def refused(said: str) -> None:
            visitor.compare()
            until(lambda: visitor.all("#problem") and said in visitor.text("#problem"))
            assert not visitor.all("#results")
            assert "Traceback" not in visitor.driver.page_source

        visitor.fill("#sentences textarea", "\n".join(map(str, range(40))))
        refused("These are 40 sentences, but this page takes 32")
        visitor.fill("#sentences textarea", "\n".join(LINES[:4]))
        visitor.choose("#recipe-b-standardization", "center")
        refused("Recipe B: 4 different sentences are too few for statistics")
        visitor.choose("#recipe-b-standardization", "plain")
        visitor.choose("#recipe-a-template", "your own text")
        visitor.fill("#recipe-a-text textarea, #recipe-a-text input", "without a place <script>")
        refused("Recipe A: The template 'without a place <script>' has 0 places for the sentence")
        visitor.fill("#recipe-a-text textarea, #recipe-a-text input", "{sentence} is")
        visitor.compare()
        until(lambda: visitor.all("#results"))
        assert not visitor.all("#problem p")
        assert "is, layer -1" in visitor.text("#heat-a h3")


@browser_test
def test_two_visitors_at_once_see_their_own(url: str) -> None:
    with Visitor(url) as one, Visitor(url) as other:
        one.choose("#recipe-a-layer", "-2")
        other.choose("#recipe-a-template", "summarize")
        for number in range(3):
            texts = [[f"{name} {word} {number}" for word in ("horses", "money", "rain")] for name in ("My", "Your")]
            for visitor, sentences in zip((one, other), texts, strict=True):
                visitor.fill("#sentences textarea", "\n".join(sentences))
            one.compare()
            other.compare()
            for visitor, sentences in zip((one, other), texts, strict=True):
                until(lambda visitor=visitor, first=sentences[0]: first in visitor.text("#heat-b tbody"))
            expected = similarities(texts[0], layer=-2), similarities(texts[1], template="summarize")
            for visitor, numbers in zip((one, other), expected, strict=True):
                np.testing.assert_allclose(visitor.numbers("a"), numbers, atol=0.0051)


@browser_test
def test_a_phone_shows_all_without_scrolling_sideways(url: str) -> None:
    with Visitor(url, *PHONE, phone=True) as visitor:
        visitor.fill("#sentences textarea", "\n".join(f"{line} {'long ' * 20}" for line in LINES))
        visitor.compare()
        until(lambda: "long" in visitor.text("#heat-b tbody"))
        for name in ("Similarities", "Nearest neighbours", "Map", "What the model reads", "Code"):
            visitor.tab(name)
            time.sleep(0.3)
            script = "return document.documentElement.scrollWidth"
            assert visitor.driver.execute_script(script) <= PHONE[0], name
