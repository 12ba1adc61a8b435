"""Strict loading: what is written takes effect as written, or is a helpful error."""

import os
from pathlib import Path

import kconfiglib
import pytest

from lib.kconfig.config_py import Config, ConfigError, parse_config, render_config
from lib.kconfig.strict import StrictKconfig

TREE = """\
mainmenu "Test"

choice
\tprompt "Mode"
\tdefault SINGLE

config SINGLE
\tbool "Single run"

config ABLATION
\tbool "Ablation"

config MATRIX
\tbool "Matrix"

endchoice

config MODE
\tstring
\tdefault "ablation" if ABLATION
\tdefault "matrix" if MATRIX
\tdefault "single"

config GPT2_BLOCK_SIZE
\tint "Context"
\trange 8 1024
\tdefault 128
\thelp
\t  Tokens that a model sees.

config GPT2_BIAS
\tbool "Bias"
\tdefault y

source "Kconfig.more"
"""
MORE = """\
menu "Attention"

config MLA
\tbool "Latent attention"

config LATENT_DIM
\tint "Latent width"
\tdepends on MLA
\tdefault 16

config LATENT_RECIPROCITY
\tbool "Reciprocity" if !MATRIX
\tdepends on MLA && (GPT2_BLOCK_SIZE > 64 || GPT2_BIAS)

config WIDTH
\tint "Width" if MATRIX
\tdefault 64 if MLA
\tdefault 32

config HEAVY
\tbool "Heavy"
\tselect MLA

config LEARNING_RATE
\tstring "Rate"
\tdefault "6e-4"

config OUTPUT_DIR
\tstring "Folder"
\tdefault "results"

config MASK
\thex "Mask"
\tdefault 0x10

endmenu
"""
TYPES = {"LEARNING_RATE": float}
NAMES = {
    "aliases": {"LR": "LEARNING_RATE", "KIND": lambda v: {v.upper(): "y"}},
    "prefixes": ("GPT2_",),
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "Kconfig").write_text(TREE)
    (tmp_path / "Kconfig.more").write_text(MORE)
    (tmp_path / "defconfigs").mkdir()
    return tmp_path


def preset(root: Path, text: str, name: str = "x") -> Path:
    path = root / "defconfigs" / name
    path.write_text(text)
    return path


def strict(root: Path) -> StrictKconfig:
    return StrictKconfig(root / "Kconfig", TYPES, **NAMES)


def load(root: Path, text: str, *overrides: str) -> Config:
    return strict(root).load([preset(root, text)], overrides)


def override(root: Path, config: Config, *overrides: str) -> Config:
    return strict(root).override(config, overrides)


def refusal(root: Path, text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as refused:
        load(root, text, *overrides)
    return str(refused.value)


# The lines that kconfiglib lets pass in silence or with a warning, and what is said.
MALFORMED = {
    "blanks": ("CONFIG_GPT2_BIAS = y", "write CONFIG_GPT2_BIAS=y"),
    "blank before": ("CONFIG_GPT2_BLOCK_SIZE =8", "write CONFIG_GPT2_BLOCK_SIZE=8"),
    "blank after": ("CONFIG_GPT2_BLOCK_SIZE= 8", "write CONFIG_GPT2_BLOCK_SIZE=8"),
    "trailing blank": ("CONFIG_GPT2_BIAS=y ", "write CONFIG_GPT2_BIAS=y"),
    "misspelled": ("CONFIG_GPT2_BLOK_SIZE=8", "nearest: CONFIG_GPT2_BLOCK_SIZE"),
    "yolo": ("CONFIG_GPT2_BIAS=yolo", "CONFIG_GPT2_BIAS must be y or n, not yolo"),
    "unmet": ("CONFIG_LATENT_DIM=8", "CONFIG_LATENT_DIM depends on MLA, which is n"),
    "comment on a bool": ("CONFIG_GPT2_BIAS=y # on", "comment needs a line of its own"),
    "comment on a string": (
        'CONFIG_OUTPUT_DIR="a#b" # here',
        'end the line after CONFIG_OUTPUT_DIR="a#b"',
    ),
    "True": ("CONFIG_GPT2_BIAS=True", "must be y or n, not True"),
    "quoted y": ('CONFIG_GPT2_BIAS="y"', 'must be y or n, not "y"'),
    "out of range": (
        "CONFIG_GPT2_BLOCK_SIZE=4096",
        "CONFIG_GPT2_BLOCK_SIZE=4096 is outside its range, 8 to 1024",
    ),
    "comment on an int": ("CONFIG_GPT2_BLOCK_SIZE=15 # on", "=15"),
    "unquoted string": ("CONFIG_OUTPUT_DIR=a", 'write CONFIG_OUTPUT_DIR="a"'),
    "no prefix": ("GPT2_BIAS=y", "prefix CONFIG_ is missing: write CONFIG_GPT2_BIAS=y"),
    "no prompt": ('CONFIG_MODE="matrix"', "CONFIG_MODE has no prompt"),
    "int not set": ("# CONFIG_GPT2_BLOCK_SIZE is not set", "only a bool"),
    "unknown not set": ("# CONFIG_GPT2_BIASES is not set", "nearest: CONFIG_GPT2_BIAS"),
    "almost not set": ("# CONFIG_GPT2_BIAS is not set.", "write exactly"),
    "not set, blank": ("#CONFIG_GPT2_BIAS is not set ", "write exactly"),
    "int for a bool": ("CONFIG_GPT2_BIAS=1", "must be y or n, not 1"),
    "text for an int": ("CONFIG_GPT2_BLOCK_SIZE=abc", "must be a whole number"),
    "float for an int": ("CONFIG_GPT2_BLOCK_SIZE=8.5", "must be a whole number"),
    "open string": ('CONFIG_OUTPUT_DIR="a', 'write CONFIG_OUTPUT_DIR="a"'),
    "choice left open": ("# CONFIG_SINGLE is not set", "leaves the choice 'Mode' open"),
    "garbage": ("hello", "neither an assignment nor a comment"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_line_is_refused_with_place_and_reason(
    root: Path, case: str
) -> None:
    line, said = MALFORMED[case]
    text = refusal(root, f"# A preset\n\n{line}\n")
    assert text.startswith("defconfigs/x:3: ")
    assert said in text
    assert "\n" not in text


def test_kconfiglib_alone_lets_some_of_them_pass(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reason that lib/kconfig/dotconfig.py exists: not one of these is even warned
    of."""
    monkeypatch.setenv("srctree", str(root))
    silent = ("blanks", "blank before", "misspelled", "yolo", "unmet", "int not set")
    for case in (*silent, "comment on a bool", "comment on a string", "trailing blank"):
        tree = kconfiglib.Kconfig("Kconfig", warn_to_stderr=False)
        tree.load_config(str(preset(root, f"{MALFORMED[case][0]}\n")))
        assert tree.warnings == [], case


def test_two_members_of_a_choice_exclude_each_other(root: Path) -> None:
    text = refusal(root, "CONFIG_ABLATION=y\n# why\nCONFIG_MATRIX=y\n")
    assert text == (
        "defconfigs/x:3: CONFIG_MATRIX=y excludes CONFIG_ABLATION=y (first in line 1): "
        "both are in the choice 'Mode'"
    )


def test_a_duplicate_is_refused_even_if_equal(root: Path) -> None:
    text = refusal(root, "CONFIG_GPT2_BIAS=y\nCONFIG_GPT2_BIAS=y\n")
    assert text == "defconfigs/x:2: CONFIG_GPT2_BIAS is set twice (first in line 1)"


def test_all_faults_of_a_file_are_told_in_order(root: Path) -> None:
    lines = [line for line, _ in MALFORMED.values()]
    places = [p.split(": ")[0] for p in refusal(root, "\n".join(lines)).split("\n")]
    wanted = [f"defconfigs/x:{n}" for n in range(1, len(lines) + 1)]
    # A symbol's second good line is a duplicate, so each line has its own fault.
    assert places == wanted


def test_every_unmet_condition_is_named_with_its_value_and_origin(root: Path) -> None:
    text = refusal(
        root,
        "CONFIG_MATRIX=y\nCONFIG_GPT2_BLOCK_SIZE=8\n# CONFIG_GPT2_BIAS is not set\n"
        "CONFIG_LATENT_RECIPROCITY=y\n",
    )
    assert "defconfigs/x:4: CONFIG_LATENT_RECIPROCITY depends on" in text
    assert "MLA, which is n;" in text
    assert "MATRIX is y (defconfigs/x:1)" in text
    assert "GPT2_BLOCK_SIZE is 8 (defconfigs/x:2)" in text
    assert "GPT2_BIAS is n (defconfigs/x:3)" in text


def test_a_selected_symbol_cannot_be_switched_off(root: Path) -> None:
    text = refusal(root, "CONFIG_HEAVY=y\n# CONFIG_MLA is not set\n")
    assert "CONFIG_MLA=n has no effect: it is y, selected by HEAVY" in text


def test_values_are_typed_and_origins_kept(root: Path) -> None:
    text = (
        "# purpose\nCONFIG_ABLATION=y\nCONFIG_MLA=y\nCONFIG_LATENT_DIM=8\n"
        '# CONFIG_GPT2_BIAS is not set\nCONFIG_LEARNING_RATE="1e-3"\n'
        'CONFIG_OUTPUT_DIR="a \\"b\\" \\\\ c"\nCONFIG_MASK=0x1F\n'
    )
    config = load(root, text)
    expected = {
        "MODE": "ablation",
        "MLA": True,
        "LATENT_DIM": 8,
        "GPT2_BIAS": False,
        "LEARNING_RATE": 1e-3,
        "OUTPUT_DIR": 'a "b" \\ c',
        "MASK": 31,
        "GPT2_BLOCK_SIZE": 128,
        "WIDTH": 64,
    }
    assert {name: config.values[name] for name in expected} == expected
    assert config.origin("LATENT_DIM") == "defconfigs/x:4"
    assert config.origin("GPT2_BIAS") == "defconfigs/x:5"
    assert config.origin("GPT2_BLOCK_SIZE") == "default"
    # What is derived has the origin of what decided it.
    assert config.origin("MODE") == "defconfigs/x:2"
    assert config.origin("WIDTH") == "defconfigs/x:3"


def test_a_hidden_number_without_a_value_is_left_out(root: Path) -> None:
    assert "LATENT_DIM" not in load(root, "").values


def test_a_string_symbol_that_is_no_number_is_refused(root: Path) -> None:
    said = refusal(root, '\nCONFIG_LEARNING_RATE="fast"\n')
    assert said.startswith("defconfigs/x:2: CONFIG_LEARNING_RATE='fast'")


def test_a_good_file_loads_as_kconfiglib_loads_it(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = preset(
        root,
        "CONFIG_MATRIX=y\nCONFIG_HEAVY=y\nCONFIG_LATENT_DIM=3\nCONFIG_WIDTH=5\n"
        "# CONFIG_GPT2_BIAS is not set\n",
    )
    tree = strict(root).open([path])
    monkeypatch.setenv("srctree", str(root))
    theirs = kconfiglib.Kconfig("Kconfig")
    theirs.load_config(str(path))
    theirs.write_config(str(root / "theirs"), header="")
    assert tree.dotconfig() == (root / "theirs").read_text()
    theirs.write_min_config(str(root / "theirs"), header="")
    assert tree.minimal() == (root / "theirs").read_text()


def test_a_tree_that_was_used_loads_as_one_just_parsed(root: Path) -> None:
    """Whatever it has loaded or refused before: choices, selects, hidden symbols."""
    clamped = (
        'config LOW\n\tint "Low"\n\trange 5 9\n\tdefault 2 if HEAVY\n\tdefault 6\n'
    )
    (root / "Kconfig.more").write_text(MORE + clamped)
    texts = [line for line, _ in MALFORMED.values()]
    texts += ["", "CONFIG_MATRIX=y\nCONFIG_WIDTH=5\n", "CONFIG_HEAVY=y\n"]
    texts += ["CONFIG_ABLATION=y\nCONFIG_MLA=y\nCONFIG_LATENT_DIM=8\n"]
    words = [[], ["MATRIX=y"], ["MLA=y", "LATENT_DIM=3"], ["GPT2_BLOCK_SIZE=4096"]]
    files = [preset(root, text, str(n)) for n, text in enumerate(texts)]
    cases = [(file, words[n % 4]) for n, file in enumerate(files)]
    cases += [(file, words[n]) for n in range(4) for file in files[-4:]]

    def outcome(kconfig: StrictKconfig, file: Path, overrides: list[str]) -> object:
        try:
            config = kconfig.load([file], overrides)
        except ConfigError as error:
            return str(error)
        dotconfig = kconfig.render_dotconfig(config)
        return config, dotconfig, kconfig.changed(config), kconfig.ranges(config)

    used = strict(root)
    for case in [*cases, *cases[::-3]]:
        assert outcome(used, *case) == outcome(strict(root), *case), case
    (root / "Kconfig.more").write_text(MORE + clamped.replace(" if HEAVY", ""))
    used, plain = strict(root), preset(root, "")
    said = outcome(used, plain, [])
    assert "default value 2 on LOW" in str(said) and outcome(used, plain, []) == said


def test_fragments_merge_and_the_later_wins(root: Path) -> None:
    one = preset(root, "CONFIG_ABLATION=y\nCONFIG_GPT2_BLOCK_SIZE=64\n", "a")
    two = preset(root, "CONFIG_MATRIX=y\nCONFIG_GPT2_BLOCK_SIZE=32\n", "b")
    config = strict(root).load([one, two])
    assert config.values["MODE"] == "matrix"
    assert config.values["GPT2_BLOCK_SIZE"] == 32
    assert config.origin("GPT2_BLOCK_SIZE") == "defconfigs/b:2"
    assert strict(root).load([two, one]).values["MODE"] == "ablation"


def test_a_fragment_that_switches_off_what_another_needs_is_refused(root: Path) -> None:
    one = preset(root, "CONFIG_MLA=y\nCONFIG_LATENT_DIM=8\n", "a")
    two = preset(root, "# CONFIG_MLA is not set\n", "b")
    with pytest.raises(ConfigError) as refused:
        strict(root).load([one, two])
    assert str(refused.value) == (
        "defconfigs/a:2: CONFIG_LATENT_DIM depends on MLA, which is n (defconfigs/b:1)"
    )


# ---- the Kconfig files themselves -----------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("depends on MLA\n", "depends on MLB\n", "undefined symbol MLB"),
        ("default 128", "default 4", "clamped"),
        ("default 128", "defaults 128", "Kconfig:"),
        ('source "Kconfig.more"', 'source "Kconfig.less"', "Kconfig.less"),
        ("select MLA", "select LATENT_RECIPROCITY", "unsatisfied|direct dependencies"),
    ],
)
def test_a_fault_in_kconfig_is_an_error(
    root: Path, old: str, new: str, said: str
) -> None:
    for name in ("Kconfig", "Kconfig.more"):
        path = root / name
        path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ConfigError, match=said):
        load(root, "CONFIG_HEAVY=y\n")


def test_the_environment_has_no_say(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel developer's shell may well have these."""
    monkeypatch.setenv("srctree", "/nonexistent")
    monkeypatch.setenv("CONFIG_", "KERNEL_")
    monkeypatch.setenv("KCONFIG_CONFIG_HEADER", "# theirs\n")
    monkeypatch.chdir("/")
    assert load(root, "CONFIG_MLA=y\n").values["MLA"] is True
    assert os.environ["srctree"] == "/nonexistent"


# ---- overrides ------------------------------------------------------------------


def test_overrides_by_symbol_prefix_alias_and_function(root: Path) -> None:
    config = load(
        root, "", "CONFIG_MLA=y", "BLOCK_SIZE=64", "LR=1e-4", "KIND=matrix", "WIDTH=9"
    )
    assert config.values["GPT2_BLOCK_SIZE"] == 64
    assert config.values["LEARNING_RATE"] == 1e-4
    assert config.values["MODE"] == "matrix"
    assert {n: config.origin(n) for n in ("MLA", "LEARNING_RATE", "MODE", "WIDTH")} == {
        "MLA": "command line",
        "LEARNING_RATE": "command line",
        "MODE": "command line",
        "WIDTH": "command line",
    }


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["BLOK_SIZE=64"],
            "BLOK_SIZE=64: there is no setting BLOK_SIZE; nearest: BLOCK_",
        ),
        (["blok_size=64"], "nearest: BLOCK_SIZE"),
        (["LR2=1"], "nearest: LR"),
        (["BLOCK_SIZE=4"], "CONFIG_GPT2_BLOCK_SIZE=4 is outside its range, 8 to 1024"),
        (["BLOCK_SIZE="], "must be a whole number"),
        (["BLOCK_SIZE=1e3"], "must be a whole number"),
        (["BIAS=True"], "must be y or n, not True"),
        (["LR=fast"], "CONFIG_LEARNING_RATE='fast'"),
        (["LATENT_DIM=4"], "CONFIG_LATENT_DIM depends on MLA, which is n"),
        (["mode=matrices"], "MODE=matrices must be one of ablation, matrix, single"),
        (["KIND=yolo"], "KIND=yolo: unknown symbol CONFIG_YOLO"),
        (["SINGLE=n"], "leaves the choice 'Mode' open: write one of CONFIG_ABLATION=y"),
        (["ABLATION=y", "MATRIX=y"], "CONFIG_MATRIX=y excludes CONFIG_ABLATION=y"),
        (["LR=1", "LEARNING_RATE=2"], "CONFIG_LEARNING_RATE is set twice"),
        (["BLOCK_SIZE"], "not of the form KEY=VALUE"),
        (["OUTPUT_DIR=a\nCONFIG_MLA=y"], "control characters"),
        (
            ["HEAVY=y", "MLA=n"],
            "CONFIG_MLA=n has no effect: it is y, selected by HEAVY",
        ),
    ],
)
def test_an_override_takes_effect_or_is_refused(
    root: Path, overrides: list[str], said: str
) -> None:
    text = refusal(root, "", *overrides)
    assert all(line.startswith("command line: ") for line in text.split("\n")[:1])
    assert said in text
    with pytest.raises(ConfigError) as refused:  # the same over a config.py
        override(root, load(root, ""), *overrides)
    assert str(refused.value) == text


@pytest.mark.parametrize(("typed", "value"), [("1", True), ("0", False)])
def test_a_switch_may_be_typed_as_one_or_zero(
    root: Path, typed: str, value: bool
) -> None:
    assert load(root, "", f"BIAS={typed}").values["GPT2_BIAS"] is value


def test_a_key_that_two_prefixes_fit_is_refused(root: Path) -> None:
    path = root / "Kconfig.more"
    path.write_text(path.read_text() + '\nconfig RA_BIAS\n\tbool "Bias"\n')
    with pytest.raises(ConfigError, match="write GPT2_BIAS or RA_BIAS"):
        StrictKconfig(root / "Kconfig", prefixes=("GPT2_", "RA_")).load([], ["BIAS=y"])


@pytest.mark.parametrize("value", ["it's", 'a "b" c', "$(touch x)", "x=y", "ä b", "\\"])
def test_strings_need_no_quotes_on_the_command_line(root: Path, value: str) -> None:
    config = load(root, "", f"OUTPUT_DIR={value}")
    assert config.values["OUTPUT_DIR"] == value
    dotconfig = root / ".config"
    dotconfig.write_text(strict(root).render_dotconfig(config))
    again = strict(root).refresh(dotconfig)
    assert again.values == config.values


def test_overrides_of_a_config_py_keep_what_they_do_not_touch(root: Path) -> None:
    text = (
        'CONFIG_MLA=y\nCONFIG_LATENT_DIM=8\nCONFIG_LEARNING_RATE="1e-3"\n'
        "CONFIG_MATRIX=y\nCONFIG_WIDTH=5\n"
    )
    config = parse_config(render_config(load(root, text), TYPES), "config.py")
    changed = override(root, config, "BLOCK_SIZE=64")
    assert changed.values == config.values | {"GPT2_BLOCK_SIZE": 64}
    assert changed.origins == config.origins | {"GPT2_BLOCK_SIZE": "command line"}
    assert override(root, config) == config


def test_an_override_that_hides_a_symbol_returns_it_to_its_default(root: Path) -> None:
    config = load(root, "CONFIG_MLA=y\nCONFIG_LATENT_DIM=8\n")
    changed = override(root, config, "MLA=n")
    assert "LATENT_DIM" not in changed.values
    assert changed.values["WIDTH"] == 32  # the default that now holds
    assert set(changed.origins) == {"MLA", "WIDTH"}


def test_an_override_that_invalidates_another_value_is_refused(root: Path) -> None:
    more = (root / "Kconfig.more").read_text()
    changed = more.replace("\tdefault 16", "\trange 1 4 if HEAVY\n\tdefault 16")
    (root / "Kconfig.more").write_text(changed)
    config = load(root, "CONFIG_MLA=y\nCONFIG_LATENT_DIM=8\n")
    with pytest.raises(ConfigError) as refused:
        override(root, config, "HEAVY=y")
    assert str(refused.value) == (
        "defconfigs/x:2: CONFIG_LATENT_DIM=8 is outside its range, 1 to 4"
    )


def test_a_member_of_a_choice_replaces_the_one_that_was_chosen(root: Path) -> None:
    changed = override(root, load(root, "CONFIG_ABLATION=y\n"), "MATRIX=y")
    assert (changed.values["ABLATION"], changed.values["MODE"]) == (False, "matrix")
    assert changed.origins == {"MATRIX": "command line", "MODE": "command line"}


def test_an_old_config_py_keeps_its_values_under_new_defaults(root: Path) -> None:
    config = load(root, "CONFIG_MLA=y\n")
    path = root / "Kconfig"
    path.write_text(path.read_text().replace("default 128", "default 256"))
    changed = override(root, config, "BIAS=n")
    assert changed.values["GPT2_BLOCK_SIZE"] == 128


def test_a_config_py_of_another_kconfig_is_refused(root: Path) -> None:
    config = load(root, "")
    gone = Config(config.values | {"GONE": 1}, config.origins)
    with pytest.raises(ConfigError, match="unknown symbol CONFIG_GONE"):
        override(root, gone, "BIAS=n")
    changed = Config(config.values | {"MODE": "other"}, config.origins)
    with pytest.raises(
        ConfigError,
        match="CONFIG_MODE = 'other' is not possible: Kconfig makes it 'single'",
    ):
        override(root, changed, "BIAS=n")


# ---- .config and back -----------------------------------------------------------


def test_origins_survive_an_edit_of_other_symbols(root: Path) -> None:
    text = "CONFIG_MLA=y\nCONFIG_GPT2_BLOCK_SIZE=128\nCONFIG_ABLATION=y\n"
    before = load(root, text, "LR=1e-3")
    dotconfig = root / ".config"
    lines = strict(root).render_dotconfig(before).split("\n")
    edited = [{"CONFIG_LATENT_DIM=16": "CONFIG_LATENT_DIM=9"}.get(x, x) for x in lines]
    dotconfig.write_text("\n".join(edited))
    after = strict(root).refresh(dotconfig, before)
    assert after.values == before.values | {"LATENT_DIM": 9}
    line = edited.index("CONFIG_LATENT_DIM=9") + 1
    assert after.origins == before.origins | {"LATENT_DIM": f".config:{line}"}
    # Its line may move; then the origin moves along.
    dotconfig.write_text("\n".join(["# moved", *edited]))
    moved = strict(root).refresh(dotconfig, after)
    assert moved.origin("LATENT_DIM") == f".config:{line + 1}"
    # Back at the default it is one again.
    dotconfig.write_text("\n".join(lines))
    assert strict(root).refresh(dotconfig, moved) == before


def test_without_a_config_py_only_what_is_not_default_comes_from_dotconfig(
    root: Path,
) -> None:
    config = load(root, "CONFIG_MATRIX=y\nCONFIG_WIDTH=5\n")
    dotconfig = root / ".config"
    dotconfig.write_text(strict(root).render_dotconfig(config))
    fresh = strict(root).refresh(dotconfig)
    assert fresh.values == config.values
    assert set(fresh.origins) == {"MATRIX", "MODE", "WIDTH"}
    assert all(origin.startswith(".config:") for origin in fresh.origins.values())


def test_lines_without_effect_are_found_with_their_reasons(root: Path) -> None:
    lines = [
        "CONFIG_MATRIX=y",
        "CONFIG_GONE=5",
        "CONFIG_LATENT_DIM=4",
        "CONFIG_WIDTH=7",
        "CONFIG_GPT2_BLOCK_SIZE=9999",
        "CONFIG_GPT2_BIAS = n",
        "CONFIG_ABLATION=y",
    ]
    dotconfig = root / ".config"
    dotconfig.write_text("\n".join(lines))
    found = strict(root).unusable_lines(dotconfig)
    assert list(found) == [2, 3, 5, 6, 7]
    assert found[3] == ".config:3: CONFIG_LATENT_DIM depends on MLA, which is n"
    dotconfig.write_text(f"{lines[0]}\n{lines[3]}\n")
    assert strict(root).unusable_lines(dotconfig) == {}
    config = strict(root).refresh(dotconfig)
    assert (config.values["WIDTH"], config.values["MODE"]) == (7, "matrix")


def test_minimal_keeps_only_what_differs_from_the_defaults(root: Path) -> None:
    path = preset(root, "CONFIG_SINGLE=y\nCONFIG_GPT2_BIAS=y\nCONFIG_MLA=y\n")
    assert strict(root).open([path]).minimal() == "CONFIG_MLA=y\n"


def test_a_refusal_names_the_places_of_symbols_unless_it_begins_with_one() -> None:
    origins = {"RATE": "defconfigs/x:3", "GRID": "command line"}
    config = Config({"RATE": 1.0, "GRID": ""}, origins)
    assert config.located("RATE=1.0 is too high") == (
        "RATE=1.0 is too high\n(RATE: defconfigs/x:3)"
    )
    ours = "command line: CONFIG_GRID: RATE: 'x' is not a number"
    assert config.located(ours) == ours


# ---- explain --------------------------------------------------------------------


def test_explain_tells_value_origin_range_and_conditions(root: Path) -> None:
    config = load(root, "CONFIG_MLA=y\nCONFIG_GPT2_BLOCK_SIZE=64\n")
    text = strict(root).explain(config, "GPT2_BLOCK_SIZE")
    for part in (
        "CONFIG_GPT2_BLOCK_SIZE = 64",
        "defconfigs/x:2",
        "Context",
        "8 to 1024",
        "Kconfig:24",
        "default     128",
        "Tokens that a model sees.",
    ):
        assert part in text
    text = strict(root).explain(config, "LATENT_RECIPROCITY")
    assert "default (Kconfig.more:11)" in text
    assert "MLA, which is y (defconfigs/x:1)" in text
    assert "!MATRIX, where MATRIX is n" in text
    text = strict(root).explain(config, "WIDTH")
    assert "follows     MLA" in text and "defconfigs/x:1" in text
    shown = strict(root).explain(config, "ABLATION")
    assert "instead of  SINGLE, MATRIX" in shown
    with pytest.raises(ConfigError, match="nearest: WIDTH"):
        strict(root).explain(config, "WIDHT")


def test_members_of_a_choice_are_found_by_the_value_that_they_give(root: Path) -> None:
    kconfig = strict(root)
    modes = {"ablation": "ABLATION", "matrix": "MATRIX", "single": "SINGLE"}
    assert kconfig.members_of("MODE") == modes
    for value, member in modes.items():
        assert kconfig.load([], [f"{member}=y"]).values["MODE"] == value
    assert kconfig.members_of("GPT2_BLOCK_SIZE") == {}
    assert kconfig.kinds["MODE"] == "string"
