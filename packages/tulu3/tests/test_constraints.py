"""Every constraint of IFEval, kept and broken at its border."""

import pytest

from tulu3 import CONSTRAINTS, IfevalVerifier, final_answer

CASES = [  # func_name, arguments, texts that keep it, texts that do not
    ("verify_keywords", {"keyword_list": ["Sun", "moon"]}, ["sunny MOON"], ["sun only"]),
    ("verify_keyword_frequency", {"word": "Cat", "N": 2}, ["cat, CAT! cats"], ["cat", "cat cat cat"]),
    (
        "verify_keyword_frequency",
        {"word": "New York", "N": 2},
        ["New York, new york"],
        ["New Yorker, New York"],
    ),
    ("validate_forbidden_words", {"forbidden_words": ["bad"]}, ["good"], ["BADly"]),
    ("verify_letter_frequency", {"letter": "l", "N": 2}, ["hello L"], ["helo", "hellol"]),
    ("verify_paragraph_count", {"N": 2}, ["a\n * * * \nb"], ["a", "a\n* * *\n", "a * * * b * * * c"]),
    ("validate_word_constraint", {"N": 20, "quantifier": "at least"}, ["w " * 20], ["w " * 19]),
    ("validate_word_constraint", {"N": 20, "quantifier": "at most"}, ["w " * 20], ["w " * 21]),
    (
        "validate_word_constraint",
        {"N": 20, "quantifier": "around"},
        ["w " * 18, "w " * 22],
        ["w " * 17, "w " * 23],
    ),
    ("validate_word_constraint", {"N": 2, "quantifier": "around"}, ["w", "w w w"], ["w w w w"]),
    (
        "verify_sentence_constraint",
        {"N": 2, "quantifier": "at least"},
        ["One. Two?", "A. B! C."],
        ["One. two", "Mr. X is e.g. here."][1:],
    ),
    ("verify_sentence_constraint", {"N": 3, "quantifier": "at most"}, ["A! B? C."], ["A! B? C. D"]),
    (
        "verify_sentence_constraint",
        {"N": 20, "quantifier": "around"},
        ["A! " * 18 + "A!"],
        ["A! " * 17 + "A!"],
    ),
    (
        "validate_paragraphs",
        {"N": 2, "first_word": "So", "i": 2},
        ["a\n\n So it is"],
        ["So\n\na", "a\n\nSo\n\nb", "a\nSo"],
    ),
    ("verify_postscript", {"postscript_marker": "P.S."}, ["Bye. P.S. more"], ["Bye. P.S. ", "Bye."]),
    ("validate_placeholders", {"N": 2}, ["[a] [b]", "[a][b][c]"], ["[a] b]", "[] [ ] [\n]"]),
    ("verify_bullet_points", {"N": 2}, ["* a\n - b\nc"], ["* a", "* a\n* b\n* c"]),
    ("validate_title", {}, ["<<A>> text"], ["<A> text", "<<A", "<<>> text", "<< >>", ">>A<<", "<" * 100_000]),
    (
        "validate_choice",
        {"options": ["My answer is yes.", "My answer is no."]},
        ["Well: My answer is no."],
        ["my answer is no."],
    ),
    (
        "validate_highlighted_sections",
        {"N": 2},
        ["*a* *b*", "**a** **b**"],
        ["*a* b", "**a**", "****", "* * *"],
    ),
    (
        "validate_sections",
        {"N": 2, "section_splitter": "SECTION"},
        ["SECTION 1 a SECTION 2 b"],
        ["SECTION 1", "a SECTION 1 b SECTION 2 c"],
    ),
    (
        "validate_json_format",
        {},
        ['{"a": [1]}'],
        ["{'a': 1}", "[" * 100_000, '{"a": 1} so', "NaN", "[Infinity]"],
    ),
    ("validate_repeat_prompt", {"original_prompt": "Say hi"}, ["Say hi. Hi"], ["OK. Say hi. Hi", "say hi"]),
    (
        "validate_two_responses",
        {},
        ["a ****** b"],
        ["a ****** a", "a", "a ****** b ****** c", "****** b", "a ******"],
    ),
    ("validate_uppercase", {}, ["LOUD 1!"], ["LOUd"]),
    ("validate_lowercase", {}, ["soft 1!"], ["soFt"]),
    ("validate_frequency_capital_words", {"N": 2, "quantifier": "at least"}, ["A BC d"], ["A Bc"]),
    ("validate_frequency_capital_words", {"N": 1, "quantifier": "at most"}, ["A b"], ["A BC"]),
    ("validate_frequency_capital_words", {"N": 20, "quantifier": "around"}, ["AB " * 22], ["AB " * 23]),
    ("validate_end", {"end_phrase": "The end."}, ["So. The end."], ["The end. So"]),
    ("validate_quotation", {}, ['"all"'], ['"', '"part" only', "all"]),
    ("validate_no_commas", {}, ["a b"], ["a, b"]),
    ("validate_response_language", {"language": "de"}, ["Ja"], ["yes", "123"]),
]


@pytest.fixture(scope="module")
def verifier():
    return IfevalVerifier(detect_language=lambda text: "de" if "Ja" in text else "en")


@pytest.mark.parametrize(("name", "arguments", "kept", "broken"), CASES)
def test_a_constraint_is_kept_or_broken(verifier, name, arguments, kept, broken):
    label = {"func_name": name, **arguments, "unused": None}
    for text in kept:
        assert verifier(f"<think>not this</think><answer> {text.strip()}</answer>\n", label) == 1
    for text in broken:
        assert verifier(text, label) == 0
    assert verifier(" ", label) == 0  # nothing keeps no promise
    assert label["func_name"] == name


def test_all_twenty_five_are_there():
    assert {name for name, *_ in CASES} == {*CONSTRAINTS, "validate_response_language"}
    assert len(CONSTRAINTS) == 24


def test_counts_from_a_table_with_gaps_are_floats(verifier):
    assert verifier("[a] [b]", {"func_name": "validate_placeholders", "N": 2.0}) == 1


def test_what_is_taken_off_an_answer():
    assert final_answer("<|assistant|><think>a</think>b</think> <answer>c</answer> ") == "c"


BAD = [
    ("no json", "label must be a mapping, or JSON"),
    ("[1]", "label must be a mapping with 'func_name'"),
    ({"N": 2}, "func_name must be one of"),
    ({"func_name": "validate_everything"}, "func_name must be one of .* got 'validate_everything'"),
    ({"func_name": "validate_placeholders"}, "arguments of 'validate_placeholders'.*'N'"),
    ({"func_name": "validate_title", "N": 2}, "arguments of 'validate_title'"),
    ({"func_name": "validate_placeholders", "N": "two"}, "N must be an integer, got 'two'"),
    ({"func_name": "validate_placeholders", "N": -1}, "N must be at least 0, got -1"),
    ({"func_name": "validate_word_constraint", "N": 3, "quantifier": "less than"}, "quantifier must be"),
    ({"func_name": "verify_keywords", "keyword_list": "sun"}, "keyword_list must be a list of texts"),
    ({"func_name": "verify_keywords", "keyword_list": []}, "keyword_list must have words"),
    ({"func_name": "validate_choice", "options": ["yes", ""]}, "options must have words, none of them empty"),
    ({"func_name": "verify_letter_frequency", "letter": "ab", "N": 1}, "letter must be one character"),
    ({"func_name": "validate_end", "end_phrase": ""}, "end_phrase must be a text"),
    (
        {"func_name": "validate_paragraphs", "N": 2, "first_word": "a", "i": 0},
        r"i must lie in 1..N = 2, got 0",
    ),
    ({"func_name": "validate_response_language"}, "label must have 'language'"),
]


@pytest.mark.parametrize(("label", "message"), BAD)
def test_a_label_that_cannot_be_used_is_named(verifier, label, message):
    with pytest.raises(ValueError, match=message):
        verifier("text", label)


def test_a_language_needs_a_detector():
    with pytest.raises(ValueError, match="detect_language must be given"):
        IfevalVerifier()("text", {"func_name": "validate_response_language", "language": "de"})
