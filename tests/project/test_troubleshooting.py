"""docs/troubleshooting.md has an entry for every message of the package, and names only options and commands that exist.

An entry is a bullet that begins with the message's first words in backticks. Words in capitals stand for what differs from
case to case (``unknown benchmark NAME``), ``…`` for any words; an entry may cover several messages that begin alike.
"""

import ast
import itertools
import re
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import NamedTuple

from sdsclip_hf.commands.cli import COMMANDS
from sdsclip_hf.config import SDSCLIPConfig
from sdsclip_hf.planning.plan import PlanArguments
from sdsclip_hf.prompts.arguments import PromptArguments
from sdsclip_hf.prompts.config import PromptConfig
from sdsclip_hf.scoring.arguments import ScoringArguments
from sdsclip_hf.training.arguments import DataArguments, ModelArguments

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "troubleshooting.md"
SOURCES = sorted(
    file for top in ("sdsclip_hf", "recipes") for file in (ROOT / top).rglob("*.py") if "_recipes" not in file.parts
)
HOLE = "\0"  # what a message fills in
PLACEHOLDER = re.compile(r"…|(?<!\w)[A-Z][A-Z0-9_]*(?!\w)")
FIRST_WORDS = 2  # constant words of a message that an entry must have, where the message has as many
PUNCTUATION = "(“”\"',.;:)"
OTHERS = {"--index-url": "pip", "--shm-size": "docker"}  # options of other programs


class Message(NamedTuple):
    """What a user may meet: the text with ``HOLE`` for what is filled in, and where it stands."""

    text: str
    place: str

    @property
    def constant_words(self) -> list[str]:
        return [word for word in self.text.split() if HOLE not in word and any(map(str.isalnum, word))]


def messages() -> list[Message]:
    """The texts of all exceptions, exits and warnings, but for those that only pass another one on."""
    found = []
    for file in SOURCES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and tells(node):
                place = f"{file.relative_to(ROOT)}:{node.lineno}"
                found += [Message(text.strip().removeprefix("error: "), place) for text in texts(node.args[0])]
            elif isinstance(node, ast.keyword) and node.arg == "interrupted":
                found += [Message(text, f"{file.relative_to(ROOT)}:{node.lineno}") for text in texts(node.value)]
    passed_on = re.compile(rf"(sdsclip \w+: )?(error: )?{HOLE}\n?")
    return [message for message in found if message.constant_words and not passed_on.fullmatch(message.text)]


def tells(call: ast.Call) -> bool:
    """Whether a call makes an exception, ends the program, or warns."""
    name = ast.unparse(call.func)
    if not call.args:
        return False
    if name == "print":
        return any(text.startswith("warning") for text in texts(call.args[0]))
    return (
        (name.endswith("Error") and name != "AssertionError")
        or name == "sys.exit"
        or name.endswith(("logger.warning", ".warn"))
    )


def texts(node: ast.expr) -> list[str]:
    """All forms of a string expression: a condition inside gives one each."""
    if isinstance(node, ast.Constant):
        return [re.sub(r"%(\.\d+)?[sdrf]", HOLE, node.value).replace("%%", "%")] if isinstance(node.value, str) else []
    if isinstance(node, ast.IfExp):
        return [*texts(node.body), *texts(node.orelse)]
    if isinstance(node, ast.JoinedStr):
        parts = [texts(part.value if isinstance(part, ast.FormattedValue) else part) or [HOLE] for part in node.values]
        return ["".join(chosen) for chosen in itertools.product(*parts)]
    return [HOLE] if isinstance(node, (ast.Name, ast.Call, ast.Attribute, ast.Subscript)) else []


MESSAGES = messages()


def heads() -> Iterator[tuple[int, str]]:
    """Line and text of each code span that begins an entry of the page."""
    inside = False
    for number, line in enumerate(PAGE.read_text(encoding="utf-8").splitlines(), 1):
        inside = line.startswith("* `") or (inside and line.startswith("  `"))
        if inside and (found := re.fullmatch(r"[* ] `([^`]+)`(<br>)?", line)):
            yield number, found[1]


HEADS = list(heads())


def begins(message: str, entry: str) -> bool:
    """Whether a message begins with an entry's words. Where it fills in something, an entry may have any words."""
    wanted, have = [word for word in entry.split() if word != "…"], message.split()

    @cache
    def fits(i: int, j: int) -> bool:
        if i == len(wanted) or j == len(have):
            return i == len(wanted)
        if HOLE not in have[j]:
            return same(have[j], wanted[i], last=i + 1 == len(wanted)) and fits(i + 1, j + 1)
        if re.fullmatch(HOLE + r"\W*", have[j]) and fits(i, j + 1):  # nothing is filled in
            return True
        return any(
            fills(have[j], wanted[i:end], end == len(wanted)) and fits(end, j + 1)
            for end in range(i + 1, len(wanted) + 1)
        )

    return fits(0, 0)


def same(word: str, other: str, last: bool) -> bool:
    return word.strip(PUNCTUATION) == other.strip(PUNCTUATION) if last else word == other


def fills(word: str, words: list[str], last: bool) -> bool:
    """Whether ``words`` of an entry can be what a message's ``word`` with a hole becomes; at its end, they must say so."""
    if last and not all(PLACEHOLDER.search(one) for one in words):
        return False
    pattern = re.escape(word.strip(PUNCTUATION) if last else word).replace(re.escape(HOLE), ".*")
    return bool((re.match if last else re.fullmatch)(pattern, " ".join(words)))


def constant_words(entry: str) -> int:
    return len([word for word in entry.split() if not PLACEHOLDER.fullmatch(word.strip(PUNCTUATION))])


def covers(entry: str, message: Message) -> bool:
    enough = min(FIRST_WORDS, len(message.constant_words))
    return constant_words(entry) >= enough and begins(message.text, entry)


def test_every_message_has_an_entry():
    missing = [message for message in MESSAGES if not any(covers(entry, message) for _, entry in HEADS)]
    assert not missing, f"add first words of these to {PAGE.relative_to(ROOT)}, as a line `...`<br> of an entry:\n" + (
        "\n".join(f"{message.place}: {message.text.replace(HOLE, 'NAME')}" for message in missing)
    )


def test_no_entry_is_stale():
    stale = [(line, entry) for line, entry in HEADS if not any(covers(entry, message) for message in MESSAGES)]
    assert not stale, "no message begins like these:\n" + "\n".join(
        f"{PAGE.name}:{line}: {entry}" for line, entry in stale
    )


def test_the_page_is_read_rightly():
    """The checks above see what is there: a message that is made up is missed, and an entry that is made up is stale."""
    assert len(MESSAGES) > 200 and len(HEADS) > 150
    made_up = Message(f"the {HOLE} is a made-up message that nobody has written", "nowhere")
    assert not any(covers(entry, made_up) for _, entry in HEADS)
    assert not any(covers("the scores NAME were made by nobody", message) for message in MESSAGES)
    assert not begins(f"unknown benchmark {HOLE}; choose", "unknown benchmarks NAME")
    assert not begins(f"{HOLE} has no split {HOLE}", "NAME has no image column NAME")
    assert begins(f"{HOLE}, but there are no candidates {HOLE}", "lambda_rank is above 0, but there are no candidates")


def options_of_commands() -> dict[str, set[str]]:
    """Command -> its options, from the dataclasses and from what the parsers are told."""
    finetune = {f"--{field.name}" for part in (ModelArguments, DataArguments, SDSCLIPConfig) for field in fields(part)}
    launching = {"--num_processes", "--accelerate_config"}
    finetune |= {"--config", *launching}
    dataclasses = {"finetune": finetune, "plan": finetune | {f"--{field.name}" for field in fields(PlanArguments)}}
    dataclasses["doctor"] = finetune
    of_prompts = {f"--{field.name}" for part in (PromptArguments, PromptConfig) for field in fields(part)}
    dataclasses["prompt-tune"] = of_prompts | {"--config", *launching}
    dataclasses["score-captions"] = {f"--{field.name}" for field in fields(ScoringArguments)} | launching
    return {
        command: dataclasses.get(command, set())
        | declared(ROOT / "sdsclip_hf" / "commands" / f"{file}.py")
        | {"--help"}
        for command, (file, _) in COMMANDS.items()
    }


def declared(file: Path) -> set[str]:
    """The options that a file adds to a parser."""
    calls = [node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    adding = [
        call for call in calls if ast.unparse(call.func) == "add" or ast.unparse(call.func).endswith("add_argument")
    ]
    words = [arg.value for call in adding for arg in call.args if isinstance(arg, ast.Constant)]
    return {word for word in words if isinstance(word, str) and word.startswith("--")}


OPTIONS = options_of_commands()
RECIPES = declared(ROOT / "recipes" / "emoji_to_dataset.py")


def named_options(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][\w-]*\w", text))


def test_options_and_commands_of_the_page_exist():
    text = PAGE.read_text(encoding="utf-8")
    known = set().union(*OPTIONS.values(), RECIPES, OTHERS)
    assert not named_options(text) - known
    for command in re.findall(r"sdsclip ([a-z][\w-]*)", text):
        assert command in COMMANDS, f"there is no command {command}"
    for span in re.findall(r"`([^`]*)`", text):
        for command, rest in re.findall(r"sdsclip ([a-z][\w-]*)([^|;]*)", span):
            assert not named_options(rest) - OPTIONS[command], span


def test_remedies_of_the_messages_exist():
    """An option or a command that an error tells the user to give is one."""
    known = set().union(*OPTIONS.values(), RECIPES)
    for message in MESSAGES:
        assert not named_options(message.text) - known, message
        for command in re.findall(r"sdsclip ([a-z][\w-]*)", message.text):
            assert command in COMMANDS, message
