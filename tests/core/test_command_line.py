"""Command lines taken apart: every program that a shell would start is found, or the line is said not to be clear."""

from __future__ import annotations

import os
import random
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ottod.core.command_line import MAX_LINE_CHARS, analyse, analyse_words

OPEN = "…"


def programs(line: str) -> list[str]:
    """Each program's text; `…` after what is not known to its end."""
    return [program.text + OPEN * program.is_open for program in analyse(line).programs]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("", []),
        ("git status", ["git status"]),
        ("a; b && c || d | e & f\ng", ["a", "b", "c", "d", "e", "f", "g"]),
        ("a |& b", ["a", "b"]),
        ("echo $(rm x)", ["rm x", "echo …"]),
        ("echo `rm x`", ["rm x", "echo …"]),
        ("echo `echo \\`rm x\\``", ["rm x", "echo …", "echo …"]),
        ('echo "a $(rm x) b"', ["rm x", "echo a …"]),
        ("echo '$(rm x)'", ["echo $(rm x)"]),
        ("(cd a; rm b) | tee c", ["cd a", "rm b", "tee c"]),
        ("{ rm a; }", ["rm a"]),
        ("diff <(rm a) b", ["rm a", "diff …"]),
        ("tee >(rm a)", ["rm a", "tee …"]),
        ("r\\\nm x", ["rm x"]),
        ("rm \\\n  x", ["rm x"]),
        ("r''m x", ["rm x"]),
        ("'r'\"m\" x", ["rm x"]),
        ("\\rm x", ["rm x"]),
        ("# rm x\nls # rm y", ["ls"]),
        ("ls a#b", ["ls a#b"]),
        ("if true; then rm a; else rm b; fi", ["true", "rm a", "rm b"]),
        ("while true; do rm a; done", ["true", "rm a"]),
        ("for f in a b; do rm $f; done", ["rm …"]),
        ("! rm a", ["rm a"]),
        ("time rm a", ["rm a"]),
        ("time -p -- rm a", ["rm a"]),
        ("for a do rm b; done", ["rm b"]),
        ("for a\ndo rm b; done", ["rm b"]),
        ("-x rm a", [OPEN]),
        ('echo "$\\\n(rm x)"', ["rm x", "echo …"]),
        ("echo $\\\n'\\x72m'", [OPEN]),
        ("echo ${x:-a b} ${x#a} ${x//a/b} ${#x}", ["echo …"]),
        ("echo ${x:-\"}\"} ; rm x # \"", [OPEN]),
        ("echo ${x:-<(rm x)}", [OPEN]),
        ("echo ${x@P}", [OPEN]),
        ("echo ${x:a}", [OPEN]),
        ('echo "`rm \\"x\\"`"', [OPEN]),
        ('echo "`rm x`"', ["rm x", "echo …"]),
        ("a >&'$(rm x)'", [OPEN]),
        ("printf -v 'a[$(rm x)]' y", ["printf -v a[$(rm x)] y", OPEN]),
        ("[ -f 'a[1]' ]", ["[ -f a[1] ]"]),
        ("A=1 B=$(rm x) make", ["rm x", "make"]),
        ("$X y", [OPEN]),
        ("${X}m y", [OPEN]),
        ("r?m y", [OPEN]),
        ("{rm,-rf,x}", [OPEN]),
        ("git push $REMOTE", ["git push …"]),
        ("ls *.py", ["ls …"]),
        ("[ -f x ]", ["[ -f x ]"]),
        ("~/bin/x", [OPEN]),
        ("exec rm x", ["exec rm x", "rm x"]),
        ("env rm x", ["env rm x", "rm x"]),
        ("env -i A=1 rm x", ["env -i A=1 rm x", "rm x"]),
        ("env -S 'rm x'", ["env -S rm x", OPEN]),
        (
            "nohup nice -n 5 timeout -k 1 9 rm x",
            ["nohup nice -n 5 timeout -k 1 9 rm x", "nice -n 5 timeout -k 1 9 rm x", "timeout -k 1 9 rm x", "rm x"],
        ),
        ("sudo -u root rm x", ["sudo -u root rm x", "rm x"]),
        ("sudo --strange rm x", ["sudo --strange rm x", OPEN]),
        ("xargs -0 -n 1 rm -f", ["xargs -0 -n 1 rm -f", "rm -f …"]),
        ("find . -name a -exec rm {} ;", ["find . -name a -exec rm {}", "rm …"]),
        ("find . -exec rm {} \\;", ["find . -exec rm {} ;", "rm …"]),
        ("find . -execdir sh -c 'rm x' +", ["find . -execdir sh -c rm x +", "sh -c rm x", "rm x"]),
        ("sh -c 'rm x; ls'", ["sh -c rm x; ls", "rm x", "ls"]),
        ("bash -lc 'rm x'", ["bash -lc rm x", "rm x"]),
        ("bash -o pipefail -ec 'rm x'", ["bash -o pipefail -ec rm x", "rm x"]),
        ('bash -c "$X"', ["bash -c …", OPEN]),
        ("echo rm x | sh", ["echo rm x", "sh", OPEN]),
        ("bash -s < x", ["bash -s", OPEN]),
        ("sh script", ["sh script"]),
        ("busybox rm x", ["busybox rm x", "rm x"]),
        ("eval 'rm x'", ["eval rm x", "rm x"]),
        ("eval $X", ["eval …", OPEN]),
        ("trap 'rm x' EXIT", ["trap rm x EXIT", "rm x"]),
        ("su -c 'rm x'", ["su -c rm x", "rm x"]),
        ("watch -n 1 -d rm x", ["watch -n 1 -d rm x", "rm x"]),
        ("watch --strange rm x", ["watch --strange rm x", OPEN]),
        ("alias l='rm x' m", ["alias l=rm x m", "rm x"]),
        (". ./env.sh", [". ./env.sh"]),
        (". /dev/fd/3", [". /dev/fd/3", OPEN]),
        ("sh /proc/self/fd/3", ["sh /proc/self/fd/3", OPEN]),
        ("hash -p /bin/rm ls", ["hash -p /bin/rm ls", OPEN]),
        ("tar -xzf a.tgz", ["tar -xzf a.tgz"]),
        ("tar --to-com=x xf a", ["tar --to-com=x xf a", OPEN]),
        ("git clean -xdf --exclude=a", ["git clean -xdf --exclude=a"]),
        ("git submodule foreach 'rm x'", ["git submodule foreach rm x", OPEN]),
        ("/lib64/ld-linux-x86-64.so.2 /bin/rm x", ["/lib64/ld-linux-x86-64.so.2 /bin/rm x", "/bin/rm x"]),
        ("python -c 'x'", ["python -c x", OPEN]),
        ("python3", ["python3", OPEN]),
        ("python x.py", ["python x.py"]),
        ("awk 'BEGIN{system(1)}'", ["awk BEGIN{system(1)}", OPEN]),
        ("git -c core.pager=x log", ["git -c core.pager=x log", OPEN]),
        ("tar --to-command=x xf a", ["tar --to-command=x xf a", OPEN]),
        ("parallel rm", ["parallel rm", OPEN]),
        ("f() { rm x; }; f", [OPEN]),
        ("case x in y) rm z;; esac", [OPEN]),
        ("echo $((1 + $(rm x)))", [OPEN]),
        ("echo ${X:-$(rm y)}", [OPEN]),
        ("cat <<E\n$(rm x)\nE", [OPEN]),
        ("echo $'\\x72m'", [OPEN]),
        ("echo 'open", [OPEN]),
        ("echo \"open", [OPEN]),
        ("echo `open", [OPEN]),
        ("(a", [OPEN]),
        ("a)", [OPEN]),
        ("rm\0x", [OPEN]),
        ("x" * (MAX_LINE_CHARS + 1), [OPEN]),
        ("$(" * 40 + ")" * 40, [OPEN]),
    ],
)  # fmt: skip
def test_the_programs_of_a_line(line: str, found: list[str]) -> None:
    """In the order in which they are found; each wrapper and what it starts; unclear things as such."""
    assert programs(line) == found


@pytest.mark.parametrize(
    ("line", "reads", "writes", "hosts"),
    [
        ("a > out 2>&1 < in", ["in"], ["out"], []),
        ("a >> out 2> err", [], ["out", "err"], []),
        ("a >| out", [], ["out"], []),
        ("a &> out", [], ["out"], []),
        ("a >& out", [], ["out"], []),
        ("a >&2 2>&- <&3", [], [], []),
        ("a {fd}> out", [], ["out"], []),
        ("a <> both", ["both"], ["both"], []),
        ("a > /dev/null 2> /dev/stderr", [], [], []),
        ("a > $X", [], ["…"], []),
        ("a > src/$X", [], ["src/…"], []),
        ("cd x; a > out > /abs", [], ["…", "/abs"], []),
        ("> out", [], ["out"], []),
        ("a > 'o u t'", [], ["o u t"], []),
        ("a > /dev/tcp/192.0.2.1/80", [], [], ["192.0.2.1"]),
        ("sh -c 'a > out'", [], ["out"], []),
        ("find . -fprint out", [], ["out"], []),
        ("a <<< text", [], [], []),
    ],
)
def test_the_files_that_a_line_redirects_to(line: str, reads: list[str], writes: list[str], hosts: list[str]) -> None:
    """Descriptors and harmless devices are none; after a `cd` relative paths are not known."""
    found = analyse(line)
    assert [t.text + OPEN * t.is_open for t in found.reads] == reads
    assert [t.text + OPEN * t.is_open for t in found.writes] == writes
    assert list(found.hosts) == hosts


@pytest.mark.parametrize(
    "line",
    ["PATH=. git x", "export PATH=.; git x", "PATH=.; git x", "env LD_PRELOAD=x git x", "alias git=rm\ngit x",
     "sudo git x", "env PATH=. sh -c 'git x'", "exec env A=b git x"],
)  # fmt: skip
def test_a_name_may_mean_another_program(line: str) -> None:
    """After a change of the environment or of the shell's names the program is marked."""
    assert [p.is_altered for p in analyse(line).programs if p.text == "git x"] == [True]


def test_programs_without_a_shell() -> None:
    """Words are taken as they are; what they start is found as well."""
    assert [p.text for p in analyse_words(("sh", "-c", "rm x; ls")).programs] == ["sh -c rm x; ls", "rm x", "ls"]
    assert [p.text for p in analyse_words(("echo", "$(rm x)", "a;b")).programs] == ["echo $(rm x) a;b"]
    assert [(p.text, p.is_open) for p in analyse_words(("",)).programs] == [("", True)]


@given(line=st.text(alphabet="ab '\"\\$(){}`;&|<>\n#=*", max_size=40))
@example("$" * 5000)
def test_any_text_has_an_answer(line: str) -> None:
    """Nothing makes it fail, and what is not empty is a program, an assignment, a comment or opaque."""
    found = analyse(line)
    assert not found.opaque or found.programs[-1].is_open


@given(words=st.lists(st.text(alphabet="ab $'\"\\;|&<>()*?#~=\n", min_size=1, max_size=6), min_size=1, max_size=5))
def test_quoted_words_are_data(words: list[str]) -> None:
    """The naive model: what is quoted as a whole is one program with exactly these words."""
    line = " ".join(shlex.quote(word) for word in ["prog", *words])
    (program,) = analyse(line).programs
    assert not program.is_open and program.text == " ".join(["prog", *words])


_SEPARATORS = st.sampled_from([" ; ", " && ", " | ", "\n", " & ", " || "])
_SHAPES = st.sampled_from(
    ["mark{}", "'mark{}' x", "m\\\nark{}", "$(mark{})", "`mark{}`", "(mark{})", "{{ mark{}; }}", "env mark{}",
     "! mark{}", "X=1 mark{}", "echo <(mark{})", "sh -c mark{}", "if mark{}; then :; fi", "nice mark{}",
     "eval mark{}", "\"mark{}\""]
)  # fmt: skip


@given(shapes=st.lists(_SHAPES, min_size=1, max_size=4), separator=_SEPARATORS)
def test_a_program_hides_in_no_shape(shapes: list[str], separator: str) -> None:
    """Wherever a program's name stands in a line, it is found as a program, or the line is opaque."""
    line = separator.join(shape.format(n) for n, shape in enumerate(shapes))
    found = analyse(line)
    names = {program.text.split(" ")[0] for program in found.programs}
    assert found.opaque or {f"mark{n}" for n in range(len(shapes))} <= names


def test_bash_agrees_on_what_is_started(tmp_path: Path) -> None:
    """A real shell runs these lines, and starts nothing that was not found."""
    log = tmp_path / "log"
    for name in ("mark0", "mark1"):
        (tmp_path / name).write_text(f"#!/bin/sh\necho {name} >> {log}\n")
        (tmp_path / name).chmod(0o755)
    lines = [
        "mark0; ma\\\nrk1",
        "true && $(echo mark0)",
        "echo `mark1`",
        "X=mark0; $X",
        "false || { mark0; }",
        "sh -c 'mark1'",
        "echo a | xargs mark0",
        "find . -maxdepth 0 -exec mark1 {} ';'",
        "eval mark0",
        "m''ark0; \"mark1\"",
        "mark0 # mark1",
        "echo 'mark1'",
    ]
    for line in lines:
        log.unlink(missing_ok=True)
        env = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
        subprocess.run(["bash", "-c", line], cwd=tmp_path, env=env, check=False, capture_output=True, timeout=30)
        started = set(log.read_text().split()) if log.exists() else set()
        found = analyse(line)
        known = {program.text.split(" ")[0] for program in found.programs}
        assert started <= known or any(program.is_open and not program.text for program in found.programs), line


_PIECES = (
    *("m", "m", " m", ";m;", '"', '"', "'", "\\", "\n", "$", "(", ")", "{", "}", "{ ", "`", "`", ";", "&", "|", "<"),
    *(">", "#", " ", " ", " ", "x", "=", "for a ", "for x in y", "do ", "done", "if ", "then ", "fi", ":", "${x:-"),
    *("${x", "}", "$(", "$((", "))", '"$', "\\\n", "[[ ", "]]", "!", "time ", "-p ", "in ", "-", "echo ", "eval "),
    *("x=", "x=m ", "<(", ">(", "<<<", "2>&1", ">&2", "<&", " -- ", "case ", "esac", "set -- a;", "printf -v "),
    *("'a[$(m)]'", "a[", "[", "]", "test -v ", "command ", "builtin ", "exec ", "{a,m}", "~", "*", "?", "$x", "$@"),
    *(
        '"$@"',
        "alias e=m",
        "trap ",
        " EXIT",
        "shift;",
        "read ",
        ". /dev/stdin",
        "<<< m",
        "<<E\n",
        "\nE\n",
        "\r",
        "\t",
    ),
    *("coproc ", "function ", "select ", "$[", "$'", '$"', "@P", "!x", "#x"),
)
_RUN_ALL = """
m() { echo RAN >&9; }
while IFS= read -r -d '' line <&8; do
  ( ulimit -t 1; eval "$line"; wait ) < /dev/null > /dev/null 2>&1
  echo NEXT >&9
done
"""


def test_bash_starts_nothing_that_is_not_found_in_any_line(tmp_path: Path) -> None:
    """The oracle is a real shell: where it runs `m`, `m` was found, or something that may be anything."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash")
    choose = random.Random(20261128)
    lines = ["".join(choose.choice(_PIECES) for _ in range(choose.randint(2, 12))) for _ in range(900)]
    (tmp_path / "lines").write_bytes(b"".join(line.encode() + b"\0" for line in lines))
    (tmp_path / "work").mkdir()
    with (tmp_path / "lines").open("rb") as source, (tmp_path / "log").open("wb") as log:
        words = [bash, "--noprofile", "--norc", "-c", f"exec 8<&{source.fileno()} 9>&{log.fileno()}\n{_RUN_ALL}"]
        for file in (source, log):
            os.set_inheritable(file.fileno(), True)
        env = {"PATH": "/nonexistent"}
        subprocess.run(words, cwd=tmp_path / "work", env=env, check=False, close_fds=False, timeout=120)
    said = (tmp_path / "log").read_text().split("NEXT\n")
    assert len(said) == len(lines) + 1
    started = [line for line, outcome in zip(lines, said, strict=False) if "RAN" in outcome]
    assert len(started) >= 10
    assert [line for line in started if not _is_found(line)] == []


def _is_found(line: str) -> bool:
    found = analyse(line)
    beginnings = [program.text.split("\n")[0].split(" ")[0] for program in found.programs]
    is_named = "m" in beginnings
    return bool(found.opaque) or is_named or any(p.is_open and p.text in ("", "m") for p in found.programs)
