"""How a session is held: its programs through a launcher outside, the worker itself by Landlock.

The order matters. A process under Landlock can mount nothing, so the launcher, which starts bubblewrap, must exist
before the worker gives up its rights; after that the worker can order programs, but only as its agent may have them.
Both happen when a session builds what its first turn needs: until then a worker has handled nothing but its birth,
and a session that is never asked anything pays for neither.

A confined worker reads the system, its Python and what its agent was granted, writes its working directory and its
own session directory, and reaches neither cgroupfs nor the runtime directory's token, the database, the ring or other
sessions' files; it can signal nobody but its own threads. It still connects to root's socket, which needs no right.

Landlock confines the calling thread and the threads it starts. ZeroMQ's, which are older, run none of our code, the
journal's does nothing but force a file to disk; the pool of the loop is replaced by a new one. A kernel that can
confine all threads at once (ABI 8) is asked to.

Source: ADR 0010, landlock(7).
"""

from __future__ import annotations

import asyncio
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ottod
from ottod.core.redaction import Redactor
from ottod.errors import RefusedError
from ottod.isolation import bubblewrap, landlock
from ottod.isolation.launch_config import Confinement, NamedProgram
from ottod.isolation.program_paths import worker_paths
from ottod.isolation.programs import ConfinedPrograms
from ottod.protocol.birth import Birth
from ottod.protocol.specs import McpServer
from ottod.settings.environment import matches
from ottod.sinks.program import ARGV, program_name

MAX_CALL_PROCESSES = 4096
"""For an agent that names no limit of its own: room for any build, none for a fork bomb."""
CERTIFICATE_VARIABLES = ("SSL_CERT_FILE", "SSL_CERT_DIR")


def programs_for(birth: Birth, redactor: Redactor | None = None) -> ConfinedPrograms:
    """The session's programs, with its launcher started. Blocks for milliseconds. Raises OttoError.

    An agent without tools and servers gets no launcher: it starts no program.
    """
    isolation, limits = birth.spec.isolation, birth.spec.limits
    return ConfinedPrograms(
        session=birth.session,
        env=birth.env,
        confinement=Confinement(
            root=birth.cwd,
            tmp_dir=_tmp_dir(birth),
            read_paths=isolation.read_paths,
            write_paths=isolation.write_paths,
            denied_paths=birth.private_dirs,
            files=isolation.files,
            network=isolation.network,
            syscalls=isolation.syscalls,
            bwrap=bubblewrap.find(),
            pids=limits.pids or MAX_CALL_PROCESSES,
            rlimits={"FSIZE": limits.file_bytes} if limits.file_bytes else {},
            named=(
                *(_server_program(birth, server) for server in birth.spec.mcp_servers if server.command),
                *_sink_programs(birth),
            ),
        ),
        redactor=redactor,
        has_launcher=bool(birth.spec.tools or _sink_programs(birth))
        or any(server.command for server in birth.spec.mcp_servers),
    )


def are_confined(birth: Birth) -> bool:
    """Whether programs are held to the working directory, as far as this host gives what that takes.

    Call it before `confine_worker`. Blocks for milliseconds where there is no Landlock.
    """
    return birth.spec.isolation.files != "off" and (landlock.abi() > 0 or not bubblewrap.trial())


def _server_program(birth: Birth, server: McpServer) -> NamedProgram:
    """An MCP server's program, with the variables that it alone gets."""
    own = {name: value for name, value in birth.server_env.items() if matches(name, server.env)}
    return NamedProgram(name=server.name, argv=server.command, env=own, has_network=server.network)


def _sink_programs(birth: Birth) -> tuple[NamedProgram, ...]:
    """The programs of a workflow's sinks that are the user's own: they have the network."""
    sinks = birth.workflow.spec.sinks if birth.workflow is not None else ()
    names = dict.fromkeys(program_name(sink) for sink in sinks if sink.to == "program")
    return tuple(NamedProgram(name=name, argv=ARGV, has_network=True) for name in names)


def confine_worker(birth: Birth) -> str:
    """Confines this process for the rest of its life: empty if done, else why not, in one line.

    Call it on the loop's thread, after `programs_for`. Raises: RefusedError if the session requires confined files.
    """
    if landlock.abi() == 0:
        return "the kernel has no Landlock: the worker keeps its user's rights"
    read, write, devices = worker_paths(
        root=birth.cwd,
        session_dir=birth.session_dir,
        read_paths=(*birth.spec.isolation.read_paths, *_own_files(birth)),
        write_paths=birth.spec.isolation.write_paths,
        denied_paths=birth.private_dirs,
    )
    try:
        ruleset = landlock.Ruleset()
        ruleset.allow_reading(read)
        ruleset.allow_writing(write)
        ruleset.allow_devices(devices)
        ruleset.restrict_self(all_threads=True)
        ruleset.close()
    except OSError as error:
        if birth.spec.isolation.files == "required":
            raise RefusedError(f"the worker cannot be confined: {error.strerror}") from error
        return f"the worker cannot be confined: {error.strerror}"
    # Threads that ran before keep their rights, so none of them may serve a tool.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(thread_name_prefix="confined"))
    os.environ["TMPDIR"] = _tmp_dir(birth)
    return ""


def _tmp_dir(birth: Birth) -> str:
    return os.path.join(birth.session_dir, "tmp")


def _own_files(birth: Birth) -> list[str]:
    """What this process itself reads: its code, scripts that play a model, certificates kept elsewhere."""
    code = [str(Path(ottod.__file__).parent), *(path for path in sys.path if os.path.isabs(path))]
    scripts = [
        target.model for target in birth.models if target.adapter == "scripted" and os.path.isabs(target.model)
    ]
    certificates = [os.environ[name] for name in CERTIFICATE_VARIABLES if os.environ.get(name)]
    return [*code, *scripts, *certificates]
