"""The format of scripts: what is refused and where, and which turn a request gets."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from ottod.errors import ConfigError
from ottod.protocol.model import (
    AssistantMessage,
    Message,
    ModelRequest,
    Text,
    ToolResult,
    ToolResults,
    UserMessage,
)
from ottod.settings.script import (
    Case,
    Measured,
    NoAlternativeError,
    Reply,
    Scene,
    Script,
    ScriptedUsage,
    Turn,
    When,
    choose,
    crash_order,
    fill,
    load_script,
    scene,
    values_for,
)


def load(directory: Path, text: str) -> Script:
    path = directory / "s.yml"
    path.write_text(text)
    return load_script(path)


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("turns: []\n", "1:1", "turns is empty"),
        ("loop: true\n", "1:1", "turns is empty"),
        ("cases: [{when: {}, turns: []}]\n", "1:9", "turns is empty"),
        (
            "turns: [{text: a}]\ncases: [{when: {}, turns: [{text: a}]}]\n",
            "1:1",
            "turns and cases exclude each other",
        ),
        ("cases: [{when: {tool_is_error: true}, turns: [{text: a}]}]\n", "1:9", "chosen by the task"),
        ("turns:\n  - text: ${match.0}\n", "2:11", "unknown placeholder ${match.0}"),
        ("turns:\n  - {}\n", "2:5", "an empty turn"),
        ("turns:\n  - txet: hi\n", "2:5", "did you mean 'text'"),
        ("turns:\n  - text: hi\n    usage: {input_token: 3}\n", "3:13", "did you mean 'input_tokens'"),
        ("turns:\n  - text: hi\n    usage: {input_tokens: many}\n", "3:27", "an integer"),
        ("turns:\n  - text: hi\n    text: ho\n", "3:5", "duplicate key 'text'"),
        ("turns:\n  - text: hi\n    stop: over\n", "3:11", "one of end"),
        ("turns:\n  - crash: SIGFOO\n", "2:5", "crash must be one of SIGKILL"),
        ("turns:\n  - {cut: 1, stall: 2}\n", "2:5", "stall and cut exclude each other"),
        ("turns:\n  - {text: a, after_chunks: 2}\n", "2:5", "belong to a fault"),
        ("turns:\n  - {text: a, stream: {events: 3}}\n", "2:5", "stream stands alone"),
        ("turns:\n  - {text: a, alternatives: [{text: b}]}\n", "2:5", "nothing else but times"),
        ("turns:\n  - {text: a, times: 1}\n", "1:1", "nothing follows"),
        ("turns:\n  - text: hi\n  - text: ${nobody}\n", "3:11", "unknown placeholder ${nobody}"),
        ("turns:\n  - tools:\n    - name: x\n      arguments: {a: [1, '${b}']}\n", "4:26", "placeholder ${b}"),
        ("turns:\n  - text: a\n    when: {tool_result_matches: '('}\n", "3:11", "not a regular expression"),
        ("turns:\n  - error: {status: 999}\n", "2:21", "599"),
        ("turns:\n  - text: a\nsummary: {text: b, times: 2}\n", "1:1", "played for every summary"),
        ("turns: [\n", "2:1", "not YAML"),
    ],
)
def test_mistakes_are_placed_and_named(text: str, where: str, what: str, tmp_path: Path) -> None:
    """Every mistake in a script is one line that starts with file, line and column."""
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert caught.value.message.startswith(f"{tmp_path}/s.yml:{where}: "), caught.value.message
    assert what in caught.value.message + caught.value.mend


def test_a_missing_script_says_so(tmp_path: Path) -> None:
    """No traceback for a path that is wrong."""
    with pytest.raises(ConfigError, match="cannot read"):
        load_script(tmp_path / "none.yml")


def test_steps_and_attempts_decide_the_turn(tmp_path: Path) -> None:
    """The example of the module: A, B twice before C, D, then the end."""
    script = load(tmp_path, "turns:\n  - text: A\n  - {times: 2, error: {status: 500}}\n  - text: C\n  - text: D\n")

    def turn(step: int, attempt: int) -> str:
        reply = choose(script, Scene(step=step), attempt)
        return "end" if reply is None else reply.text or "B"

    assert [turn(0, a) for a in range(3)] == ["A", "A", "A"]
    assert [turn(1, a) for a in range(4)] == ["B", "B", "C", "C"]
    assert [turn(2, 0), turn(3, 0), turn(99, 5)] == ["D", "end", "end"]


def test_a_looping_script_begins_again(tmp_path: Path) -> None:
    """With `loop` the steps go round for ever."""
    script = load(tmp_path, "loop: true\nturns:\n  - text: A\n  - text: B\n")
    replies = [choose(script, Scene(step=i), 0) for i in range(5)]
    assert [reply.text for reply in replies if reply] == ["A", "B", "A", "B", "A"]


def test_alternatives_react_to_the_conversation(tmp_path: Path) -> None:
    """The first alternative that fits is played; a script with none that fits fails loudly."""
    script = load(
        tmp_path,
        """
turns:
  - alternatives:
      - when: {tool_result_contains: "1 failed"}
        text: failed
      - when: {tool_result_matches: "^[0-9]+ passed"}
        text: passed
      - when: {user_contains: please, tool_is_error: true}
        text: polite
""",
    )

    def played(**fields: object) -> str:
        reply = choose(script, Scene(step=0, **fields), 0)  # type: ignore[arg-type]
        assert reply is not None
        return reply.text

    assert played(last_tool_result="== 1 failed, 2 passed ==") == "failed"
    assert played(last_tool_result="ran\n3 passed in 1 s") == "passed"
    assert played(input="please", tool_is_error=True) == "polite"
    with pytest.raises(NoAlternativeError, match="step 1 has no alternative"):
        played(input="please", last_tool_result="nothing")


def test_cases_are_chosen_by_the_task_and_not_by_what_is_said_later(tmp_path: Path) -> None:
    """The same agent in another step, or in another round of a loop, is another case; the steps count within it."""
    script = load(
        tmp_path,
        """
cases:
  - when: {user_contains: round 1}
    turns: [{text: one}, {text: two}]
  - when: {user_matches: "^round [0-9]+"}
    turns: [{text: again}]
""",
    )

    def played(step: int, task: str) -> str:
        reply = choose(script, Scene(step=step, task=task, input="round 1"), 0)
        return "end" if reply is None else reply.text

    assert [played(step, "this is round 1") for step in range(3)] == ["one", "two", "end"]
    assert [played(step, "round 2") for step in range(2)] == ["again", "end"]
    with pytest.raises(NoAlternativeError, match="no case fits the task 'other'"):
        played(0, "other")


def test_what_parentheses_found_can_be_said_again() -> None:
    """The groups of the reply's own expression, in what it looks at; nothing found is nothing said."""
    now = Scene(step=0, input="order 7", last_tool_result="ran\npytest: 5 passed, 1 failed")

    def said(text: str, **when: str) -> str:
        return str(fill(text, values_for(Reply(text=text, when=When(**when)), now)))  # type: ignore[arg-type]

    told = "${match.1}/${match.2}"
    assert said(told, tool_result_matches=r"^pytest: (\d+) passed, (\d+) failed", user_matches=r"(\d)") == "5/1"
    assert said(told, user_matches=r"(\d)(x)?") == "7/"
    assert said(told, tool_result_contains="passed") == said(told) == "/"


def test_the_scene_is_read_from_the_request_alone() -> None:
    """A resumed session asks the same and is at the same step: nothing else counts."""
    messages: tuple[Message, ...] = (
        UserMessage(text="task"),
        AssistantMessage(blocks=(Text(text="x"),)),
        ToolResults(
            results=(
                ToolResult(call="1", tool="a", text="one"),
                ToolResult(call="2", tool="b", text="two", is_error=True),
            )
        ),
        AssistantMessage(blocks=()),
        UserMessage(text="more"),
    )
    read = scene(ModelRequest(model="m", messages=messages))
    assert read == Scene(step=2, task="task", input="more", last_tool_result="one\ntwo", tool_is_error=True)
    assert scene(ModelRequest(model="m", messages=())) == Scene(step=0)


def test_placeholders_are_filled_once_and_everywhere() -> None:
    """Values are data: a value that looks like a placeholder is not filled again; `$$` is a dollar sign."""
    values = Scene(step=1, task="${input} & co", input="in").values()
    filled = fill({"a": ["${task}", 7, {"b": "$${HOME} ${step} $5 ${input}"}]}, values)
    assert filled == {"a": ["${input} & co", 7, {"b": "${HOME} 2 $5 in"}]}


def test_crash_orders() -> None:
    """A signal's name or an exit status."""
    assert crash_order("SIGSEGV") == ("SIGSEGV", 0)
    assert crash_order("exit 3") == ("", 3)


def test_zero_is_a_fault() -> None:
    """`cut: 0` cuts before the first chunk; it is not the absence of a cut."""
    assert Reply(cut=0).faults() == ["cut"]


def test_the_reference_page_shows_scripts_that_load_and_lists_every_key(tmp_path: Path) -> None:
    """The page and the format are one thing."""
    page = (Path(__file__).resolve().parents[2] / "docs/reference/scripted-provider.md").read_text()
    shown = re.findall(r"^```yaml\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert len(shown) == 4
    for text in shown:
        load(tmp_path, text)
    for part in (Script, Case, Turn, When, ScriptedUsage, Measured):
        for field in msgspec.structs.fields(part):
            assert re.search(rf"`[^`]*\b{field.name}\b", page), field.name


def test_a_summary_stands_for_the_answers_it_tells() -> None:
    """A shortened conversation goes on at the turn where it was; the summary is no step, and is nobody's input."""
    script = Script(turns=(Turn(text="a"), Turn(text="b")), summary=Turn(text="told ${step}: ${input}"))
    short: tuple[Message, ...] = (UserMessage(text="task"), UserMessage(text="so far", stands_for=3))
    assert scene(ModelRequest(model="m", messages=short)) == Scene(step=3, task="task", input="task")
    asked = (*short, AssistantMessage(blocks=(Text(text="x"),)), UserMessage(text="sum it up"))
    now = scene(ModelRequest(model="m", messages=asked, purpose="summary"))
    assert (now.step, now.input) == (4, "task")
    reply = choose(script, now, 0)
    assert reply is not None and fill(reply.text, now.values()) == "told 4: task"
    plain = choose(Script(turns=(Turn(text="a"),)), now, 0)
    assert plain is not None and fill(plain.text, now.values()) == "4 answers were given so far."
