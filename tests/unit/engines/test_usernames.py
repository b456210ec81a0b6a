"""User names: what the templates yield, what they may not, and that 12 random characters are always left."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from broker.engines.usernames import UserNameTemplate
from broker.errors import InvalidRequest

NOW_MS = 1_700_000_000_123
VAULTS_POSTGRESQL = (
    '{{ printf "v-%s-%s-%s-%s" (.DisplayName | truncate 8) (.RoleName | truncate 8) (random 20) (unix_time) | truncate 63 }}'
)
VAULTS_MYSQL = (
    '{{ printf "v-%s-%s-%s-%s" (.DisplayName | truncate 10) (.RoleName | truncate 10) (random 20) (unix_time) | truncate 32 }}'
)


def render(template: str, display_name: str = "token-app", role: str = "readonly", max_bytes: int = 63) -> str:
    """One name from a template."""
    return UserNameTemplate(template, max_bytes).render(display_name, role, NOW_MS)


def test_vaults_default_for_postgresql() -> None:
    """Vault's own default yields what it yields there."""
    assert re.fullmatch(r"v-token-ap-readonly-[A-Za-z0-9]{20}-1700000000", render(VAULTS_POSTGRESQL))


def test_vaults_default_for_mysql_is_refused() -> None:
    """A template that truncates its own random part to 8 characters is refused when it is written."""
    with pytest.raises(InvalidRequest, match="invalid username template: 8 random characters survive"):
        UserNameTemplate(VAULTS_MYSQL, 32)


@pytest.mark.parametrize(
    ("template", "left"),
    [
        ("{{random 11}}", 11),
        ("{{.DisplayName}}-{{unix_time_millis}}", 0),
        ("{{uuid | truncate 24}}", 8),
        ("{{random 8 | hex}}", 8),
        ("{{random 8 | sha256}}", 8),
        ("{{random 8 | base64}}", 8),
        ("{{random 8}}{{.RoleName | sha256 | truncate 20}}", 8),
        ("{{random 40 | sha256 | truncate 20}}", 10),
        ("{{random 60 | truncate_sha256 14}}", 10),
        ("{{random 20 | hex | decode_hex}}", 0),
        ("{{random 20 | base64 | decode_base64}}", 0),
        ('{{printf "%.11s" (random 20)}}', 11),
        ('{{replace "x" (random 20) "xyz"}}', 0),
        ('{{random 60 | replace "a" "b"}}', 0),
        ('{{random 60 | replace "a-" "b"}}', 0),
        ("{{replace .RoleName `` (random 60)}}", 0),
        ('{{printf "%s%s" .DisplayName (random 20) | hex | truncate 40}}', 0),
        ('{{printf "%s%s" .DisplayName (random 20) | base64 | truncate 40}}', 0),
        ("{{random 20 | base64 | truncate 15}}", 11),
        ('{{if eq .RoleName "a"}}{{random 20}}{{else}}{{random 11}}{{end}}', 11),
        ('{{if eq .RoleName "a"}}{{random 20}}{{end}}', 0),
        ("{{or .DisplayName (random 20)}}", 0),
        ("{{and .DisplayName (random 20)}}", 0),
    ],
)
def test_too_little_randomness_is_refused(template: str, left: int) -> None:
    """However it is hashed, cut or branched: where a name could have fewer than 12 random characters, the template is refused."""
    with pytest.raises(InvalidRequest, match=f": {left} random characters survive"):
        UserNameTemplate(template, 255)


@pytest.mark.parametrize(
    ("template", "shape"),
    [
        ("{{random 12}}", r"[A-Za-z0-9]{12}"),
        ("v_{{ random 12 | lowercase }}", r"v_[a-z0-9]{12}"),
        ("{{random 12 | uppercase}}", r"[A-Z0-9]{12}"),
        ("{{uuid}}", r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"),
        ('{{uuid | replace "-" ""}}', r"[0-9a-f]{12}4[0-9a-f]{19}"),
        ("{{random 12 | hex}}", r"[0-9a-f]{24}"),
        ("{{random 12 | sha256 | truncate 24}}", r"[0-9a-f]{24}"),
        ("{{random 12 | base64}}", r"[A-Za-z0-9+/]{16}"),
        ("{{random 13 | base64}}", r"[A-Za-z0-9+/]{18}=="),
        ("{{.RoleName}}.{{random 12}}", r"readonly\.[A-Za-z0-9]{12}"),
        ("{{.RoleName | uppercase}}-{{random 12}}", r"READONLY-[A-Za-z0-9]{12}"),
        ('{{.DisplayName | replace "-" "_"}}-{{random 12}}', r"token_app-[A-Za-z0-9]{12}"),
        ("{{.DisplayName | truncate_sha256 20}}-{{random 12}}", r"token-app-[A-Za-z0-9]{12}"),
        ("{{truncate_sha256 9 .RoleName}}-{{random 12}}", r"readonly-[A-Za-z0-9]{12}"),
        ("{{truncate 3 .RoleName}}-{{random 12}}", r"rea-[A-Za-z0-9]{12}"),
        ("{{.RoleName | truncate 8 | hex}}-{{random 12}}", r"726561646f6e6c79-[A-Za-z0-9]{12}"),
        ("{{.RoleName | hex | decode_hex}}-{{random 12}}", r"readonly-[A-Za-z0-9]{12}"),
        ("{{.RoleName | base64 | decode_base64}}-{{random 12}}", r"readonly-[A-Za-z0-9]{12}"),
        ("{{unix_time}}-{{unix_time_millis}}-{{random 12}}", r"1700000000-1700000000123-[A-Za-z0-9]{12}"),
        ('{{timestamp "2006-01-02T15:04:05Z"}}-{{random 12}}', r"2023-11-14T22:13:20Z-[A-Za-z0-9]{12}"),
        ('{{printf "%s-%d-%v-%.3s%%" .RoleName 7 true "abcdef"}}-{{random 12}}', r"readonly-7-true-abc%-[A-Za-z0-9]{12}"),
        ('{{printf "%s" (printf "%s" .RoleName)}}-{{random 12}}', r"readonly-[A-Za-z0-9]{12}"),
        ('{{printf "%s-%s" unix_time (random 12)}}', r"1700000000-[A-Za-z0-9]{12}"),
        ("a {{- /* said */ -}} b{{random 12}}", r"ab[A-Za-z0-9]{12}"),
        ("{{/* a comment */}}{{random 12}}", r"[A-Za-z0-9]{12}"),
        ("x {{- random 12 -}} \n y", r"x[A-Za-z0-9]{12}y"),
        ("{{`raw`}}{{random 12}}", r"raw[A-Za-z0-9]{12}"),
        ("{{12}}{{true}}{{random 12}}", r"12true[A-Za-z0-9]{12}"),
        ('{{if eq .RoleName "a" "readonly"}}r{{else}}w{{end}}-{{random 12}}', r"r-[A-Za-z0-9]{12}"),
        ('{{if ne .RoleName "a"}}r{{end}}-{{random 12}}', r"r-[A-Za-z0-9]{12}"),
        (
            '{{if not (glob "read*" .RoleName)}}w{{else if glob "*ap*" .DisplayName}}a{{end}}-{{random 12}}',
            r"a-[A-Za-z0-9]{12}",
        ),
        ('{{if and .RoleName (eq .DisplayName "x")}}x{{else}}y{{end}}-{{random 12}}', r"y-[A-Za-z0-9]{12}"),
        ('{{if or "" 0}}x{{else}}y{{end}}-{{random 12}}', r"y-[A-Za-z0-9]{12}"),
        ("{{if .RoleName}}{{if 1}}a{{end}}{{end}}-{{random 12}}", r"a-[A-Za-z0-9]{12}"),
    ],
)
def test_functions_and_forms(template: str, shape: str) -> None:
    """Each function and each form of the language yields what Vault's does."""
    assert re.fullmatch(shape, render(template))


@pytest.mark.parametrize(
    ("template", "mistake"),
    [
        ("{{", r"at character 3: `{{` without its `}}`"),
        ("{{random 20", r"at character 12: `{{` without its `}}`"),
        ("{{}}", r"at character 3: '}}' where string or number"),
        ("ab{{.Name}}", r"at character 5: there is no \.Name; there are \.DisplayName and \.RoleName"),
        ("{{.DisplayName.x}}", r"at character 15: '\.x' where"),
        ("{{.}}", r"at character 3: '\.' is not understood"),
        ("{{$x := 1}}", r"at character 3: '\$' is not understood"),
        ("{{shell}}", r"at character 3: shell is no function; there are and, base64"),
        ("{{range .RoleName}}", r"at character 3: range is not supported"),
        ("{{with .RoleName}}", r"at character 3: with is not supported"),
        ("{{random}}", r"at character 3: random takes 1 arguments, not 0"),
        ("{{random 1 2}}", r"at character 3: random takes 1 arguments, not 2"),
        ("{{eq 1}}", r"at character 3: eq takes 2 or more arguments, not 1"),
        ('{{random "20"}}', r"at character 3: random takes a number here, not a text"),
        ("{{truncate 8 8}}", r"at character 3: truncate takes a text here, not a number"),
        ("{{truncate true .RoleName}}", r"at character 3: truncate takes a number here, not true or false"),
        ("{{random 0}}", r"at character 3: random takes a length from 1 to 512, not 0"),
        ("{{random 1000000}}", r"at character 3: random takes a length from 1 to 512"),
        ("{{random 9999999999}}", r"at character 10: the number is too large"),
        ("{{truncate 0 .RoleName}}", r"truncate takes a length above 0"),
        ("{{truncate_sha256 8 .RoleName}}", r"truncate_sha256 takes a length above 8"),
        ('{{.RoleName | "x"}}', r"at character 15: 'x' is no function, so nothing can be piped into it"),
        ("{{.RoleName | }}", r"at character 15: '}}' where"),
        ("{{(random 12}}", r"at character 13: '}}' where \| or \)"),
        ("{{random 12)}}", r"at character 12: '\)' where"),
        ("{{if .RoleName}}x", r"at character 3: {{if}} without its {{end}}"),
        ("{{if .RoleName}}x{{else}}y{{else}}z{{end}}", r"at character 3: {{if}} without its {{end}}"),
        ("x{{end}}", r"at character 4: {{end}} without its {{if}}"),
        ("x{{else}}", r"at character 4: {{else}} without its {{if}}"),
        ('{{"\\q"}}', r"at character 4: the escape \\q is not understood"),
        ('{{"open}}', r"at character 3: '\"' is not understood"),
        ("{{random 12x}}", r"at character 10: '1' is not understood"),
        ('{{printf "%q" .RoleName}}', r"printf knows %s, %v, %d and %%, not '%q'"),
        ('{{printf "%"}}', r"printf knows %s"),
        ('{{printf "%s"}}', r"printf has fewer values"),
        ('{{printf "x" 1}}', r"printf has 1 values more"),
        ('{{printf "%d" .RoleName}}', r"printf %d was given a text"),
        ('{{printf "%s" 1}}', r"printf %s was given a number"),
        ('{{decode_hex "xyz"}}', r"decode_hex was given something that is not hexadecimal"),
        ('{{decode_base64 "?"}}', r"decode_base64 was given something that is not base64"),
        ("{{random 12}}'", r"a name can't hold the character \"'\""),
        ('{{random 12}}"', r"a name can't hold the character '\"'"),
        ("{{random 12}}\\", r"a name can't hold the character '\\\\'"),
        ("{{random 12}};", r"a name can't hold the character ';'"),
        ("{{random 12}} ", r"a name can't hold the character ' '"),
        ("{{random 12}}\x00", r"a name can't hold the character '\\x00'"),
        ("{{random 12}}ä", r"a name can't hold the character 'ä'"),
        ("{{" + "(" * 40 + "random 12" + ")" * 40 + "}}", r"nested deeper than 32 levels"),
        ("{{if 1}}" * 40 + "{{end}}" * 40, r"nested deeper than 32 levels"),
        ("{{if 1}}{{else}}{{end}}" * 7 + "{{random 12}}", r"the conditions have over 64 outcomes"),
        ("x" * 4_097, r"it has over 4096 characters"),
        ('{{replace "" "%s" "%s"}}' % ("x" * 1_000, "y" * 1_000), r"replace makes the text too long"),  # noqa: UP031 - braces
    ],
)
def test_mistakes_are_named_with_their_place(template: str, mistake: str) -> None:
    """What can't be used is refused when it is written, with what and where."""
    with pytest.raises(InvalidRequest, match=mistake) as caught:
        UserNameTemplate(template, 255)
    assert str(caught.value).startswith("invalid username template: ")


@pytest.mark.parametrize(
    "display_name",
    ["o'neil", 'a"b', "a\\b", "a;b", "a b", "a\x00b", "a\nb", "hänß", "日本", "a\ud800b", "a@b", "{{random 1}}", ""],
)
def test_odd_names_are_made_harmless(display_name: str) -> None:
    """Whatever a token is called, each odd character becomes a dash, wherever its name is put."""
    template = UserNameTemplate('{{.DisplayName}}-{{.DisplayName | uppercase | replace "x" "yy"}}-{{random 12}}', 63)
    assert re.fullmatch(r"[A-Za-z0-9_.-]+", template.render(display_name, "r", NOW_MS))


def test_each_odd_character_becomes_one_dash() -> None:
    """Sanitising keeps the length, so that truncation means the same."""
    assert render("{{.DisplayName}}_{{random 12}}", "ä'b").startswith("--b_")


def test_conditions_see_names_as_they_are() -> None:
    """A condition compares what the token is really called, not what is left of it."""
    assert render('{{if eq .DisplayName "a@b"}}yes{{end}}{{random 12}}', "a@b").startswith("yes")


@pytest.mark.parametrize(
    ("display_name", "role", "start"),
    [
        ("d" * 500, "reader", "d" * 24 + "-reader-"),
        ("dev", "r" * 500, "dev-" + "r" * 27 + "-"),
        ("d" * 500, "r" * 500, "d" * 15 + "-" + "r" * 15 + "-"),
    ],
)
def test_long_names_give_way(display_name: str, role: str, start: str) -> None:
    """Where a name gets too long the longer of the outside names is cut first, and the random part stays whole."""
    name = render("{{.DisplayName}}-{{.RoleName}}-{{random 20}}", display_name, role, 52)
    assert re.fullmatch(re.escape(start) + "[A-Za-z0-9]{20}", name)


def test_fixed_parts_that_leave_no_room_are_refused() -> None:
    """A template whose fixed and random parts alone pass the database's limit is refused when it is written."""
    with pytest.raises(
        InvalidRequest, match="without display name and role a name has 40 characters, and this database allows 32"
    ):
        UserNameTemplate("{{random 40}}{{.RoleName}}", 32)


def test_a_name_that_only_then_fails_is_refused() -> None:
    """Where a function fails with just this display name, the request is refused and no other name is made up."""
    with pytest.raises(InvalidRequest, match="0 random characters"):
        UserNameTemplate('{{or (eq .RoleName "a") (random 20)}}', 63).render("x", "a", NOW_MS)


def test_names_differ() -> None:
    """No name comes twice, at one moment and for one caller."""
    template = UserNameTemplate(VAULTS_POSTGRESQL, 63)
    assert len({template.render("d", "r", NOW_MS) for _ in range(1_000)}) == 1_000


PIECES = st.sampled_from(
    [
        "{{", "}}", "{{-", "-}}", "{{if ", "{{else}}", "{{else if ", "{{end}}", "{{/*", "*/", "(", ")", "|", " ", ".DisplayName",
        ".RoleName", "random 12", "random 20", "truncate 8", "truncate_sha256 12", "unix_time", "uuid", '"%s-%s"', "printf", "eq",
        "not", "or", "and", "sha256", "hex", "decode_hex", "base64", "decode_base64", "replace", '"a"', '""', "`b`", "7", "-1", "true",
        "text", "'", "\\", "\x00", "ä", "timestamp", '"2006"', "lowercase", "glob", "\n", "$x", "range",
    ]
)  # fmt: skip
VALUES = st.recursive(
    st.sampled_from(["random 12", "random 20", "uuid", ".DisplayName", ".RoleName", "unix_time", '"x"']),
    lambda inner: (
        st.builds("({} | {})".format, inner, st.sampled_from(["truncate 20", "lowercase", "hex", "sha256", "base64"]))
        | st.builds('printf "%s-%.9s" ({}) ({})'.format, inner, inner)
        | st.builds("or ({}) ({})".format, inner, inner)
        | st.builds('replace "a" ({}) ({})'.format, inner, inner)
    ),
    max_leaves=6,
)
TEMPLATES = (
    st.lists(PIECES, max_size=24).map("".join)
    | st.text(max_size=40)
    | st.lists(VALUES, min_size=1, max_size=3).map(lambda values: "-".join(f"{{{{ {value} }}}}" for value in values))
)


@given(TEMPLATES, st.text(max_size=80), st.text(max_size=80), st.integers(12, 128), st.integers(0, 4_000_000_000_000))
@example("{{random 12}}", "", "", 12, 0)
@settings(deadline=None, max_examples=400)
def test_any_template_is_refused_or_keeps_the_rules(template: str, display: str, role: str, most: int, now_ms: int) -> None:
    """No template does anything but yield ASCII names within the limit, without dangerous characters, or raise `InvalidRequest`."""
    try:
        name = UserNameTemplate(template, most).render(display, role, now_ms)
    except InvalidRequest as error:
        assert str(error).startswith("invalid username template: ")  # noqa: PT017 - either outcome is right
        return
    assert 12 <= len(name) <= most
    assert re.fullmatch(r"[!-~]+", name)
    assert not set("'\"`\\;") & set(name)


@given(VALUES)
@settings(deadline=None, max_examples=200)
def test_accepted_templates_never_repeat_a_name(value: str) -> None:
    """Whatever was made of the random characters, enough is left that two names differ in more than one place."""
    try:
        template = UserNameTemplate(f"{{{{ {value} }}}}", 255)
    except InvalidRequest:
        return
    first, second = template.render("d", "r", NOW_MS), template.render("d", "r", NOW_MS)
    assert sum(one != other for one, other in zip(first, second, strict=False)) > 2
