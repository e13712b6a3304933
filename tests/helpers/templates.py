"""Templates that hypothesis draws."""

from __future__ import annotations

from hypothesis import strategies as st

from st_prompteol import Demonstration, PromptTemplate

TEMPLATE_TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=30).filter(
    lambda text: "{sentence}" not in text
)


ODD_TEXT = st.one_of(
    st.text(max_size=40),
    st.text(alphabet="{}%#\"'\\ \n\t.?!{{}}", max_size=20),
    st.sampled_from(["", "{{ x }}", "{% raw %}", "{# c #}", "a\r\nb", "\x00", "&lt;b&gt;", "{sentence}", "%s %(x)s"]),
)


@st.composite
def templates(draw: st.DrawFn) -> PromptTemplate:
    text = draw(TEMPLATE_TEXT) + "{sentence}" + draw(TEMPLATE_TEXT)
    line = st.text(alphabet=st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1, max_size=20)
    demonstrations = draw(
        st.lists(
            st.builds(
                Demonstration,
                line.filter(lambda value: value.strip()),
                line.filter(lambda value: value.strip() and '"' not in value),
            ),
            max_size=3,
        )
    )
    if text.endswith("{sentence}"):
        demonstrations = []
    return PromptTemplate(text, tuple(demonstrations), draw(st.sampled_from(["paper", "none"])))
