"""The model card: metadata, generated section, and text of other authors, which is unchanged."""

import pytest

from mae_convert.errors import HubError
from mae_convert.publish.card import BEGIN, END, marked, merged_card, metadata_of, new_card

OURS = marked("## What we say\n\nNew.")
METADATA = {"license": "cc-by-nc-4.0", "library_name": "transformers", "tags": ["vit_mae"]}
THEIRS = """---
# a comment that a person wrote
license:   "mit"   # and another
tags: [ours, theirs]
---

# Their model

Their text, with   odd spaces\t and no end"""


def test_a_new_card_has_metadata_title_and_section():
    card = new_card("my-mae", OURS, METADATA, on_top=False)
    assert metadata_of(card) == METADATA
    assert card.startswith("---\n")
    assert card.index("# my-mae") < card.index(BEGIN) < card.index(END)


def test_only_missing_metadata_and_the_generated_section_of_a_card_change():
    card, added = merged_card(THEIRS, OURS, METADATA, on_top=False)
    assert added == {"library_name": "transformers"}
    assert card == f"---\nlibrary_name: transformers\n{THEIRS[4:]}\n\n{OURS}\n"
    assert metadata_of(card)["license"] == "mit"


def test_publishing_again_replaces_the_generated_section_in_place():
    once, _ = merged_card(THEIRS, OURS, METADATA, on_top=False)
    moved = once.replace(OURS, f"{OURS}\n\n## After\n\nMore of theirs.\n")
    newer = marked("## What we say\n\nNewer: \\1 \\g<0>.")
    again, added = merged_card(moved, newer, METADATA, on_top=False)
    assert added == {}
    assert again == moved.replace(OURS, newer)
    assert merged_card(again, newer, METADATA, on_top=False)[0] == again


@pytest.mark.parametrize("card", ["", "# Only text\n", "no line break"])
def test_metadata_are_added_to_a_card_without_them(card):
    merged, added = merged_card(card, OURS, METADATA, on_top=False)
    assert metadata_of(merged) == METADATA == added
    assert card.strip() in merged


def test_line_endings_are_kept():
    windows = THEIRS.replace("\n", "\r\n")
    card, _ = merged_card(windows, OURS, METADATA, on_top=False)
    assert "\n" not in card.replace("\r\n", "")
    assert windows.partition("\r\n\r\n")[2] in card


def test_warning_is_the_first_section_of_the_card():
    warning = marked("## What we say", warning="> **Not verified:** so it is.")
    card, _ = merged_card(THEIRS, OURS, METADATA, on_top=False)
    on_top, _ = merged_card(card, warning, METADATA, on_top=True)
    text = on_top.split("\n---\n", 1)[1].strip()
    assert text.splitlines()[0].startswith("> **Not verified:**")
    assert on_top.count("mae-convert: begin") == 1
    assert "Their text, with   odd spaces\t and no end" in on_top
    # And it goes when there is a proof.
    verified, _ = merged_card(on_top, OURS, METADATA, on_top=False)
    assert "Not verified" not in verified


def test_existing_licence_does_not_get_the_name_and_link_of_another():
    fields = {"license": "other", "license_name": "ours", "license_link": "LICENSE"}
    card, added = merged_card(THEIRS, OURS, fields, on_top=False)
    assert added == {}
    assert "license_name" not in card


@pytest.mark.parametrize(
    "card",
    ["---\nlicense: [mit\n---\ntext", "---\n- a list\n---\ntext", f"text\n{BEGIN}\nno end",
     f"{OURS}\n{OURS}", f"{END}\n{BEGIN}"],
)  # fmt: skip
def test_unreadable_card_is_not_rewritten(card):
    with pytest.raises(HubError, match="correct"):
        merged_card(card, OURS, METADATA, on_top=False)


def test_multi_line_metadata_are_kept():
    card = "---\nlicense: mit\nextra_gated_prompt: |\n  Of you\n  we ask\n---\n"
    merged, _ = merged_card(card, OURS, METADATA, on_top=False)
    assert metadata_of(merged)["extra_gated_prompt"] == "Of you\nwe ask"


@pytest.mark.parametrize(
    "block",
    [
        "a: " + "[" * 3000,
        "a: " + "{a: " * 40 + "1" + "}" * 40,
        "a0: &a0 [x, x]\n"
        + "\n".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60)),
        f"a: {'9' * 5000}",
        "a: 2026-02-31",
        "a: \x00",
        "a: !!python/object/apply:os.getcwd []",
    ],
)  # fmt: skip
def test_malicious_metadata_are_refused_in_one_sentence(block):
    with pytest.raises(HubError, match="correct"):
        merged_card(f"---\n{block}\n---\n# Theirs\n", OURS, METADATA, on_top=False)
