"""Discovery, precedence, and what a project may not do."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from ottod.errors import ConfigError
from ottod.protocol.specs import HttpAccess, Isolation, McpServer, PermissionRule
from ottod.settings.agents import AgentFinder, find_agent, finder, list_agents, narrow
from ottod.settings.levels import project_root
from ottod.settings.sections import DaemonSettings, IsolationSettings, ProjectSettings


class World:
    """A home, a repository with a nested directory, and a user's configuration, below one directory."""

    def __init__(self, base: Path) -> None:
        self.home = base / "home"
        self.repo = self.home / "repo"
        self.cwd = self.repo / "sub" / "deep"
        self.config_home = self.home / ".config" / "otto"
        self.cwd.mkdir(parents=True)
        (self.repo / ".git").mkdir()

    def agent(self, directory: Path, name: str, text: str = "model: fast\n") -> Path:
        agents = self.config_home / "agents" if directory == self.config_home else directory / ".otto" / "agents"
        agents.mkdir(parents=True, exist_ok=True)
        (agents / name).write_text(text)
        return agents / name

    def finder(self, settings: DaemonSettings | None = None, cwd: Path | None = None) -> AgentFinder:
        settings = settings or DaemonSettings()
        return finder(cwd=cwd or self.cwd, config_home=self.config_home, home=self.home, settings=settings)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_every_agent_that_comes_with_otto_has_a_budget(world: World) -> None:
    """Of time, tokens and money: nobody has to write one before trying what was shipped."""
    entries = [entry for entry in world.finder().entries() if entry.layer == "builtin"]
    assert entries
    for entry in entries:
        assert entry.spec is not None, entry.error
        budgets = entry.spec.budgets
        assert budgets.seconds and budgets.tokens and budgets.usd, entry.name


def test_project_over_user_over_builtin(world: World) -> None:
    """Each layer hides the same name below it, and the entry lists what it hides."""
    builtin = world.finder().find("coder")
    assert builtin.layer == "builtin"
    user_file = world.agent(world.config_home, "coder.yml")
    assert world.finder().find("coder").layer == "user"
    root_file = world.agent(world.repo, "coder.yml")
    assert world.finder().find("coder").source == str(root_file)
    near_file = world.agent(world.cwd, "coder.md", "---\nmodel: fast\n---\nNear.")
    entry = world.finder().find("coder")
    assert (entry.layer, entry.source) == ("project", str(near_file))
    assert entry.shadows == (str(root_file), str(user_file), builtin.source)
    assert entry.spec is not None
    assert entry.spec.system_prompt == "Near."
    found = find_agent(
        "coder", cwd=world.cwd, config_home=world.config_home, home=world.home, settings=DaemonSettings()
    )
    assert found == entry.spec


def test_the_search_ends_at_the_repository(world: World) -> None:
    """Agents above the repository's root are another project's."""
    world.agent(world.home, "above.yml")
    world.agent(world.repo, "inside.yml")
    names = {entry.name for entry in world.finder().entries()}
    assert "inside" in names
    assert "above" not in names


def test_without_a_repository_only_the_directory_itself_counts(tmp_path: Path) -> None:
    """Nobody can plant agents above a directory that belongs to no repository."""
    world = World(tmp_path)
    (world.repo / ".git").rmdir()
    world.agent(world.repo, "above.yml")
    world.agent(world.cwd, "here.yml")
    names = {entry.name for entry in world.finder().entries()}
    assert "here" in names
    assert "above" not in names


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_another_users_repository_above_makes_no_project(tmp_path: Path) -> None:
    """Anyone can make `/tmp/.git`: all below it would be one project, that could write in all of it."""
    (tmp_path / ".git").mkdir()
    deep = tmp_path / "mine" / "work"
    deep.mkdir(parents=True)
    assert project_root(deep, Path("/nobody")) == tmp_path
    os.chown(tmp_path / ".git", 4242, 4242)
    assert project_root(deep, Path("/nobody")) == deep
    (tmp_path / "mine" / ".git").write_text("gitdir: elsewhere")
    assert project_root(deep, Path("/nobody")) == tmp_path / "mine"
    os.chown(tmp_path / "mine", 4242, 4242)
    assert project_root(deep, Path("/nobody")) == deep


def test_home_is_never_a_project(world: World) -> None:
    """`~/.otto/agents` is not searched, also when home itself is a repository."""
    world.agent(world.home, "homely.yml")
    (world.home / ".git").mkdir()
    (world.repo / ".git").rmdir()
    for cwd in (world.home, world.cwd):
        assert "homely" not in {entry.name for entry in world.finder(cwd=cwd).entries()}


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_agents_of_another_owner_are_passed_over(world: World) -> None:
    """A directory that somebody else put above the session's is not searched."""
    planted = world.agent(world.repo, "planted.yml")
    assert "planted" in {entry.name for entry in world.finder().entries()}
    os.chown(planted.parent, 4242, 4242)
    assert "planted" not in {entry.name for entry in world.finder().entries()}


def test_an_agent_is_named_and_not_its_file(world: World) -> None:
    """Workflows can be run from a file."""
    world.agent(world.repo, "planner.yml")
    with pytest.raises(ConfigError) as caught:
        world.finder().find(".otto/agents/planner.yml")
    assert caught.value.mend == "an agent is named, not its file: write planner"


def test_an_unknown_agent_is_refused_with_the_nearest(world: World) -> None:
    """The error says what was meant, what there is and where it looked."""
    with pytest.raises(ConfigError) as caught:
        world.finder().find("codr")
    error = caught.value
    assert error.code == "unknown_agent"
    assert str(error) == "unknown agent 'codr' — did you mean 'coder'?"
    assert error.mend.startswith("known agents: architect, assistant, ")
    for directory in (world.cwd, world.repo):
        assert str(directory / ".otto" / "agents") in error.mend
    assert str(world.config_home / "agents") in error.mend


@pytest.mark.parametrize("name", ["", "../coder", "/etc/passwd", "coder.yml", "a\0b", "x" * 5000])
def test_names_are_never_paths(world: World, name: str) -> None:
    """Whatever the name is, nothing but the listed directories is looked at."""
    with pytest.raises(ConfigError) as caught:
        world.finder().find(name)
    assert caught.value.code == "unknown_agent"


def test_one_wrong_file_hides_no_other_and_no_lower_layer_stands_in(world: World) -> None:
    """Listing gives an entry with the error; starting that name fails instead of running a lower layer's agent."""
    world.agent(world.repo, "broken.yml", "model: [")
    world.agent(world.repo, "coder.yml", "modle: x\n")
    world.agent(world.repo, "good.yml")
    entries = {
        entry.name: entry for entry in list_agents(cwd=world.cwd, config_home=world.config_home, home=world.home)
    }
    assert {"assistant", "broken", "coder", "good", "reviewer"} <= set(entries)
    assert entries["good"].spec is not None
    assert entries["broken"].error is not None
    assert entries["coder"].spec is None
    with pytest.raises(ConfigError, match=r"coder\.yml:1:1: unknown key 'modle'"):
        find_agent("coder", cwd=world.cwd, config_home=world.config_home, home=world.home)


def test_two_files_of_one_name_in_one_directory(world: World) -> None:
    """Neither wins: which one was meant cannot be known."""
    world.agent(world.repo, "twin.yml")
    world.agent(world.repo, "twin.md", "---\nmodel: fast\n---\n")
    entry = world.finder().find("twin")
    assert "agent 'twin' is also defined in twin.yml" in str(entry.error)


def test_a_link_that_leaves_the_project_is_not_read(world: World, tmp_path: Path) -> None:
    """A project cannot have the daemon read a file elsewhere, nor see its text in an error."""
    secret = tmp_path / "secret.yml"
    secret.write_text("top secret text")
    (world.repo / ".otto" / "agents").mkdir(parents=True)
    (world.repo / ".otto" / "agents" / "leak.yml").symlink_to(secret)
    entry = world.finder().find("leak")
    assert "leaves the project" in str(entry.error)
    assert "secret text" not in str(entry.error)


# ---------------------------------------------------------------- narrowing


def test_a_users_agent_is_taken_as_it_is(world: World) -> None:
    """Narrowing is for projects; the user's own files say what the user wants."""
    world.agent(world.config_home, "mine.yml", "isolation: {write_paths: [/srv]}\npermissions: autonomous\n")
    entry = world.finder().find("mine")
    assert entry.notes == ()
    assert entry.spec is not None
    assert entry.spec.isolation.write_paths == ("/srv",)
    assert entry.spec.permissions.preset == "autonomous"


WIDE = """\
isolation: {network: off, memory: required, read_paths: [docs, /etc, ~/shared/x, ../..], write_paths: [/srv]}
permissions:
  preset: autonomous
  rules:
    - {effect: allow, tool: shell}
    - {effect: deny, tool: shell, command: "rm *"}
env: [CI, HOME, AWS_SECRET_ACCESS_KEY, ANTHROPIC_API_KEY, "*"]
mcp_servers: [{name: m, command: [m]}]
"""


def test_a_project_only_narrows(world: World) -> None:
    """Everything a project's file asks for beyond the policy is taken away, and each is noted."""
    world.agent(world.repo, "wide.yml", WIDE)
    entry = world.finder().find("wide")
    spec = entry.spec
    assert spec is not None
    assert spec.isolation == Isolation(
        memory="required", network="preferred", read_paths=(str(world.repo / "docs"),), write_paths=()
    )
    assert spec.permissions.preset == "balanced"
    (rule,) = spec.permissions.rules
    assert rule == PermissionRule(effect="deny", tool="shell", command="rm *", source=rule.source)
    assert re.fullmatch(r".*/wide\.yml:\d+", rule.source)
    assert spec.env == ("CI", "HOME")
    assert spec.mcp_servers == ()
    assert entry.notes == (
        "isolation.network: off raised to preferred, the daemon's least",
        "isolation.read_paths: /etc dropped; project_may.read_paths does not allow it",
        "isolation.read_paths: ~/shared/x dropped; project_may.read_paths does not allow it",
        "isolation.read_paths: ../.. dropped; project_may.read_paths does not allow it",
        "isolation.write_paths: /srv dropped; project_may.write_paths does not allow it",
        "permissions.preset: autonomous narrowed to balanced, the widest that project_may.preset allows",
        "permissions.rules: 1 allow rule dropped; a project can only ask and deny",
        "env: AWS_SECRET_ACCESS_KEY dropped; project_may.env does not allow it",
        "env: ANTHROPIC_API_KEY dropped; project_may.env does not allow it",
        "env: * dropped; project_may.env does not allow it",
        "mcp_servers: m dropped; project_may.mcp_servers is false",
    )


@pytest.mark.parametrize("path", [".", ".git", ".git/hooks", ".otto", "vendor", "OTTO.md", "../work"])
def test_a_project_lifts_no_protection_of_its_own(world: World, path: str) -> None:
    """Its files are writable already; what its agent file would grant are `.git`, `.otto` and OTTO.md."""
    world.agent(world.repo, "wide.yml", f"isolation: {{write_paths: [{path}]}}\n")
    entry = world.finder().find("wide")
    assert entry.spec is not None and entry.spec.isolation.write_paths == ()
    assert entry.notes == (f"isolation.write_paths: {path} dropped; project_may.write_paths does not allow it",)


def test_the_daemons_file_can_allow_more(world: World) -> None:
    """What project_may grants is granted, and no more; a provider's key is never."""
    world.agent(world.repo, "wide.yml", WIDE)
    settings = DaemonSettings(
        isolation=IsolationSettings(network="off", files="required"),
        project_may=ProjectSettings(
            read_paths=("~/shared",), write_paths=("/srv",), env=("*",), preset="autonomous", mcp_servers=True
        ),
    )
    entry = world.finder(settings).find("wide")
    assert entry.spec is not None
    assert entry.spec.isolation == Isolation(
        memory="required",
        files="required",
        network="off",
        read_paths=(str(world.repo / "docs"), str(world.home / "shared" / "x")),
        write_paths=("/srv",),
    )
    assert entry.spec.permissions.preset == "autonomous"
    assert entry.spec.env == ("CI", "HOME", "AWS_SECRET_ACCESS_KEY", "*")
    assert len(entry.spec.mcp_servers) == 1
    assert [note.split(":")[0] for note in entry.notes] == [
        "isolation.read_paths",
        "isolation.read_paths",
        "permissions.rules",
        "env",
    ]


WEB = "http: {hosts: [a.example.org, example.org, evil.example], local: ['127.0.0.1:80'], max_bytes: 1000}\n"


def test_a_project_opens_no_host(world: World) -> None:
    """A project's agent has the hosts that the daemon's file lets projects have, and never a local place."""
    world.agent(world.repo, "web.yml", WEB)
    entry = world.finder().find("web")
    assert entry.spec is not None and entry.spec.http == HttpAccess(max_bytes=1000)
    assert entry.notes == (
        "http.hosts: a.example.org dropped; project_may.http_hosts does not allow it",
        "http.hosts: example.org dropped; project_may.http_hosts does not allow it",
        "http.hosts: evil.example dropped; project_may.http_hosts does not allow it",
        "http.local: 127.0.0.1:80 dropped; only a user's own agents may have local places",
    )
    settings = DaemonSettings(project_may=ProjectSettings(http_hosts=("*.example.org",)))
    wider = world.finder(settings).find("web").spec
    assert wider is not None and wider.http == HttpAccess(hosts=("a.example.org",), max_bytes=1000)


def test_a_users_agent_names_its_hosts(world: World) -> None:
    """What stands in the user's own directory holds as it stands."""
    world.agent(world.config_home, "web.yml", WEB)
    spec = world.finder().find("web").spec
    assert spec is not None and len(spec.http.hosts) == 3 and spec.http.local == ("127.0.0.1:80",)


def test_a_projects_servers_have_no_network(world: World) -> None:
    """Allowed servers of a project are programs, without network and with harmless variables; tools follow them."""
    world.agent(
        world.repo,
        "served.yml",
        "tools: [grep, near__x, far__y]\nmcp_servers:\n"
        "  - {name: near, command: [near], network: true, env: [CI, GITHUB_TOKEN, ANTHROPIC_API_KEY]}\n"
        "  - {name: far, url: 'https://far.example/mcp', headers: {A: '${GITHUB_TOKEN}'}}\n",
    )
    entry = world.finder(DaemonSettings(project_may=ProjectSettings(mcp_servers=True))).find("served")
    assert entry.spec is not None
    assert entry.spec.mcp_servers == (McpServer(name="near", command=("near",), env=("CI",)),)
    assert entry.spec.tools == ("grep", "near__x")
    assert [note.split(";")[0] for note in entry.notes] == [
        "mcp_servers: near: network dropped",
        "env: GITHUB_TOKEN dropped",
        "env: ANTHROPIC_API_KEY dropped",
        "mcp_servers: far dropped",
    ]


def test_a_link_inside_the_project_does_not_widen_it(world: World, tmp_path: Path) -> None:
    """A directory counts by where it really is."""
    (tmp_path / "outside").mkdir()
    (world.repo / "link").symlink_to(tmp_path / "outside")
    world.agent(world.repo, "linked.yml", "isolation: {read_paths: [link, link/deeper]}\n")
    entry = world.finder().find("linked")
    assert entry.spec is not None
    assert entry.spec.isolation.read_paths == ()
    assert len(entry.notes) == 2


@pytest.mark.parametrize(
    "text",
    [
        "working_dir: /etc\n",
        "working_dir: ..\n",
        "working_dir: a/../../b\n",
        "model: scripted:/etc/passwd\n",
        "model: scripted:../../../x.yml\n",
        "fallback_models: ['scripted:~/x.yml']\n",
    ],
)
def test_what_cannot_be_narrowed_is_refused(world: World, text: str) -> None:
    """A working directory or a script outside the project is an error with a code of its own."""
    world.agent(world.repo, "out.yml", text)
    error = world.finder().find("out").error
    assert error is not None
    assert error.code == "refused"
    assert "outside the project" in str(error)


def test_a_link_among_scripts_leads_no_further_than_others(world: World) -> None:
    """A directory of scripts is judged with what lies in it."""
    cast = world.repo / "cast"
    cast.mkdir()
    world.agent(world.repo, "in.yml", "model: scripted:../../cast\n")
    assert world.finder().find("in").error is None
    (cast / "in.yml").symlink_to("/etc/passwd")
    error = world.finder().find("in").error
    assert error is not None and error.code == "refused"


def test_scripts_and_directories_inside_are_allowed(world: World) -> None:
    """What lies inside the project is its own business."""
    (world.repo / "scripts").mkdir()
    text = "model: scripted:../../scripts/a.yml\nworking_dir: sub\n"
    world.agent(world.repo, "in.yml", text)
    assert world.finder().find("in").error is None


def test_without_settings_a_spec_says_what_its_file_says(world: World) -> None:
    """A client that only shows agents needs no daemon's file; narrowing is then a step of its own."""
    world.agent(world.repo, "wide.yml", WIDE + "model: an-alias-of-the-daemons\n")
    spec = find_agent("wide", cwd=world.cwd, config_home=world.config_home, home=world.home)
    assert spec.permissions.preset == "autonomous"
    narrowed, notes = narrow(spec, DaemonSettings(models={spec.model: "fast"}), home=world.home)
    assert narrowed.permissions.preset == "balanced"
    assert narrow(narrowed, DaemonSettings(models={spec.model: "fast"}), home=world.home) == (narrowed, ())
    assert len(notes) == 11
