"""The site builds without a warning or the network, says every public name, and its pages read easily."""

import importlib
import inspect
import json
import re
import shlex
import subprocess
import sys
from statistics import median

import pytest
import yaml
from pages import (
    CARDS,
    NOTEBOOK,
    PAGES,
    ROOT,
    blocks,
    name,
    notebook_index,
    notebook_pages,
    notebook_sections,
    prose,
    snippets,
    words,
)

# Modules whose public classes and functions the API reference documents; packages by their __all__.
MODULES = [
    "torchrl_vip",
    "torchrl_vip.curves",
    "torchrl_vip.demonstrations.store",
    "torchrl_vip.evaluation.calibration",
    "torchrl_vip.evaluation.clips",
    "torchrl_vip.evaluation.metrics",
    "torchrl_vip.envs",
    "torchrl_vip.envs.named",
    "torchrl_vip.losses",
    "torchrl_vip.merging",
    "torchrl_vip.planning",
    "torchrl_vip.serving",
]
# Of command lines and of the numbering of plans, in a module that others import from.
NOT_FOR_USERS = {f"torchrl_vip.demonstrations.store.{name}" for name in ("SEEDS", "output_folder")}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site."""
    pytest.importorskip("furo", reason="the extra docs")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html"]
    built = subprocess.run(
        [*command, "-d", folder / "doctrees", ROOT / "docs", folder / "html"],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert built.returncode == 0, built.stderr
    return folder / "html"


def public_names(module: str) -> list[str]:
    imported = importlib.import_module(module)
    if hasattr(imported, "__all__"):
        return [f"{module}.{name}" for name in imported.__all__]
    return [
        f"{module}.{name}"
        for name, thing in vars(imported).items()
        if not name.startswith("_")
        and (inspect.isclass(thing) or inspect.isfunction(thing))
        and thing.__module__ == module
    ]


@pytest.mark.slow
def test_every_public_name_is_in_the_api_reference(site):
    from sphinx.util.inventory import InventoryFile

    inventory = InventoryFile.loads((site / "objects.inv").read_bytes(), uri="")
    documented = {
        name for kind, names in inventory.data.items() if kind.startswith("py:") for name in names
    }
    missing = [
        name
        for module in MODULES
        for name in public_names(module)
        if name not in documented | NOT_FOR_USERS
    ]
    assert not missing, f"give each a line in docs/api/: {missing}"


@pytest.mark.slow
def test_the_site_fetches_nothing(site):
    for page in site.rglob("*.html"):
        html = page.read_text()
        fetched = re.findall(
            r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=\"(https?:[^\"]*)", html
        )
        assert not fetched, f"{page.name} loads {fetched}"
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*['\"]?https?:", sheet.read_text()), sheet


# How do I set a goal per environment? Which weights may I use commercially? My camera's frames are BGR?
# How do I use my R3M weights? Why does the arm fool it?
NEWCOMERS = (
    "environments.md#a-goal-for-each-environment",
    "weights.md#which-weights-may-i-use-commercially",
    "environments.md#frames-that-are-bgr-or-upside-down",
    "weights.md#r3m",
    "goals.md#why-the-arm-fools-it",
)


@pytest.mark.parametrize("answer", NEWCOMERS)
def test_the_readme_links_the_answers_to_a_newcomers_questions(answer):
    page, anchor = answer.split("#")
    headings = re.findall(r"^#+ (.*)$", (ROOT / "docs" / page).read_text(), re.MULTILINE)
    assert f"](docs/{answer})" in (ROOT / "README.md").read_text()
    assert anchor in {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.slow
def test_a_newcomers_questions_are_linked_from_the_first_page(site):
    first = (site / "index.html").read_text()
    for answer in NEWCOMERS:
        page, heading = answer.replace(".md", ".html").split("#")
        assert f'href="{page}#{heading}"' in first
        assert f'id="{heading}"' in (site / page).read_text()


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 100


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *CARDS], ids=name)
def test_relative_links_lead_somewhere(page):
    if not page.exists():
        pytest.skip(f"no {name(page)}")
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page} links to {target}, which is not there"


# Of huggingface/hub-docs, modelcard.md; base_model and datasets are names of repositories of the Hub.
HUB_FIELDS = {
    "base_model",
    "datasets",
    "language",
    "library_name",
    "license",
    "license_link",
    "license_name",
    "metrics",
    "model-index",
    "pipeline_tag",
    "tags",
}


@pytest.mark.parametrize("card", CARDS, ids=name)
def test_a_card_begins_with_the_hubs_header(card):
    begin, header, body = card.read_text().split("---\n", 2)
    fields = yaml.safe_load(header)
    assert begin == "" and body.startswith("\n# ")
    assert set(fields) <= HUB_FIELDS
    assert fields["library_name"] == "torchrl_vip"
    assert fields["pipeline_tag"] == "image-feature-extraction"
    assert all(re.fullmatch(r"[a-z][a-z0-9-]*", tag) for tag in fields["tags"])
    for repository in [fields.get("base_model", []), fields.get("datasets", [])]:
        names = [repository] if isinstance(repository, str) else repository
        assert all(re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) for name in names)
    # Each licence of the header is in the body and in the checkpoint's own config.
    config = json.loads((card.parent / "config.json").read_text())
    for licence in fields["license"]:
        assert licence in body.lower() and licence in config["licence"].lower()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_page_is_plain(page):
    for sentence in prose(page):
        assert words(sentence) <= 60, f"{words(sentence)} words, 60 at most: {sentence}"
    assert median(map(words, prose(page)) if prose(page) else [0]) <= 20
    assert "scratch script" not in page.read_text().lower(), "the notebook is the place for those"


def test_code_that_is_not_run_says_why():
    for page in PAGES:
        for block in blocks(page):
            assert block.reason is None or len(block.reason.split()) >= 3, (name(page), block)
            if block.language == "python":
                compile(block.code, name(page), "exec")


@pytest.mark.parametrize("page", notebook_pages(), ids=name)
def test_a_notebook_page_says_when_each_section_was_measured(page):
    dates = []
    for title, text, measured in ((s.title, s.text, s.dates) for s in notebook_sections(page)):
        # Code, links and days are no measurements.
        prose = re.sub(r"`[^`]*`|\]\([^)]*\)|\d{4}-\d\d-\d\d", "", text)
        assert measured or not re.search(r"\d", prose), (
            f'{name(page)}, "{title}": the first line has to be like *Measured 2026-11-23.*'
        )
        dates += measured
    first = min(dates, default=None)
    assert page.name[:10] == first, f"a page's name begins with its first day, {first}"


def test_the_notebooks_index_lists_all_days():
    """If not: python scripts/check_docs.py --write-index"""
    assert (NOTEBOOK / "index.md").read_text().endswith("-->\n" + notebook_index())


# --- commands ---------------------------------------------------------------------------------------


def commands() -> list[tuple[str, list[str]]]:
    """Lines that call this project, with their page."""
    found = []
    for page in PAGES:
        shell = [b.code for b in blocks(page) if b.language == "bash"]
        # also those in the text, between backticks
        shell += re.findall(
            r"`((?:python (?:-m torchrl_vip|[\w/]+\.py)|make )[^`\n]*)`", page.read_text()
        )
        for code in shell:
            for line in code.replace("\\\n", " ").splitlines():
                try:
                    command = shlex.split(line, comments=True)
                except ValueError:
                    continue
                if (
                    command[:1] == ["make"]
                    or "-m" in command
                    or any(w.endswith(".py") for w in command)
                ):
                    found.append((name(page), command))
    return found


def test_commands_name_targets_and_files_that_exist():
    makefile = (ROOT / "Makefile").read_text()
    for page, command in commands():
        if command[0] == "make":
            assert re.search(rf"^{command[1]}:", makefile, re.MULTILINE), (page, command)
        for word in command:
            if re.fullmatch(r"(examples|benchmarks|scripts)/\w+\.py", word):
                assert (ROOT / word).exists(), f"{page}: {word}"


def test_fields_of_the_training_exist():
    config = yaml.safe_load((ROOT / "torchrl_vip/pretrain/config.yaml").read_text())
    fields = {*config, "preset", *(f"data.{field}" for field in config["data"])}
    for page, command in commands():
        if "torchrl_vip.pretrain" in command:
            given = [w.split("=")[0] for w in command[command.index("torchrl_vip.pretrain") + 1 :]]
            unknown = {w for w in given if not w.startswith("-")} - fields
            assert not unknown, f"{page}: {shlex.join(command)}: {unknown}"


@pytest.mark.slow
def test_flags_of_scripts_exist():
    """Every --flag of a command is in the --help of what it calls."""
    used = {}
    for page, command in commands():
        for i, word in enumerate(command):
            script = re.fullmatch(r"(examples|benchmarks|scripts)/\w+\.py", word) and [word]
            module = (
                word == "-m" and command[i + 1].startswith("torchrl_vip.") and command[i : i + 2]
            )
            flags = {w.split("=")[0] for w in command[i + 1 :] if w.startswith("--")} - {"--help"}
            if (script or module) and flags:
                used.setdefault(tuple(script or module), []).append((page, flags))
    assert used
    for program, calls in used.items():
        helped = subprocess.run(
            [sys.executable, *program, "--help"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert helped.returncode == 0, (program, helped.stderr)
        for page, flags in calls:
            unknown = {f for f in flags if not re.search(rf"{f}\b", helped.stdout)}
            assert not unknown, f"{page}: {' '.join(program)} has no {unknown}"


def test_pages_have_code_that_runs():
    assert sum(len(snippets(page)) for page in PAGES) >= 20
