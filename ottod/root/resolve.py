"""Turns a start request into everything a session needs. Reads files, so it runs on a thread."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from ottod.errors import ConfigError, OttoError, RefusedError, StorageError
from ottod.isolation.requirements import GIVEN_BY, missing_layers
from ottod.protocol.requests import ENV_WANTED, MAX_ENV_BYTES, StartSession, WorkflowStart
from ottod.protocol.sinks import SinkGrants
from ottod.protocol.specs import AgentSpec, HttpAccess, ModelTarget, ToolFile
from ottod.protocol.workflows import ResolvedWorkflow, WorkflowSpec, sink_secrets
from ottod.root.definitions import NOTHING_KEPT, Kept
from ottod.root.plan import SessionPlan
from ottod.root.platform import Platform
from ottod.root.vault import Vault
from ottod.root.workflow_plans import read_workflow, session_spec, write_inputs
from ottod.settings.agent_places import placed_model_error
from ottod.settings.agents import AgentFinder, check_spec, finder, narrow
from ottod.settings.daemon import DaemonSettings
from ottod.settings.environment import PRIVATE_PREFIX, matches, session_env
from ottod.settings.keys import api_key, named_value, secret_variables, server_headers, server_secrets
from ottod.settings.models import resolve_model
from ottod.settings.names import BUILTIN_TOOL_NAMES
from ottod.settings.paths import Paths
from ottod.settings.policy import project_of
from ottod.settings.routing import route
from ottod.settings.routing_words import explained, unrouted
from ottod.settings.tool_files import ToolShelf
from ottod.settings.workflow_start import check_inputs, check_repository, needs
from ottod.settings.workflows import WorkflowFinder, workflow_now


class Resolved(msgspec.Struct, frozen=True, kw_only=True):
    """A request that can be carried out. `api_keys` is by provider name; it is never logged or stored."""

    spec: AgentSpec
    models: tuple[ModelTarget, ...]
    api_keys: dict[str, str]
    env: dict[str, str]
    server_env: dict[str, str] = {}
    tool_files: tuple[ToolFile, ...] = ()
    workflow: ResolvedWorkflow | None = None
    cwd: str
    routed: str = ""
    """Why its agent was chosen, if nobody named one."""


class Wanted(NamedTuple):
    """Of an agent that nobody names: by what it is found besides the task, and who it is not."""

    hint: str = ""
    besides: str = ""


ANYBODY = Wanted()


class ServerSecrets(msgspec.Struct, frozen=True, kw_only=True):
    """Headers by MCP server, and variables; never logged or stored."""

    headers: dict[str, dict[str, str]] = {}
    env: dict[str, str] = {}


class WorkdirError(OttoError):
    """The working directory cannot be used."""

    code = "bad_cwd"


def check_wanted(
    wanted: Iterable[str], env: Mapping[str, str], spec: AgentSpec, secret: Collection[str] = ()
) -> None:
    """Raises RefusedError for a variable that somebody named, and that the session may not have.

    `secret` are names of variables that hold what the daemon keeps to itself.
    """
    missing = sorted(set(wanted) - env.keys())
    if own := [name for name in missing if name.startswith(PRIVATE_PREFIX)]:
        raise RefusedError(
            f"{_joined(own)}: what begins with {PRIVATE_PREFIX} is Otto's own, and no session gets it from a client",
            code="env_refused",
            mend="give it another name",
        )
    if held := [name for name in missing if name in secret]:
        raise RefusedError(
            f"{_joined(held)}: here the daemon has a key or another secret, which no program of a tool is given",
            code="env_refused",
            mend="leave it out; what is no secret can go by another name",
        )
    if missing:
        whose = "the file of one of its agents" if spec.kind == "workflow" else "the agent's file"
        raise RefusedError(
            f"{spec.name[:100]} takes no {_joined(missing)} from its environment",
            code="env_refused",
            mend=f"name it under `env` in {whose}, or in otto.yml for all agents: env: [{_joined(missing)}]",
        )


def _is_projects(spec: AgentSpec) -> bool:
    """Whether an agent is a project's, so that its servers get nothing of the daemon's."""
    return project_of(spec.source, Path(os.path.expanduser("~"))) is not None


def _name_step(error: OttoError, step: str) -> None:
    """Says which step it is about, unless it names a place in a file."""
    if not isinstance(error, ConfigError) or not error.file:
        error.message = f"step {step!r}: {error.message}"
        error.args = (error.message,)


def _joined(names: Iterable[str]) -> str:
    return ", ".join(names)[:1000]


class Resolver:
    """Resolves against the daemon's settings, its paths, and the vault, for keys."""

    def __init__(self, *, settings: DaemonSettings, paths: Paths, vault: Vault, platform: Platform) -> None:
        self.settings = settings
        self._paths = paths
        self._vault = vault
        self._platform = platform

    def resolve(
        self, request: StartSession, directory: Path, kept: Kept = NOTHING_KEPT, wanted: Wanted = ANYBODY
    ) -> Resolved:
        """Checks everything that can be checked before a process exists, and makes the session's directory.

        What is `kept` stands for the files that there are now; what they may ask for is judged by today's settings.

        Raises: ConfigError, RefusedError, WorkdirError, StorageError.
        """
        if request.workflow is not None:
            return self._resolve_workflow(request, request.workflow, directory, kept.workflow)
        cwd = self._working_dir(request)
        shelf = self._finder(cwd).shelf
        routed = ""
        if kept.agent is not None:
            spec = self._as_kept(kept.agent, shelf)
        elif request.agent or request.spec is not None:
            spec = self._spec(request, cwd, shelf)
        else:
            spec, routed = self._routed(wanted.hint or request.task, cwd, wanted.besides)
        self._check_agent(spec)
        if spec.working_dir:
            cwd = self._check_dir(str(Path(cwd, spec.working_dir).resolve()), within=cwd)
        targets = self._targets(spec, request.model, cwd)
        env = self._env(request.env, spec)
        resolved = Resolved(
            spec=spec,
            models=targets,
            api_keys=self.keys(targets),
            env=env,
            server_env=self._server_env(request.env, spec),
            tool_files=shelf.choose(spec.tools),
            cwd=cwd,
            routed=routed,
        )
        self._make_directory(directory)
        return resolved

    def _resolve_workflow(
        self, request: StartSession, start: WorkflowStart, directory: Path, kept: ResolvedWorkflow | None
    ) -> Resolved:
        """A workflow with its agents as they are now, or as they are kept. Its own session has no model."""
        cwd = self._working_dir(request)
        found = self._finder(cwd)
        if kept is None:
            workflow = read_workflow(request, start, found)
        else:
            check_inputs(kept.spec, start.inputs, cwd)
            workflow = msgspec.structs.replace(
                kept,
                spec=workflow_now(kept.spec, self.settings, home=found.home),
                agents=tuple(self._as_kept(agent, found.shelf) for agent in kept.agents),
            )
        workflow = msgspec.structs.replace(workflow, model=request.model)
        self._check_steps(workflow, cwd)
        check_repository(workflow.spec, cwd)
        spec = session_spec(workflow)
        self._check_isolation(spec)
        env = self._env(request.env, spec)
        server_env: dict[str, str] = {}
        for agent in workflow.agents:
            server_env |= self._server_env(request.env, agent)
        resolved = Resolved(
            spec=spec,
            models=(),
            api_keys={},
            env=env,
            server_env=server_env,
            workflow=workflow,
            cwd=cwd,
        )
        self._make_directory(directory)
        write_inputs(directory, start.inputs)
        return resolved

    def _check_steps(self, workflow: ResolvedWorkflow, cwd: str) -> None:
        """Each session that a step may want could be started, now rather than when it is the step's turn.

        Raises: what `resolve` raises for it.
        """
        for need in needs(workflow):
            try:
                self._check_agent(need.agent)
                self._check_servers(need.agent)
                where = str(Path(cwd, need.agent.working_dir).resolve())
                # One that is not there yet may be made by an earlier step.
                place = self._check_dir(where, within=cwd) if os.path.lexists(where) else cwd
                self.keys(self._targets(need.agent, workflow.model or need.model, place))
            except OttoError as error:
                _name_step(error, need.step)
                raise

    def _check_agent(self, spec: AgentSpec) -> None:
        """Raises RefusedError for one that is not run here, or not confined as it has to be."""
        if spec.kind != "agent":
            raise RefusedError(f"{spec.name} is a {spec.kind}; this version runs agents", code="unsupported_kind")
        self._check_isolation(spec)

    def _check_servers(self, spec: AgentSpec) -> None:
        """Raises ConfigError if a header of its MCP servers names what the daemon does not have."""
        for server in () if _is_projects(spec) else spec.mcp_servers:
            server_secrets(server, self.settings, self._vault.environ)

    def _targets(self, spec: AgentSpec, model: str, cwd: str) -> tuple[ModelTarget, ...]:
        """Where an agent's models are asked; `model`, if given, in place of the first. Raises ConfigError."""
        names = [(name, spec.source) for name in (spec.model, *spec.fallback_models)]
        if model:
            # A model that somebody else names is looked up from where the session works.
            names[0] = (model, "")
        return tuple(self._target(spec, name, source, cwd) for name, source in names)

    def _target(self, agent: AgentSpec, model: str, source: str, cwd: str) -> ModelTarget:
        """Where a model is asked. Raises: ConfigError, at the line of the agent's file if that names the model."""
        try:
            return resolve_model(model, self.settings, agent=agent.name, agent_source=source, cwd=cwd)
        except ConfigError as error:
            if not source:
                raise
            raise placed_model_error(error, agent, model) from None

    def take_over(self, plan: SessionPlan, directory: Path) -> dict[str, str]:
        """The keys for a session that goes on from another's plan; makes its directory.

        Raises: what `resolve` raises, where the world has changed since.
        """
        self._check_dir(plan.cwd)
        self._check_isolation(plan.spec)
        keys = self.keys(plan.models)
        self._make_directory(directory)
        return keys

    def look_up(self, request: StartSession) -> tuple[AgentSpec, str]:
        """The agent and the working directory that a session would get; nothing is made. Raises OttoError."""
        cwd = self._working_dir(request)
        spec = self._spec(request, cwd, self._finder(cwd).shelf)
        if spec.working_dir:
            cwd = self._check_dir(str(Path(cwd, spec.working_dir).resolve()), within=cwd)
        return spec, cwd

    def tools_at(self, cwd: str) -> tuple[str, ...]:
        """The names of the tools that an agent in this directory could have; those of MCP servers are not known."""
        return self._finder(cwd).all_tools

    def layers(self) -> dict[str, str]:
        """What isolation this host gives, by layer. Blocks on the first call."""
        return dict(self._platform.report())

    def _working_dir(self, request: StartSession) -> str:
        if not os.path.isabs(request.cwd) or "\0" in request.cwd:
            raise WorkdirError(f"the working directory {request.cwd!r} is not absolute")
        return self._check_dir(request.cwd)

    def _check_dir(self, path: str, *, within: str = "") -> str:
        real = os.path.realpath(path)
        if not os.path.isdir(real):
            raise WorkdirError(f"no such directory: {path}", mend="create it, or name another with --cwd")
        if not os.access(real, os.R_OK | os.X_OK):
            raise WorkdirError(f"the daemon may not enter {path}", mend="check its permissions")
        if within and os.path.commonpath([real, os.path.realpath(within)]) != os.path.realpath(within):
            raise WorkdirError(f"working_dir {path} lies outside {within}", mend="use a path below it")
        for private in (self._paths.runtime_dir, self._paths.state_dir):
            if os.path.commonpath([real, os.path.realpath(private)]) == real:
                raise WorkdirError(
                    f"{path} contains Otto's own directory {private}",
                    code="refused",
                    mend="work in a project directory, where an agent cannot reach the daemon's files",
                )
        config = os.path.realpath(self._paths.config_home)
        if os.path.commonpath([real, config]) in (real, config):
            # Whoever can write the user's own agents and rules can widen them.
            raise WorkdirError(
                f"{path} and Otto's configuration {config} lie within each other",
                code="refused",
                mend="work in a project directory, where an agent cannot reach your agents and rules",
            )
        return real

    def _finder(self, cwd: str) -> AgentFinder:
        return finder(
            cwd=cwd, config_home=self._paths.config_home, settings=self.settings, known_tools=BUILTIN_TOOL_NAMES
        )

    def _spec(self, request: StartSession, cwd: str, shelf: ToolShelf) -> AgentSpec:
        if request.spec is not None:
            known = (*BUILTIN_TOOL_NAMES, *shelf.names)
            return check_spec(request.spec, known_tools=known, settings=self.settings)
        if not request.agent:
            raise ConfigError("a session needs an agent's name or a spec")
        agents = self._finder(cwd)
        try:
            entry = agents.find(request.agent)
        except ConfigError as error:
            if error.code == "unknown_agent" and WorkflowFinder(agents=agents).has(request.agent):
                error.mend = f'{request.agent} is a workflow: `ottoctl workflow run {request.agent} "what to do"`'
            raise
        if entry.spec is None:
            assert entry.error is not None
            raise entry.error
        return entry.spec

    def _routed(self, task: str, cwd: str, besides: str) -> tuple[AgentSpec, str]:
        """The agent that a task goes to, and why. Raises ConfigError `no_route`, with who comes nearest."""
        found = [entry.spec for entry in self._finder(cwd).entries() if entry.spec is not None]
        agents = {spec.name: spec for spec in found if spec.kind == "agent" and spec.name != besides}
        routing = route(task, tuple(agents.values()))
        if not routing.agent:
            raise unrouted(routing, task, tuple(agents.values()))
        return agents[routing.agent], explained(routing)

    def _as_kept(self, spec: AgentSpec, shelf: ToolShelf) -> AgentSpec:
        """An earlier definition, as far as it may be had now. Raises ConfigError where it does not fit any more."""
        checked = check_spec(spec, known_tools=(*BUILTIN_TOOL_NAMES, *shelf.names), settings=self.settings)
        narrowed, _ = narrow(checked, self.settings)
        return msgspec.structs.replace(narrowed, digest=spec.digest)

    def _check_isolation(self, spec: AgentSpec) -> None:
        """Fails closed: a layer that is required and cannot be given refuses the session."""
        if not any(getattr(spec.isolation, layer) == "required" for layer in GIVEN_BY):
            return
        for missing in missing_layers(spec.isolation, platform_report=self._platform.report()):
            raise RefusedError(
                f"{spec.name} requires the isolation layer {missing.name!r}: {missing.reason}",
                code="isolation_unavailable",
                mend=f"see `ottoctl doctor`, or write `isolation: {{{missing.name}: preferred}}` to run without it",
            )

    def keys(self, targets: tuple[ModelTarget, ...]) -> dict[str, str]:
        """The keys that these models need, by provider. Looked up for every incarnation. Raises OttoError."""
        keys = {}
        for target in targets:
            if target.needs_key:
                keys[target.provider] = api_key(target.provider, self.settings, self._vault.environ)
        self._vault.learn(keys)
        return keys

    def server_secrets(self, plan: SessionPlan) -> ServerSecrets:
        """What the daemon adds for its MCP servers; for each incarnation anew. Raises ConfigError.

        Clients send nothing that looks secret, so what they did not send is the daemon's to give. A project's servers
        get nothing of the daemon's.
        """
        if _is_projects(plan.spec):
            return ServerSecrets()
        environ = self._vault.environ
        headers: dict[str, dict[str, str]] = {}
        env: dict[str, str] = {}
        for server in plan.spec.mcp_servers:
            values = server_secrets(server, self.settings, environ)
            self._vault.learn(values)
            headers[server.name] = server_headers(server, values)
            wanted = [name for name in server.env if "*" not in name and name not in plan.server_env]
            given = {name: named_value(name, self.settings, environ) for name in wanted}
            self._vault.learn(given)
            env |= {name: value for name, value in given.items() if value}
        return ServerSecrets(headers=headers, env=env)

    def sink_grants(self, spec: WorkflowSpec) -> SinkGrants:
        """What its sinks may reach, as the settings are now. A secret that is not there is said, and hinders nobody
        but the sink that wants it."""
        found: dict[str, str] = {}
        missing: dict[str, str] = {}
        for name in sink_secrets(spec):
            try:
                if name not in self.settings.sinks.secrets:
                    raise ConfigError(f"sinks.secrets of otto.yml does not name {name!r}")
                found[name] = self._vault.secret(name)
            except OttoError as error:
                missing[name] = error.message
        access = HttpAccess(hosts=self.settings.sinks.hosts, local=self.settings.sinks.local)
        return SinkGrants(access=access, secrets=found, missing=missing)

    def _server_env(self, offered: Mapping[str, str], spec: AgentSpec) -> dict[str, str]:
        """The client's variables that MCP servers name for themselves."""
        names = {name for server in spec.mcp_servers for name in server.env}
        passed = session_env(offered, self.settings, extra=names) if names else {}
        holds_secret = self._vault.redactor.contains_known
        return {name: value for name, value in passed.items() if matches(name, names) and not holds_secret(value)}

    def _env(self, offered: Mapping[str, str], spec: AgentSpec) -> dict[str, str]:
        """The client's variables that the daemon's allowlist or the agent's own names let through.

        Whatever its name: a variable that holds a key of the daemon's does not pass.

        Raises: RefusedError for too many, and where one does not pass that the session must get.
        """
        if sum(len(k) + len(v) for k, v in offered.items()) > MAX_ENV_BYTES:
            raise RefusedError(f"the environment exceeds {MAX_ENV_BYTES} bytes", code="too_large")
        allowed = session_env(offered, self.settings, extra=spec.env)
        holds_secret = self._vault.redactor.contains_known
        env = {name: value for name, value in allowed.items() if not holds_secret(value)}
        if wanted := offered.get(ENV_WANTED, "").split():
            held = {name for name in wanted if holds_secret(offered.get(name, ""))}
            check_wanted(wanted, env, spec, secret_variables(self.settings) | held)
        return env

    def _make_directory(self, directory: Path) -> None:
        try:
            directory.mkdir(mode=0o700)
        except OSError as error:
            raise StorageError(
                f"cannot create {directory}: {error.strerror}", mend="free some space or check who owns the directory"
            ) from error
